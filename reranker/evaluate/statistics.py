"""How sure a difference of two systems is: p-values of paired randomisation tests, Holm's correction, means over sets.

In: differences_Q, one value a query, and the cluster of each query. Out: numbers. Queries of one cluster share a
document and are not independent: they are resampled, and change sides, together. So are clusters of one name in several
sets: these may hold the same queries. Where only the name is shared nothing is lost, for what is independent may be
drawn together as well. Pure functions.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import numpy as np

from reranker.evaluate.metrics import Estimate

Sample = tuple[np.ndarray, Sequence[Hashable]]
"""(one value for each query, the cluster of each) of a set."""
DRAWN = 1 << 22
"""Random numbers that are in memory at a time, at most, but for one draw of each cluster."""


def by_cluster(samples: Sequence[Sample]) -> tuple[np.ndarray, np.ndarray]:
    """(sums_SC, counts_SC) of each set's values in each cluster of any set, in the order in which they first come."""
    names = {name: index for index, name in enumerate(dict.fromkeys(name for _, of in samples for name in of))}
    members = [np.array([names[name] for name in clusters]) for _, clusters in samples]
    of_sets = zip(members, samples, strict=True)
    sums_SC = np.array([np.bincount(member_Q, values_Q, len(names)) for member_Q, (values_Q, _) in of_sets])
    return sums_SC, np.array([np.bincount(member_Q, minlength=len(names)) for member_Q in members], np.float64)


def p_value(samples: Sequence[Sample], permutations: int = 10_000, seed: int = 42) -> float:
    """Two-sided p of the paired randomisation test that the mean difference, averaged over the sets, is 0.

    Under the null hypothesis the two systems are one, so that the sign of each cluster's difference is drawn anew.
    All signs are tried where there are no more than `permutations` of them; else the signs as they are found count as
    one of those drawn, so that p is never 0. Smucker, Allan and Carterette, CIKM 2007.
    """
    # Each cluster's part in the mean over the sets: the statistic is their plain sum.
    sums_SC, counts_SC = by_cluster(samples)
    parts_C = (sums_SC / counts_SC.sum(axis=1, keepdims=True)).sum(axis=0) / len(samples)
    parts_C = parts_C[parts_C != 0]  # a sign of nothing changes nothing
    # Equal totals differ in their last bits where they are summed in another order.
    least = abs(parts_C.sum()) - 1e-12 * np.abs(parts_C).sum()
    size = max(1, DRAWN // max(1, len(parts_C)))
    if 2 ** len(parts_C) <= permutations:
        every_RC = np.arange(2 ** len(parts_C))[:, None] >> np.arange(len(parts_C)) & 1
        return float(np.mean(_as_far(every_RC, parts_C, least)))
    generator = np.random.default_rng(seed)
    found = 1
    for start in range(0, permutations, size):
        drawn_RC = generator.integers(2, size=(min(size, permutations - start), len(parts_C)), dtype=np.int8)
        found += int(_as_far(drawn_RC, parts_C, least).sum())
    return found / (permutations + 1)


def _as_far(sides_RC: np.ndarray, parts_C: np.ndarray, least: float) -> np.ndarray:
    """Whether the total is at least so far from 0 where the parts of side 0 change their sign."""
    return np.asarray(np.abs(2 * (sides_RC @ parts_C) - parts_C.sum()) >= least)


def holm(p_values: Sequence[float]) -> list[float]:
    """The p-values corrected for their number, so that the chance of any false one stays at the level.

    Holm, Scandinavian Journal of Statistics 1979: the i-th smallest of m is multiplied by m - i + 1, none comes out
    smaller than one before it, and none above 1.
    """
    corrected = [0.0] * len(p_values)
    largest = 0.0
    for place, index in enumerate(sorted(range(len(p_values)), key=lambda index: p_values[index])):
        largest = max(largest, min(1.0, p_values[index] * (len(p_values) - place)))
        corrected[index] = largest
    return corrected


def estimate_over_sets(samples: Sequence[Sample], resamples: int = 2000, seed: int = 42) -> Estimate:
    """The mean of the sets' means, each set counting alike, with its 95% percentile bootstrap interval.

    Each cluster gets one random weight in all sets that it is in (the Bayesian bootstrap: Rubin, Annals of Statistics
    1981). Drawing clusters with replacement would leave a small set without any where a large one holds it.
    """
    value = float(np.mean([np.mean(values_Q) for values_Q, _ in samples]))
    if all(len(set(clusters)) < 2 or np.ptp(values_Q) == 0 for values_Q, clusters in samples):
        return Estimate(value, value, value)
    sums_SC, counts_SC = by_cluster(samples)
    generator = np.random.default_rng(seed)
    size = max(1, DRAWN // sums_SC.shape[1])
    means = []
    for start in range(0, resamples, size):
        weights_RC = generator.standard_exponential((min(size, resamples - start), sums_SC.shape[1]))
        means.append(np.mean((weights_RC @ sums_SC.T) / (weights_RC @ counts_SC.T), axis=1))
    low, high = np.percentile(np.concatenate(means), [2.5, 97.5])
    return Estimate(value, float(low), float(high))


def told_p(p: float) -> str:
    """A p-value as tables have it. That of a randomisation test is never 0."""
    return "p < 0.001" if p < 0.001 else f"p {p:.3f}"

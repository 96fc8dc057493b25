"""How sure a difference of two systems is: p-values of paired randomisation tests, Holm's correction, means over sets.

In: differences_Q, one value a query, and the cluster of each query. Out: numbers. Queries of one cluster share a
document and are not independent: they are resampled, and change sides, together. Pure functions.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence

import numpy as np

from reranker.evaluate.metrics import Estimate

Sample = tuple[np.ndarray, Sequence[Hashable]]
"""(one value for each query, the cluster of each) of a set."""


def by_cluster(values_Q: np.ndarray, clusters: Sequence[Hashable]) -> tuple[np.ndarray, np.ndarray]:
    """(the sum, the count) of each cluster, in the order in which they first come."""
    names: Mapping[Hashable, int] = {name: index for index, name in enumerate(dict.fromkeys(clusters))}
    member_Q = np.array([names[name] for name in clusters])
    return np.bincount(member_Q, weights=values_Q), np.bincount(member_Q).astype(np.float64)


def p_value(samples: Sequence[Sample], permutations: int = 10_000, seed: int = 42) -> float:
    """Two-sided p of the paired randomisation test that the mean difference, averaged over the sets, is 0.

    Under the null hypothesis the two systems are one, so that the sign of each cluster's difference is drawn anew.
    All signs are tried where there are no more than `permutations` of them. Smucker, Allan and Carterette, CIKM 2007.
    """
    from scipy.stats import permutation_test

    # Each cluster's part in the mean over the sets: the statistic is their plain sum.
    parts_C = np.concatenate(
        [by_cluster(values_Q, clusters)[0] / (len(values_Q) * len(samples)) for values_Q, clusters in samples]
    )
    parts_C = parts_C[parts_C != 0]  # a sign of nothing changes nothing
    if not len(parts_C):
        return 1.0

    def total(parts: np.ndarray, axis: int = -1) -> np.ndarray:
        return np.asarray(parts.sum(axis=axis))

    if len(parts_C) == 1:
        return 1.0  # its only two signs are equally far from 0
    result = permutation_test(
        (parts_C,), total, permutation_type="samples", vectorized=True, n_resamples=permutations, batch=500,
        alternative="two-sided", random_state=np.random.default_rng(seed),
    )  # fmt: skip
    return min(1.0, float(result.pvalue))


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

    The clusters of each set are resampled within it.
    """
    value = float(np.mean([np.mean(values_Q) for values_Q, _ in samples]))
    if all(len(set(clusters)) < 2 or np.ptp(values_Q) == 0 for values_Q, clusters in samples):
        return Estimate(value, value, value)
    generator = np.random.default_rng(seed)
    means_R = np.zeros(resamples)
    for values_Q, clusters in samples:
        sums_C, counts_C = by_cluster(values_Q, clusters)
        for start in range(0, resamples, 500):
            drawn = generator.integers(len(sums_C), size=(min(500, resamples - start), len(sums_C)))
            means_R[start : start + 500] += sums_C[drawn].sum(axis=1) / counts_C[drawn].sum(axis=1) / len(samples)
    low, high = np.percentile(means_R, [2.5, 97.5])
    return Estimate(value, float(low), float(high))

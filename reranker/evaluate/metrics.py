"""Rankings and relevance judgements -> metrics of each query -> an estimate with its interval.

In: for each query the passages in order and those that are relevant, or the grades of those that are judged. Out:
`Estimate`s, the mean over the queries with a 95% interval. The measures are in `measures.py`. Pure functions; a tie is
always broken against the system under test.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np

from reranker.evaluate.measures import Judged, grades_of, measure

METRICS = ("has_right_in_contexts", "mrr", "ndcg@10")


@dataclass(frozen=True)
class Estimate:
    """A mean over queries and the two ends of its 95% interval."""

    value: float
    low: float
    high: float

    def to_dict(self) -> dict[str, float]:
        return asdict(self)


def ranking(passage_ids: Sequence[str], scores: Sequence[float] | np.ndarray, judged: Judged) -> list[str]:
    """The passages by falling score. Among equal scores the relevant ones come last, the more relevant the later.

    So a model that scores everything alike gets the worst rank and not the order in which the first stage
    handed the passages over. Raises ValueError for a score that is NaN.
    """
    values = np.asarray(scores, dtype=np.float64)
    if (lost := np.isnan(values)).any():
        raise ValueError(f"the score of passage {passage_ids[int(lost.argmax())]!r} is NaN: no rank fits it")
    grades = grades_of(judged)
    pairs = zip(passage_ids, values, strict=True)
    return [passage for passage, _ in sorted(pairs, key=lambda pair: (-pair[1], max(grades.get(pair[0], 0), 0)))]


def rank_of_right(ranked: Sequence[str], judged: Judged) -> int | None:
    """The rank, from 1, of the first relevant passage; None if there is none among the ranked."""
    grades = grades_of(judged)
    return next((rank for rank, passage in enumerate(ranked, 1) if grades.get(passage, 0) > 0), None)


def per_query(
    rankings: Sequence[Sequence[str]],
    judged: Sequence[Judged],
    contexts: int,
    metrics: Sequence[str] = METRICS,
    text_of: Callable[[str], str] = str,
) -> dict[str, np.ndarray]:
    """{metric: values_Q} of Q queries, each with its ranked passages, best first, and its relevant ones.

    - has_right_in_contexts = 1 if the right passage, or one marked equivalent to it, is among the first k
      ranked, else 0, with k = `contexts`, the passages that are handed on. (Success@k.) Its mean is
      |{queries with a relevant passage in the first k}| / |queries|.
    - mrr: 1 / rank of the first relevant passage, 0 if it is not among those ranked. (RR.)
    - ndcg@10: the grades as gains, the ideal being all judged passages in the best order. (nDCG@10.)
    - or any other that `measures.measure` knows, some of which want the text of an id. Raises UserError for one that
      it does not.
    """
    return {
        name: np.array(
            [of.of(ranked, wanted, text_of) for ranked, wanted in zip(rankings, judged, strict=True)], np.float64
        )
        for name, of in ((name, measure(name, contexts)) for name in metrics)
    }


def estimate(values_Q: np.ndarray, clusters: Sequence[Hashable], resamples: int = 2000, seed: int = 42) -> Estimate:
    """The mean of one value a query, with the 95% interval of the percentile bootstrap.

    Queries of one cluster (that share a document) are drawn together, as their values are not independent:
    each resample is the ratio of the clusters' sums to their counts. With a single cluster, or equal values
    throughout, there is nothing to resample and low = high = value.
    """
    from scipy.stats import bootstrap

    value = float(np.mean(values_Q))
    names: Mapping[Hashable, int] = {name: index for index, name in enumerate(dict.fromkeys(clusters))}
    member_Q = np.array([names[name] for name in clusters])
    sums_C = np.bincount(member_Q, weights=values_Q)
    counts_C = np.bincount(member_Q).astype(np.float64)
    if len(names) < 2 or np.ptp(values_Q) == 0:
        return Estimate(value, value, value)

    def ratio(sums: np.ndarray, counts: np.ndarray, axis: int = -1) -> np.ndarray:
        return np.asarray(sums.sum(axis=axis) / counts.sum(axis=axis))

    result = bootstrap(
        (sums_C, counts_C), ratio, paired=True, vectorized=True, n_resamples=resamples, batch=500,
        confidence_level=0.95, method="percentile", random_state=np.random.default_rng(seed),
    )  # fmt: skip
    return Estimate(value, float(result.confidence_interval.low), float(result.confidence_interval.high))


def estimate_difference(
    ours_Q: np.ndarray, theirs_Q: np.ndarray, clusters: Sequence[Hashable], resamples: int = 2000, seed: int = 42
) -> Estimate:
    """The mean paired difference of two systems on the same queries, ours minus theirs."""
    return estimate(ours_Q - theirs_Q, clusters, resamples, seed)

"""What came out of one set at one depth: the ranking of every system, and its metrics for each query.

In: candidates and scores. Out: frozen `Outcome`s, from which tables, statistics and the file of queries are made.
Pure functions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from reranker.evaluate.metrics import per_query
from reranker.evaluate.rank import Passage, Query, fuse, rank_by_scores
from reranker.evaluate.statistics import Sample
from reranker.evaluate.systems import TUNED

WITHOUT, FUSED = "without-reranker", "fused"


@dataclass(frozen=True)
class Outcome:
    """One set at one depth.

    Attributes:
        name: of the set. depth: passages reranked; None: all that a set came with.
        candidates: of each query, as the first stage ordered them. passages: how many it searched.
        scores: {system: the scores of each query's candidates} of those that score.
        rankings: {system: the ranked candidates of each query}, in the order of the table's rows.
        values: {system: {metric: values_Q}}.
        latency: {system: seconds a query}, where it was measured.
    """

    name: str
    depth: int | None
    queries: Sequence[Query]
    passages: int
    candidates: Sequence[Sequence[str]]
    scores: Mapping[str, Sequence[Sequence[float]]]
    rankings: Mapping[str, Sequence[Sequence[str]]]
    values: Mapping[str, Mapping[str, np.ndarray]]
    latency: Mapping[str, dict[str, float]]

    @property
    def clusters(self) -> list[str]:
        return [query.cluster for query in self.queries]

    def sample(self, system: str, metric: str) -> Sample:
        """The values of a system, with the clusters."""
        return self.values[system][metric], self.clusters

    def difference(self, ours: str, theirs: str, metric: str) -> Sample:
        """The paired differences of two systems."""
        return self.values[ours][metric] - self.values[theirs][metric], self.clusters


def outcome(
    name: str, depth: int | None, queries: Sequence[Query], texts: Mapping[str, Passage], passages: int,
    candidates: Sequence[Sequence[str]], scores: Mapping[str, Sequence[Sequence[float]]],
    metrics: Sequence[str], contexts: int, latency: Mapping[str, dict[str, float]],
) -> Outcome:  # fmt: skip
    """The outcome of a set of so many passages, with the texts of those that its queries name.

    At a lower depth the scores are those that are there: a pair's depends on no other.
    """
    candidates = [names[:depth] for names in candidates]
    scores = {system: [values[:depth] for values in of] for system, of in scores.items()}
    ranked = {system: rank_by_scores(queries, candidates, of) for system, of in scores.items()}
    rankings: dict[str, Sequence[Sequence[str]]] = dict(ranked)
    if depth is not None:  # what comes with its candidates has no first stage that could be a system
        rankings = {WITHOUT: candidates}
        for system, of in ranked.items():
            rankings[system] = of
            if system == TUNED:
                both = zip(queries, candidates, of, strict=True)
                rankings[FUSED] = [fuse((first, tuned), query.judged) for query, first, tuned in both]
    judged = [query.judged for query in queries]
    values = {
        system: per_query(
            of, judged, contexts, metrics, lambda passage: texts[passage].text if passage in texts else ""
        )
        for system, of in rankings.items()
    }
    return Outcome(name, depth, queries, passages, candidates, scores, rankings, values, latency)

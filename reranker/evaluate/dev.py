"""The dev groups of a training, scored on all ranks -> one set of metrics, alike on every rank.

In: a groups file; the engine's forward. Out: mrr, ndcg@10 and has_right_in_contexts over each query's positives
and negatives, and a few of the queries with their passages as they were ranked. How the ranks share the pairs is in
`shared.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from reranker.data.tokenize import PairTokenizer
from reranker.errors import UserError
from reranker.evaluate.metrics import METRICS, per_query, ranking
from reranker.evaluate.shared import Gather, Score, SharedScorer
from reranker.groups import Group, read_groups
from reranker.train.examples import Example, chosen, example

CONTEXTS = 5


class DevEvaluator:
    """Evaluates a model in training on a groups file.

    Args:
        path: groups, one a line.
        tokenizer: the training's own.
        batch_tokens: tokens of a forward batch at most, padding included where there is any.
        examples: queries that are handed back with their passages.

    Raises UserError for a file that is not there or holds a line that is no group.
    """

    def __init__(self, path: str | Path, tokenizer: PairTokenizer, batch_tokens: int = 4096, examples: int = 0) -> None:
        self.path = str(path)
        self._groups = list(read_groups(path))
        self._chosen = chosen([group.prompted_query for group in self._groups], examples)
        texts = [(group.prompted_query, (*group.pos, *group.neg)) for group in self._groups]
        self._scorer = SharedScorer(texts, tokenizer, batch_tokens)

    @property
    def queries(self) -> int:
        return len(self._groups)

    def evaluate(
        self, score: Score, rank: int, world: int, gather: Gather, device: torch.device, packed: bool
    ) -> tuple[dict[str, float], list[Example]]:
        """({"mrr", "ndcg@10", "has_right_in_contexts"} (5 contexts), the examples), the same on every rank.

        A collective call: every rank makes it. `score(pairs)` gives scores_N; `gather` returns the lists of all
        ranks on every rank; `packed` says that the forward computes no padding. Raises UserError on every rank if a
        score is not finite.
        """
        scores_N = self._scorer.scores(score, rank, world, gather, device, packed)
        values_QM, ranked, scores = _results(self._groups, scores_N)
        if len(bad := np.flatnonzero(np.isnan(values_QM[:, 0]))):
            lost = f"scores that are not finite for {len(bad)} queries, the first being number {bad[0] + 1}"
            error = UserError(self.path, lost, "numbers", "lower optim.lr or say precision=bf16 or fp32")
            error.agreed = True  # every rank raises it: one tells
            raise error
        metrics = {metric: float(value) for metric, value in zip(METRICS, values_QM.mean(axis=0), strict=True)}
        shown = [example(query, self._groups[query], ranked[query], scores[query]) for query in sorted(self._chosen)]
        return metrics, shown


def _results(groups: Sequence[Group], scores_N: np.ndarray) -> tuple[np.ndarray, list[list[int]], list[list[float]]]:
    """(values_QM, passages by falling score, scores) of each group; values are NaN where a score is not finite."""
    rankings, relevant, lost, scores = [], [], [], []
    start = 0
    for group in groups:
        names = [str(place) for place in range(len(group.pos) + len(group.neg))]
        own = scores_N[start : start + len(names)]
        scores.append(own.tolist())
        start += len(names)
        lost.append(not np.isfinite(own).all())
        relevant.append(names[: len(group.pos)])
        rankings.append(ranking(names, np.where(np.isfinite(own), own, 0.0), relevant[-1]))
    values = per_query(rankings, relevant, CONTEXTS)
    values_QM = np.stack([values[metric] for metric in METRICS], axis=1)
    values_QM[lost] = np.nan
    return values_QM, [[int(name) for name in ranked] for ranked in rankings], scores

"""The dev groups of a training, scored on all ranks -> one set of metrics, alike on every rank.

In: a groups file; the engine's forward. Out: mrr, ndcg@10 and has_right_in_contexts over each query's positives
and negatives, and a few of the queries with their passages as they were ranked. The queries are split over the
ranks, and every rank calls the forward equally often: under ZeRO-3 each forward is a collective, and one call too
many would wait for ever.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from reranker.data.collate import PackedPairs, pack_pairs
from reranker.data.tokenize import Pair, PairTokenizer
from reranker.errors import UserError
from reranker.evaluate.metrics import METRICS, per_query, ranking
from reranker.groups import Group, read_groups
from reranker.model.reranker import batches_by_tokens
from reranker.train.examples import Example, chosen, example

CONTEXTS = 5

Score = Callable[[PackedPairs], torch.Tensor]
Gather = Callable[[list[Any]], list[list[Any]]]


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
        self._tokenizer = tokenizer
        self._batch_tokens = batch_tokens
        self._chosen = chosen([group.prompted_query for group in self._groups], examples)
        self._encoded: dict[tuple[int, int], list[list[Pair]]] = {}

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
        mine = range(rank, self.queries, world)
        pairs = [pair for group in self._share(rank, world) for pair in group]
        batches = batches_by_tokens([len(pair.ids) for pair in pairs], self._batch_tokens, packed)
        calls = max(count for (count,) in gather([len(batches)]))
        scores_N = np.empty(len(pairs))
        for call in range(calls):
            if call < len(batches):
                batch = batches[call]
                scores_N[batch] = _forward(score, [pairs[index] for index in batch], self._tokenizer.pad_id, device)
            else:
                _forward(score, [Pair([self._tokenizer.pad_id], [0])], self._tokenizer.pad_id, device)
        # Each row is (query, *its metrics): sorted, the mean is the same sum on every rank and world size.
        rows, examples = [], []
        for query, values, ranked, scores in zip(mine, *_results(self._groups[rank::world], scores_N), strict=True):
            rows.append((query, *values))
            if query in self._chosen:
                examples.append(example(query, self._groups[query], ranked, scores))
        results = sorted((row for share in gather(rows) for row in share), key=lambda row: row[0])
        assert [row[0] for row in results] == list(range(self.queries))
        values_QM = np.array([row[1:] for row in results])
        if bad := [row[0] for row in results if np.isnan(row[1])]:
            found = f"scores that are not finite for {len(bad)} queries, the first being number {bad[0] + 1}"
            error = UserError(self.path, found, "numbers", "lower optim.lr or say precision=bf16 or fp32")
            error.agreed = True  # every rank raises it: one tells
            raise error
        metrics = {metric: float(value) for metric, value in zip(METRICS, values_QM.mean(axis=0), strict=True)}
        shown = [one for share in gather(examples) for one in share] if self._chosen else []
        return metrics, sorted(shown, key=lambda one: one.number)

    def _share(self, rank: int, world: int) -> list[list[Pair]]:
        """The tokenized groups of a rank, made once."""
        if (rank, world) not in self._encoded:
            self._encoded[rank, world] = [
                self._tokenizer.encode(group.prompted_query, [*group.pos, *group.neg])
                for group in self._groups[rank::world]
            ]
        return self._encoded[rank, world]


def _forward(score: Score, batch: list[Pair], pad_id: int, device: torch.device) -> np.ndarray:
    with torch.no_grad():
        scores_N: np.ndarray = score(pack_pairs(batch, pad_id).to(device)).detach().float().cpu().numpy()
    return scores_N


def _results(
    groups: Sequence[Group], scores_N: np.ndarray
) -> tuple[list[tuple[float, ...]], list[list[int]], list[list[float]]]:
    """(metrics, passages by falling score, scores) of each group; metrics are NaN where a score is not finite, so that
    all ranks hear of it."""
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
    metrics = [tuple(float(value) for value in row) for row in values_QM]
    return metrics, [[int(name) for name in ranked] for ranked in rankings], scores

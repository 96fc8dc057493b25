"""The dev groups of a training, scored on all ranks -> one set of metrics, alike on every rank.

In: a groups file; the engine's forward. Out: mrr, ndcg@10 and has_right_in_contexts over each query's positives
and negatives, and a few of the queries with their passages as they were ranked. The batches are those of one rank,
whatever their number, and go round; every rank calls the forward equally often: under ZeRO-3 each forward is a
collective, and one call too many would wait for ever.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from reranker.data.collate import PackedPairs, pack_pairs
from reranker.data.tokenize import Pair, PairTokenizer
from reranker.errors import UserError
from reranker.evaluate.crew import deal
from reranker.evaluate.metrics import METRICS, per_query, ranking
from reranker.groups import Group, read_groups
from reranker.model.reranker import batches_by_tokens
from reranker.train.examples import Example, chosen, example

CONTEXTS = 5

Score = Callable[[PackedPairs], torch.Tensor]
Gather = Callable[[list[Any]], list[list[Any]]]


@dataclass(frozen=True)
class Share:
    """What a rank scores.

    Attributes:
        batches: the indices of the pairs of each batch, and their tokens.
        calls: forwards that every rank makes. pairs: of all ranks together.
    """

    batches: list[tuple[list[int], list[Pair]]]
    calls: int
    pairs: int


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
        self._shares: dict[tuple[int, int, bool], Share] = {}

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
        share = self._share(rank, world, gather, packed)
        found: list[tuple[list[int], np.ndarray]] = []
        for call in range(share.calls):
            if call < len(share.batches):
                indices, pairs = share.batches[call]
                found.append((indices, _forward(score, pairs, self._tokenizer.pad_id, device)))
            else:
                _forward(score, [Pair([self._tokenizer.pad_id], [0])], self._tokenizer.pad_id, device)
        scores_N, times_N = np.empty(share.pairs), np.zeros(share.pairs, dtype=np.int64)
        for indices, values in (item for of_rank in gather(found) for item in of_rank):
            scores_N[indices] = values
            times_N[indices] += 1
        assert (times_N == 1).all(), "a pair that was scored by no rank, or by two"
        values_QM, ranked, scores = _results(self._groups, scores_N)
        if len(bad := np.flatnonzero(np.isnan(values_QM[:, 0]))):
            lost = f"scores that are not finite for {len(bad)} queries, the first being number {bad[0] + 1}"
            error = UserError(self.path, lost, "numbers", "lower optim.lr or say precision=bf16 or fp32")
            error.agreed = True  # every rank raises it: one tells
            raise error
        metrics = {metric: float(value) for metric, value in zip(METRICS, values_QM.mean(axis=0), strict=True)}
        shown = [example(query, self._groups[query], ranked[query], scores[query]) for query in sorted(self._chosen)]
        return metrics, shown

    def _share(self, rank: int, world: int, gather: Gather, packed: bool) -> Share:
        """The tokenized batches of a rank, made once. A collective call when they are made."""
        if (rank, world, packed) not in self._shares:
            # Each rank counts the tokens of its part of the queries, and all plan the same batches of all.
            first, last = (self.queries * place // world for place in (rank, rank + 1))
            lengths = [len(pair.ids) for group in self._groups[first:last] for pair in self._encode(group)]
            lengths = [length for of_rank in gather(lengths) for length in of_rank]
            batches = batches_by_tokens(lengths, self._batch_tokens, packed)
            mine = deal(batches, rank, world)
            wanted = {index for batch in mine for index in batch}
            tokens: dict[int, Pair] = {}
            start = 0
            for group in self._groups:
                places = range(start, start := start + len(group.pos) + len(group.neg))
                if not wanted.isdisjoint(places):
                    tokens |= zip(places, self._encode(group), strict=True)
            held = [(batch, [tokens[index] for index in batch]) for batch in mine]
            self._shares[rank, world, packed] = Share(held, -(-len(batches) // world), len(lengths))
        return self._shares[rank, world, packed]

    def _encode(self, group: Group) -> list[Pair]:
        return self._tokenizer.encode(group.prompted_query, [*group.pos, *group.neg])


def _forward(score: Score, batch: list[Pair], pad_id: int, device: torch.device) -> np.ndarray:
    with torch.no_grad():
        scores_N: np.ndarray = score(pack_pairs(batch, pad_id).to(device)).detach().float().cpu().numpy()
    return scores_N


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

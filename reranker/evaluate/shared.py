"""The pairs of queries with their passages, scored on all ranks -> their scores, alike on every rank.

In: texts; the forward of a model. Out: scores_N. The batches are those of one rank, whatever their number, and go
round; every rank calls the forward equally often: under ZeRO-3 each forward is a collective, and one call too many
would wait for ever.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from reranker.data.collate import PackedPairs, pack_pairs
from reranker.data.tokenize import Pair, PairTokenizer
from reranker.evaluate.crew import deal
from reranker.model.reranker import batches_by_tokens

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


class SharedScorer:
    """Scores the same pairs with a model again and again.

    Args:
        texts: (query, its passages) of each query, in the order of the scores.
        batch_tokens: tokens of a forward batch at most, padding included where there is any.
    """

    def __init__(
        self, texts: Sequence[tuple[str, Sequence[str]]], tokenizer: PairTokenizer, batch_tokens: int = 4096
    ) -> None:
        self._texts, self._tokenizer, self._batch_tokens = texts, tokenizer, batch_tokens
        self._shares: dict[tuple[int, int, bool], Share] = {}

    def scores(
        self, score: Score, rank: int, world: int, gather: Gather, device: torch.device, packed: bool
    ) -> np.ndarray:
        """scores_N, the same on every rank; what is not finite stays so. A collective call: every rank makes it.

        `score(pairs)` gives scores_N; `gather` returns the lists of all ranks on every rank; `packed` says that the
        forward computes no padding.
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
        return scores_N

    def _share(self, rank: int, world: int, gather: Gather, packed: bool) -> Share:
        """The tokenized batches of a rank, made once. A collective call when they are made."""
        if (rank, world, packed) not in self._shares:
            # Each rank counts the tokens of its part of the queries, and all plan the same batches of all.
            first, last = (len(self._texts) * place // world for place in (rank, rank + 1))
            lengths = [len(pair.ids) for text in self._texts[first:last] for pair in self._tokenizer.encode(*text)]
            lengths = [length for of_rank in gather(lengths) for length in of_rank]
            batches = batches_by_tokens(lengths, self._batch_tokens, packed)
            mine = deal(batches, rank, world)
            wanted = {index for batch in mine for index in batch}
            tokens: dict[int, Pair] = {}
            start = 0
            for text in self._texts:
                places = range(start, start := start + len(text[1]))
                if not wanted.isdisjoint(places):
                    tokens |= zip(places, self._tokenizer.encode(*text), strict=True)
            held = [(batch, [tokens[index] for index in batch]) for batch in mine]
            self._shares[rank, world, packed] = Share(held, -(-len(batches) // world), len(lengths))
        return self._shares[rank, world, packed]


def _forward(score: Score, batch: list[Pair], pad_id: int, device: torch.device) -> np.ndarray:
    with torch.no_grad():
        scores_N: np.ndarray = score(pack_pairs(batch, pad_id).to(device)).detach().float().cpu().numpy()
    return scores_N

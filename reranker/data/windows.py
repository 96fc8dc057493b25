"""A passage that is too long for one pair -> windows of its tokens, each paired with the same query.

    tokens of the passage   prefix | t0 t1 t2 ...                                         ... tn
    window 0                prefix | t0 ........ ts        the pair as truncation makes it, to the last token
    window 1                prefix |        .............
    the last one            prefix |                              ................ tn

In: texts, and the tokenizer with its contract. Out: for each passage its windows, pairs that are made when they are
asked for. The query is in each of them as the contract cuts it in this pair; every token of the passage is in one
window at least; all windows of a passage have the same number of tokens. A passage of which nothing is cut has one
window. No text is tokenized twice: a window is a slice of the passage's token ids.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import overload

import numpy as np

from reranker.data.tokenize import Pair, PairTokenizer, Uncut


@dataclass(frozen=True)
class Windows(Sequence[Pair]):
    """The windows of one passage.

    Attributes:
        first: the first of them.
        start, end: where the tokens that differ stand in each.
        tokens_T: all of these tokens (int32), in the passage's order; of a passage of one window none are kept.
        starts: where in tokens_T each window begins.
    """

    first: Pair
    start: int = 0
    end: int = 0
    tokens_T: np.ndarray | None = None
    starts: tuple[int, ...] = (0,)

    @classmethod
    def of(cls, uncut: Uncut, overlap: int) -> Windows:
        """The windows of a pair; neighbours share `overlap` tokens, or more, but never more than half of a window."""
        kept = uncut.end - uncut.start
        if kept == len(uncut.tokens_T):
            return cls(uncut.pair)
        prefix = min(uncut.prefix, kept - 1)  # of the text a window has one token at least
        tokens_T = uncut.tokens_T[prefix:]
        starts = window_starts(len(tokens_T), kept - prefix, overlap)
        return cls(uncut.pair, uncut.start + prefix, uncut.end, tokens_T, starts)

    def __len__(self) -> int:
        return len(self.starts)

    @overload
    def __getitem__(self, number: int) -> Pair: ...
    @overload
    def __getitem__(self, number: slice) -> list[Pair]: ...
    def __getitem__(self, number: int | slice) -> Pair | list[Pair]:
        if isinstance(number, slice):
            return [self[one] for one in range(len(self))[number]]
        start = self.starts[number]
        if self.tokens_T is None or not start:
            return self.first
        tokens = self.tokens_T[start : start + self.end - self.start].tolist()
        return Pair([*self.first.ids[: self.start], *tokens, *self.first.ids[self.end :]], self.first.types)


def windows_of(tokenizer: PairTokenizer, query: str, passages: Sequence[str], overlap: int) -> Iterator[Windows]:
    """The windows of each passage with the query."""
    for uncut in tokenizer.encode_uncut(query, passages):
        yield Windows.of(uncut, overlap)


def window_starts(tokens: int, size: int, overlap: int) -> tuple[int, ...]:
    """Where the windows of `size` tokens begin that cover all of `tokens`. A pure function.

    They are as few as will do and spread evenly, the last one ending with the last token: no window is shorter than
    the others, as a score of a few tokens would mean little. Neighbours share `overlap` tokens, or more, but at most
    half of a window are asked of them.
    """
    assert size >= 1, "a window without a token"
    behind = tokens - size
    if behind <= 0:
        return (0,)
    steps = -(-behind // (size - min(overlap, size // 2)))
    return tuple(behind * number // steps for number in range(steps + 1))

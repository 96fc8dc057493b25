"""The windows of many pairs, one after another, and what becomes of their scores.

In: of each pair how many windows it has and how long they are, alike on every rank. Out: the windows as one list that
batches are made of, and from the scores of all of them one score of each pair. Pure functions of numbers.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence, Sized
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from reranker.errors import UserError

TRUNCATE, WINDOWS = "truncate", "windows"
PORTION = 8192
"""Pairs that are tokenized and sorted by length at a time: bounds the memory of a long list."""
W = TypeVar("W", bound=Sized)


@dataclass(frozen=True)
class Long:
    """What becomes of a passage that is too long for one pair.

    Attributes:
        how: "truncate": what is too much is cut; "windows": all of it is scored, window by window.
        overlap: tokens that neighbouring windows share, half of a window at most.
        best: the score of a passage is the mean of so many windows, those of the highest scores; 1: the maximum.

    Raises UserError.
    """

    how: str = TRUNCATE
    overlap: int = 64
    best: int = 1

    def __post_init__(self) -> None:
        if self.how not in (TRUNCATE, WINDOWS):
            raise UserError("long", self.how, f"{TRUNCATE} or {WINDOWS}", "change the value")
        if self.overlap < 0:
            raise UserError("window_overlap", str(self.overlap), "0 or more", "change the value")
        if self.best < 1:
            raise UserError("window_best", str(self.best), "1 or more", "change the value")

    @property
    def windows(self) -> bool:
        return self.how == WINDOWS


Sizes = Sequence[tuple[int, int]]
"""Of each pair: windows, and tokens of each of them."""


def sizes_of(windows: Sequence[Sequence[Sized]]) -> list[tuple[int, int]]:
    return [(len(of_pair), len(of_pair[0])) for of_pair in windows]


class Whole(ABC):
    """For what scores each pair as a whole, whatever it makes of it: `encode` gives one thing a pair."""

    long = Long()

    @abstractmethod
    def encode(self, pairs: Sequence[tuple[str, str]]) -> Sequence[Sized]: ...

    def portions(self, pairs: Sequence[tuple[str, str]]) -> Iterator[tuple[int, int]]:
        """(first, behind the last) of the pairs that are sorted by length together."""
        return ((start, min(start + PORTION, len(pairs))) for start in range(0, len(pairs), PORTION))

    def windows(self, pairs: Sequence[tuple[str, str]]) -> list[tuple[Sized]]:
        """The one window of each pair."""
        return [(one,) for one in self.encode(pairs)]


class Layout:
    """The windows of all pairs in their order: W windows of N pairs.

    Attributes:
        lengths: tokens of each window.
    """

    def __init__(self, sizes: Sizes) -> None:
        counts_N = np.array([count for count, _ in sizes], dtype=np.int64)
        self._firsts_N = np.cumsum(counts_N) - counts_N
        self._pairs_W = np.repeat(np.arange(len(sizes)), counts_N)
        self.lengths: list[int] = np.repeat([length for _, length in sizes], counts_N).tolist()

    def pairs_of(self, places: Sequence[int]) -> list[int]:
        """The pairs that windows at these places belong to, each once, in order."""
        found: list[int] = np.unique(self._pairs_W[list(places)]).tolist()
        return found

    def pick(self, windows: Sequence[Sequence[W]] | Mapping[int, Sequence[W]], places: Sequence[int]) -> list[W]:
        """The windows at these places, of those of each pair."""
        pairs = self._pairs_W[list(places)].tolist()
        return [
            windows[pair][place - int(self._firsts_N[pair])] for pair, place in zip(pairs, places, strict=True)
        ]  # fmt: skip

    def begun(self, places: Sequence[int]) -> int:
        """How many pairs have their first window at one of these places: over all batches each pair counts once."""
        own = self._pairs_W[list(places)]
        return int((self._firsts_N[own] == np.array(places)).sum())

    def scores(self, values_W: np.ndarray, best: int = 1) -> np.ndarray:
        """scores_N (float32) of the pairs: of the scores of a pair's windows the mean of the `best` highest.

        A score that is not finite makes that of its pair NaN: no other window hides it.
        """
        if not len(self._firsts_N):
            return np.empty(0, dtype=np.float32)
        values_W = np.where(np.isfinite(values_W), values_W, np.float32(np.nan))
        if best == 1:
            maxima_N: np.ndarray = np.maximum.reduceat(values_W, self._firsts_N)
            return maxima_N
        # NaN is sorted behind all numbers: it is always among the best.
        of_pairs = np.split(values_W, self._firsts_N[1:])
        return np.array([np.sort(of_pair)[-best:].mean(dtype=np.float64) for of_pair in of_pairs], dtype=np.float32)

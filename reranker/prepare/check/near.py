"""Texts that are nearly those of an evaluation set: the exact join of sets of character sequences by Jaccard.

In: the texts of an evaluation set; then texts that must not be among them. Out: for each the evaluation text whose set
of sequences of five characters (case, width and white space aside) is the most like, if the Jaccard similarity is at
least the threshold. Nothing is estimated: a text can only be that near if so many of its sequences occur in the
evaluation set at all, which a table tells first, and if it shares some of its rarest ones (prefix filtering: Chaudhuri
et al., "A primitive operator for similarity joins", ICDE 2006); what is left is compared.
MinHash (Broder, 1997) would miss some.
"""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Sequence

import numpy as np

WIDTH = 5
_FACTORS = np.array([0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9, 0xD6E8FEB86659FD93,
                     0xFF51AFD7ED558CCD], dtype=np.uint64)  # fmt: skip
_BITS = 24
_SLACK = 1e-9


def sequences(texts: Sequence[str]) -> list[np.ndarray]:
    """The distinct hashes of each text's sequences, u64, sorted; none for a text shorter than a sequence."""
    folded = [" ".join(unicodedata.normalize("NFKC", text).casefold().split()) for text in texts]
    codes = np.frombuffer("".join(folded).encode("utf-32-le", "surrogatepass"), dtype=np.uint32).astype(np.uint64)
    if len(codes) < WIDTH:
        return [np.zeros(0, dtype=np.uint64) for _ in texts]
    count = len(codes) - WIDTH + 1
    hashes = np.zeros(count, dtype=np.uint64)
    for place, factor in enumerate(_FACTORS):
        hashes ^= (codes[place : place + count] + np.uint64(place + 1)) * factor
        hashes *= np.uint64(0x9FB21C651E98DF25)
        hashes ^= hashes >> np.uint64(29)
    found, start = [], 0
    for text in folded:
        found.append(np.unique(hashes[start : max(start, start + len(text) - WIDTH + 1)]))
        start += len(text)
    return found


class Near:
    """The texts to be compared with. Memory: some 30 bytes for each of their characters."""

    def __init__(self, texts: Sequence[str], threshold: float) -> None:
        sets = sequences(texts)
        self.threshold = threshold
        self._sets = sets
        everything = np.concatenate(sets) if sets else np.zeros(0, dtype=np.uint64)
        owners = np.repeat(np.arange(len(sets), dtype=np.int32), [len(of) for of in sets])
        order = np.argsort(everything, kind="stable")
        self._owners = owners[order]
        self._known, first = np.unique(everything[order], return_index=True)
        self._first = np.append(first, len(everything))
        # Sixteen places for each known sequence: one in sixteen of the others passes for known.
        bits = min(_BITS, max(10, len(self._known).bit_length() + 4))
        self._shift = np.uint64(64 - bits)
        self._table = np.zeros(1 << bits, dtype=bool)
        self._table[self._known >> self._shift] = True

    def find(self, texts: Sequence[str]) -> list[tuple[int, float] | None]:
        """(index of the evaluation text, similarity) of the nearest one of each text, or None."""
        return [self._nearest(of) for of in sequences(texts)]

    def _nearest(self, of: np.ndarray) -> tuple[int, float] | None:
        if not len(of) or not len(self._known):
            return None
        least = max(1, math.ceil(self.threshold * len(of) - _SLACK))
        perhaps = of[self._table[of >> self._shift]]
        if len(perhaps) < least:
            return None
        places = np.minimum(np.searchsorted(self._known, perhaps), len(self._known) - 1)
        places = places[self._known[places] == perhaps]
        if len(places) < least:
            return None
        # A text that is near shares all but `others` of these sequences, so some of any `others` + 1 of them: of the
        # rarest, which few texts share, a few more are taken, and a text must share so many of those.
        others = len(places) - least
        taken = min(len(places), others + max(1, least // 8))
        counts = self._first[places + 1] - self._first[places]
        rarest = places[np.argpartition(counts, taken - 1)[:taken]]
        lists = [self._owners[self._first[place] : self._first[place + 1]] for place in rarest.tolist()]
        texts, shared = np.unique(np.concatenate(lists), return_counts=True)
        best: tuple[int, float] | None = None
        for text in texts[shared >= taken - others].tolist():
            common = len(np.intersect1d(of, self._sets[text], assume_unique=True))
            likeness = common / (len(of) + len(self._sets[text]) - common)
            if likeness >= self.threshold - _SLACK and (best is None or likeness > best[1]):
                best = (text, likeness)
        return best

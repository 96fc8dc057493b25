"""How much two passages are the same text: the Jaccard similarity of their character trigrams.

Broder, 1997, "On the resemblance and containment of documents", with characters for words: Korean endings and
spacing vary where the text does not. A group's few positives are compared with its few candidates, exactly: there is
no need for MinHash.
"""

from __future__ import annotations

import re
import unicodedata

_NOT_WORD = re.compile(r"[\W_]+")
LENGTH = 3


def shingles(text: str) -> frozenset[str]:
    """The distinct trigrams of a text without blanks, punctuation, case and compatibility forms."""
    plain = _NOT_WORD.sub("", unicodedata.normalize("NFKC", text).casefold())
    return frozenset(plain[start : start + LENGTH] for start in range(max(1, len(plain) - LENGTH + 1)))


def similarity(one: frozenset[str], other: frozenset[str]) -> float:
    """The share of their shingles that both have, 0 to 1."""
    both = len(one & other)
    return both / (len(one) + len(other) - both)

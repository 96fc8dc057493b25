"""Texts through a tokenizer: what they use of its pieces, and whether a trimmed one cuts them alike.

In: texts, one after another, of any number. Out: counts and comparisons. The tokenizers are run without special tokens,
and without truncation and padding, which are switched off in them, on many texts at a time.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from reranker.errors import shorten
from reranker.model.vocabulary import pieces, read_before_unknown
from reranker.progress import progress_bar

_BATCH = 1024


@dataclass
class Compared:
    """Texts through the whole tokenizer and the trimmed one.

    Attributes:
        same: texts that both cut into the same pieces.
        wrong: texts of which no piece is gone, and that are cut otherwise all the same; `example` is the first.
        tokens, tokens_trimmed: of all texts. unknown, unknown_trimmed: how many of them are the unknown piece.
    """

    texts: int = 0
    same: int = 0
    wrong: int = 0
    tokens: int = 0
    tokens_trimmed: int = 0
    unknown: int = 0
    unknown_trimmed: int = 0
    example: str = ""

    def __str__(self) -> str:
        told = f"{self.same:,} of {self.texts:,} texts ({self.same / self.texts:.2%}) are cut into the same pieces"
        if self.same == self.texts:
            return told
        more = self.tokens_trimmed / self.tokens - 1
        return (f"{told}; with the others in all {more:.2%} more tokens, and {self.unknown_trimmed:,} unknown pieces "
                f"where there were {self.unknown:,}")  # fmt: skip


def count(texts: Iterable[str], tokenizer: Tokenizer, described: Mapping[str, Any]) -> np.ndarray:
    """How often `texts` use each piece, by its id."""
    counts = np.zeros(max(pieces(described)) + 1, dtype=np.int64)
    unknown = unknown_id(tokenizer) if described["model"]["type"] == "WordPiece" else None
    for batch in _batches(texts, "counting"):
        encoded = _encoded(tokenizer, batch)
        counts += np.bincount(np.concatenate(encoded), minlength=len(counts))
        for text, ids in zip(batch, encoded, strict=True):
            if unknown is not None and (ids == unknown).any():
                counts[read_before_unknown(described, _unknown_words(tokenizer, text, unknown))] += 1
    return counts


def compare(
    texts: Iterable[str], whole: Tokenizer, trimmed: Tokenizer, ids: Sequence[int], sample: int = 0
) -> tuple[Compared, list[tuple[str, str]]]:
    """Cut texts with both tokenizers. `ids`: the old id of each new one.

    Returns as well `sample` pairs at most of neighbours among the texts that stay the same: chosen by their hash, the
    same ones of the same corpus.
    """
    old = np.array(ids)
    unknown = unknown_id(whole), unknown_id(trimmed)
    stays = np.zeros(max(whole.get_vocab_size(), old[-1] + 1), dtype=bool)
    stays[old] = True
    found, last = Compared(), None
    chosen: list[tuple[int, tuple[str, str]]] = []  # a heap, the largest hash of those chosen on top
    for batch in _batches(texts, "comparing"):
        encoded = zip(batch, _encoded(whole, batch), _encoded(trimmed, batch), strict=True)
        for text, before, after in encoded:
            found.texts += 1
            found.tokens += len(before)
            found.tokens_trimmed += len(after)
            found.unknown += int((before == unknown[0]).sum())
            found.unknown_trimmed += int((after == unknown[1]).sum())
            if len(before) == len(after) and (old[after] == before).all():
                found.same += 1
                pair = (text if last is None else last, text)
                key = -int.from_bytes(sha256("\n".join(pair).encode()).digest()[:8], "big")
                if len(chosen) < sample:
                    heapq.heappush(chosen, (key, pair))
                elif chosen and key > chosen[0][0]:
                    heapq.heapreplace(chosen, (key, pair))
                last = text
            elif stays[before].all():
                found.wrong += 1
                found.example = found.example or shorten(text)
    return found, [pair for _, pair in sorted(chosen, reverse=True)]


def unknown_id(tokenizer: Tokenizer) -> int | None:
    """The id of the unknown piece, if there is one."""
    model = tokenizer.model
    if getattr(model, "unk_id", None) is not None:
        return int(model.unk_id)
    name = getattr(model, "unk_token", None)
    return None if name is None else tokenizer.token_to_id(name)


def _unknown_words(tokenizer: Tokenizer, text: str, unknown: int) -> list[str]:
    """The words of a text that are unknown, as WordPiece sees them."""
    # Cut by the tokenizer itself: an added token ends a word where no blank and no other rule does.
    encoding = tokenizer.encode(text, add_special_tokens=False)
    words: list[str] = []
    for number, (start, end) in zip(encoding.ids, encoding.offsets, strict=True):
        if number == unknown:
            word = text[start:end]
            normalized = tokenizer.normalizer.normalize_str(word) if tokenizer.normalizer else word
            split = (
                tokenizer.pre_tokenizer.pre_tokenize_str(normalized) if tokenizer.pre_tokenizer else [(normalized, 0)]
            )
            words += [one for one, _ in split]
    return words


def _encoded(tokenizer: Tokenizer, texts: list[str]) -> list[np.ndarray]:
    # A tokenizer.json may hold what it was last called with. Not on a copy: the library's reader changes scores.
    tokenizer.no_truncation()
    tokenizer.no_padding()
    encodings = tokenizer.encode_batch_fast(texts, add_special_tokens=False)
    return [np.array(encoding.ids, dtype=np.int64) for encoding in encodings]


def _batches(texts: Iterable[str], what: str) -> Iterator[list[str]]:
    stream = iter(texts)
    with progress_bar(desc=what, unit=" texts") as bar:
        while batch := list(itertools.islice(stream, _BATCH)):
            yield batch
            bar.update(len(batch))

"""The lexical first stage: BM25 over Korean and English text.

In: passages and queries as plain texts, and the name of an analyzer that cuts both into tokens.
Out: for each query the indices of the best passages with their scores, best first, equal scores by index.
The same texts give the same ranking on every machine; nothing is written. Kiwi's model (about a second
and 100 MB) is loaded when the "kiwi" analyzer is first used, never by an import.
"""

from __future__ import annotations

import functools
import multiprocessing
import os
import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from reranker.errors import UserError, closest

CONTENT_TAGS = ("NN", "NR", "VV", "VA", "XR", "SL", "SH", "SN", "MAG")
"""Beginnings of the Kiwi part-of-speech tags that carry content: nouns, numerals, verbs, adjectives, roots,
foreign words, Chinese characters, numbers and general adverbs."""

_WORD = re.compile(r"[^\W_]+")
_HANGUL_OR_OTHER = re.compile(r"[가-힣]+|[^\W_가-힣]+")


def analyze(texts: Sequence[str], analyzer: str, progress: bool = False) -> list[list[str]]:
    """The tokens of each text.

    `analyzer` is one of `ANALYZERS`; `progress` shows a bar on standard error. Raises UserError for an
    unknown analyzer.
    """
    function = _analyzer(analyzer)
    # Composed and decomposed Hangul look alike and must match: macOS file names come decomposed.
    composed = [unicodedata.normalize("NFC", text) for text in texts]
    return list(_with_bar(function(composed), len(composed), progress))


class BM25Index:
    """BM25 (Lucene's form, as bm25s computes it) over a fixed list of texts.

    The defaults k1 = 0.9 and b = 0.4 are those of Anserini's MS MARCO baselines. Raises UserError for an
    unknown analyzer.
    """

    def __init__(
        self,
        texts: Sequence[str],
        analyzer: str = "kiwi",
        k1: float = 0.9,
        b: float = 0.4,
        progress: bool = False,
    ) -> None:
        import bm25s

        self.analyzer = analyzer
        self.size = len(texts)
        self._vocabulary: dict[str, int] = {}
        token_ids = [
            [self._vocabulary.setdefault(token, len(self._vocabulary)) for token in tokens]
            for tokens in analyze(texts, analyzer, progress)
        ]
        # bm25s cannot index texts that hold no token at all; every score is zero then.
        self._model = bm25s.BM25(k1=k1, b=b) if self._vocabulary else None
        if self._model is not None:
            self._model.index((token_ids, self._vocabulary), show_progress=False)

    def search(self, queries: Sequence[str], depth: int) -> list[list[tuple[int, float]]]:
        """The `depth` best texts of each query as (index, score), or all texts if there are fewer.

        A query without any known token scores every text zero, so that the order is that of the indices.
        """
        return [self._best(tokens, depth) for tokens in analyze(queries, self.analyzer)]

    def _best(self, tokens: list[str], depth: int) -> list[tuple[int, float]]:
        import numpy

        known = [self._vocabulary[token] for token in tokens if token in self._vocabulary]
        if self._model is None or not known:
            scores = numpy.zeros(self.size, dtype=numpy.float32)
        else:
            scores = self._model.get_scores_from_ids(known)
        depth = min(depth, self.size)
        if depth <= 0:
            return []
        # Only texts that reach the score of the last place are sorted; the stable sort leaves equal
        # scores in the order of their indices.
        last_place = numpy.partition(scores, self.size - depth)[self.size - depth]
        candidates = numpy.flatnonzero(scores >= last_place)
        order = candidates[numpy.argsort(-scores[candidates], kind="stable")][:depth]
        return [(int(index), float(scores[index])) for index in order]


def _kiwi(texts: Iterable[str]) -> Iterator[list[str]]:
    for tokens in kiwi_model().tokenize(texts):
        yield [token.form.lower() for token in tokens if token.tag.startswith(CONTENT_TAGS)]


def _words(texts: Iterable[str]) -> Iterator[list[str]]:
    for text in texts:
        yield _WORD.findall(text.lower())


def _whitespace(texts: Iterable[str]) -> Iterator[list[str]]:
    for text in texts:
        yield text.lower().split()


def _bigrams(texts: Iterable[str]) -> Iterator[list[str]]:
    # Hangul words in overlapping pairs of syllables, so that a stem matches under any ending; words of
    # other scripts and numbers stay whole, as their pairs of letters say little.
    for text in texts:
        tokens: list[str] = []
        for word in _HANGUL_OR_OTHER.findall(text.lower()):
            if len(word) == 1 or not "가" <= word[0] <= "힣":
                tokens.append(word)
            else:
                tokens += [word[start : start + 2] for start in range(len(word) - 1)]
        yield tokens


_FUNCTIONS: dict[str, Callable[[Iterable[str]], Iterator[list[str]]]] = {
    "kiwi": _kiwi,
    "words": _words,
    "whitespace": _whitespace,
    "bigrams": _bigrams,
}

ANALYZERS = tuple(_FUNCTIONS)
"""kiwi: Korean content morphemes; words: lower-cased words; whitespace: split at blanks, lower-cased, punctuation
kept; bigrams: pairs of syllables."""


def _analyzer(name: str) -> Callable[[Iterable[str]], Iterator[list[str]]]:
    if name not in _FUNCTIONS:
        near = closest(name, ANALYZERS)
        fix = f"did you mean {near}?" if near else "change the value"
        raise UserError("first_stage.analyzer", repr(name), "one of " + ", ".join(ANALYZERS), fix)
    return _FUNCTIONS[name]


@functools.lru_cache(maxsize=1)
def kiwi_model() -> Any:
    """Kiwi, loaded once for all that analyze with it: a second and 100 MB."""
    from kiwipiepy import Kiwi

    # The cores that we may use, not those of the machine: a cluster's job owns a few of many.
    if multiprocessing.parent_process() is not None:
        return Kiwi(num_workers=1)  # one of several processes: the others use the other cores
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return Kiwi(num_workers=min(cores, 8))


def _with_bar(analyzed: Iterator[list[str]], total: int, progress: bool) -> Iterator[list[str]]:
    from reranker.progress import progress_bar

    with progress_bar(analyzed, total=total, desc="BM25 analysis", unit=" texts", disable=not progress) as bar:
        yield from bar

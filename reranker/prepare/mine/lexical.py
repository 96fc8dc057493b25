"""BM25 over a store: an index that all processes share, and exact search in it.

In: a store, an analyzer. Out: the best places of each query, best first, equal scores by place; scores of any
places. bm25s computes the index (Lucene's form) and its format is what lies on the disk; processes map it, none
copies it. Scores are those of `bm25.BM25Index`, bit for bit. Token ids pass through a file: memory holds the
index while it is made (36 bytes a posting), never the texts.
"""

from __future__ import annotations

import functools
import itertools
from array import array
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from reranker.errors import UserError
from reranker.files import atomic_directory
from reranker.prepare.bm25 import analyze
from reranker.prepare.mine.store import open_store
from reranker.processes import in_order
from reranker.progress import progress_bar

PASSAGES = 4096
"""Passages that a process analyzes at a time."""
_CHUNKS = 1024


def build_index(store: Path, directory: Path, analyzer: str, k1: float, b: float, workers: int) -> None:
    """Analyze and index every text of the store, whole or not at all; another task may be first.

    Raises UserError if none holds a token.
    """
    import bm25s
    import numpy as np

    size = len(open_store(store))
    vocabulary: dict[str, int] = {}
    ends = array("q", [0])
    calls = [(store, analyzer, first, min(first + PASSAGES, size)) for first in range(0, size, PASSAGES)]
    with atomic_directory(directory, first_stays=True) as staging:
        with (
            open(staging / "tokens.bin", "wb") as stream,
            progress_bar(desc="BM25 analysis", unit=" texts", total=size) as bar,
            in_order(_analyzed, calls, workers) as blocks,
        ):
            for words, ids, lengths in blocks:
                numbers = np.array([vocabulary.setdefault(word, len(vocabulary)) for word in words], np.int32)
                stream.write(numbers[ids].tobytes() if len(ids) else b"")
                before = ends[-1]
                ends.extend(before + end for end in itertools.accumulate(lengths))
                bar.update(len(lengths))
        if not vocabulary:
            raise UserError("bm25.analyzer", f"no token in {size} passages", "passages with words",
                            "choose another analyzer or check the corpus")  # fmt: skip
        model = bm25s.BM25(k1=k1, b=b)
        tokens = np.memmap(staging / "tokens.bin", np.int32, "r")
        # The lower interface: `index` wants a list of lists of integers, 9 bytes and more for each token.
        model.scores = model.build_index_from_ids(range(len(vocabulary)), _Rows(tokens, ends), show_progress=False)
        model.vocab_dict = vocabulary
        model.save(staging, show_progress=False)
        del tokens  # a network file system would keep a file that is mapped under another name
        (staging / "tokens.bin").unlink()


def _analyzed(call: tuple[Path, str, int, int]) -> tuple[list[str], Any, list[int]]:
    """(distinct tokens, the number of each token among them, tokens of each text) of a range of the store."""
    import numpy as np

    directory, analyzer, first, last = call
    store = open_store(directory)
    words: dict[str, int] = {}
    ids, lengths = array("i"), []
    for tokens in analyze([store.text(place) for place in range(first, last)], analyzer):
        ids.extend(words.setdefault(token, len(words)) for token in tokens)
        lengths.append(len(tokens))
    return list(words), np.array(ids, np.int32), lengths


class _Rows:
    """The token ids of each text as bm25s reads them: one list at a time."""

    def __init__(self, tokens: Any, ends: array[int]) -> None:
        self._tokens, self._ends = tokens, ends

    def __len__(self) -> int:
        return len(self._ends) - 1

    def __iter__(self) -> Iterator[list[int]]:
        for first, last in itertools.pairwise(self._ends):
            yield self._tokens[first:last].tolist()


class LexicalIndex:
    """The index in `directory`.

    `max_document_share` leaves query terms that more of the texts hold out of the search; a query of such terms alone
    keeps its rarest.
    """

    def __init__(self, directory: Path, analyzer: str, max_document_share: float = 1.0) -> None:
        import bm25s

        model = bm25s.BM25.load(directory, mmap=True)
        self.analyzer = analyzer
        self._vocabulary: dict[str, int] = model.vocab_dict
        self._data, self._indices, self._starts = (model.scores[name] for name in ("data", "indices", "indptr"))
        self.size: int = model.scores["num_docs"]
        self._most = max_document_share * self.size

    def terms(self, queries: Sequence[str]) -> list[list[int]]:
        """The terms of each query that the index knows and the search uses."""
        rows = []
        for tokens in analyze(queries, self.analyzer):
            known = [self._vocabulary[token] for token in tokens if token in self._vocabulary]
            used = [term for term in known if self._frequency(term) <= self._most]
            rows.append(used or ([min(known, key=self._frequency)] if known else []))
        return rows

    def search(self, terms: Sequence[int], depth: int, limit: int) -> list[int]:
        """The `depth` best of the first `limit` places, those that hold a term alone."""
        import numpy as np

        scores = np.zeros(self.size, np.float32)
        for term in terms:
            first, last = self._starts[term], self._starts[term + 1]
            # A text stands once among a term's postings; numpy.add.at, which need not know that, takes 3 times as long.
            scores[self._indices[first:last]] += self._data[first:last]
        return best(scores[:limit], depth)

    def scores_of(self, terms: Sequence[int], places: Sequence[int]) -> Any:
        """The scores (float32) of these places."""
        import numpy as np

        wanted = np.asarray(places, np.int32)
        scores = np.zeros(len(wanted), np.float32)
        for term in terms:
            first, last = int(self._starts[term]), int(self._starts[term + 1])
            postings = self._indices[first:last]
            at = np.minimum(np.searchsorted(postings, wanted), len(postings) - 1)
            scores += np.where(postings[at] == wanted, self._data[first:last][at], np.float32(0))
        return scores

    def _frequency(self, term: int) -> int:
        return int(self._starts[term + 1] - self._starts[term])


def best(scores: Any, depth: int) -> list[int]:
    """The places of the `depth` largest scores above zero, largest first, equal ones by place.

    The depth-th largest of the maxima of chunks is no more than the depth-th largest score: what is below it is
    passed over, so that all but a few of a million scores are looked at once, not partitioned.
    """
    import numpy as np

    least = np.float32(0)
    if len(scores) >= 4 * _CHUNKS and depth <= _CHUNKS // 2:
        width = len(scores) // _CHUNKS
        maxima = scores[: width * _CHUNKS].reshape(_CHUNKS, width).max(axis=1)
        least = np.partition(maxima, _CHUNKS - depth)[_CHUNKS - depth]
    found = np.flatnonzero(scores >= least) if least > 0 else np.flatnonzero(scores)
    if len(found) > depth > 0:
        values = scores[found]
        found = found[values >= np.partition(values, len(values) - depth)[len(values) - depth]]
    order = np.argsort(-scores[found], kind="stable")[:depth]
    return [int(place) for place in found[order]]


@functools.lru_cache(maxsize=1)
def open_index(directory: Path, analyzer: str, max_document_share: float) -> LexicalIndex:
    """The index, mapped once by each process."""
    return LexicalIndex(directory, analyzer, max_document_share)

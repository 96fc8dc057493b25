"""Scores of any passages for the queries of a block, by the retrievers that have been run."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from reranker.prepare.mine.cache import QUERIES
from reranker.prepare.mine.lexical import LexicalIndex, open_index
from reranker.prepare.mine.store import Request


class Scorer(Protocol):
    """How a retriever scores."""

    def of_block(self, number: int, requests: Sequence[Request]) -> Callable[[int, Sequence[int]], Any]:
        """A function from (a query's index in the block, places) to their scores."""
        ...


@dataclass(frozen=True)
class LexicalScorer:
    """BM25 with the index in `directory`."""

    directory: Path
    analyzer: str
    max_document_share: float

    def open(self) -> LexicalIndex:
        return open_index(self.directory, self.analyzer, self.max_document_share)

    def of_block(self, number: int, requests: Sequence[Request]) -> Callable[[int, Sequence[int]], Any]:
        index = self.open()
        terms = index.terms([request.query for request in requests])
        return lambda query, places: index.scores_of(terms[query], places)


class DenseScorer:
    """The cosine of embeddings, which `dense.encode` left in `directory` for the store's texts and the queries."""

    def __init__(self, directory: Path) -> None:
        self._passages = _Embeddings(directory / "passages")
        self._queries = _Embeddings(directory / "queries", QUERIES)

    def of_block(self, number: int, requests: Sequence[Request]) -> Callable[[int, Sequence[int]], Any]:
        queries = self._queries.rows(range(number * QUERIES, number * QUERIES + len(requests)))
        return lambda query, places: self._passages.rows(places) @ queries[query]


class _Embeddings:
    """Rows out of the blocks that an encoder wrote, each mapped when it is first asked for.

    `length`: rows of every block but the last; None: as many as the first one has.
    """

    def __init__(self, directory: Path, length: int | None = None) -> None:
        self._directory, self._length = directory, length
        self._blocks: dict[int, Any] = {}

    def rows(self, places: Sequence[int]) -> Any:
        import numpy as np

        length = self._length or len(self._block(0))
        found = [self._block(place // length)[place % length] for place in places]
        return np.array(found, np.float32).reshape(len(found), -1)

    def _block(self, number: int) -> Any:
        import numpy as np

        if number not in self._blocks:
            self._blocks[number] = np.load(self._directory / f"block-{number:06d}.npy", mmap_mode="r")
        return self._blocks[number]


@functools.lru_cache(maxsize=1)
def open_dense(directory: Path) -> DenseScorer:
    """The embeddings, mapped once by each process."""
    return DenseScorer(directory)

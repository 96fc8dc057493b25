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
        self._queries = _Embeddings(directory / "queries")

    def of_block(self, number: int, requests: Sequence[Request]) -> Callable[[int, Sequence[int]], Any]:
        queries = self._queries.rows(range(number * QUERIES, number * QUERIES + len(requests)))
        return lambda query, places: self._passages.rows(places) @ queries[query]


class _Embeddings:
    """Rows out of the blocks that an encoder wrote, mapped and not read."""

    def __init__(self, directory: Path) -> None:
        import numpy as np

        paths = sorted(directory.glob("block-*.npy"))
        self._blocks = [np.load(path, mmap_mode="r") for path in paths]
        self._length = len(self._blocks[0])

    def rows(self, places: Sequence[int]) -> Any:
        import numpy as np

        found = [self._blocks[place // self._length][place % self._length] for place in places]
        return np.array(found, np.float32).reshape(len(found), self._blocks[0].shape[1])


@functools.lru_cache(maxsize=1)
def open_dense(directory: Path) -> DenseScorer:
    """The embeddings, mapped once by each process."""
    return DenseScorer(directory)

"""The systems of an evaluation that score: each is a row of the table.

A system has a name, scores the candidates of queries, and says what its scores depend on, so that they can be kept.
Those that are models of this process (ours, another library's, an ONNX file) share their pairs among the ranks batch by
batch: the batches are those of one process, whatever the number of ranks, so that each score is the same to the last
bit where a batch's product is (on a CPU, with as many threads).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence, Sized
from typing import Any, Protocol

import numpy as np

from reranker.errors import UserError
from reranker.evaluate.crew import Alone, Crew, deal
from reranker.model.reranker import refuse_lost
from reranker.model.windows import Layout, Long, sizes_of

BASE, TUNED = "base", "fine-tuned"
WARMING = 2
"""Queries that are scored before a latency is measured."""
Pairs = Sequence[tuple[str, str]]


class System(Protocol):
    """A row of the table that scores the candidates of the first stage.

    Attributes:
        name: what the table calls it.
        identity: all that its scores depend on beside the texts, as a JSON value: equal ones have equal scores.
        told: how it scores, in words for the report; "": as the report says of all.
    """

    @property
    def name(self) -> str: ...
    @property
    def identity(self) -> Mapping[str, Any]: ...
    @property
    def told(self) -> str: ...

    def check(self) -> None:
        """Raise UserError for what would keep it from scoring, before any system scores."""
        ...

    def score(self, queries: Sequence[Pairs], crew: Crew, advance: Callable[[int], object]) -> np.ndarray:
        """scores_N of the N (query, passage) pairs of all queries, alike on every rank. A collective call.

        `advance` hears of N pairs.
        """
        ...

    def score_alone(self, pairs: Pairs) -> np.ndarray:
        """The same of one query, on one rank by itself: what a query waits for."""
        ...


class Scorer(Protocol):
    """A model of this process; `model.reranker.Reranker` is one. The windows of a pair are batched by their length.

    Attributes:
        path: what errors call it.
        long: what it makes of long passages.
    """

    @property
    def path(self) -> str: ...
    @property
    def long(self) -> Long: ...
    def portions(self, pairs: Pairs) -> Iterable[tuple[int, int]]: ...
    def windows(self, pairs: Pairs) -> Sequence[Sequence[Sized]]: ...
    def batches(self, lengths: Sequence[int]) -> list[list[int]]: ...
    def forward(self, batch: Sequence[Any]) -> np.ndarray: ...


class ModelSystem:
    """A system that is a model of this process. Each rank loads it when it first scores."""

    def __init__(self, name: str, load: Callable[[], Scorer], identity: Mapping[str, Any], told: str = "") -> None:
        self.name, self.identity, self.told = name, identity, told
        self._load = load
        self._scorer: Scorer | None = None

    def check(self) -> None:
        """A model that does not load is told when it is loaded: that takes as long as it takes."""

    def score(self, queries: Sequence[Pairs], crew: Crew, advance: Callable[[int], object]) -> np.ndarray:
        scorer = crew.together(self._loaded)
        pairs = [pair for of_query in queries for pair in of_query]
        return crew.together(lambda: score_together(scorer, pairs, crew, advance))

    def score_alone(self, pairs: Pairs) -> np.ndarray:
        return score_together(self._loaded(), pairs, Alone(), lambda done: None)

    def _loaded(self) -> Scorer:
        if self._scorer is None:
            self._scorer = self._load()
        return self._scorer


def score_together(scorer: Scorer, pairs: Pairs, crew: Crew, advance: Callable[[int], object]) -> np.ndarray:
    """scores_N of N pairs, each batch on one rank.

    Raises UserError, on every rank, for a score that is not finite and for what `scorer` raises it for.
    """
    scores_N = np.empty(len(pairs))
    for start, end in scorer.portions(pairs):
        portion = pairs[start:end]
        # Each rank counts the tokens of its share, and all plan the same batches of all.
        bounds = [len(portion) * rank // crew.world for rank in range(crew.world + 1)]
        own = scorer.windows(portion[bounds[crew.rank] : bounds[crew.rank + 1]])
        layout = Layout([sizes for share in crew.gather(sizes_of(own)) for sizes in share])
        batches = deal(scorer.batches(layout.lengths), crew.rank, crew.world)
        wanted = layout.pairs_of([place for batch in batches for place in batch])
        again = [index for index in wanted if not bounds[crew.rank] <= index < bounds[crew.rank + 1]]
        windows = dict(zip(again, scorer.windows([portion[index] for index in again]), strict=True))
        windows |= dict(enumerate(own, bounds[crew.rank]))
        found: list[tuple[list[int], np.ndarray]] = []
        mistake: UserError | None = None
        try:
            for batch in batches:
                found.append((batch, scorer.forward(layout.pick(windows, batch))))
                advance(layout.begun(batch) * crew.world)
        except UserError as error:
            mistake = error
        shares = crew.gather((found, mistake))
        for _, told in shares:
            if told is not None:  # raised by every rank: none waits for one that has left
                raise told
        values_W = np.empty(len(layout.lengths))
        times_W = np.zeros(len(layout.lengths), dtype=np.int64)
        for batch, values in (item for share, _ in shares for item in share):
            values_W[batch] = values
            times_W[batch] += 1
        assert (times_W == 1).all(), "a window that was scored by no rank, or by two"
        scores_N[start:end] = layout.scores(values_W, scorer.long.best)
    refuse_lost(scorer.path, scores_N, pairs)
    return scores_N


def latency(system: System, queries: Sequence[Pairs]) -> dict[str, float]:
    """Seconds that a query waits for its scores, queries one by one: {"median", "p95", "queries"}."""
    for pairs in queries[:WARMING]:
        system.score_alone(pairs)
    seconds = []
    for pairs in queries:
        start = time.perf_counter()
        system.score_alone(pairs)
        seconds.append(time.perf_counter() - start)
    return {
        "median": float(np.percentile(seconds, 50)), "p95": float(np.percentile(seconds, 95)), "queries": len(queries),
    }  # fmt: skip

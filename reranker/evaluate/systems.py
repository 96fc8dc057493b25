"""The systems of an evaluation that score: each is a row of the table.

A system has a name and scores pairs; that is all that another one (another library's reranker, a service) must bring.
The pairs of a reranker of ours are shared by the ranks batch by batch: the batches are those of one process, whatever
the number of ranks, so that each score is the same to the last bit where a batch's product is (on a CPU, with as many
threads).
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np

from reranker.config.models import EvaluateConfig
from reranker.evaluate.crew import Crew, deal
from reranker.model.reranker import Reranker
from reranker.model.windows import Layout, sizes_of

BASE, TUNED = "base", "fine-tuned"
KEYS = {BASE: "base", TUNED: "model"}
"""The key of the settings that names a system's model."""
WARMING = 2
"""Queries that are scored before a latency is measured."""
Pairs = Sequence[tuple[str, str]]


class System(Protocol):
    """A row of the table that scores the candidates of the first stage.

    Attributes:
        name: what the table calls it.
    """

    @property
    def name(self) -> str: ...

    def score(self, pairs: Pairs, crew: Crew, advance: Callable[[int], object]) -> np.ndarray:
        """scores_N of N (query, passage) pairs, alike on every rank. A collective call; `advance` hears of N pairs."""
        ...

    def score_alone(self, pairs: Pairs) -> np.ndarray:
        """The same on one rank by itself: what a query waits for."""
        ...


class RerankerSystem:
    """A model directory or hub name of ours, loaded when it first scores."""

    def __init__(self, name: str, config: EvaluateConfig, device: str) -> None:
        self.name = name
        self._config, self._device = config, device
        self._reranker: Reranker | None = None

    def score(self, pairs: Pairs, crew: Crew, advance: Callable[[int], object]) -> np.ndarray:
        reranker = crew.together(self._load)
        return crew.together(lambda: score_together(reranker, pairs, crew, advance))

    def score_alone(self, pairs: Pairs) -> np.ndarray:
        return self._load().score_pairs(pairs)

    def _load(self) -> Reranker:
        if self._reranker is None:
            key, config = KEYS[self.name], self._config
            path = getattr(config, key)
            self._reranker = Reranker(
                path, device=self._device, precision=config.precision.value, max_length=config.max_length,
                batch_tokens=config.batch_tokens, packing=config.packing.value, untrained_head=key == "base", key=key,
                long=config.long.value, window_overlap=config.window_overlap, window_best=config.window_best,
            )  # fmt: skip
            if self._reranker.fresh_head:
                print(f"note: base={path} has no score head; its row is that of a randomly drawn one", file=sys.stderr)
        return self._reranker


def systems_of(config: EvaluateConfig, device: str) -> list[System]:
    """The systems that the settings name, in the order of their rows."""
    return [RerankerSystem(name, config, device) for name, key in KEYS.items() if getattr(config, key) is not None]


def score_together(
    reranker: Reranker, pairs: Pairs, crew: Crew, advance: Callable[[int], object]
) -> np.ndarray:  # fmt: skip
    """`reranker.score_pairs`, each batch of it on one rank. Raises UserError for a score that is not finite."""
    scores_N = np.empty(len(pairs), dtype=np.float32)
    for start, end in reranker.portions(pairs):
        portion = pairs[start:end]
        # Each rank counts the tokens of its share, and all plan the same batches of all.
        bounds = [len(portion) * rank // crew.world for rank in range(crew.world + 1)]
        own = reranker.windows(portion[bounds[crew.rank] : bounds[crew.rank + 1]])
        layout = Layout([sizes for share in crew.gather(sizes_of(own)) for sizes in share])
        batches = deal(reranker.batches(layout.lengths), crew.rank, crew.world)
        wanted = layout.pairs_of([place for batch in batches for place in batch])
        again = [index for index in wanted if not bounds[crew.rank] <= index < bounds[crew.rank + 1]]
        windows = dict(zip(again, reranker.windows([portion[index] for index in again]), strict=True))
        windows |= dict(enumerate(own, bounds[crew.rank]))
        found: list[tuple[list[int], np.ndarray]] = []
        for batch in batches:
            found.append((batch, reranker.forward(layout.pick(windows, batch))))
            advance(layout.begun(batch) * crew.world)
        values_W = np.empty(len(layout.lengths), dtype=np.float32)
        times_W = np.zeros(len(layout.lengths), dtype=np.int64)
        for batch, values in (item for share in crew.gather(found) for item in share):
            values_W[batch] = values
            times_W[batch] += 1
        assert (times_W == 1).all(), "a window that was scored by no rank, or by two"
        scores_N[start:end] = layout.scores(values_W, reranker.long.best)
    reranker.refuse_lost(scores_N, pairs)
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

"""The processes that share an evaluation: one by itself, or the ranks of a launcher.

In: the launcher's environment. Out: a `Crew`, by which all hear of the same values, and a mistake found by one is
raised by all. What each does is a pure function of what there is to do, its rank and their number.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from reranker.config.common import Device

T = TypeVar("T")
WAIT = 24 * 3600.0
"""Seconds that a rank waits for another: the first stage of a large corpus is one rank's. Launchers end dead jobs."""


class Crew(Protocol):
    """The ranks; `train.distributed.Ranks` is one."""

    @property
    def rank(self) -> int: ...
    @property
    def world(self) -> int: ...
    @property
    def first(self) -> bool: ...
    def gather(self, value: T) -> list[T]: ...
    def together(self, action: Callable[[], T]) -> T: ...
    def from_first(self, action: Callable[[], T]) -> T: ...


@dataclass(frozen=True)
class Alone:
    """A crew of one process."""

    rank: int = 0
    world: int = 1
    first: bool = True

    def gather(self, value: T) -> list[T]:
        return [value]

    def together(self, action: Callable[[], T]) -> T:
        return action()

    def from_first(self, action: Callable[[], T]) -> T:
        return action()


def deal(batches: Sequence[list[int]], rank: int, world: int) -> list[list[int]]:
    """The batches of a rank: they go round, longest first, so that no rank has more than one more than another."""
    return list(batches[rank::world])


@contextlib.contextmanager
def meet(device: Device) -> Iterator[tuple[Crew, str]]:
    """(the crew, torch's name of this rank's device). Raises UserError for an environment that is incomplete."""
    if os.environ.get("WORLD_SIZE", "1") == "1":
        yield Alone(), device.value
        return
    from reranker.train.distributed import join, leave

    ranks: Any = join(device, WAIT)
    try:
        yield ranks, str(ranks.device)
    finally:
        leave()

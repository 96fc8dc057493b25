"""Contestants that take turns: first each once, to choose the best setting of each, then the chosen in rounds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from tests.benchmarks.record import Measured


@dataclass(frozen=True)
class Contestant:
    """Who works, how, in which precision. `always`: measured in every round, the best of its kind or not."""

    who: str
    setting: str
    precision: str
    options: tuple[str, ...]
    always: bool = False

    @property
    def name(self) -> str:
        return f"{self.who}:{self.setting}:{self.precision}"


def compete(
    chosen: Sequence[Contestant], rounds: int, turn: Callable[[Contestant], dict[str, Any]], measured: Measured,
    each_round: Callable[[int], object] = lambda number: None,
) -> None:  # fmt: skip
    """The choosing round, then the rounds that count. `turn` measures: "seconds" of like pieces of work, or "failed"."""
    for one in chosen:
        measured.get(f"{one.name}:choosing", partial(turn, one))
    for number in range(rounds):
        each_round(number)
        for one in kept(chosen, measured.all):
            measured.get(f"{one.name}:{number}", partial(turn, one))


def kept(chosen: Sequence[Contestant], measured: dict[str, dict[str, Any]]) -> list[Contestant]:
    """Those that are measured in every round: the best of each kind in each precision, and `always`.

    Chosen by the shortest piece of work, which the machine's other work disturbs least.
    """
    works = [one for one in chosen if "failed" not in measured[f"{one.name}:choosing"]]
    best: dict[tuple[str, str], Contestant] = {}
    for one in sorted(works, key=lambda one: min(measured[f"{one.name}:choosing"]["seconds"])):
        best.setdefault((one.who, one.precision), one)
    return [one for one in works if one.always or one in best.values()]

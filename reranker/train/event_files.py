"""A training's records as TensorBoard's event files: the same names and steps as in metrics.jsonl.

In: records, as the tracker gives them. Out: `tensorboard/` in the run directory, a file for each start. A start tells
TensorBoard to forget the steps behind the checkpoint that it goes on from: no step has two values. Whatever fails is
told once; the training neither stops nor waits for it.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from reranker.train.aside import Aside
from reranker.train.examples import COLUMNS
from reranker.train.logged import EXAMPLES
from reranker.train.run_directory import METRICS, TENSORBOARD


class EventFiles:
    """Writes event files behind `done` steps, from a thread of its own."""

    def __init__(self, run_dir: Path, done: int, timeout: float) -> None:
        self._timeout = timeout
        self._writer: Any = None
        self._aside = Aside("tensorboard", _told_of, lambda: _say(f"does not keep up: records are left out; {METRICS}"
                                                                  " has them all"))  # fmt: skip
        self._aside.do(lambda: self._open(run_dir / TENSORBOARD, done))

    def log(self, step: int, metrics: dict[str, Any]) -> None:
        """One record behind `step` optimizer steps."""
        known = {name: value for name, value in metrics.items() if value is not None}

        def write() -> None:
            for name, value in known.items():
                self._writer.add_scalar(name, value, step)
            self._writer.flush()

        self._aside.do(write)

    def show(self, step: int, rows: Sequence[tuple[object, ...]]) -> None:
        """A table of ranked examples, as text."""
        self._aside.do(lambda: self._writer.add_text(EXAMPLES, _table(rows), step))

    def close(self) -> None:
        if not self._aside.close(lambda: self._writer and self._writer.close(), self._timeout):
            _say(f"has not finished after {self._timeout:g} s; {METRICS} has all records")

    def _open(self, directory: Path, done: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(directory), purge_step=done + 1)


def _table(rows: Sequence[tuple[object, ...]]) -> str:
    lines = [COLUMNS, ("---",) * len(COLUMNS), *rows]
    return "\n".join("| " + " | ".join(map(_cell, line)) + " |" for line in lines)


def _cell(value: object) -> str:
    shown = "" if value is None else f"{value:.4f}" if isinstance(value, float) else str(value)
    return " ".join(shown.replace("|", "\\|").split())


def _told_of(error: Exception) -> None:
    _say(f"failed ({' '.join(str(error).split())}); {METRICS} goes on")


def _say(words: str) -> None:
    print(f"tracking: TensorBoard {words}", file=sys.stderr, flush=True)

"""Checkpoints written beside the training, and which of them are kept.

In: at a step boundary, every rank's fragments and the state. Out: a checkpoint, written by a thread of each rank while
the training goes on with copies taken; one at a time. A save that fails costs nothing but itself: it is told once, the
older checkpoints stay, and the training goes on; the second in a row stops it. What the threads agree on travels in a
process group of their own, so that it never mixes with the training's collectives.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from reranker.errors import UserError
from reranker.train import checkpoint
from reranker.train.checkpoint import Retention
from reranker.train.distributed import Ranks
from reranker.train.fragments import Fragment
from reranker.train.owner import TakenOver

TRIES = 2
"""Saves in a row that may fail before the training stops."""


@dataclass(frozen=True)
class Ranking:
    """The evaluated checkpoints that are worth keeping, the best first: entries of {checkpoint, value, step, passed}.

    Those that passed the gate come before all others. `metric`, `dev` (sha256 of the groups, or of the set that the
    metric names) and `gate` (a fingerprint) say what the values are of: those of others do not compare.
    """

    metric: str
    dev: str | None
    gate: str | None = None
    entries: tuple[dict[str, Any], ...] = ()

    @staticmethod
    def of(state: dict[str, Any], metric: str, dev: str | None, step: int, gate: str | None = None) -> Ranking:
        """The ranking that a checkpoint's state holds, without entries of another metric, of other groups, or of steps
        behind `step`: where a change that was accepted numbers them anew, those would be taken for newer ones."""
        entries = state.get("ranking") or ([state["best"]] if state.get("best") else [])
        wanted = (metric, dev, gate)
        same = (entry for entry in entries if (entry["metric"], entry["dev"], entry.get("gate")) == wanted)
        return Ranking(metric, dev, gate, tuple(entry for entry in same if entry["step"] <= step))

    @property
    def best(self) -> dict[str, Any] | None:
        """The best of those that passed."""
        return next((entry for entry in self.entries if entry.get("passed", True)), None)

    def with_(self, step: int, value: float, keep: int, passed: bool = True) -> Ranking:
        """This ranking with the checkpoint of `step`; the `keep` best stay, of equal ones the earlier."""
        entry = {"checkpoint": checkpoint.name_of(step), "value": value, "step": step, "passed": passed,
                 "metric": self.metric, "dev": self.dev, "gate": self.gate}  # fmt: skip
        ranked = sorted((*self.entries, entry), key=lambda one: (not one.get("passed", True), -one["value"]))  # stable
        return Ranking(self.metric, self.dev, self.gate, tuple(ranked[:keep]))

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(entry["checkpoint"] for entry in self.entries)


class Saver:
    """Writes the checkpoints of a run.

    Args:
        ranks: with a process group of the saver's own (`Ranks.apart`).
        owned: raises TakenOver, on rank 0, where the run directory is another training's by now.
    """

    def __init__(self, run_dir: Path, ranks: Ranks, owned: Callable[[], None] = lambda: None) -> None:
        self._run_dir, self._ranks, self._owned = run_dir, ranks, owned
        self._thread: threading.Thread | None = None
        self._failures: list[UserError] = []
        self._outcome: BaseException | None = None
        self._saved: Callable[[], None] = lambda: None
        self._again: Callable[[], None] | None = None
        self.step = 0
        """The optimizer step of the last save that was begun and not known to have failed."""

    def save(
        self, step: int, fragments: Iterable[Fragment], state: dict[str, Any], retention: Retention,
        saved: Callable[[], None] = lambda: None,
    ) -> None:  # fmt: skip
        """Copy the fragments and begin to write them; every rank calls this behind the same step.

        Waits for the save before this one. `saved` is called, on this thread, once the checkpoint is known to be
        whole. Raises UserError, on every rank alike, if two saves in a row have failed.
        """
        self.wait()
        self._again = None  # it holds a copy of the state, and so will this one
        copied = list(fragments)
        self._saved, self.step = saved, step

        def begin() -> None:
            arguments = (step, copied, state, retention)
            self._outcome = None
            # A daemon: a rank that ends for another reason does not wait for a writer that waits for other ranks.
            self._thread = threading.Thread(target=self._write, args=arguments, name="saver", daemon=True)
            self._thread.start()

        self._again = begin
        begin()

    def wait(self) -> None:
        """Wait for the save under way, if there is one; every rank calls this at the same time.

        Raises UserError, on every rank alike, if it and the one before have failed.
        """
        if self._thread is None:
            return
        self._thread.join()  # without a beat meanwhile: a file system that never answers is a hang like any other
        self._thread = None
        if self._outcome is None:
            self._failures.clear()
            self._again = None
            self._saved()
            return
        if isinstance(self._outcome, TakenOver) or not isinstance(self._outcome, UserError):
            raise self._outcome  # the other one goes on; or a defect of ours
        self._failures.append(self._outcome)
        self.step = 0
        if len(self._failures) >= TRIES:
            found = f"{TRIES} saves in a row that failed, the last one with {self._outcome.found}"
            fix = f"{self._outcome.fix}; the same command then goes on"
            error = UserError(self._outcome.where, found, self._outcome.expected, fix)
            error.agreed = True
            raise error

    def check(self) -> None:
        """Raise what the writer should never have met: a defect of ours ends the training, not only its checkpoints."""
        if self._outcome is not None and not isinstance(self._outcome, UserError):
            raise self._outcome

    def finish(self) -> None:
        """Wait, and write the last checkpoint once more if it failed: nothing comes after it."""
        self.wait()
        if self._failures and self._again is not None:
            self._again()
            self.wait()

    def _write(self, step: int, fragments: list[Fragment], state: dict[str, Any], retention: Retention) -> None:
        try:
            checkpoint.save(self._run_dir, step, fragments, state, self._ranks, retention, self._owned)
        except UserError as error:
            self._outcome = error
            if self._ranks.first and not isinstance(error, TakenOver):
                print(f"{error.where}: not saved, {error.found}; the training goes on, older checkpoints stay",
                      file=sys.stderr, flush=True)  # fmt: skip
        except BaseException as error:
            self._outcome = error

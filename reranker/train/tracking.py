"""Metrics of a run -> metrics.jsonl always, Weights & Biases when it can be had, TensorBoard on request.

In: step and metrics named `group/name`. Tracking never stops a training: what fails is said once and then
left alone. Resuming goes on in the same Weights & Biases run; metrics.jsonl loses the records behind the
checkpoint that is resumed, so that each step stands in it once.
"""

from __future__ import annotations

import json
import os
import secrets
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from reranker.config.tracking import TrackingConfig
from reranker.files import write_text
from reranker.train import wandb_run
from reranker.train.artifacts import Artifact
from reranker.train.event_files import EventFiles
from reranker.train.run_directory import METRICS
from reranker.train.wandb_run import WandbRun

TITLE = 63
"""Characters of an alert's title at most, as W&B has it."""


class Tracker:
    """Rank 0's records. On other ranks `enabled` is False and nothing is written.

    Args:
        sets: names of the evaluation sets whose metrics will come.
    """

    def __init__(
        self, run_dir: Path, name: str, config: TrackingConfig, settings: dict[str, Any], step: int, enabled: bool,
        sets: Sequence[str] = (),
    ) -> None:  # fmt: skip
        self.run_id = run_id(run_dir) if enabled else None
        self._file: Any = None
        self._name = name
        self._unwritten = b""
        self._event_files: EventFiles | None = None
        self._wandb: WandbRun | None = None
        if not enabled:
            return
        path = run_dir / METRICS
        # Bytes of no character are of a damaged line: what of it still is a record stays, the rest goes.
        lines = path.read_text("utf-8", errors="replace").splitlines() if path.exists() else []
        kept = [line for line in lines if _step(line) <= step]
        write_text(path, "".join(line + "\n" for line in kept))
        self._file = open(path, "ab", buffering=0)  # noqa: SIM115 (open for the length of the run)
        if config.tensorboard:
            self._event_files = EventFiles(run_dir, step, config.timeout)
        self._wandb = wandb_run.start(run_dir, name, self.run_id, config, settings, sets)

    def log(self, step: int, metrics: dict[str, Any]) -> None:
        """One record of metrics behind `step` optimizer steps."""
        if self._file is None:
            return
        self._write(json.dumps({"step": step, **metrics}).encode() + b"\n")
        if self._wandb is not None:
            self._wandb.log(step, metrics)
        if self._event_files is not None:
            self._event_files.log(step, metrics)

    def show(self, step: int, rows: Sequence[tuple[object, ...]]) -> None:
        """A table of dev queries with their passages (`examples.COLUMNS`), behind `step` optimizer steps."""
        for place in (self._wandb, self._event_files):
            if place is not None and rows:
                place.show(step, rows)

    def alert(self, cause: str, text: str, level: str = "WARN") -> None:
        """Tell whoever is not looking; alerts of the same cause are sent once in `tracking.alert_wait` seconds."""
        if self._wandb is not None:
            self._wandb.alert(f"{self._name}: {cause}"[-TITLE:], text, level)

    def keep(self, artifact: Artifact) -> None:
        if self._wandb is not None:
            self._wandb.keep(artifact)

    def flush(self) -> None:
        """See that all records are on the disk: a checkpoint that outlives the power counts on those before it."""
        if self._file is not None:
            self._write(b"")
            try:
                os.fsync(self._file.fileno())
            except OSError as error:
                print(f"tracking: {METRICS} cannot be flushed ({error.strerror})", file=sys.stderr)

    def _write(self, line: bytes) -> None:
        """Append a line; on a disk that is full it waits here for the next one, and the training goes on."""
        told = bool(self._unwritten)
        self._unwritten += line
        try:
            while self._unwritten:
                self._unwritten = self._unwritten[self._file.write(self._unwritten) :]
        except OSError as error:
            if not told:
                print(f"tracking: {METRICS} cannot be written ({error.strerror}); records are kept and written later",
                      file=sys.stderr)  # fmt: skip

    def close(self, failed: bool = False) -> None:
        if self._file is not None:
            self._write(b"")
            self._file.close()
        if self._event_files is not None:
            self._event_files.close()
        if self._wandb is not None:
            self._wandb.close(failed)

    def __enter__(self) -> Tracker:
        return self

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        if isinstance(error, Exception):
            self.alert("ended early", " ".join(f"{error}".split()) or type(error).__name__, "ERROR")
        self.close(failed=error is not None)


def run_id(run_dir: Path) -> str:
    """The Weights & Biases run id of a run directory: drawn once, then read from there.

    A directory that is moved keeps its run; one that is made anew under the same path begins another.
    """
    path = run_dir / "wandb_run_id"
    if not path.is_file():
        write_text(path, secrets.token_hex(8) + "\n")
    return path.read_text("utf-8").strip()


def _step(line: str) -> int:
    """The step of a record; of a line that is none, one behind all others: the last of a killed run may be torn."""
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return sys.maxsize
    step = value.get("step") if isinstance(value, dict) else None
    return step if isinstance(step, int) else sys.maxsize

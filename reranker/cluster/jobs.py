"""`reranker jobs DIRECTORY`: the trainings below a directory that ran or run as SLURM jobs, as their files show them.

In: run directories with jobs/. Out: a table, or JSON: state, step, loss, time left, restarts. What SLURM still knows of
a job is asked of squeue, where there is one; all else is read from metrics.jsonl, so that jobs that are long over are
told as well. Nothing is changed. Raises `UserError`.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from reranker.cluster.snapshot import JOBS
from reranker.config.cluster import JobsConfig
from reranker.errors import UserError
from reranker.files import write_json
from reranker.selection import best_of
from reranker.train.run_directory import CONFIG, INITIAL, MARKER, METRICS
from reranker.train.tables import print_table

_INSIDE = {JOBS, "checkpoints", "model", "shards", INITIAL}
"""Directories in which no run directory is looked for."""
_LAST = 20
"""Records whose seconds of a step tell how long the rest takes."""


@dataclass(frozen=True)
class Training:
    """A run directory.

    Attributes:
        job, jobs: the number of the newest job, None where there is none; how many there were.
        state: SLURM's word for that job (RUNNING, PENDING, ...); once SLURM has forgotten it DONE for a whole training,
            STOPPED for one that was asked to stop, else ENDED.
        step, steps: optimizer steps behind it and in all, None before the first record; seconds_left: by the newest
            records' speed, None where no job is under way.
        restarts: of the newest job.
    """

    run: str
    job: str | None
    jobs: int
    state: str
    step: int | None
    steps: int | None
    loss: float | None
    seconds_left: float | None
    restarts: int


def jobs_command(config: JobsConfig) -> int:
    """`reranker jobs`. Returns the exit code."""
    root = Path(config.runs)
    if not root.is_dir():
        raise UserError("runs", f"{root}, no directory", "one with run directories of submitted trainings",
                        "check the path")  # fmt: skip
    states = queue()
    found = [training(run, states) for run in sorted(run_directories(root))]
    if not found:
        raise UserError("runs", f"no jobs/ in or below {root}", "run directories of submitted trainings",
                        "submit one: reranker submit ...")  # fmt: skip
    if config.output:
        write_json(Path(config.output), [asdict(one) for one in found])
    columns = ("run", "job", "state", "step", "loss", "left", "restarts")
    rows = [
        (os.path.relpath(one.run, root), one.job or "", one.state, shown_steps(one),
         "" if one.loss is None else f"{one.loss:.4f}",
         "" if one.seconds_left is None else duration(one.seconds_left), str(one.restarts))
        for one in found
    ]  # fmt: skip
    print_table(columns, rows, numbers=("step", "loss", "left", "restarts"), wrapped=("run",))
    return 0


def run_directories(root: Path) -> Iterator[Path]:
    """Directories with jobs/, `root` among them."""
    for directory, names, _ in os.walk(root):
        if JOBS in names and any(_jobs(Path(directory))):
            yield Path(directory)
        names[:] = sorted(name for name in names if name not in _INSIDE and not name.startswith("."))


def training(run: Path, states: Mapping[str, str]) -> Training:
    """What files, and the states of the jobs that SLURM knows, tell of a run directory."""
    jobs = sorted(_jobs(run), key=lambda path: (path.stat().st_mtime, path.name))
    under_way = [path for path in jobs if states.get(path.name) in ("RUNNING", "COMPLETING", "SUSPENDED")]
    waiting = [path for path in jobs if path.name in states]
    # In a chain the newest one waits for the one that runs.
    job = (under_way or waiting[:1] or jobs)[-1]
    restarts = max(0, sum(1 for _ in job.glob("restart-*")) - 1)
    return observed(run, states.get(job.name), job.name, len(jobs), restarts)


def observed(run: Path, state: str | None, job: str | None = None, jobs: int = 0, restarts: int = 0) -> Training:
    """What files tell of a run directory, `state` being that of a training that is under way or waits."""
    trained = [record for record in records(run) if "train/loss" in record]
    last = trained[-1] if trained else None
    steps = _steps_in_all(settings(run), last) if last else None
    step = last["step"] if last else None
    left = None
    if state is not None and last and steps is not None:
        recent = [record["system/step_seconds"] for record in trained[-_LAST:]]
        left = max(0, steps - last["step"]) * sum(recent) / len(recent)
    loss = last["train/loss"] if last else None
    state = state or _state_of_files(run, step, steps)
    return Training(str(run), job, jobs, state, step, steps, loss, left, restarts)


def queue() -> dict[str, str]:
    """{job: state} of the user's jobs that SLURM has in its queue; {} where there is no SLURM, or none that answers.

    One of an array is there under its own number and under that of the array, `_` and its place.
    """
    if shutil.which("squeue") is None:
        return {}
    command = ["squeue", "--me", "--array", "--noheader", "--format=%A %F_%K %T"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        said = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        print(f"squeue does not answer ({said}): states are those that files tell", file=sys.stderr)
        return {}
    rows = [line.split() for line in done.stdout.splitlines() if line.strip()]
    return {name: state for own, place, state in rows for name in (own, place)}


def duration(seconds: float) -> str:
    """h:mm:ss, and days before it."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    return f"{days}d " * bool(days) + f"{hours}:{minutes:02d}:{rest:02d}"


def _jobs(run: Path) -> Iterator[Path]:
    return (path for path in (run / JOBS).iterdir() if path.name.isdigit() and path.is_dir())


def _state_of_files(run: Path, step: int | None, steps: int | None) -> str:
    if (run / MARKER).exists():
        return "STOPPED"
    return "DONE" if (run / "model").is_dir() and step is not None and step == steps else "ENDED"


def shown_steps(one: Training) -> str:
    return "" if one.step is None else f"{one.step:,}" + (f" of {one.steps:,}" if one.steps is not None else "")


def settings(run: Path) -> dict[str, Any]:
    """The settings of a training; {} before it has begun."""
    try:
        return dict(json.loads((run / CONFIG).read_text("utf-8")))
    except (OSError, ValueError):  # a job that has not begun has none, and one that begins is writing it
        return {}


def _steps_in_all(settings: Mapping[str, Any], record: Mapping[str, Any]) -> int | None:
    """Optimizer steps of the training, from what part of its epochs a record's step has behind it."""
    train = settings.get("train", {})
    if "epochs" not in train or not record["epoch"]:
        return None
    steps = round(train["epochs"] * record["step"] / record["epoch"])
    return min(steps, train["max_steps"]) if train.get("max_steps") else steps


def selecting_metric(run: Path) -> str:
    """The metric by which the newest checkpoint of a training ranks them; before one does, that of the settings, which
    are those of the last start: it may have found the training finished."""
    for state in sorted(run.glob("checkpoints/step-*/state.json"), reverse=True):
        try:
            best = best_of(json.loads(state.read_text("utf-8")))
        except (OSError, ValueError):  # a training under way removes its older ones; a torn one tells nothing
            continue
        if best:
            return str(best["metric"])
        break
    return str(settings(run).get("train", {}).get("metric", "mrr"))


def records(run: Path) -> Iterator[dict[str, Any]]:
    """The records of a training, as far as they are written."""
    try:
        lines = (run / METRICS).read_text("utf-8").splitlines()
    except OSError:
        return
    for line in lines:
        try:
            yield json.loads(line)
        except ValueError:  # the line that is being written
            continue

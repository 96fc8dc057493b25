"""`reranker sweep show DIRECTORY`: the trainings of a sweep, best first: of a job array, or one after another.

In: the directory that `hydra/launcher=slurm` or `local` has made. Out: a table, or JSON: what each training varies, how
far it is, its loss, and the best value of its dev metric so far. Nothing is changed. Raises `UserError`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from reranker.cluster.jobs import Training, observed, queue, records, selecting_metric, shown_steps, training
from reranker.cluster.sweep_directory import FILE, under_way
from reranker.config.cluster import SweepShowConfig
from reranker.errors import UserError
from reranker.files import read_json, write_json
from reranker.train.owner import current
from reranker.train.run_directory import CONFIG
from reranker.train.tables import print_table


@dataclass(frozen=True)
class Result:
    """A training of a sweep.

    Attributes:
        number: its place in the sweep; varied: its words that not all of the sweep have.
        state: SLURM's word; of a local sweep what `local_state` says.
        metric, best, best_step: the dev metric that selects checkpoints, its best value of a model that passes the
            gate, if there is one, and behind which step; None before the first such evaluation.
        gate: whether any evaluation so far has passed the training's gate; None without a gate, or before the first.
    """

    number: int
    varied: tuple[str, ...]
    run: str
    state: str
    training: Training | None
    metric: str
    best: float | None
    best_step: int | None
    gate: bool | None


def sweep_show_command(config: SweepShowConfig) -> int:
    """`reranker sweep show`. Returns the exit code."""
    directory = Path(config.sweep)
    if not (directory / FILE).is_file():
        raise UserError("sweep", f"{directory}, without {FILE}", "the directory of a sweep of trainings",
                        "check the path: hydra.sweep.dir of the sweep, runs/sweep if none was said")  # fmt: skip
    sweep = read_json(directory / FILE)
    if sweep["job"] is None:
        alive = under_way(directory, sweep["host"])
        found = [local_result(number, one, alive) for number, one in enumerate(sweep["trainings"])]
    else:
        states = queue()
        found = [submitted_result(number, one, sweep["job"], states) for number, one in enumerate(sweep["trainings"])]
    found.sort(key=lambda one: (one.best is None, -(one.best or 0.0), one.number))
    if config.output:
        write_json(Path(config.output), [_plain(one) for one in found])
    metric = found[0].metric
    gated = any(one.gate is not None for one in found)
    columns = ("n", "varied", "state", "step", "loss", metric, "at step", *(["gate"] if gated else []))
    rows = [
        (str(one.number), " ".join(one.varied), one.state, "" if one.training is None else shown_steps(one.training),
         "" if one.training is None or one.training.loss is None else f"{one.training.loss:.4f}",
         "" if one.best is None else f"{one.best:.4f}", "" if one.best_step is None else f"{one.best_step:,}",
         *([{None: "", True: "passed", False: "failed"}[one.gate]] if gated else []))
        for one in found
    ]  # fmt: skip
    print_table(columns, rows, numbers=("n", "step", "loss", metric, "at step"), wrapped=("varied",))
    return 0


def submitted_result(number: int, entry: dict[str, Any], job: str, states: dict[str, str]) -> Result:
    """One training, `entry` being what the sweep's file says of it and `job` the number of the array."""
    run = Path(entry["run_dir"])
    known = training(run, states) if (run / "jobs").is_dir() else None
    return result(number, entry, states.get(f"{job}_{number}") or (known.state if known else "UNKNOWN"), known)


def local_result(number: int, entry: dict[str, Any], alive: bool | None) -> Result:
    """One training of a sweep whose process is there (`alive`), is not, or is where that cannot be told (None)."""
    run = Path(entry["run_dir"])
    known = observed(run, None) if (run / CONFIG).is_file() else None
    owner = current(run)
    state = local_state(entry, alive, known.state if known else None, owner.start if owner else None)
    if state == "RUNNING" and known:
        known = observed(run, state)
    return result(number, entry, state, known)


def local_state(entry: dict[str, Any], alive: bool | None, files: str | None, start: str | None) -> str:
    """What has become of a training of a local sweep, as far as it can be told.

    PENDING or RUNNING while the sweep's process is there; behind its end DONE, STOPPED for one that was asked to stop,
    FAILED, ENDED for one that the process did not live to see the end of, NOT BEGUN. UNKNOWN where the sweep runs, or
    ran, on another machine, and of one that failed and was begun again by itself since.

    Args:
        files: what the run directory says, as of a job that SLURM has forgotten; None before there is one.
        start: of the run directory's owner.
    """
    if entry["code"] and start == entry["start"]:
        return "FAILED"  # whatever files tell: the model can be that of an earlier start
    if files == "DONE":
        return files
    if entry["code"] is not None:
        if start != entry["start"]:
            return files if files == "STOPPED" else "UNKNOWN"
        return "NOT BEGUN" if files is None else files if files == "STOPPED" else "DONE"
    if alive is None:
        return "UNKNOWN"
    if alive:
        return "RUNNING" if entry["begun"] else "PENDING"
    return files or "NOT BEGUN"


def result(number: int, entry: dict[str, Any], state: str, known: Training | None) -> Result:
    """One training, with what its records say of its dev metric."""
    run = Path(entry["run_dir"])
    metric = selecting_metric(run)
    evaluated = [one for one in records(run) if f"eval/{metric}" in one]
    judged = [one["gate/passed"] for one in evaluated if "gate/passed" in one]
    # A checkpoint that fails its gate is never the best of its training, nor of the sweep.
    passed = [(one[f"eval/{metric}"], one["step"]) for one in evaluated if one.get("gate/passed", 1)]
    best, step = max(passed, key=lambda one: one[0], default=(None, None))
    return Result(number, tuple(entry["varied"]), str(run), state, known, metric, best, step,
                  any(judged) if judged else None)  # fmt: skip


def _plain(one: Result) -> dict[str, Any]:
    told = {name: value for name, value in vars(one).items() if name != "training"}
    known = vars(one.training) if one.training else {}
    return told | {name: known.get(name) for name in ("job", "step", "steps", "loss", "seconds_left", "restarts")}

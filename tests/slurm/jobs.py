"""Trainings as jobs of the test cluster, as seen from its login host."""

from __future__ import annotations

import filecmp
import json
from pathlib import Path
from typing import Any

from reranker.train.checkpoint import DIRECTORY, checkpoint_directories, damage
from tests.distributed.conftest import Inputs, records
from tests.distributed.ranks import ROOT, environment
from tests.slurm.cluster import Cluster, until

STEPS = 12


def settings(**more: Any) -> dict[str, Any]:
    """12 steps, a checkpoint behind every second one."""
    return {
        "batch.groups": 8, "batch.per_gpu": 2, "train.epochs": 1, "train.save_every": 2, "train.log_every": 1,
        "precision": "fp32", "deepspeed": "zero1", "train.timeout": 20, **more,
    }  # fmt: skip


class Job:
    """A job with the run directory of its training and the file of its output.

    What is started of it first stands still behind step `hold` until its `release`. `world`: its ranks.
    """

    def __init__(
        self, cluster: Cluster, number: str, run: Path, out: Path, hold: int | None = None, world: int = 2
    ) -> None:
        self.cluster, self.number, self.run, self.out, self.hold = cluster, number, run, out, hold
        self.world = world

    @property
    def state(self) -> str:
        return self.cluster.job(self.number)["JobState"]

    @property
    def restarts(self) -> int:
        return int(self.cluster.job(self.number)["Restarts"])

    def seconds(self) -> int:
        """How long SLURM has had it running."""
        *days, hours, minutes, seconds = map(int, self.cluster.job(self.number)["RunTime"].replace("-", ":").split(":"))
        return ((sum(days) * 24 + hours) * 60 + minutes) * 60 + seconds

    def told(self) -> str:
        logs = sorted(self.run.glob("jobs/*/restart-*/*.log")) if self.run.exists() else []
        text = "".join(f"\n--- {path.relative_to(self.run)}\n{path.read_text()[-2000:]}" for path in logs)
        return f"{self.state}\n{self.out.read_text() if self.out.exists() else ''}{text}"

    def step(self) -> int:
        path = self.run / "metrics.jsonl"
        lines = path.read_text().splitlines() if path.exists() else []
        return json.loads(lines[-1])["step"] if lines else 0

    def is_held(self) -> None:
        """Wait until it is."""
        assert self.hold is not None
        until(lambda: self.step() == self.hold, self.told)

    def release(self) -> None:
        released(self.run).touch()

    def is_asked_to_stop(self) -> None:
        """Wait until every rank has heard it."""

        def heard() -> bool:
            logs = [path.read_text() for path in self.run.glob("jobs/*/restart-0/rank-*.log")]
            return len(logs) == self.world and all("stopping behind this step" in log for log in logs)

        until(heard, self.told)

    def ended(self, state: str = "COMPLETED") -> None:
        over = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "PREEMPTED")
        until(lambda: self.state in over, self.told)
        assert self.state == state, self.told()


class Submitted(Job):
    """A training that was submitted with sbatch: two nodes with a rank each.

    `ranks`: of a node; `own`: settings of the training; `more`: options of sbatch.
    """

    def __init__(
        self, cluster: Cluster, inputs: Inputs, directory: Path, hold: int | None = None, ranks: int = 1,
        own: dict[str, Any] | None = None, **more: str,
    ) -> None:  # fmt: skip
        run, out = directory / "run", directory / "job.out"
        each = {"gpus-per-node": str(ranks), "ntasks-per-node": str(ranks)}
        options = {"nodes": "2", **each, "output": str(out), **more}
        number = cluster.run(
            "sbatch", "--parsable", *(f"--{key}={value}" for key, value in options.items()),
            str(ROOT / "launch" / "train.sbatch"), *inputs.overrides(run, **settings(**own or {})), **held(run, hold),
        ).strip()  # fmt: skip
        super().__init__(cluster, number, run, out, hold, world=int(options["nodes"]) * ranks)


def held(run: Path, hold: int | None) -> dict[str, str]:
    """The environment of a submission whose ranks are held (`held/sitecustomize.py`)."""
    where = {} if hold is None else {"TEST_HOLD": str(hold), "TEST_RELEASE": str(released(run))}
    return environment(**where, PYTHONPATH=f"{ROOT / 'tests' / 'slurm' / 'held'}:{ROOT}")


def released(run: Path) -> Path:
    return run.with_name(f"{run.name}-released")


def assert_as_if_nothing_had_happened(run: Path, whole: Path) -> None:
    """The same losses, each step once, and the same weights; checkpoints that are whole."""
    assert [(one["step"], one["train/loss"]) for one in records(run)] == [
        (one["step"], one["train/loss"]) for one in records(whole)
    ]
    model = "model/model.safetensors"
    assert filecmp.cmp(run / model, whole / model, shallow=False)
    assert [damage(path) for path in checkpoint_directories(run)] == [None] * len(list((run / DIRECTORY).iterdir()))

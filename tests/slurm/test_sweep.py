"""A sweep as one job array of two-node trainings, one of which is queued again."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from reranker.train.checkpoint import DIRECTORY, checkpoint_directories, damage
from tests.distributed.conftest import Inputs, records
from tests.slurm.cluster import Cluster, until
from tests.slurm.jobs import Job, held, released, settings

RATES = ("0.001", "0.0001", "0.0005")


def test_a_sweep_runs_as_one_array_and_a_member_that_is_queued_again_goes_on(
    cluster: Cluster, inputs: Inputs, whole: Path, tmp_path: Path
) -> None:
    sweep, run = tmp_path / "rates", tmp_path / "run-${optim.lr}"
    hold = tmp_path / "run"
    words = [
        "train", "--multirun", "hydra/launcher=slurm", f"hydra.sweep.dir={sweep}", "hydra.launcher.nodes=2",
        "hydra.launcher.gpus_per_node=1", "hydra.launcher.cpus_per_rank=2", *inputs.overrides(run, **settings()),
        f"optim.lr={','.join(RATES)}",
    ]  # fmt: skip
    done = cluster.on("ctl", sys.executable, "-m", "reranker", *words, **held(hold, 3))
    assert done.returncode == 0, done.stderr
    array = done.stdout.splitlines()[-1].removeprefix("submitted ").split(";")[0]

    def shown() -> list[dict[str, Any]]:
        output = tmp_path / "sweep.json"
        told = cluster.on(
            "ctl", sys.executable, "-m", "reranker", "sweep", "show", str(sweep), f"output={output}", **held(hold, None)
        )
        assert told.returncode == 0, told.stderr
        return sorted(json.loads(output.read_text()), key=lambda one: one["number"])

    first = Job(cluster, f"{array}_0", tmp_path / f"run-{RATES[0]}", sweep / "0" / "job.out", hold=3)
    first.is_held()
    before = shown()
    assert [one["varied"] for one in before] == [[f"optim.lr={rate}"] for rate in RATES]
    assert (before[0]["state"], before[0]["step"], before[1]["state"]) == ("RUNNING", 3, "PENDING")
    urgent = cluster.run("sbatch", "--parsable", "--partition=urgent", "--nodes=2", "--exclusive",
                         f"--output={tmp_path}/urgent.out", "--wrap=sleep 1").strip()  # fmt: skip
    first.is_asked_to_stop()
    released(hold).touch()
    until(lambda: cluster.job(urgent)["JobState"] == "COMPLETED", first.told)
    for number in range(len(RATES)):
        Job(cluster, f"{array}_{number}", tmp_path / f"run-{RATES[number]}", sweep / str(number) / "job.out").ended()
    assert first.restarts >= 1
    until(lambda: {one["state"] for one in shown()} == {"DONE"}, lambda: str(shown()))
    assert [(one["step"], one["steps"]) for one in shown()] == [(12, 12)] * len(RATES)
    assert shown()[0]["restarts"] == first.restarts
    for rate in RATES:
        directory = tmp_path / f"run-{rate}"
        assert [one["step"] for one in records(directory)] == [one["step"] for one in records(whole)]
        assert [damage(path) for path in checkpoint_directories(directory)] == [None] * len(
            list((directory / DIRECTORY).iterdir())
        )
        assert json.loads((directory / "config.json").read_text())["tracking"]["group"] == "rates"

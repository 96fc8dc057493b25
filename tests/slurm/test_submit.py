"""`reranker submit` and `reranker jobs` on a real cluster."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.distributed.conftest import Inputs
from tests.slurm.cluster import Cluster, until
from tests.slurm.jobs import Job, assert_as_if_nothing_had_happened, held, settings

NODES = ("slurm.nodes=2", "slurm.gpus_per_node=1", "slurm.cpus_per_rank=1")


def reranker(cluster: Cluster, *words: str, run: Path, hold: int | None = None) -> subprocess.CompletedProcess[str]:
    """`reranker WORDS` on the login host."""
    return cluster.on("ctl", sys.executable, "-m", "reranker", *words, **held(run, hold))


def submitted(
    cluster: Cluster, inputs: Inputs, run: Path, *words: str, hold: int | None = None
) -> tuple[list[Job], str]:
    """(the jobs that `reranker submit` has submitted, what it printed)."""
    overrides = inputs.overrides(run, **settings())
    done = reranker(cluster, "submit", *NODES, *words, *overrides, run=run, hold=hold)
    assert done.returncode == 0, done.stderr
    numbers = done.stdout.splitlines()[-1].removeprefix("submitted ").split(";")[0].split(", ")
    return [Job(cluster, number, run, run / "jobs" / number / "job.out", hold) for number in numbers], done.stdout


def listed(cluster: Cluster, run: Path) -> tuple[list[dict[str, Any]], str]:
    """What `reranker jobs` tells of the directory of a run, as JSON and as it is printed."""
    output = run.with_name("jobs.json")
    told = reranker(cluster, "jobs", str(run.parent), f"output={output}", run=run)
    assert told.returncode == 0, told.stderr
    return json.loads(output.read_text()), told.stdout


def test_what_is_submitted_is_what_runs_however_long_it_waits(
    cluster: Cluster, inputs: Inputs, whole: Path, tmp_path: Path
) -> None:
    run, later = tmp_path / "run", tmp_path / "later"
    blocking = cluster.run("sbatch", "--parsable", "--nodes=2", "--exclusive", f"--output={tmp_path}/out",
                           f"--wrap=while [ ! -e {later} ]; do sleep 0.2; done").strip()  # fmt: skip
    until(lambda: cluster.job(blocking)["JobState"] == "RUNNING", cluster.logs)
    [job], said = submitted(cluster, inputs, run)
    assert "batch    8 groups a step = 2 per rank x 2 ranks x 2 micro-batches\n" in said
    assert job.state == "PENDING"
    # The job is submitted from a checkout, which is not what runs.
    code = run / "jobs" / job.number / "code" / "reranker" / "train" / "main.py"
    with open(code, "a") as stream:
        stream.write('print("from", __file__, flush=True)\n')
    assert listed(cluster, run)[1].splitlines()[-1].split() == ["run", job.number, "PENDING", "0"]
    later.touch()
    job.ended()
    assert_as_if_nothing_had_happened(run, whole)
    for log in (run / "jobs" / job.number / "restart-0").iterdir():
        assert f"from {code}\n" in log.read_text()
    [told], _ = listed(cluster, run)
    assert {key: told[key] for key in ("job", "step", "steps", "restarts", "state")} == {
        "job": job.number, "step": 12, "steps": 12, "restarts": 0, "state": "DONE",
    }  # fmt: skip


def test_a_chain_goes_on_from_job_to_job_and_ends_when_all_is_done(
    cluster: Cluster, inputs: Inputs, whole: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    (first, second, third), _ = submitted(cluster, inputs, run, "slurm.chain=3", hold=3)
    first.is_held()
    [told], _ = listed(cluster, run)
    assert (told["job"], told["state"], told["jobs"], told["step"]) == (first.number, "RUNNING", 3, 3)
    assert told["seconds_left"] > 0
    cluster.run("scancel", "--batch", "--signal=USR1", first.number)
    first.is_asked_to_stop()
    first.release()
    first.ended()
    assert f"job {second.number} goes on" in first.out.read_text()
    second.ended()
    third.ended("CANCELLED")
    assert_as_if_nothing_had_happened(run, whole)


def test_a_start_that_fails_leaves_no_job(cluster: Cluster, inputs: Inputs, tmp_path: Path) -> None:
    run, new = tmp_path / "run", tmp_path / "new"
    run.mkdir()
    (run / "jobs").write_text("in the way of the snapshot")
    before = cluster.run("squeue", "--noheader", "--format=%i")
    refused = reranker(cluster, "submit", *NODES, "slurm.chain=2", *inputs.overrides(run, **settings()), run=run)
    assert (refused.returncode, refused.stderr.count("\n")) == (2, 1), refused.stderr
    until(lambda: cluster.run("squeue", "--noheader", "--format=%i") == before, cluster.logs)
    words = (*NODES, "slurm.partition=none", *inputs.overrides(new, **settings()))
    unknown = reranker(cluster, "submit", *words, run=new)
    assert (unknown.returncode, unknown.stderr.count("\n")) == (2, 1), unknown.stderr
    assert unknown.stderr.startswith("reranker: error: sbatch: found sbatch: error: invalid partition specified: none")
    assert not new.exists()

"""Trainings as SLURM jobs of two nodes, hurt in every way that a cluster has.

Each must go on by itself and end as the same training does on one machine that nothing happens to. What is not about
the ranks of a node has one rank on each: a rank takes longer to start than to train a tiny model.
"""

from __future__ import annotations

import contextlib
import os
import signal
from pathlib import Path

from reranker.train.checkpoint import DIRECTORY
from reranker.train.owner import Owner, current
from tests.distributed.conftest import Inputs
from tests.distributed.ranks import ROOT, environment, naming
from tests.slurm.cluster import Cluster, until
from tests.slurm.jobs import Submitted, assert_as_if_nothing_had_happened, settings


def test_two_nodes_train_as_one_machine_does(
    cluster: Cluster, inputs: Inputs, whole_of_four: Path, tmp_path: Path
) -> None:
    job = Submitted(cluster, inputs, tmp_path, ranks=2)
    job.ended()
    assert_as_if_nothing_had_happened(job.run, whole_of_four)
    kept = job.run / "jobs" / job.number
    assert sorted(path.name for path in (kept / "restart-0").iterdir()) == [f"rank-{rank:05d}.log" for rank in range(4)]
    assert (kept / "code" / "reranker" / "train" / "loop.py").is_file()
    assert f"name: {inputs.model}" in (kept / "config.yaml").read_text()
    assert "2 node(s) of 2 rank(s)" in job.out.read_text()


def test_a_preempted_job_saves_is_queued_again_and_goes_on(
    cluster: Cluster, inputs: Inputs, whole: Path, tmp_path: Path
) -> None:
    job = Submitted(cluster, inputs, tmp_path, hold=3, own={"tracking": "offline"})
    job.is_held()
    tracked = (job.run / "wandb_run_id").read_text()
    urgent = cluster.run("sbatch", "--parsable", "--partition=urgent", "--nodes=2", "--exclusive",
                         f"--output={tmp_path}/urgent.out", "--wrap=sleep 1").strip()  # fmt: skip
    job.is_asked_to_stop()
    job.release()
    until(lambda: cluster.job(urgent)["JobState"] == "COMPLETED", job.told)
    job.ended()
    assert job.restarts >= 1
    assert "stopped as asked behind step-" in job.out.read_text()
    assert_as_if_nothing_had_happened(job.run, whole)
    # A file of each start, all of the same run of Weights & Biases.
    files = [path.name for path in job.run.glob("wandb/offline-run-*/run-*.wandb")]
    assert files == [f"run-{tracked.strip()}.wandb"] * (job.restarts + 1)


def is_rank(pid: int, rank: int) -> bool:
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # ended meanwhile
        command, variables = (Path(f"/proc/{pid}/{name}").read_bytes().split(b"\0") for name in ("cmdline", "environ"))
        return b"reranker.train" in command and f"RANK={rank}".encode() in variables
    return False


def test_a_killed_rank_is_told_and_the_job_goes_on(
    cluster: Cluster, inputs: Inputs, whole: Path, tmp_path: Path
) -> None:
    job = Submitted(cluster, inputs, tmp_path, hold=5)
    job.is_held()
    (rank,) = [pid for pid in naming(str(job.run)) if is_rank(pid, 1)]
    os.kill(rank, signal.SIGKILL)
    job.ended()
    assert job.restarts == 1
    assert "for the 1. time behind step-" in job.out.read_text()
    assert_as_if_nothing_had_happened(job.run, whole)


def test_a_cancelled_job_ends_for_good(cluster: Cluster, inputs: Inputs, tmp_path: Path) -> None:
    job = Submitted(cluster, inputs, tmp_path, hold=3)
    job.is_held()
    cluster.run("scancel", job.number)
    job.ended("CANCELLED")
    assert job.restarts == 0


def test_a_mistake_ends_the_job_with_one_line(cluster: Cluster, inputs: Inputs, tmp_path: Path) -> None:
    out = tmp_path / "job.out"
    overrides = inputs.overrides(tmp_path / "run", **settings(**{"batch.per_gpu": 3}))
    number = cluster.run("sbatch", "--parsable", "--nodes=2", "--gpus-per-node=2", "--ntasks-per-node=2", f"--output={out}",
                         str(ROOT / "launch" / "train.sbatch"), *overrides, **environment()).strip()  # fmt: skip
    until(lambda: cluster.job(number)["JobState"] == "FAILED", out.read_text)
    assert cluster.job(number)["Restarts"] == "0"
    lines = [line for line in out.read_text().splitlines() if "error:" in line and not line.startswith("srun:")]
    assert lines == [
        "reranker: error: batch: found groups=8, per_gpu=3, ranks=4, expected 8 to be a multiple of 3 x 4; set "
        "batch.per_gpu to one of [1, 2]"
    ]
    assert not (tmp_path / "run" / DIRECTORY).exists()


def test_a_job_at_its_time_limit_is_queued_again_and_goes_on(
    cluster: Cluster, inputs: Inputs, whole: Path, tmp_path: Path
) -> None:
    # A limit is a number of minutes, and SLURM looks at it every half minute: it is set where the signal, 90 s before
    # it, is due at the next look, and the end at none before that.
    job = Submitted(cluster, inputs, tmp_path, hold=3, time="60", signal="B:USR1@90")
    job.is_held()
    minutes = job.seconds() // 60 + 2
    cluster.run("scontrol", "update", f"JobId={job.number}", f"TimeLimit={minutes}")
    job.is_asked_to_stop()
    job.release()
    job.ended()
    assert job.restarts >= 1
    assert "stopped as asked behind step-" in job.out.read_text()
    assert_as_if_nothing_had_happened(job.run, whole)


def test_a_node_that_loses_power_and_returns_costs_a_restart(
    cluster: Cluster, inputs: Inputs, whole: Path, tmp_path: Path
) -> None:
    job = Submitted(cluster, inputs, tmp_path, hold=4)
    job.is_held()
    with cluster.noticing(4):
        cluster.crash("n2")
        until(lambda: job.restarts == 1, job.told)
    cluster.boot("n2")
    job.ended()
    assert_as_if_nothing_had_happened(job.run, whole)


def owner(run: Path) -> Owner:
    found = current(run)
    assert found is not None
    return found


def test_a_training_on_a_node_that_was_cut_off_writes_no_checkpoint_once_another_goes_on(
    cluster: Cluster, inputs: Inputs, whole: Path, tmp_path: Path
) -> None:
    job = Submitted(cluster, inputs, tmp_path, hold=2, ranks=2, nodes="1")
    job.is_held()
    node = cluster.job(job.number)["NodeList"]
    cluster.cut(node)
    try:
        with cluster.noticing(4):
            until(lambda: job.restarts == 1, job.told)
        until(lambda: owner(job.run).restart == 1, job.told)
        job.release()
        log = job.run / "jobs" / job.number / "restart-0" / "rank-00000.log"
        until(lambda: "a training that was begun later" in log.read_text(), job.told)
        job.ended()
    finally:
        cluster.mend(node)
    assert job.restarts == 1
    assert cluster.job(job.number)["NodeList"] != node
    assert_as_if_nothing_had_happened(job.run, whole)
    # It would be missed until the controller asks for it again, many seconds from now.
    cluster.crash(node)
    cluster.boot(node)
    until(lambda: len(cluster.idle()) == 2, cluster.logs)

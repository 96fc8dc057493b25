"""`reranker doctor cluster` under srun, on nodes that are well and on one that does not see the shared directory."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from tests.distributed.ranks import environment
from tests.slurm.cluster import Cluster

SRUN = ("srun", "--nodes=2", "--ntasks-per-node=2", "--gpus-per-node=2", "--export=ALL")


def doctor(cluster: Cluster, *words: str) -> tuple[int, str, str]:
    command = (*SRUN, sys.executable, "-m", "reranker", "doctor", "cluster", "mib=1", *words)
    done = cluster.on("ctl", *command, **environment())
    return done.returncode, done.stdout, done.stderr


def test_every_rank_of_two_nodes_is_looked_at(cluster: Cluster, tmp_path: Path) -> None:
    code, told, said = doctor(cluster, f"directory={tmp_path}", f"output={tmp_path / 'facts.json'}")
    assert code == 0, told + said
    facts = json.loads((tmp_path / "facts.json").read_text())["ranks"]
    assert [(one["rank"], one["host"]) for one in facts] == [(0, "n1"), (1, "n1"), (2, "n2"), (3, "n2")]
    assert [line.split()[:2] for line in told.splitlines()[2:4]] == [["n1", "2"], ["n2", "2"]]


def test_a_node_that_does_not_see_the_directory_is_named(cluster: Cluster, tmp_path: Path) -> None:
    assert cluster.on("n2", "mount", "-t", "tmpfs", "none", str(tmp_path)).returncode == 0
    try:
        code, told, said = doctor(cluster, f"directory={tmp_path}", "wait=3")
    finally:
        cluster.on("n2", "umount", str(tmp_path))
    assert code == 1, told + said
    problems = [line for line in told.splitlines() if line.startswith("problem:")]
    assert problems == [
        "problem: n2: does not see within 3 s what n1 writes there; choose a directory on a file system that all nodes share"
    ]
    assert list(tmp_path.iterdir()) == []

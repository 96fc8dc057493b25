"""Preparation as job arrays: tasks on both nodes, one of which is lost, and the merge behind them."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from tests.distributed.ranks import ROOT, environment
from tests.slurm.cluster import Cluster, until
from tests.unit.test_part import mine, pack, sources, translate, written

PARTS = 3
# In the place of python on the nodes: the task that is to be lost is killed as it begins, once.
PYTHON = """#!/usr/bin/env bash
case "$*" in *part=$TEST_LOSE*) if mkdir "$TEST_LOST" 2>/dev/null; then kill -9 $$; fi ;; esac
exec {python} "$@"
"""


class Arrays:
    """Job arrays of launch/prepare.sbatch, and merges."""

    def __init__(self, cluster: Cluster, directory: Path) -> None:
        self._cluster, self._directory = cluster, directory
        python = directory / "bin" / "python"
        python.parent.mkdir()
        python.write_text(PYTHON.format(python=sys.executable))
        python.chmod(0o755)

    def submit(self, *words: str, lose: str = "none", **options: str) -> str:
        variables = environment(TEST_LOSE=lose, TEST_LOST=str(self._directory / "lost"), PYTHONPATH=str(ROOT))
        variables["PATH"] = f"{self._directory / 'bin'}:{os.environ['PATH']}"
        return self._cluster.run(
            "sbatch", "--parsable", f"--output={self._directory}/%A-%a.out",
            *(f"--{name}={value}" for name, value in options.items()), str(ROOT / "launch" / "prepare.sbatch"),
            words[0], f"parts={PARTS}", *words[1:], **variables,
        ).strip()  # fmt: skip

    def ended(self, number: str) -> str:
        """The state in which a job ends."""
        over = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL")
        until(lambda: self._cluster.job(number)["JobState"] in over, self.told)
        return self._cluster.job(number)["JobState"]

    def told(self) -> str:
        return "\n".join(path.read_text()[-1500:] for path in sorted(self._directory.glob("*.out")))


def test_arrays_of_tasks_write_what_one_process_writes_and_a_lost_task_is_run_again_alone(
    cluster: Cluster, tmp_path: Path
) -> None:
    sources(tmp_path)
    for command in (translate, mine, pack):
        assert command(tmp_path, tmp_path / "whole" / command.__name__, None) == 0
    arrays, out = Arrays(cluster, tmp_path), tmp_path / "out"
    words = {
        "translate": [f"groups={tmp_path}/english.jsonl", "backend=memory",
                      f"backend.files=[{tmp_path}/memory.jsonl]", "gates.language=null"],
        "mine": [f"groups={tmp_path}/wanted.jsonl", f"corpus={tmp_path}/corpus.jsonl", "bm25.analyzer=words",
                 "negatives=3", "margin=null"],
        "pack": [f"groups={tmp_path}/korean.jsonl", "groups_per_shard=10"],
    }  # fmt: skip
    numbers = {}
    for name, settings in words.items():
        command = (name, *settings, f"output={out / name}")
        array = arrays.submit(*command, array=f"0-{PARTS - 1}", lose="1/3" if name == "mine" else "none")
        numbers[name] = array, arrays.submit(*command, dependency=f"afterok:{array}"), command
    for name in ("translate", "pack"):
        array, merge, _ = numbers[name]
        assert arrays.ended(merge) == "COMPLETED", arrays.told()
        assert written(out / name) == written(tmp_path / "whole" / name)

    array, merge, command = numbers["mine"]
    assert [arrays.ended(f"{array}_{number}") for number in range(PARTS)] == ["COMPLETED", "FAILED", "COMPLETED"]
    assert cluster.job(merge)["Reason"] == "DependencyNeverSatisfied"
    cluster.run("scancel", merge)
    early = arrays.submit(*command)
    assert arrays.ended(early) == "FAILED"
    assert "found no record of part=1/3, expected one of each of 3 tasks; run what is missing" in arrays.told()
    again = arrays.submit(*command, array="1")
    merge = arrays.submit(*command, dependency=f"afterok:{again}")
    assert arrays.ended(merge) == "COMPLETED", arrays.told()
    assert written(out / "mine") == written(tmp_path / "whole" / "mine")


def test_a_number_that_is_no_part_is_one_line(cluster: Cluster, tmp_path: Path) -> None:
    arrays = Arrays(cluster, tmp_path)
    number = arrays.submit("mine", array="3")
    assert arrays.ended(number) == "FAILED"
    assert arrays.told().strip() == (
        "reranker: error: prepare.sbatch: found --array with task 3 of parts=3, expected numbers from 0 to 2; "
        "change --array or parts"
    )

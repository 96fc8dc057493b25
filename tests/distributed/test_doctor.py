"""`reranker doctor cluster` on two ranks of this machine."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from tests.distributed.ranks import ROOT, environment

LAUNCH = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "-m", "reranker"]


def doctor(*words: str, limit: str = "") -> subprocess.CompletedProcess[str]:
    command = [*LAUNCH, "doctor", "cluster", "mib=1", *words]
    shell = ["bash", "-c", f'{limit} exec "$@"', "bash", *command]
    return subprocess.run(shell, env=environment(), cwd=ROOT, capture_output=True, text=True, check=False)


def test_ranks_in_order_are_shown_and_nothing_is_left_behind(tmp_path: Path) -> None:
    (tmp_path / "shared").mkdir()
    found = doctor(f"directory={tmp_path / 'shared'}", f"output={tmp_path / 'facts.json'}", limit="ulimit -n 5000;")
    assert found.returncode == 0, found.stderr
    assert found.stdout.splitlines()[-1] == "nothing is wrong"
    assert list((tmp_path / "shared").iterdir()) == []
    facts = json.loads((tmp_path / "facts.json").read_text())
    assert [one["rank"] for one in facts["ranks"]] == [0, 1]
    assert all(one["open_files"] == 5000 and one["seen"] is not None and one["fsync"] > 0 for one in facts["ranks"])
    assert facts["all_reduce"]["latency"] > 0
    assert facts["all_reduce"]["bandwidth"] > 0


def test_what_is_wrong_is_a_line_with_what_to_do_and_code_1(tmp_path: Path) -> None:
    found = doctor(f"directory={tmp_path}", limit="ulimit -n 1000;")
    assert found.returncode == 1
    host = Path("/proc/sys/kernel/hostname").read_text().strip()
    assert (
        f"problem: {host}: fewer than 4096 open files allowed; ulimit -n 4096, or LimitNOFILE of slurmd"
        in found.stdout.splitlines()
    )


def test_a_directory_that_is_none_is_one_line(tmp_path: Path) -> None:
    found = doctor(f"directory={tmp_path / 'none'}")
    lines = [line for line in found.stderr.splitlines() if line.startswith("reranker: error:")]
    assert lines == [
        f"reranker: error: directory: found {tmp_path / 'none'}, no directory, expected one on the file system for run "
        "directories; make it, or name another one"
    ]

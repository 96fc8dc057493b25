"""What a SLURM job keeps of its code and settings."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.distributed.ranks import ROOT, environment


def begin(run_dir: Path, *more: str, **variables: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "reranker.cluster", f"run_dir={run_dir}", "data.shards=none", *more]
    return subprocess.run(command, env=environment(**variables), cwd=ROOT, capture_output=True, text=True, check=False)


def test_a_job_keeps_the_code_and_the_settings_that_it_began_with(tmp_path: Path) -> None:
    run = tmp_path / "run"
    first = begin(run, "optim.lr=1e-4", SLURM_JOB_ID="7")
    code = run / "jobs" / "7" / "code"
    assert (first.returncode, first.stdout.split()) == (0, [str(run), str(code)]), first.stderr
    assert sorted(path.name for path in code.iterdir()) == ["conf", "launch", "reranker"]
    assert "lr: 0.0001" in (run / "jobs" / "7" / "config.yaml").read_text()
    assert (run / "jobs" / "7" / "command").read_text().splitlines()[-1] == "optim.lr=1e-4"
    # The copy is whole: it runs, and it is what runs.
    shown = [sys.executable, "-c", "import reranker.cli as it; it.main(['train', '--help']); print(it.__file__)"]
    ran = subprocess.run(
        shown, env=environment(PYTHONPATH=str(code)), cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert ran.stdout.splitlines()[-1] == str(code / "reranker" / "cli.py")
    # A restart finds it as it was.
    before = {path: path.stat().st_mtime_ns for path in code.rglob("*.py")}
    again = begin(run, "optim.lr=1e-4", SLURM_JOB_ID="7")
    assert again.stdout == first.stdout
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert begin(run, SLURM_JOB_ID="8").stdout.split()[1] == str(run / "jobs" / "8" / "code")


def test_a_mistake_is_one_line_before_any_rank_starts(tmp_path: Path) -> None:
    for arguments, job, line in [
        (["optim.lrr=1"], "7", "reranker: error: optim.lrr: found"),
        (["batch.groups=0"], "7", "reranker: error: batch.groups: found 0"),
        ([], "", "reranker: error: environment: found no SLURM_JOB_ID"),
    ]:
        refused = begin(tmp_path / "run", *arguments, SLURM_JOB_ID=job)
        assert refused.returncode == 2
        assert refused.stderr.startswith(line), refused.stderr
        assert refused.stderr.count("\n") == 1
        assert not (tmp_path / "run").exists()
    taken = tmp_path / "file"
    taken.write_text("not a directory")
    refused = begin(taken, SLURM_JOB_ID="7")
    assert (refused.returncode, refused.stderr.count("\n")) == (2, 1), refused.stderr
    assert os.listdir(tmp_path) == ["file"]

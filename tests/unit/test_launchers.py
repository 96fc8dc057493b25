"""What begins the trainings of a sweep: who chooses it, where they run, and when no further one begins."""

from __future__ import annotations

import json
import time
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from reranker import cli
from reranker.config.training import TrainConfig
from reranker.errors import UserError
from reranker.train.preemption import Stopped
from tests.unit.conftest import Sweep, listed


@pytest.mark.parametrize("spelled", ["-m", "--multi", "hydra.mode=MULTIRUN", "hydra/launcher=basic"])
def test_a_sweep_is_one_however_it_is_asked_for(sweep: Sweep, tmp_path: Path, spelled: str) -> None:
    def work(config: TrainConfig) -> int:
        if config.optim.lr == 1e-5:
            raise UserError("a", "b", "c", "d")
        return 0

    more = ["--multirun"] if spelled.startswith("hydra/") else []
    assert sweep(work, *more, "optim.lr=1e-5,2e-5", "run_dir=runs/${optim.lr}", spelled=spelled) == 2
    assert [one["code"] for one in listed(tmp_path / "sweep")] == [2, 0]


def test_a_yaml_of_the_users_own_asks_for_a_sweep_and_chooses_its_launcher(
    sweep: Sweep, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mine = tmp_path / "mine" / "recipe"
    mine.mkdir(parents=True)
    (mine / "both.yaml").write_text(
        "# @package _global_\nrun_dir: runs/${optim.lr}\nhydra:\n  mode: MULTIRUN\n  sweeper:\n    params:\n"
        "      optim.lr: 1e-5,2e-5\n"
    )
    (mine / "slurm.yaml").write_text(
        "# @package _global_\ndefaults:\n  - override /hydra/launcher: slurm\nhydra:\n  launcher:\n    nodes: 0\n"
    )
    begun = []

    def work(config: TrainConfig) -> int:
        begun.append(config.optim.lr)
        return 0

    assert sweep(work, "recipe=both", spelled="--config-dir=mine") == 0
    assert (begun, len(listed(tmp_path / "sweep"))) == ([1e-5, 2e-5], 2)
    words = ("--config-dir=mine", "recipe=slurm", "optim.lr=3e-5,4e-5", "run_dir=runs/${optim.lr}")
    assert sweep(work, *words) == 2
    assert capsys.readouterr().err == "reranker: error: slurm.nodes: found 0, expected 1 or more; change the value\n"
    assert (
        sweep(work, *words, "hydra/launcher=local", "~hydra.launcher.nodes") == 0
    )  # the command line has the last word
    assert begun[2:] == [3e-5, 4e-5]


def test_the_launcher_of_trainings_is_not_that_of_other_commands(sweep: Sweep, tmp_path: Path) -> None:
    assert sweep(lambda config: 0, "optim.lr=1e-5,2e-5", "run_dir=runs/${optim.lr}") == 0
    assert sweep(lambda config: 0, "optim.lr=1e-5", "run_dir=runs/x", spelled="train.dry_run=true") == 0
    found = []

    def score(config: Any) -> int:
        found.append(config.output)
        return 0

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cli, "function", lambda command, run_command: score)
        assert cli.main(["score", "--multirun", "model=m", "input=i", "output=a,b"]) == 0
    assert found == ["a", "b"]


def test_run_directories_that_hydra_or_the_clock_names(
    sweep: Sweep, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def work(config: TrainConfig) -> int:
        time.sleep(0.01)
        return 0

    rates = "optim.lr=1e-5,2e-5,3e-5"
    assert sweep(work, rates, "run_dir='${hydra:runtime.output_dir}'", "hydra.sweep.subdir='${hydra:job.num}'") == 0
    found = listed(tmp_path / "sweep")
    assert [(one["run_dir"], one["code"]) for one in found] == [(str(tmp_path / f"sweep/{n}"), 0) for n in range(3)]
    # Each begins at a time of its own, also where the time is in another value that the directory's name holds.
    for words in (["run_dir='runs/${now:%H%M%S.%f}'"], ["run_dir='runs/${name}'", "name='a-${now:%H%M%S.%f}'"]):
        assert sweep(work, rates, *words) == 0
        assert len({one["run_dir"] for one in listed(tmp_path / "sweep")}) == 3
    # Those that begin in the same year are refused when the second of them begins.
    assert sweep(work, rates, "run_dir='runs/${now:%Y}'") == 2
    run = tmp_path / "runs" / str(datetime.now().year)
    assert capsys.readouterr().err == (
        f"reranker: error: run_dir: found {run} for optim.lr=1e-05 and optim.lr=2e-05, expected one for each training; "
        "name what varies in it: run_dir=runs/${optim.lr}\n"
    )
    assert [(one["begun"], one["code"]) for one in listed(tmp_path / "sweep")] == [
        (True, 0),
        (False, None),
        (False, None),
    ]


def test_behind_a_training_that_was_asked_to_stop_no_other_begins(
    sweep: Sweep, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    begun = []

    def work(config: TrainConfig) -> int:
        begun.append(config.optim.lr)
        return Stopped(0) if len(begun) == 2 else 0

    words = ("optim.lr=1e-5,2e-5,3e-5,4e-5", "run_dir=runs/${optim.lr}")
    assert sweep(work, *words) == 0
    assert begun == [1e-5, 2e-5]
    assert capsys.readouterr().out == (
        f"{tmp_path}/sweep: asked to stop, 2 of 4 trainings not begun; the same command goes on\n"
    )
    assert [one["code"] for one in listed(tmp_path / "sweep")] == [0, 0, None, None]
    begun.clear()
    with monkeypatch.context() as patch:
        patch.setenv("RANK", "1")  # which begins no other either, and leaves the line to rank 0
        assert sweep(work, *words) == 0
    assert (begun, capsys.readouterr().out) == ([1e-5, 2e-5], "")
    assert sweep(work, *words) == 0  # the same command again
    assert begun[2:] == [1e-5, 2e-5, 3e-5, 4e-5]


def test_every_rank_refuses_the_directory_of_a_sweep_that_was_submitted(
    sweep: Sweep, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def work(config: TrainConfig) -> int:
        pytest.fail("a training was begun")

    (tmp_path / "sweep").mkdir()
    (tmp_path / "sweep" / "sweep.json").write_text(json.dumps({"job": "7", "trainings": []}))
    monkeypatch.setattr(cli, "HEAD_START", 0.0)
    for rank, lines in (("0", 1), ("1", 0)):
        monkeypatch.setenv("RANK", rank)
        assert sweep(work, "optim.lr=1e-5,2e-5", "run_dir=runs/${optim.lr}") == 2
        assert len(capsys.readouterr().err.splitlines()) == lines

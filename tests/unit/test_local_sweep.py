"""A sweep on this machine: its list, what it refuses, and what is told of each of its trainings."""

from __future__ import annotations

import json
import socket
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

from reranker import cli
from reranker.cluster.sweep import local_state
from reranker.config.training import TrainConfig
from reranker.errors import UserError
from tests.unit.conftest import Sweep, listed


def write_run(run: Path, steps: int, mrr: float, start: str = "a") -> None:
    """A run directory of a training of 20 steps, of which `steps` are behind it."""
    run.mkdir(parents=True)
    (run / "config.json").write_text(json.dumps({"train": {"epochs": 1, "max_steps": None}}))
    (run / "owner").write_text(json.dumps({"start": start, "host": "h", "job": None, "restart": 0}))
    last = {"step": steps, "epoch": steps / 20, "train/loss": 0.5, "system/step_seconds": 2.0}
    (run / "metrics.jsonl").write_text("".join(json.dumps(one) + "\n" for one in (last, {"step": 5, "eval/mrr": mrr})))
    if steps == 20:
        (run / "model").mkdir()


def test_the_list_is_there_before_the_first_training_and_tells_how_each_went(sweep: Sweep, tmp_path: Path) -> None:
    seen = []

    def work(config: TrainConfig) -> int:
        seen.append([(one["begun"], one["code"]) for one in listed(tmp_path / "sweep")])
        if config.optim.lr == 2e-5:
            raise UserError("a", "b", "c", "d")
        return 0

    assert sweep(work, "optim.lr=1e-5,2e-5,3e-5", "run_dir=runs/${optim.lr}-${hydra:job.num}") == 2
    assert seen == [
        [(True, None), (False, None), (False, None)],
        [(True, 0), (True, None), (False, None)],
        [(True, 0), (True, 2), (True, None)],
    ]
    found = listed(tmp_path / "sweep")
    assert [one["varied"] for one in found] == [["optim.lr=1e-05"], ["optim.lr=2e-05"], ["optim.lr=3e-05"]]
    runs = [str(tmp_path / "runs" / name) for name in ("1e-05-0", "2e-05-1", "3e-05-2")]
    assert [one["run_dir"] for one in found] == runs
    assert [one["code"] for one in found] == [0, 2, 0]


def test_a_sweep_in_batches_is_one_list(sweep: Sweep, tmp_path: Path) -> None:
    words = ("optim.lr=1e-5,2e-5,3e-5", "run_dir=runs/${optim.lr}", "hydra.sweeper.max_batch_size=2")
    assert sweep(lambda config: 0, *words) == 0
    found = listed(tmp_path / "sweep")
    assert [(one["varied"], one["code"]) for one in found] == [
        (["optim.lr=1e-05"], 0), (["optim.lr=2e-05"], 0), (["optim.lr=3e-05"], 0),
    ]  # fmt: skip


def test_only_rank_0_writes_the_list_and_a_dry_run_leaves_none(
    sweep: Sweep, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ("optim.lr=1e-5,2e-5", "run_dir=runs/${optim.lr}")
    assert sweep(lambda config: 0, *words, "train.dry_run=true") == 0
    assert not (tmp_path / "sweep" / "sweep.json").exists()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RANK", "1")
        assert sweep(lambda config: 0, *words) == 0
    assert not (tmp_path / "sweep" / "sweep.json").exists()
    assert sweep(lambda config: 0, *words) == 0
    assert (tmp_path / "sweep" / "sweep.json").exists()


def test_what_a_sweep_refuses_before_a_training_begins(
    sweep: Sweep, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refused(*words: str) -> str:
        def work(config: TrainConfig) -> int:
            pytest.fail("a training was begun")

        assert sweep(work, *words) == 2
        return capsys.readouterr().err.replace(str(tmp_path), "DIR")

    assert refused("optim.lr=1e-5", "optim.warmup=0.1,0.2", "run_dir=runs/${optim.lr}") == (
        "reranker: error: run_dir: found DIR/runs/1e-05 for optim.warmup=0.1 and optim.warmup=0.2, expected one for each "
        "training; name what varies in it: run_dir=runs/${optim.lr}\n"
    )
    words = ("optim.lr=1e-5,2e-5", "run_dir=runs/${optim.lr}")
    (tmp_path / "sweep" / "sweep.json").write_text(json.dumps({"job": "7", "trainings": []}))
    assert refused(*words) == (
        "reranker: error: hydra.sweep.dir: found DIR/sweep, which holds a sweep that was submitted, expected a directory "
        "for each sweep; say hydra.sweep.dir=runs/NAME\n"
    )
    (tmp_path / "sweep" / "sweep.json").unlink()
    monkeypatch.setattr("reranker.cluster.sweep_directory.WAIT", 0.1)
    with FileLock(tmp_path / "sweep" / "sweep.lock"):
        line = refused(*words)
    assert line == (
        "reranker: error: hydra.sweep.dir: found DIR/sweep, whose sweep is under way, expected a directory for each "
        "sweep; say hydra.sweep.dir=runs/NAME, or wait for its end\n"
    )


def test_the_trainings_of_a_local_sweep_are_listed_best_first(
    sweep: Sweep, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def work(config: TrainConfig) -> int:
        rate = config.optim.lr
        if rate == 3e-5:
            raise UserError("a", "b", "c", "d")
        write_run(Path(config.run_dir), 20, 1e4 * rate)
        return 0

    sweep(work, "optim.lr=1e-5,2e-5,3e-5", "run_dir=runs/${optim.lr}")
    capsys.readouterr()
    assert cli.main(["sweep", "show", "sweep", f"output={tmp_path / 'out.json'}"]) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()[2:]]
    assert rows == [
        ["1", "optim.lr=2e-05", "DONE", "20", "of", "20", "0.5000", "0.2000", "5"],
        ["0", "optim.lr=1e-05", "DONE", "20", "of", "20", "0.5000", "0.1000", "5"],
        ["2", "optim.lr=3e-05", "FAILED"],
    ]
    told = json.loads((tmp_path / "out.json").read_text())
    assert [(one["number"], one["best"], one["job"], one["restarts"]) for one in told] == [
        (1, 0.2, None, 0), (0, 0.1, None, 0), (2, None, None, None),
    ]  # fmt: skip
    assert cli.main(["sweep", "show", "runs"]) == 2
    assert "sweep: found runs, without sweep.json" in capsys.readouterr().err


def test_a_sweep_is_running_as_long_as_its_process_is_there(tmp_path: Path) -> None:
    def shown(host: str = socket.gethostname()) -> list[tuple[str, Any]]:
        entries = [
            {"words": [], "varied": [str(number)], "run_dir": str(tmp_path / f"run-{number}"), "begun": number == 0,
             "code": None, "start": None}
            for number in range(2)
        ]  # fmt: skip
        (tmp_path / "sweep.json").write_text(json.dumps({"job": None, "host": host, "trainings": entries}))
        assert cli.main(["sweep", "show", str(tmp_path), f"output={tmp_path / 'out.json'}"]) == 0
        return [(one["state"], one["seconds_left"]) for one in json.loads((tmp_path / "out.json").read_text())]

    assert shown() == [("NOT BEGUN", None), ("NOT BEGUN", None)]
    write_run(tmp_path / "run-0", 15, 0.5)
    with FileLock(tmp_path / "sweep.lock"):
        assert shown() == [("RUNNING", 5 * 2.0), ("PENDING", None)]
        assert shown("elsewhere") == [("UNKNOWN", None), ("UNKNOWN", None)]
    assert shown() == [("ENDED", None), ("NOT BEGUN", None)]
    (tmp_path / "run-0" / "requeue").touch()
    assert shown() == [("STOPPED", None), ("NOT BEGUN", None)]


STATES = [
    # begun, code, the sweep's process is there, files, the run directory has the owner that it had -> state
    (True, 0, False, "DONE", True, "DONE"),
    (True, 0, True, "ENDED", True, "DONE"),  # files that do not tell how many steps there are
    (True, 0, True, "STOPPED", True, "STOPPED"),
    (True, 0, True, None, True, "NOT BEGUN"),  # a dry run among others
    (True, 2, True, "ENDED", True, "FAILED"),
    (True, 2, True, "DONE", True, "FAILED"),  # by its gate, beside the model of an earlier start
    (True, 2, True, "STOPPED", True, "FAILED"),
    (True, 2, False, None, True, "FAILED"),
    (True, 2, None, None, True, "FAILED"),
    (True, 2, False, "DONE", False, "DONE"),  # begun again by itself, and ended
    (True, 2, False, "STOPPED", False, "STOPPED"),
    (True, 2, False, "ENDED", False, "UNKNOWN"),
    (True, None, True, None, True, "RUNNING"),
    (True, None, True, "STOPPED", True, "RUNNING"),
    (True, None, None, "ENDED", True, "UNKNOWN"),
    (True, None, False, "ENDED", True, "ENDED"),
    (False, None, True, "ENDED", True, "PENDING"),  # the same command again
    (False, None, True, "DONE", True, "DONE"),
    (False, None, False, "STOPPED", True, "STOPPED"),
    (False, None, False, None, True, "NOT BEGUN"),
]


@pytest.mark.parametrize(("begun", "code", "alive", "files", "same", "state"), STATES)
def test_what_has_become_of_a_training(
    begun: bool, code: int | None, alive: bool | None, files: str | None, same: bool, state: str
) -> None:
    entry = {"begun": begun, "code": code, "start": "a" if code is not None and files else None}
    start = entry["start"] if same else "b"
    assert local_state(entry, alive, files, start) == state

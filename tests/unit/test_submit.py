"""What is submitted to SLURM, and what is refused before anything is; what `reranker jobs` reads of run directories."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

from reranker.cli import main
from reranker.cluster.jobs import duration, run_directories, training
from reranker.data.manifest import load_manifest
from tests.distributed.ranks import ROOT

GOLDEN = Path(__file__).resolve().parents[1] / "golden" / "submit.txt"


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("data")
    groups = directory / "groups.jsonl"
    lines = [json.dumps({"query": f"q{n}", "pos": [f"p{n}"], "neg": [f"n{n}"]}) + "\n" for n in range(100)]
    groups.write_text("".join(lines), encoding="utf-8")
    assert main(["pack", f"groups={groups}", f"output={directory / 'shards'}"]) == 0
    assert load_manifest(directory / "shards").groups == 100
    return directory / "shards"


def test_a_dry_run_prints_the_batch_arithmetic_and_the_command(
    shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["recipe=ko_reranker", f"data.shards={shards}", f"run_dir={tmp_path / 'run'}", "slurm.nodes=2",
                 "slurm.partition=gpu", "slurm.time=24:00:00", "slurm.options=['--constraint=h100']", "slurm.chain=2",
                 "dry_run=true", "name=two words"]  # fmt: skip
    assert main(["submit", *arguments]) == 0
    said = capsys.readouterr().out
    for place, name in ((shards, "SHARDS"), (tmp_path, "DIR"), (ROOT, "ROOT")):
        said = said.replace(str(place), name)
    assert said == GOLDEN.read_text("utf-8")
    assert not (tmp_path / "run").exists()


def test_the_words_of_the_job_are_those_of_the_training(
    shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [f"data.shards={shards}", f"run_dir={tmp_path / 'a b'}", "train.accept=[model]", "optim.lr=1e-5"]
    assert main(["submit", "slurm.gpus_per_node=1", *words, "dry_run=true", "slurm.nodes=1"]) == 0
    command = shlex.split(capsys.readouterr().out.splitlines()[-2])
    assert command[-len(words) :] == words
    assert command[-len(words) - 1].endswith("launch/train.sbatch")


MISTAKES = [
    (["slurm.nodes=3", "batch.per_gpu=1"], "batch: found groups=32, per_gpu=1, ranks=24, expected 32 to be a multiple of 1 x 24; set batch.groups to a multiple of 24"),
    (["slurm.nodes=0"], "slurm.nodes: found 0, expected 1 or more; change the value"),
    (["slurm.gpus_per_node=0"], "slurm.ranks_per_node: found 0, expected 1 or more; change the value"),
    (["slurm.options=[constraint]"], "slurm.options: found constraint, expected an option of sbatch, as --constraint=h100; change the value"),
    (["optim.lr=-1"], "optim.lr: found -1.0, expected 0 or more; change the value"),
]  # fmt: skip


@pytest.mark.parametrize(("arguments", "line"), MISTAKES)
def test_a_mistake_is_one_line_and_nothing_is_submitted(
    arguments: list[str], line: str, shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["submit", f"data.shards={shards}", f"run_dir={tmp_path / 'run'}", *arguments]) == 2
    assert capsys.readouterr().err == f"reranker: error: {line}\n"
    assert not (tmp_path / "run").exists()


def test_without_slurm_submit_says_so(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert main(["submit", f"data.shards={shards}", f"run_dir={tmp_path / 'run'}"]) == 2
    assert capsys.readouterr().err == (
        "reranker: error: sbatch: found no such program, expected the commands of SLURM on this machine; run it on the "
        "cluster's login node, or say dry_run=true\n"
    )


def sweep(shards: Path, directory: Path, *words: str) -> int:
    return main(["train", "--multirun", "hydra/launcher=slurm", f"hydra.sweep.dir={directory}", f"data.shards={shards}",
                 f"run_dir={directory.parent}/run-${{optim.lr}}", *words])  # fmt: skip


def test_a_sweep_is_one_array_that_a_dry_run_shows(
    shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["optim.lr=1e-5,5e-6,2e-6", "hydra.launcher.nodes=2", "hydra.launcher.parallel=2"]
    assert sweep(shards, tmp_path / "lr", *words, "hydra.launcher.dry_run=true") == 0
    said = capsys.readouterr().out
    for place, name in ((shards, "SHARDS"), (tmp_path, "DIR"), (ROOT, "ROOT")):
        said = said.replace(str(place), name)
    assert said == (GOLDEN.parent / "sweep.txt").read_text("utf-8")
    assert not (tmp_path / "lr" / "sweep.json").exists()


SWEEPS = [
    (["optim.lr=1e-5,-1"], "optim.lr: found -1.0, expected 0 or more; change the value"),
    (["optim.lr=1e-5,5e-6", "batch.groups=12"], "batch: found groups=12, per_gpu=1, ranks=8, expected 12 to be a multiple of 1 x 8; set batch.groups to a multiple of 8"),
    (["optim.warmup=0.1,0.2"], "run_dir: found DIR/run-5e-06 for optim.warmup=0.1 and optim.warmup=0.2, expected one for each training; name what varies in it: run_dir=runs/${optim.lr}"),
    (["optim.lr=1e-5,5e-6", "hydra.launcher.nodes=two"], "hydra.launcher.nodes: found 'two', expected what `reranker submit --help` says of slurm.nodes; change the value"),
]  # fmt: skip


@pytest.mark.parametrize(("words", "line"), SWEEPS)
def test_a_mistake_in_one_training_of_a_sweep_is_one_line_and_nothing_is_submitted(
    words: list[str], line: str, shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert sweep(shards, tmp_path / "lr", *words) == 2
    assert capsys.readouterr().err.replace(str(tmp_path), "DIR") == f"reranker: error: {line}\n"
    assert not (tmp_path / "lr" / "sweep.json").exists()


def test_a_sweep_is_not_submitted_into_the_directory_of_one_that_is_under_way(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    directory, words = tmp_path / "lr", ["optim.lr=1e-5,5e-6"]
    directory.mkdir()
    monkeypatch.setattr("reranker.cluster.sweep_directory.WAIT", 0.1)
    with FileLock(directory / "sweep.lock"):
        assert sweep(shards, directory, *words) == 2
        assert capsys.readouterr().err.replace(str(tmp_path), "DIR") == (
            "reranker: error: hydra.sweep.dir: found DIR/lr, whose sweep is under way, expected a directory for each "
            "sweep; say hydra.sweep.dir=runs/NAME, or wait for its end\n"
        )
        assert not (directory / "code").exists()
        assert sweep(shards, directory, *words, "hydra.launcher.dry_run=true") == 0


def test_the_trainings_of_a_sweep_are_listed_best_first(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number, found in enumerate(([0.3, 0.5], [0.6, 0.4])):
        evaluated = [{"step": 5 * place, "eval/mrr": value} for place, value in enumerate(found, 1)]
        write_run(tmp_path / f"run-{number}", [record(20, 1.0), *evaluated], {str(7 + number): number})
    trainings = [
        {"words": [], "varied": [f"optim.lr={number}"], "run_dir": str(tmp_path / f"run-{number}")}
        for number in range(3)
    ]
    (tmp_path / "sweep.json").write_text(json.dumps({"job": "7", "trainings": trainings}))
    assert main(["sweep", "show", str(tmp_path), f"output={tmp_path / 'out.json'}"]) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()[2:]]
    assert rows == [
        ["1", "optim.lr=1", "ENDED", "20", "of", "60", "0.5000", "0.6000", "5"],
        ["0", "optim.lr=0", "ENDED", "20", "of", "60", "0.5000", "0.5000", "10"],
        ["2", "optim.lr=2", "UNKNOWN"],
    ]
    told = json.loads((tmp_path / "out.json").read_text())
    assert [(one["number"], one["best"], one["restarts"]) for one in told] == [
        (1, 0.6, 1),
        (0, 0.5, 0),
        (2, None, None),
    ]
    assert main(["sweep", "show", str(tmp_path / "run-0")]) == 2
    assert "sweep: found" in capsys.readouterr().err


def test_what_fails_its_gate_is_not_the_best_of_a_sweep(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number, found in enumerate(([(0.7, 0.0), (0.5, 1.0)], [(0.6, 1.0)], [(0.9, 0.0)], [])):
        evaluated = [{"step": 5 * place, "eval/mrr": value, "gate/passed": passed}
                     for place, (value, passed) in enumerate(found, 1)]  # fmt: skip
        write_run(tmp_path / f"run-{number}", [record(20, 1.0), *evaluated], {str(7 + number): 0})
    trainings = [{"words": [], "varied": [], "run_dir": str(tmp_path / f"run-{number}")} for number in range(4)]
    (tmp_path / "sweep.json").write_text(json.dumps({"job": "7", "trainings": trainings}))
    assert main(["sweep", "show", str(tmp_path)]) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()[2:]]
    assert [(row[0], row[6:]) for row in rows] == [
        ("1", ["0.6000", "5", "passed"]),
        ("0", ["0.5000", "10", "passed"]),
        ("2", ["failed"]),
        ("3", []),
    ]


def write_run(run: Path, records: list[dict[str, Any]], jobs: dict[str, int], **train: Any) -> None:
    """A run directory as a training leaves it; `jobs` are {number: restarts}."""
    for job, restarts in jobs.items():
        for restart in range(restarts + 1):
            (run / "jobs" / job / f"restart-{restart}").mkdir(parents=True)
    (run / "config.json").write_text(json.dumps({"train": {"epochs": 3, "max_steps": None, **train}}))
    (run / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records) + '{"step": 9')


def record(step: int, epoch: float) -> dict[str, Any]:
    return {"step": step, "epoch": epoch, "train/loss": 0.5, "system/step_seconds": 2.0}


def test_jobs_tell_step_loss_time_left_and_restarts(tmp_path: Path) -> None:
    write_run(tmp_path / "a" / "run", [record(1, 0.05), {"step": 2, "eval/mrr": 0.1}, record(4, 0.2)], {"7": 2})
    assert list(run_directories(tmp_path)) == [tmp_path / "a" / "run"]
    found = training(tmp_path / "a" / "run", {"7": "RUNNING"})
    assert (found.job, found.state, found.step, found.steps, found.loss, found.restarts) == (
        "7", "RUNNING", 4, 60, 0.5, 2,
    )  # fmt: skip
    assert found.seconds_left == 56 * 2.0
    assert duration(56 * 2.0) == "0:01:52"
    assert duration(100_000) == "1d 3:46:40"


def test_jobs_that_slurm_has_forgotten_are_told_by_their_files(tmp_path: Path) -> None:
    write_run(tmp_path, [record(20, 1.0)], {"7": 0, "8": 0}, max_steps=20)
    assert training(tmp_path, {}).state == "ENDED"
    (tmp_path / "model").mkdir()
    assert training(tmp_path, {}).state == "DONE"
    assert training(tmp_path, {}).seconds_left is None
    (tmp_path / "requeue").touch()
    assert training(tmp_path, {}).state == "STOPPED"
    assert training(tmp_path, {"8": "PENDING"}).state == "PENDING"


def test_in_a_chain_the_job_that_runs_is_shown(tmp_path: Path) -> None:
    write_run(tmp_path, [record(20, 1.0)], {"7": 0, "8": 1, "9": 0})
    found = training(tmp_path, {"8": "RUNNING", "9": "PENDING"})
    assert (found.job, found.jobs, found.state, found.restarts) == ("8", 3, "RUNNING", 1)


def test_jobs_of_a_directory_without_any_is_a_mistake(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["jobs", str(tmp_path)]) == 2
    assert capsys.readouterr().err.splitlines()[-1] == (
        f"reranker: error: runs: found no jobs/ in or below {tmp_path}, expected run directories of submitted trainings; "
        "submit one: reranker submit ..."
    )

"""`reranker checkpoint list` shows what a run has, and `verify` names every file that is not as it was written."""

from __future__ import annotations

import datetime
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from reranker import cli
from reranker.files import sha256
from reranker.train.checkpoint import damage, glance
from reranker.train.checkpoints import differing
from reranker.train.distributed import Ranks
from tests.unit.test_checkpoint import flip, write

SAVED = datetime.datetime(2026, 3, 1, 9, 5, 59).astimezone()
FRAGMENTS = "fragments-00000.safetensors"
BEST = {"checkpoint": "step-00000064", "value": 0.75, "step": 64, "metric": "ndcg@10", "dev": None}


def state_of(step: int, **more: Any) -> dict[str, Any]:
    evaluated = {"eval/mrr": 0.5, "eval/ndcg@10": {32: 0.5, 64: 0.75}.get(step, 0.625)}
    return {
        "epoch": step / 32, "groups_seen": step * 32, "world": 2, "stage": 1, "precision": "fp32", "best": BEST,
        "metrics": evaluated, "config": {"train": {"metric": "mrr"}}, **more,
    }  # fmt: skip


@pytest.fixture
def run_dir(ranks: Ranks, tmp_path: Path) -> Path:
    """A run of three checkpoints, the second the best, the third without an evaluation."""
    for step in (32, 64, 80):
        state = state_of(step) if step < 80 else state_of(step, metrics=None, groups_seen=1234567)
        path = write(tmp_path / "run", step, ranks, **state)
        for file in path.iterdir():
            os.utime(file, (SAVED.timestamp(),) * 2)
    return tmp_path / "run"


Run = Callable[..., list[str]]


@pytest.fixture
def said(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """The lines that a command prints, and behind them the one with which it fails; paths as from `tmp_path`."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str, code: int = 0) -> list[str]:
        assert cli.main(["checkpoint", *arguments]) == code
        out, err = capsys.readouterr()
        errors = [line for line in err.splitlines() if line.startswith("reranker: error: ")]
        assert len(errors) == (code > 0)
        return [line.rstrip() for line in out.splitlines()] + errors

    return run


HEAD = [
    "                         groups       dev",
    "name           epoch       seen   ndcg@10  trained with          GiB  saved at          whole",
]
FIRST = "step-00000032   1.00      1,024    0.5000  2 ranks zero1 fp32  0.000  2026-03-01 09:05  yes"
SECOND = "step-00000064   2.00      2,048  * 0.7500  2 ranks zero1 fp32  0.000  2026-03-01 09:05  yes"
THIRD = "step-00000080   2.50  1,234,567         -  2 ranks zero1 fp32  0.000  2026-03-01 09:05  yes"
TABLE = [*HEAD, "─" * 93, FIRST, SECOND, THIRD, "*: the best by ndcg@10"]


def test_the_table_has_every_checkpoint_with_its_best_one_marked(run_dir: Path, said: Run) -> None:
    assert said("list", "run") == TABLE


def test_a_metric_of_a_set_is_not_said_to_be_one_of_the_dev_groups(ranks: Ranks, tmp_path: Path, said: Run) -> None:
    best = {"checkpoint": "step-00000032", "value": 0.5, "step": 32, "metric": "faq/mrr", "dev": None}
    write(tmp_path / "run", 32, ranks, **state_of(32, best=best, metrics={"eval/faq/mrr": 0.5}))
    seen, names, _, row, told = said("list", "run")
    assert seen.split() == ["groups"]
    assert names.split()[:4] == ["name", "epoch", "seen", "faq/mrr"]
    assert row.split()[:5] == ["step-00000032", "1.00", "1,024", "*", "0.5000"]
    assert told == "*: the best by faq/mrr"


def test_the_same_stands_in_the_json_file_with_all_metrics(run_dir: Path, said: Run) -> None:
    printed = said("list", "run")
    assert said("list", "run", "output=list.json") == printed
    content = json.loads(Path("list.json").read_text("utf-8"))
    first = content["checkpoints"][0]
    assert first == {
        "name": "step-00000032", "step": 32, "epoch": 1.0, "groups_seen": 1024, "metrics": {"mrr": 0.5, "ndcg@10": 0.5},
        "best": False, "world": 2, "stage": 1, "precision": "fp32", "bytes": first["bytes"],
        "saved_at": SAVED.isoformat(), "damage": None, "lost": None,
    }  # fmt: skip
    assert first["bytes"] == sum(file.stat().st_size for file in (run_dir / "checkpoints/step-00000032").iterdir())
    assert [row["best"] for row in content["checkpoints"]] == [False, True, False]
    assert (content["run"], content["unfinished"]) == ("run", [])


def test_the_metric_may_be_that_of_a_set(ranks: Ranks, tmp_path: Path, said: Run) -> None:
    best = {**BEST, "metric": "faq.1/mrr", "value": 0.875}
    for step, value in ((32, 0.5), (64, 0.875)):
        evaluated = {"eval/mrr": 0.25, "eval/faq.1/mrr": value}
        write(tmp_path / "run", step, ranks, **state_of(step, metrics=evaluated, best=best))
    lines = said("list", "run", "output=list.json")
    assert lines[1].split() == ["name", "epoch", "seen", "faq.1/mrr", "trained", "with", "GiB", "saved", "at", "whole"]
    assert [line.split()[3:5] for line in lines[3:5]] == [["0.5000", "2"], ["*", "0.8750"]]
    assert lines[5:] == ["*: the best by faq.1/mrr"]
    rows = json.loads(Path("list.json").read_text("utf-8"))["checkpoints"]
    assert [row["metrics"] for row in rows] == [{"mrr": 0.25, "faq.1/mrr": 0.5}, {"mrr": 0.25, "faq.1/mrr": 0.875}]


def cut(path: Path) -> None:
    os.truncate(path / FRAGMENTS, 7)


def surplus(path: Path) -> None:
    shutil.copy(path / FRAGMENTS, path / "fragments-00007.safetensors")


def another_schema(path: Path) -> None:
    text = (path / "manifest.json").read_text("utf-8")
    (path / "manifest.json").write_text(text.replace('"schema": 1', '"schema": 2'), "utf-8")


DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "cut": (cut, f"{FRAGMENTS} has 7 bytes and not <size>"),
    "gone": (lambda path: (path / FRAGMENTS).unlink(), f"{FRAGMENTS} is missing"),
    "no state": (lambda path: (path / "state.json").unlink(), "state.json is missing"),
    "no manifest": (lambda path: (path / "manifest.json").unlink(), "no readable manifest.json"),
    "a torn manifest": (lambda path: (path / "manifest.json").write_text("{"), "no readable manifest.json"),
    "another schema": (another_schema, "its schema is 2 and not 1"),
}


@pytest.mark.parametrize("kind", DAMAGES)
def test_damage_that_names_and_sizes_show_is_told_as_a_resume_tells_it(kind: str, run_dir: Path, said: Run) -> None:
    path = run_dir / "checkpoints" / "step-00000064"
    size = (path / FRAGMENTS).stat().st_size
    change, reason = DAMAGES[kind]
    change(path)
    reason = reason.replace("<size>", str(size))
    assert damage(path) == reason
    rows = said("list", "run")
    assert [row.split()[-1] for row in rows[3:6]] == ["yes", "no", "yes"]
    assert rows[-1] == f"step-00000064: {reason}"
    assert said("verify", "run", code=2) == [
        "step-00000032: ok, 2 files, 0.000 GiB", f"step-00000064: {reason}", "step-00000080: ok, 2 files, 0.000 GiB",
        f"reranker: error: run/checkpoints/step-00000064: found {reason} (1 of 3 checkpoints damaged), expected every "
        "byte as it was written; copy it again: a resume passes it over",
    ]  # fmt: skip


def test_a_state_that_is_no_json_is_told_though_its_size_fits(run_dir: Path, said: Run) -> None:
    flip(run_dir / "checkpoints/step-00000080/state.json", 0)
    rows = said("list", "run")
    name, *cells = rows[5].split()
    assert (name, cells[:5], cells[-1]) == ("step-00000080", ["-", "-", "-", "-", "0.000"], "no")
    assert rows[6:] == ["*: the best by ndcg@10", "step-00000080: no readable state.json"]


def test_what_a_killed_save_left_is_mentioned_and_never_listed(run_dir: Path, said: Run) -> None:
    staging = run_dir / "checkpoints" / ".step-00000096.staging"
    staging.mkdir()
    rows = said("list", "run", "output=list.json")
    assert rows == [
        *TABLE,
        "unfinished: .step-00000096.staging, of a save that is under way or was killed: the next save removes it",
    ]  # fmt: skip
    assert json.loads(Path("list.json").read_text("utf-8"))["unfinished"] == [staging.name]
    assert said("verify", "run") == [f"step-000000{step}: ok, 2 files, 0.000 GiB" for step in (32, 64, 80)]


def test_every_flipped_byte_is_found_and_the_first_damaged_file_is_named(run_dir: Path, said: Run) -> None:
    checkpoints = run_dir / "checkpoints"
    flip(checkpoints / "step-00000080" / FRAGMENTS, 300)
    flip(checkpoints / "step-00000032" / FRAGMENTS, (checkpoints / "step-00000032" / FRAGMENTS).stat().st_size - 1)
    state = checkpoints / "step-00000032" / "state.json"
    flip(state, state.read_bytes().index(b"0.5"))
    other = "has another sha256 than was written"
    assert [row.split()[-1] for row in said("list", "run")[3:6]] == ["yes"] * 3  # sizes are as they were
    assert said("verify", "run", code=2) == [
        f"step-00000032: {FRAGMENTS} {other}", f"step-00000032: state.json {other}",
        "step-00000064: ok, 2 files, 0.000 GiB", f"step-00000080: {FRAGMENTS} {other}",
        f"reranker: error: run/checkpoints/step-00000032: found {FRAGMENTS} {other} (2 of 3 checkpoints damaged), "
        "expected every byte as it was written; copy it again: a resume passes it over",
    ]  # fmt: skip


def test_fragments_that_no_manifest_names_are_found(run_dir: Path, said: Run) -> None:
    surplus(run_dir / "checkpoints" / "step-00000080")
    reason = "fragments-00007.safetensors is not named in manifest.json"
    assert said("list", "run")[-1] == f"step-00000080: {reason}"
    assert said("verify", "run/checkpoints/step-00000080", code=2)[0] == f"step-00000080: {reason}"


def test_one_checkpoint_is_verified_by_itself_wherever_it_lies(run_dir: Path, said: Run) -> None:
    flip(run_dir / "checkpoints/step-00000032" / FRAGMENTS, 300)
    assert said("verify", "run/checkpoints/step-00000064") == ["step-00000064: ok, 2 files, 0.000 GiB"]
    shutil.copytree(run_dir / "checkpoints/step-00000064", "copied")
    assert said("verify", "path=copied") == ["copied: ok, 2 files, 0.000 GiB"]


def test_the_bar_counts_every_byte_of_every_checkpoint(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = [file for file in run_dir.rglob("*.*") if file.is_file() and file.name != "manifest.json"]
    size = sum(file.stat().st_size for file in files)
    assert cli.main(["checkpoint", "verify", str(run_dir)]) == 0
    assert f"verify: 100%|██████████| {size / 1000:.1f}k/{size / 1000:.1f}k [" in capsys.readouterr().err


def test_a_checkpoint_that_goes_while_it_is_read_is_a_reason_and_no_crash(run_dir: Path) -> None:
    path = run_dir / "checkpoints" / "step-00000064"
    files, wrong = glance(path)
    assert wrong == {}
    assert files == {
        name: ((path / name).stat().st_size, sha256(path / name)) for name in (FRAGMENTS, "state.json")
    }  # fmt: skip
    reasons = differing(path, files, lambda count: shutil.rmtree(path, ignore_errors=True))
    assert reasons == ["state.json cannot be read (No such file or directory)"]


RUN = "expected a run directory of reranker train"
MISTAKES = {
    "list": "run: found no value, expected run directory of a training; say run=...",
    "list nowhere": f"run: found nowhere, no such directory, {RUN}; check the path",
    "list file": f"run: found file, a file, {RUN}; check the path",
    "list empty": f"run: found no checkpoint in empty/checkpoints, {RUN}; train first, or check the path",
    "list begun": "run: found no checkpoint in begun/checkpoints, only one that was never finished, "
    f"{RUN}; train first, or check the path",
    "list run/checkpoints/step-00000032": "run: found run/checkpoints/step-00000032, a checkpoint, "
    "expected its run directory; say run=run",
    "list run output=empty": "output: found empty, a directory, expected a file; name a file in it",
    "list run outputs=x": "outputs: found an unknown key, expected a key of checkpoint list; did you mean output?",
    "verify": "path: found no value, expected run directory of a training, or one of its checkpoints; say path=...",
    "verify nowhere": f"path: found nowhere, no such directory, {RUN} or one of its checkpoints; check the path",
    "verify file": f"path: found file, a file, {RUN} or one of its checkpoints; check the path",
    "verify empty": f"path: found no checkpoint in empty, {RUN} or one of its checkpoints; train first, or check the path",
}


@pytest.mark.parametrize("words", MISTAKES)
def test_a_mistake_is_one_line(words: str, run_dir: Path, tmp_path: Path, said: Run) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "begun" / "checkpoints" / ".step-00000001.staging").mkdir(parents=True)
    (tmp_path / "file").write_text("x")
    assert said(*words.split(), code=2) == [f"reranker: error: {MISTAKES[words]}"]

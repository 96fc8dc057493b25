"""Kill -9 and a full disk in the middle of a checkpoint: the checkpoints before it stay, and training goes on."""

from __future__ import annotations

import filecmp
import json
import os
from pathlib import Path
from typing import Any

import pytest

from reranker.train.checkpoint import DIRECTORY, Pieces, damage, newest, read_state, read_weights
from tests.chaos.faults import Fault, start_hurt
from tests.distributed.conftest import Inputs, records
from tests.distributed.ranks import Finished, start, train, until

STEPS = 24


def settings(**more: Any) -> dict[str, Any]:
    """24 steps with a checkpoint behind each; only the newest one is kept."""
    return {
        "batch.per_gpu": 16, "train.epochs": STEPS // 3, "train.save_every": 1, "train.keep_last": 1,
        "precision": "fp32", "deepspeed": "zero2", **more,
    }  # fmt: skip


def losses(run_dir: Path) -> list[tuple[int, float]]:
    return [(record["step"], record["train/loss"]) for record in records(run_dir)]


def steps_saved(run_dir: Path) -> int:
    """The step of the newest checkpoint, which must be whole; 0 without one."""
    path, passed = newest(run_dir)
    assert passed == []  # a checkpoint that is torn has never had a name
    if path is None:
        return 0
    assert damage(path) is None
    assert read_weights(path).keys() == set(Pieces(path).names)
    return int(read_state(path)["step"])


def killed_while_writing(
    inputs: Inputs, run: Path, mark: Path, place: str, rank: int, victims: tuple[int, ...]
) -> list[Finished]:
    """Train on 2 ranks, hold `rank` where it comes to this place of its third save, and kill -9 `victims` then."""
    job = start_hurt(2, ["train", *inputs.overrides(run, **settings())], [Fault(place, "hold", 3, rank, str(mark))])
    try:
        until(lambda: mark.exists() or not job.running, job.errors)
        job.kill(*victims)
        return job.wait()
    finally:
        job.end()


def test_a_checkpoint_is_whole_or_absent_whenever_ranks_are_killed_while_writing_it(
    inputs: Inputs, tmp_path: Path
) -> None:
    whole, run = tmp_path / "whole", tmp_path / "run"
    train(2, inputs.overrides(whole, **settings()))
    moments = [
        ("writing", 0, (0,)),
        ("writing", 1, (1,)),
        ("flushing", 0, (0,)),
        ("flushing", 1, (1,)),
        ("flushing", 1, (0, 1)),
        ("listing", 0, (0,)),
        ("listing", 0, (0, 1)),
        ("naming", 0, (0, 1)),
    ]
    saved = 0
    for moment, (place, held, victims) in enumerate(moments):
        ranks = killed_while_writing(inputs, run, tmp_path / f"mark-{moment}", place, held, victims)
        for number, rank in enumerate(ranks):
            assert rank.code == -9 if number in victims else rank.code not in (0, -9), (place, victims, rank.err)
        assert steps_saved(run) == saved + 2, "the checkpoints before the one that was torn are lost"
        saved += 2
    assert saved < STEPS
    # The same command once more: after eight deaths the losses are those of a training that had none.
    ranks = train(2, inputs.overrides(run, **settings()))
    assert f"resuming behind step {saved}\n" in ranks[0].err
    assert [step for step, _ in losses(run)] == list(range(1, STEPS + 1))
    assert losses(run) == losses(whole)
    assert filecmp.cmp(run / "model" / "model.safetensors", whole / "model" / "model.safetensors", shallow=False)
    assert [path.name for path in (run / DIRECTORY).iterdir()] == [f"step-{STEPS:08d}"]


def train_noting_flushes(argv: list[str]) -> int:
    """The life of a rank that notes in what order its records are flushed and its checkpoints get their names."""
    from reranker.cli import main

    noted, fsync, replace = argv[0], os.fsync, os.replace

    def note(*words: Any) -> None:
        with open(noted, "a", encoding="utf-8") as stream:
            stream.write(json.dumps(words) + "\n")

    def flushed(descriptor: int) -> None:
        fsync(descriptor)
        path = Path(os.readlink(f"/proc/self/fd/{descriptor}"))
        if path.name == "metrics.jsonl":
            note("records", max(record["step"] for record in records(path.parent)))

    def renamed(source: Any, target: Any) -> None:
        if str(source).endswith(".staging"):
            note("checkpoint", int(Path(target).name.removeprefix("step-")))
        replace(source, target)

    os.fsync, os.replace = flushed, renamed
    return main(argv[1:])


def test_the_records_of_a_checkpoint_are_on_the_disk_before_it_has_its_name(inputs: Inputs, tmp_path: Path) -> None:
    noted = tmp_path / "noted"
    values = settings(**{"train.save_every": 2, "train.max_steps": 6})
    job = start(1, [str(noted), "train", *inputs.overrides(tmp_path / "run", **values)], function=train_noting_flushes)
    (rank,) = job.wait()
    assert rank.code == 0, rank.err
    events, flushed, named = [json.loads(line) for line in noted.read_text("utf-8").splitlines()], 0, []
    for what, step in events:
        if what == "records":
            flushed = step
        else:
            named.append(step)
            assert flushed >= step, events
    assert named == [2, 4, 6]


@pytest.mark.parametrize("full", [(1,), (0, 1)], ids=["on-rank-1", "on-all-ranks"])
@pytest.mark.parametrize("stage", ["zero2", "zero3"])
def test_a_disk_that_stays_full_leaves_the_old_checkpoint_whole_and_ends_the_job(
    inputs: Inputs, tmp_path: Path, full: tuple[int, ...], stage: str
) -> None:
    run = tmp_path / "run"
    values = settings(deepspeed=stage) | {"train.max_steps": 6}
    train(2, inputs.overrides(run, **values))
    before = {path: path.read_bytes() for path in (run / DIRECTORY).rglob("*") if path.is_file()}
    longer = inputs.overrides(run, **values | {"train.max_steps": 9})
    limit = max(len(content) for content in before.values()) // 2  # metrics fit, a rank's share of the state does not
    job = start(2, ["train", *longer], file_limits=dict.fromkeys(full, limit))
    try:
        ranks = job.wait()  # no rank waits for one that has ended
    finally:
        job.end()
    # Two saves in a row: a mistake that all ranks hold, told by the first.
    assert [rank.code for rank in ranks] == [2, 2], ranks
    path = run / DIRECTORY / "step-00000008"
    assert (
        ranks[0]
        .err.splitlines()[-1]
        .startswith(
            f"reranker: error: {path}: found 2 saves in a row that failed, the last one with no room to write it (File too large)"
        )
    )
    assert "File too large" not in ranks[1].err
    assert steps_saved(run) == 6
    assert {path: path.read_bytes() for path in before} == before

    ranks = train(2, longer)  # space again
    assert "resuming behind step 6\n" in ranks[0].err
    assert steps_saved(run) == 9
    assert [path.name for path in (run / DIRECTORY).iterdir()] == ["step-00000009"]

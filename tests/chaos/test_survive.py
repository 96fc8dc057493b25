"""Nothing lost, nothing silently wrong: what happens to ranks, and what is left of the training afterwards."""

from __future__ import annotations

import dataclasses
import filecmp
import json
import time
from pathlib import Path
from typing import Any

import pytest

from reranker.train.checkpoint import DIRECTORY, checkpoint_directories, damage, newest, read_state
from reranker.train.owner import Owner, TakenOver
from tests.chaos.faults import Fault, release, start_hurt
from tests.distributed.conftest import Inputs, records
from tests.distributed.ranks import Finished, start, train, until
from tests.distributed.ranks import run as run_ranks

STEPS, SAVE_EVERY = 24, 3
PROMISED = 30.0
"""Seconds in which a job ends one of whose ranks is lost, from when that happens."""
HANG = 12.0
"""Of these the watchdog waits so many for a rank that stalls; more than a slow machine takes to build an engine."""


def settings(**more: Any) -> dict[str, Any]:
    """24 steps, 3 an epoch, with a checkpoint behind each epoch; the two newest are kept."""
    return {
        "batch.per_gpu": 8, "train.epochs": STEPS // 3, "train.save_every": SAVE_EVERY, "precision": "fp32",
        "deepspeed": "zero2", "model.dropout": 0.1, **more,
    }  # fmt: skip


@pytest.fixture(scope="module")
def whole(inputs: Inputs, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The training to which nothing happens."""
    run = tmp_path_factory.mktemp("survive") / "whole"
    train(2, inputs.overrides(run, **settings()))
    return run


def hurt(inputs: Inputs, run: Path, *faults: Fault, world: int = 2, **more: Any) -> list[Finished]:
    """What the ranks left, all of them ended by themselves: long before the half hour of a collective."""
    return start_hurt(world, ["train", *inputs.overrides(run, **settings(**more))], faults).wait()


def saved_step(run: Path) -> int:
    """The step of the newest checkpoint; every one that has a name is whole."""
    assert all(damage(path) is None for path in checkpoint_directories(run))
    path, passed = newest(run)
    assert passed == []
    return int(read_state(path)["step"]) if path else 0


def last_record(run: Path) -> int:
    path = run / "metrics.jsonl"
    lines = [line for line in path.read_text("utf-8").split("\n")[:-1] if line] if path.exists() else []
    return int(json.loads(lines[-1])["step"]) if lines else 0


def losses(run: Path) -> list[tuple[int, float]]:
    return [(record["step"], record["train/loss"]) for record in records(run)]


def assert_as_if_nothing_had_happened(run: Path, whole: Path) -> None:
    assert losses(run) == losses(whole)
    model = "model/model.safetensors"
    assert filecmp.cmp(run / model, whole / model, shallow=False)
    left = sorted(path.name for path in (run / DIRECTORY).iterdir())
    assert left == [f"step-{STEPS - SAVE_EVERY:08d}", f"step-{STEPS:08d}"]


KILLS = [
    Fault("data", "kill", 5, rank=1),
    Fault("backward", "kill", 3, rank=0),
    Fault("step", "kill", 5, rank=1),
    Fault("stepped", "kill", 4, rank=0),
    Fault("writing", "kill", 1, rank=1),
    Fault("written", "kill", 2, rank=0),
    Fault("naming", "kill", 1, rank=0),
    Fault("named", "kill", 1, rank=0),
    Fault("pruning", "kill", 1, rank=0),
    Fault("pruned", "kill", 1, rank=0),
]


def killed_beside_no_save(inputs: Inputs, run: Path, fault: Fault) -> list[Finished]:
    """Hold the rank there until what was saved has its name, and kill it."""
    mark = Path(str(fault.mark))
    held = dataclasses.replace(fault, what="hold")
    job = start_hurt(2, ["train", *inputs.overrides(run, **settings())], [held])
    try:
        until(lambda: mark.exists() or not job.running, job.errors)
        due = run / DIRECTORY / f"step-{last_record(run) // SAVE_EVERY * SAVE_EVERY:08d}"
        until(lambda: due.name == "step-00000000" or due.exists() or not job.running, job.errors)
        job.kill(fault.rank)
        return job.wait()
    finally:
        job.end()


def test_a_kill_at_any_point_loses_at_most_one_save_interval(inputs: Inputs, whole: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    for number, fault in enumerate(KILLS):
        before = saved_step(run)
        if fault.place in ("data", "backward", "step", "stepped"):
            ranks = killed_beside_no_save(
                inputs, run, dataclasses.replace(fault, mark=str(tmp_path / f"mark-{number}"))
            )
        else:
            ranks = hurt(inputs, run, fault)
        assert ranks[fault.rank].code == -9, (fault, ranks)
        assert ranks[1 - fault.rank].code not in (0, -9), (fault, ranks)
        now, reached = saved_step(run), last_record(run)
        assert now >= before, fault
        # A checkpoint that is being written, beside the training, does not count yet.
        writing = fault.place in ("writing", "written", "naming")
        assert reached - now <= SAVE_EVERY * (2 if writing else 1), fault
    ranks = train(2, inputs.overrides(run, **settings()))
    assert f"resuming behind step {saved_step(run) and now}\n" in ranks[0].err
    assert_as_if_nothing_had_happened(run, whole)


@pytest.mark.parametrize("name", ["SIGTERM", "SIGUSR1"])
@pytest.mark.parametrize("rank", [0, 1])
def test_a_signal_to_one_rank_saves_and_ends_all_at_the_same_step(
    inputs: Inputs, whole: Path, tmp_path: Path, name: str, rank: int
) -> None:
    run = tmp_path / "run"
    ranks = hurt(inputs, run, Fault("backward", name, 9, rank), **{"data.workers": 2})
    assert [rank.code for rank in ranks] == [0, 0], ranks
    step = saved_step(run)
    assert step % SAVE_EVERY != 0, "saved where it would have been saved anyway"
    assert json.loads((run / "requeue").read_text("utf-8")) == {"step": step, "signal": name}
    assert ranks[0].out == f"{run}: stopped by {name} behind step {step} of {STEPS}; the same command goes on\n"
    assert not (run / "model").exists()
    ranks = train(2, inputs.overrides(run, **settings()))
    assert f"resuming behind step {step}\n" in ranks[0].err
    assert not (run / "requeue").exists()
    assert losses(run) == losses(whole)
    assert filecmp.cmp(run / "model/model.safetensors", whole / "model/model.safetensors", shallow=False)


def test_a_second_signal_ends_at_once(inputs: Inputs, tmp_path: Path) -> None:
    # A launcher hands on what the whole group was sent already: what comes at once is the same request.
    faults = [Fault("backward", "SIGTERM", 9, 1), Fault("backward", "SIGUSR1", 9, 1)]
    ranks = hurt(inputs, tmp_path / "run", *faults)
    assert [rank.code for rank in ranks] == [0, 0]
    assert (tmp_path / "run" / "requeue").exists()
    # What comes seconds later is meant: here to a rank whose main thread waits for the other one in a collective.
    run, mark = tmp_path / "again", tmp_path / "mark"
    job = start_hurt(2, ["train", *inputs.overrides(run, **settings())], [Fault("data", "stall", 5, 0, str(mark))])
    try:
        until(lambda: mark.exists() or not job.running, lambda: "nothing has happened")
        until(lambda: not job.running, job.again(1, 15, every=0.5), PROMISED)
        ranks = job.wait()
    finally:
        job.end()
    assert ranks[1].code == 128 + 15
    assert ranks[0].code not in (0, -9)
    assert not (run / "requeue").exists()


def test_a_signal_to_the_whole_group_reaches_workers_that_go_on(inputs: Inputs, whole: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    values, mark = settings(**{"data.workers": 2, "data.prefetch": 1}), tmp_path / "mark"
    job = start_hurt(2, ["train", *inputs.overrides(run, **values)], [Fault("data", "hold", 5, 0, str(mark))])
    try:
        until(lambda: mark.exists() or not job.running, lambda: "nothing has happened")
        job.signal(15)
        release(mark)
        ranks = job.wait()
    finally:
        job.end()
    assert [rank.code for rank in ranks] == [0, 0], ranks
    assert (run / "requeue").exists()
    train(2, inputs.overrides(run, **values))
    assert losses(run) == losses(whole)


@pytest.mark.parametrize(
    ("fault", "named"),
    [
        (Fault("backward", "stall", 5, rank=1), "rank 1 hangs in step 4, while in backward"),
        (Fault("data", "stall", 5, rank=0), "rank 0 hangs in step 4, while in waiting for data"),
        (Fault("backward", "raise", 5, rank=1), "rank 1 failed in step 4, while in backward: RuntimeError: a defect of ours"),
        (Fault("backward", "kill", 5, rank=1), "rank 1 was lost"),
        (Fault("step", "kill", 5, rank=0), "rank 0 was lost"),
    ],
    ids=["stalls", "stalls-in-the-data", "raises", "killed", "rank-0-killed"],
)  # fmt: skip
def test_a_rank_that_is_lost_takes_the_job_down_and_is_named(
    inputs: Inputs, tmp_path: Path, fault: Fault, named: str
) -> None:
    run, mark = tmp_path / "run", tmp_path / "mark"
    # The workers prepare more than a pipe takes: one whose rank is killed must not wait for a reader.
    values = settings(**{"data.workers": 1, "data.prefetch": 8, "batch.per_gpu": 16,
                         "train.hang": HANG if fault.what == "stall" else 600})  # fmt: skip
    job = start_hurt(2, ["train", *inputs.overrides(run, **values)], [dataclasses.replace(fault, mark=str(mark))])
    try:
        until(lambda: mark.exists() or not job.running, lambda: "nothing has happened")
        happened = time.monotonic()
        until(lambda: not job.running, lambda: "a rank goes on", PROMISED)
        # Nor is a worker left of a rank that was killed.
        until(lambda: not job.left, lambda: f"processes are left: {job.left}", happened + PROMISED - time.monotonic())
        ranks = job.wait()
    finally:
        job.end()
    assert all(rank.code != 0 for rank in ranks), ranks
    other = ranks[1 - fault.rank if fault.what == "kill" else 0]
    assert named in other.err, ranks
    assert fault.what != "kill" or "its process has ended" in other.err
    dumps = {path.name: path.read_text("utf-8") for path in (run / "watchdog").iterdir()}
    assert f"rank-{1 - fault.rank:05d}.txt" in dumps
    if fault.what == "stall":
        stuck = dumps[f"rank-{fault.rank:05d}.txt"]
        assert "stall_here" in stuck
        assert '"micro_batches"' in stuck
        assert "stall_here" not in dumps[f"rank-{1 - fault.rank:05d}.txt"]


@pytest.mark.parametrize(("place", "stage"), [("data", "zero2"), ("backward", "zero2"), ("backward", "zero3")])
def test_without_a_limit_for_hangs_a_collective_that_a_rank_does_not_join_ends_behind_its_timeout(
    inputs: Inputs, tmp_path: Path, place: str, stage: str
) -> None:
    values, mark = settings(**{"deepspeed": stage, "train.hang": 0, "train.timeout": 5}), tmp_path / "mark"
    fault = Fault(place, "stall", 5, 1, str(mark))
    job = start_hurt(2, ["train", *inputs.overrides(tmp_path / "run", **values)], [fault])
    try:
        until(lambda: mark.exists() or not job.running, job.errors)
        assert job.running, job.errors()
        until(lambda: not job.running, job.errors, 90.0)  # far from the half hour that torch's own timeout is
        ranks = job.wait()
    finally:
        job.end()
    assert all(rank.code not in (0, -9) for rank in ranks), ranks
    assert "timed out" in ranks[0].err.lower(), ranks


def test_a_full_disk_keeps_the_old_checkpoint_and_the_training_goes_on(
    inputs: Inputs, whole: Path, tmp_path: Path
) -> None:
    for rank in (0, 1):
        run = tmp_path / f"run-{rank}"
        ranks = hurt(inputs, run, Fault("writing", "full", 3, rank))
        assert [rank.code for rank in ranks] == [0, 0], ranks
        path = run / DIRECTORY / f"step-{3 * SAVE_EVERY:08d}"
        line = f"{path}: not saved, no room to write it (No space left on device)"
        assert line in ranks[0].err
        assert line not in ranks[1].err
        assert_as_if_nothing_had_happened(run, whole)


def test_two_saves_in_a_row_that_fail_stop_the_training_and_keep_the_old_checkpoint(
    inputs: Inputs, whole: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    ranks = hurt(inputs, run, Fault("writing", "full", 3, 1), Fault("writing", "full", 4, 1))
    assert [rank.code for rank in ranks] == [2, 2]
    path = run / DIRECTORY / f"step-{4 * SAVE_EVERY:08d}"
    assert ranks[0].err.splitlines()[-1] == (
        f"reranker: error: {path}: found 2 saves in a row that failed, the last one with no room to write it (No space "
        "left on device), expected room on the disk; make room or choose another place; the same command then goes on"
    )
    assert "Traceback" not in ranks[0].err + ranks[1].err
    assert saved_step(run) == 2 * SAVE_EVERY
    train(2, inputs.overrides(run, **settings()))
    assert_as_if_nothing_had_happened(run, whole)


def test_the_last_checkpoint_is_tried_again(inputs: Inputs, whole: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    ranks = hurt(inputs, run, Fault("writing", "full", STEPS // SAVE_EVERY, 0))
    assert [rank.code for rank in ranks] == [0, 0]
    assert_as_if_nothing_had_happened(run, whole)


@pytest.mark.parametrize(
    ("stage", "precision", "number"),
    [
        ("zero0", "fp32", "nan"), ("zero1", "fp32", "inf"), ("zero2", "fp32", "nan"), ("zero3", "fp32", "nan"),
        ("zero1", "bf16", "nan"), ("zero2", "bf16", "inf"), ("zero3", "bf16", "nan"),
    ],
)  # fmt: skip
def test_a_gradient_that_is_not_finite_stops_all_ranks_before_the_update(
    inputs: Inputs, tmp_path: Path, stage: str, precision: str, number: str
) -> None:
    run = tmp_path / "run"
    # Two micro-batches a step: the fifteenth is in the eighth step.
    fault = Fault("backward", number, 15, rank=1)
    # Weights of 16 bits as on a GPU: DeepSpeed's own optimizers for them.
    ranks = hurt(inputs, run, fault, deepspeed=stage, precision=precision, **{"precision.autocast": "false"})
    assert [rank.code for rank in ranks] == [2, 2], ranks
    other = "precision=fp32" if precision == "bf16" else "precision=bf16"
    step = last_record(run) + 1
    assert ranks[0].err.splitlines()[-1] == (
        f"reranker: error: train/grad_norm: found a gradient that is not finite at step {step}, before its update, expected "
        f"finite numbers; see the batch in {run}/failed/step-{step:08d}, or reranker replay CHECKPOINT step={step}; lower optim.lr or say {other}, "
        "then run again: it resumes from the last checkpoint"
    )
    dumps = [json.loads((run / f"failed/step-{step:08d}/rank-{rank:05d}.json").read_text("utf-8")) for rank in (0, 1)]
    shown = sorted(position for dump in dumps for row in dump["micro_batches"] for position in row)
    first = (step - 1) % 3 * 32
    assert shown == list(range(first, min(first + 32, 90)))
    assert [len(row) for row in dumps[1]["groups"]] == [len(row) for row in dumps[1]["micro_batches"]]
    # What was saved before is untouched, and without the fault the training goes on from there.
    assert saved_step(run) == (step - 1) // SAVE_EVERY * SAVE_EVERY


@pytest.mark.parametrize("stage", ["zero2", "zero1-offload", "zero2-offload", "zero3-offload"])
def test_an_overflow_of_fp16_on_one_rank_is_skipped_by_all_and_the_schedule_goes_on(
    inputs: Inputs, tmp_path: Path, stage: str
) -> None:
    run = tmp_path / "run"
    fp16 = {"precision": "fp16", "precision.fp16_on_cpu": "true", "precision.initial_scale_power": 8,
            "precision.hysteresis": 1, "model.dropout": 0.0, "train.max_steps": 9,
            "deepspeed": stage.partition("-")[0], "deepspeed.offload": stage.endswith("offload")}  # fmt: skip
    ranks = hurt(inputs, run, Fault("backward", "inf", 9, rank=1), **fp16)
    assert [rank.code for rank in ranks] == [0, 0], ranks
    found = records(run)
    skipped = [record["step"] for record in found if record["train/skipped"]]
    assert len(skipped) == 1
    assert [record["step"] for record in found] == list(range(1, 10))
    at = skipped[0] - 1
    assert [record["train/loss_scale"] for record in found] == [256.0] * at + [128.0] * (9 - at)
    assert found[at]["train/grad_norm"] is None
    path, _ = newest(run)
    assert path is not None
    state = read_state(path)
    assert (state["step"], state["updates"]) == (9, 8)
    assert (state["cursor"]["epoch"], state["cursor"]["position"]) == (3, 0)
    assert [record["train/learning_rate"] for record in found] == pytest.approx(
        [1e-3 * (9 - step) / 9 for step in range(9)]
    )


def test_fp16_that_overflows_at_its_least_scale_ends_the_run(inputs: Inputs, tmp_path: Path) -> None:
    run = tmp_path / "run"
    fp16 = {"precision": "fp16", "precision.fp16_on_cpu": "true", "precision.initial_scale_power": 1,
            "precision.hysteresis": 1, "precision.min_loss_scale": 1.0, "train.max_steps": 9}  # fmt: skip
    faults = [Fault("backward", "inf", nth, rank=1) for nth in range(8, 20)]
    ranks = hurt(inputs, run, *faults, **fp16)
    assert [rank.code for rank in ranks] == [2, 2], ranks
    line = ranks[0].err.splitlines()[-1]
    assert line.startswith("reranker: error: precision.min_loss_scale: found overflow at step ")
    assert "at the least loss scale, 1, expected gradients that fp16 can hold" in line


def test_a_training_without_faults_leaves_no_marker_no_dump_and_no_process(
    inputs: Inputs, whole: Path, tmp_path: Path
) -> None:
    assert sorted(path.name for path in whole.iterdir()) == [
        "checkpoints", "config.json", "initial", "metrics.jsonl", "model", "owner", "wandb_run_id",
    ]  # fmt: skip
    values = settings(**{"data.workers": 2, "train.epochs": 1})
    job = start(2, ["train", *inputs.overrides(tmp_path / "run", **values)])
    try:
        until(lambda: not job.running, lambda: "a rank goes on")
        assert job.left == []
        assert [rank.code for rank in job.wait()] == [0, 0]
    finally:
        job.end()


def test_another_seed_and_batch_are_refused_with_everything_that_differs(
    inputs: Inputs, whole: Path, tmp_path: Path
) -> None:
    checkpoint = newest(whole)[0]
    values = settings(**{"batch.groups": 16, "train.seed": 7, "train.epochs": 9})
    ranks = run_ranks(2, ["train", *inputs.overrides(whole, **values)])
    assert [rank.code for rank in ranks] == [2, 2]
    assert ranks[0].err.splitlines()[-1] == (
        f"reranker: error: train.seed: found 7, but {checkpoint} was made with 42; batch.groups 16, but 32, expected the "
        "same values; restore them, choose another run_dir, or say train.accept=[train.seed,batch.groups]"
    )


def test_a_run_directory_that_another_training_took_is_left_alone(inputs: Inputs, tmp_path: Path) -> None:
    run = tmp_path / "run"
    mark = tmp_path / "mark"
    fault = Fault("data", "hold", 2 * SAVE_EVERY + 2, 0, str(mark))
    job = start_hurt(2, ["train", *inputs.overrides(run, **settings())], [fault])
    try:
        named = run / DIRECTORY / f"step-{2 * SAVE_EVERY:08d}"
        until(lambda: (mark.exists() and named.exists()) or not job.running, job.errors)
        Owner("another", "elsewhere", None, 0).take(run)
        release(mark)
        ranks = job.wait()
    finally:
        job.end()
    assert [rank.code for rank in ranks] == [2, 2], ranks
    assert ranks[0].err.splitlines()[-1] == (
        f"reranker: error: {run}/owner: found a training that was begun later on elsewhere, expected this training to "
        "be the only one of its run directory; this one ends, and writes nothing more there"
    )
    assert saved_step(run) == 2 * SAVE_EVERY
    assert not list((run / DIRECTORY).glob(".*"))


def test_an_older_restart_of_a_job_does_not_take_its_run_directory_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    older = Owner.new()
    monkeypatch.setenv("SLURM_RESTART_COUNT", "2")
    newer = Owner.new()
    newer.take(tmp_path)
    with pytest.raises(TakenOver, match=r"SLURM job 7, restart 2"):
        older.take(tmp_path)
    newer.check(tmp_path)

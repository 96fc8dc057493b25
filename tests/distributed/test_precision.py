"""Sixteen bits, of weights or of products alone, train as fp32 does, and fp16's loss scaler does what it promises.

fp16 runs on the CPU here, which DeepSpeed is told to allow: slow, but the scaler and its collectives are real.
"""

from __future__ import annotations

import itertools
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from reranker.train.checkpoint import newest
from tests.distributed.conftest import Inputs, records
from tests.distributed.ranks import run, start, train

STEPS = 20
DISTANCE = 2e-3
"""Largest difference of a loss in 16 bits from fp32's over 20 steps in which it falls by 0.015."""


def settings(**more: Any) -> dict[str, Any]:
    return {
        "batch.per_gpu": 8, "train.epochs": 7, "train.max_steps": STEPS, "train.save_every": STEPS,
        "train.keep_last": 99, **more,
    }  # fmt: skip


def fp16(**more: Any) -> dict[str, Any]:
    return settings(**{"precision": "fp16", "precision.fp16_on_cpu": "true", **more})


def bf16(autocast: bool, **more: Any) -> dict[str, Any]:
    """Without autocast weights have 16 bits, as on a GPU."""
    return settings(**{"precision": "bf16", "precision.autocast": str(autocast).lower(), **more})


def column(run_dir: Path, name: str) -> list[Any]:
    return [record[name] for record in records(run_dir)]


def saved_state(run_dir: Path) -> dict[str, Any]:
    path, _ = newest(run_dir)
    assert path is not None
    return json.loads((path / "state.json").read_text("utf-8"))


@pytest.fixture(scope="module")
def in_fp32(inputs: Inputs, tmp_path_factory: pytest.TempPathFactory) -> list[float]:
    path = tmp_path_factory.mktemp("fp32") / "run"
    train(2, inputs.overrides(path, precision="fp32", deepspeed="zero1", **settings()))
    return column(path, "train/loss")


@pytest.mark.parametrize(
    ("stage", "autocast"), [(1, False), (2, False), (3, False), (0, True), (1, True), (2, True), (3, True)]
)
def test_bf16_follows_fp32_within_its_rounding(
    inputs: Inputs, in_fp32: list[float], tmp_path: Path, stage: int, autocast: bool
) -> None:
    train(2, inputs.overrides(tmp_path / "run", deepspeed=f"zero{stage}", **bf16(autocast)))
    losses = torch.tensor(column(tmp_path / "run", "train/loss"))
    expected = torch.tensor(in_fp32)
    assert losses[-3:].mean() < losses[:3].mean() - 0.01
    distance = (losses - expected).abs().max()
    assert 0 < distance <= DISTANCE
    # The whole state is kept in float32 either way: a learning rate of 1e-3 would be lost in bf16 weights.
    state = saved_state(tmp_path / "run")
    assert (state["precision"], state["autocast"], state["stage"]) == ("bf16", autocast, stage)


def test_sixteen_bits_at_stage_0_become_stage_1_and_say_so(inputs: Inputs, tmp_path: Path) -> None:
    for stage in ("zero0", "zero1"):
        values = bf16(False, **{"deepspeed": stage, "train.max_steps": 5})
        first, second = train(2, inputs.overrides(tmp_path / stage, **values))
        told = "deepspeed=zero0 trains wrongly in bf16: ZeRO stage 1 is used instead\n"
        assert (told in first.err) == (stage == "zero0")
        assert told not in second.err
        assert saved_state(tmp_path / stage)["stage"] == 1
    assert column(tmp_path / "zero0", "train/loss") == column(tmp_path / "zero1", "train/loss")


def test_fp16_on_a_cpu_is_refused_unless_asked_for(inputs: Inputs, tmp_path: Path) -> None:
    ranks = run(2, ["train", *inputs.overrides(tmp_path / "run", precision="fp16", **settings())])
    assert [rank.code for rank in ranks] == [2, 2]
    assert [rank.err for rank in ranks] == [
        "reranker: error: precision: found fp16 on a CPU, expected fp32, bf16 or auto, as DeepSpeed has no fp16 there; "
        "say precision=fp32\n",
        "",
    ]
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_fp16_follows_fp32_at_a_scale_that_fits(
    inputs: Inputs, in_fp32: list[float], tmp_path: Path, stage: int
) -> None:
    train(2, inputs.overrides(
        tmp_path / "run", deepspeed=f"zero{stage}", **fp16(**{"precision.initial_scale_power": 10})
    ))  # fmt: skip
    losses, expected = torch.tensor(column(tmp_path / "run", "train/loss")), torch.tensor(in_fp32)
    assert column(tmp_path / "run", "train/skipped") == [0] * STEPS
    assert column(tmp_path / "run", "train/loss_scale") == [2.0**10] * STEPS
    assert 0 < (losses - expected).abs().max() <= DISTANCE


@pytest.mark.parametrize("precision", ["fp16", "bf16", "autocast"])
def test_fp16_and_bf16_follow_fp32_in_chunks(
    inputs: Inputs, in_fp32: list[float], tmp_path: Path, precision: str
) -> None:
    values = fp16(**{"precision.initial_scale_power": 10}) if precision == "fp16" else bf16(precision == "autocast")
    values |= {"batch.packing": "padded"}
    train(2, inputs.overrides(tmp_path / "run", deepspeed="zero1", **values, **{"batch.chunk_tokens": 100}))
    losses, expected = torch.tensor(column(tmp_path / "run", "train/loss")), torch.tensor(in_fp32)
    assert column(tmp_path / "run", "train/skipped") == [0] * STEPS
    assert 0 < (losses - expected).abs().max() <= DISTANCE
    # A chunk is padded to its own longest pair, and not to that of the micro-batch.
    train(2, inputs.overrides(tmp_path / "whole", deepspeed="zero1", **values | {"train.max_steps": 1}))
    share = "data/useful_token_share"
    assert column(tmp_path / "run", share)[0] > column(tmp_path / "whole", share)[0]


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_fp16_overflow_is_skipped_by_all_ranks_alike_and_halves_the_scale(
    inputs: Inputs, tmp_path: Path, stage: int
) -> None:
    power = 32
    values = fp16(**{"precision.initial_scale_power": power, "precision.hysteresis": 1, "train.max_steps": 30,
                     "train.epochs": 10, "train.save_every": 1})  # fmt: skip
    train(2, inputs.overrides(tmp_path / "run", deepspeed=f"zero{stage}", **values))
    skipped = column(tmp_path / "run", "train/skipped")
    scales = [2.0**power, *column(tmp_path / "run", "train/loss_scale")]
    assert 3 <= sum(skipped) <= 24
    assert skipped[0] == 1
    for before, after, skip in zip(scales, scales[1:], skipped, strict=False):
        assert after == (before / 2 if skip else before)
    assert [norm is None for norm in column(tmp_path / "run", "train/grad_norm")] == [bool(skip) for skip in skipped]

    # What each rank holds is unchanged by a skipped step and changed by any other (the last has a rate above zero).
    for rank in range(2):
        name = f"fragments-{rank:05d}.safetensors"
        digests = [
            json.loads((path / "manifest.json").read_text("utf-8"))["files"][name]["sha256"]
            for path in sorted((tmp_path / "run" / "checkpoints").iterdir())
        ]
        assert [int(one == next_) for one, next_ in itertools.pairwise(digests)] == skipped[1:]
    assert saved_state(tmp_path / "run")["updates"] == 30 - sum(skipped)
    # Training goes on at the scale that was found.
    losses = column(tmp_path / "run", "train/loss")
    assert sum(losses[-3:]) < sum(losses[:3]) - 0.01


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_fp16_resumes_with_the_scaler_as_it_was(inputs: Inputs, tmp_path: Path, stage: int) -> None:
    """The scale falls, then doubles every 4 steps: a scaler that lost its count would double at other steps."""
    values = fp16(**{"precision.initial_scale_power": 24, "precision.hysteresis": 2, "precision.loss_scale_window": 4,
                     "train.save_every": 1})  # fmt: skip
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    train(2, inputs.overrides(whole, deepspeed=f"zero{stage}", **values))
    scales = column(whole, "train/loss_scale")
    assert any(after == 2 * before for before, after in itertools.pairwise(scales))
    shutil.copytree(whole, resumed, ignore=shutil.ignore_patterns("model"))
    for checkpoint in (resumed / "checkpoints").iterdir():
        if checkpoint.name > "step-00000014":
            shutil.rmtree(checkpoint)
    ranks = train(2, inputs.overrides(resumed, deepspeed=f"zero{stage}", **values))
    assert "resuming behind step 14\n" in ranks[0].err
    for name in ("train/loss_scale", "train/skipped", "train/loss", "train/grad_norm"):
        assert column(resumed, name) == column(whole, name), name
    assert saved_state(resumed)["scaler"] == saved_state(whole)["scaler"]
    assert saved_state(resumed)["updates"] == saved_state(whole)["updates"]


@pytest.mark.parametrize(("before", "now"), [("bf16", "fp32"), ("fp32", "bf16"), ("bf16", "weights")])
def test_a_training_goes_on_in_another_precision_and_says_so(
    inputs: Inputs, in_fp32: list[float], tmp_path: Path, before: str, now: str
) -> None:
    """As precision=auto does on a processor that has, or lacks, products in bf16."""
    run_dir = tmp_path / "run"
    told = {"bf16": "bf16 (autocast)", "fp32": "fp32", "weights": "bf16"}

    def values(kind: str) -> dict[str, Any]:
        found = settings(precision="fp32") if kind == "fp32" else bf16(kind == "bf16")
        return found | {"deepspeed": "zero1", "train.save_every": STEPS // 2}

    train(2, inputs.overrides(run_dir, **values(before)))
    newest_path, _ = newest(run_dir)
    assert newest_path is not None
    shutil.rmtree(newest_path)
    shutil.rmtree(run_dir / "model")
    ranks = train(2, inputs.overrides(run_dir, **values(now)))
    assert f"precision: {told[now]} from here on, and was {told[before]}\n" in ranks[0].err
    assert f"resuming behind step {STEPS // 2}\n" in ranks[0].err
    assert saved_state(run_dir)["precision"] == ("fp32" if now == "fp32" else "bf16")
    losses = torch.tensor(column(run_dir, "train/loss"))
    assert (losses - torch.tensor(in_fp32)).abs().max() <= DISTANCE


def two_trainings(argv: list[str]) -> int:
    """The life of a rank that trains with TF32, and then without, and notes what torch was told each time."""
    from reranker.cli import main

    told = []
    for tf32 in ("true", "false"):
        code = main(["train", *argv[1:], f"run_dir={argv[0]}/{tf32}", f"precision.tf32={tf32}"])
        told.append([code, torch.backends.cuda.matmul.fp32_precision, torch.backends.cuda.matmul.allow_tf32])
    (Path(argv[0]) / "told.json").write_text(json.dumps(told), encoding="utf-8")
    return 0


def test_float32_is_multiplied_whole_unless_a_training_asks_for_tf32(inputs: Inputs, tmp_path: Path) -> None:
    overrides = inputs.overrides(tmp_path, precision="fp32", **{"train.max_steps": 1, "train.epochs": 1})
    arguments = [word for word in overrides if not word.startswith("run_dir=")]
    (ended,) = start(1, [str(tmp_path), *arguments], function=two_trainings).wait()
    assert ended.code == 0, ended.err
    assert json.loads((tmp_path / "told.json").read_text("utf-8")) == [[0, "tf32", True], [0, "ieee", False]]

"""Training on a CUDA device: every ZeRO stage and precision learns what float32 on the same device learns."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from tests.distributed.conftest import Inputs, make_inputs, records
from tests.distributed.ranks import run_ranks

pytestmark = pytest.mark.gpu
STEPS = 12


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Inputs:
    return make_inputs(tmp_path_factory.mktemp("inputs"))


def _train(inputs: Inputs, run_dir: Path, **values: object) -> list[float]:
    jobs = run_dir.with_suffix(".json")
    common = {"train.max_steps": STEPS, "train.epochs": STEPS, "batch.per_gpu": 8, "train.device": "cuda"}
    jobs.write_text(json.dumps([inputs.overrides(run_dir, **common, **values)]))
    (rank,) = run_ranks(1, ["-m", "tests.distributed.train_many", str(jobs)])
    assert rank.code == 0, rank.err
    return [record["train/loss"] for record in records(run_dir)]


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_float32_on_a_gpu_equals_float32_on_the_cpu(inputs: Inputs, tmp_path: Path, stage: int) -> None:
    on_gpu = _train(inputs, tmp_path / "gpu", precision="fp32", deepspeed=f"zero{stage}")
    on_cpu = _train(inputs, tmp_path / "cpu", precision="fp32", deepspeed=f"zero{stage}", **{"train.device": "cpu"})
    assert torch.allclose(torch.tensor(on_gpu), torch.tensor(on_cpu), atol=1e-4)


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
@pytest.mark.parametrize("stage", [1, 2, 3])
def test_16_bit_on_a_gpu_learns_what_float32_learns(inputs: Inputs, tmp_path: Path, stage: int, precision: str) -> None:
    expected = _train(inputs, tmp_path / "fp32", precision="fp32", deepspeed="zero2")
    losses = _train(
        inputs, tmp_path / precision, precision=precision, deepspeed=f"zero{stage}",
        **{"precision.initial_scale_power": 12} if precision == "fp16" else {},
    )  # fmt: skip
    assert losses[-1] < losses[0]
    assert max(abs(found - wanted) for found, wanted in zip(losses, expected, strict=True)) < 0.05


def test_fp16_is_the_default_on_a_gpu(inputs: Inputs, tmp_path: Path) -> None:
    _train(inputs, tmp_path / "auto")
    newest = sorted((tmp_path / "auto" / "checkpoints").glob("step-*"))[-1]
    assert json.loads((newest / "state.json").read_text())["precision"] == "fp16"

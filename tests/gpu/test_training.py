"""Training on a CUDA device: every ZeRO stage and precision learns what float32 on the same device learns."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.distributed.conftest import Inputs, make_inputs, records

pytestmark = pytest.mark.gpu
STEPS = 12


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Inputs:
    return make_inputs(tmp_path_factory.mktemp("inputs"))


def _train(inputs: Inputs, run_dir: Path, **values: object) -> list[float]:
    """The losses of a training in a process of its own, on the GPU unless `train.device` says otherwise."""
    common = {"train.max_steps": STEPS, "train.epochs": STEPS, "batch.per_gpu": 8, "train.device": "cuda"}
    command = [sys.executable, "-m", "reranker", "train", *inputs.overrides(run_dir, **{**common, **values})]
    place = {
        name: value for name, value in os.environ.items() if name not in ("CUDA_VISIBLE_DEVICES", "DS_ACCELERATOR")
    }
    finished = subprocess.run(command, env=place, capture_output=True, text=True, timeout=600, check=False)
    assert finished.returncode == 0, finished.stderr
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

"""Training on a CUDA device: every ZeRO stage and precision learns what float32 on the same device learns."""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from reranker.data.collate import collate, pack_pairs
from reranker.data.tokenize import Pair
from reranker.model import chunks
from reranker.model.cross_encoder import score_pairs
from reranker.model.losses import Objective
from reranker.model.unpad import why_padded
from tests.distributed.conftest import Inputs, make_inputs, records
from tests.unit.test_unpad import (
    LENGTHS,
    centred,
    error,
    model_of,
    packed_copy,
    scores_and_gradients,
    some_pairs,
    together,
)

pytestmark = pytest.mark.gpu
STEPS = 12
DISTANCE = 2e-3
"""Between losses of two precisions; over these steps the loss itself falls by several times as much."""


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
    assert max(abs(found - wanted) for found, wanted in zip(losses, expected, strict=True)) < DISTANCE


@pytest.mark.parametrize("stage", [0, 1, 3])
def test_bf16_by_autocast_learns_what_float32_learns(inputs: Inputs, tmp_path: Path, stage: int) -> None:
    expected = _train(inputs, tmp_path / "fp32", precision="fp32", deepspeed="zero2")
    by_autocast = {"precision": "bf16", "precision.autocast": "true", "deepspeed": f"zero{stage}"}
    losses = _train(inputs, tmp_path / "autocast", **by_autocast)
    assert losses[-1] < losses[0]
    assert max(abs(found - wanted) for found, wanted in zip(losses, expected, strict=True)) < DISTANCE


def test_tf32_on_a_gpu_learns_what_float32_learns(inputs: Inputs, tmp_path: Path) -> None:
    whole, rough = (
        _train(inputs, tmp_path / tf32, precision="fp32", deepspeed="zero1",
               **{"precision.tf32": tf32, "train.deterministic": "true"})
        for tf32 in ("false", "true")
    )  # fmt: skip
    assert 0 < max(abs(found - wanted) for found, wanted in zip(rough, whole, strict=True)) < DISTANCE


def test_fp16_is_the_default_on_a_gpu(inputs: Inputs, tmp_path: Path) -> None:
    _train(inputs, tmp_path / "auto")
    newest = sorted((tmp_path / "auto" / "checkpoints").glob("step-*"))[-1]
    assert json.loads((newest / "state.json").read_text())["precision"] == "fp16"


def test_packed_and_padded_learn_alike(inputs: Inputs, tmp_path: Path) -> None:
    losses = [
        _train(inputs, tmp_path / packing, precision="bf16", **{"batch.packing": packing, "model.dropout": 0.0})
        for packing in ("packed", "padded")
    ]
    assert losses[0][-1] < losses[0][0]
    assert max(abs(packed - padded) for packed, padded in zip(*losses, strict=True)) < DISTANCE


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_the_largest_micro_batch_is_measured_kept_and_learns_alike(inputs: Inputs, tmp_path: Path, stage: int) -> None:
    by_tokens = {"batch.policy": "tokens", "deepspeed": f"zero{stage}", "precision": "bf16", "model.dropout": 0.0}
    losses = [
        _train(inputs, tmp_path / str(tokens), **by_tokens, **{"batch.tokens": tokens}) for tokens in ("auto", 300)
    ]
    assert losses[0][-1] < losses[0][0]
    assert max(abs(auto - set_) for auto, set_ in zip(*losses, strict=True)) < DISTANCE
    newest = sorted((tmp_path / "auto" / "checkpoints").glob("step-*"))[-1]
    measured = json.loads((newest / "state.json").read_text())["measured"]
    assert measured["tokens"] > 300
    assert measured["under"]["devices"] == [torch.cuda.get_device_name(0)]


def packed_on_gpu(dtype: torch.dtype) -> Any:
    model = model_of("xlm-roberta").to(dtype)
    if reason := why_padded(model.config, torch.device("cuda", 0), dtype):
        pytest.skip(reason)
    return packed_copy(model).cuda()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_no_pair_sees_another_in_the_kernel(dtype: torch.dtype) -> None:
    packed, pairs = packed_on_gpu(dtype), some_pairs(LENGTHS)
    before = score_pairs(packed, pairs.to(torch.device("cuda")))
    for changed in range(len(LENGTHS)):
        ids = [row.tolist() for row in pairs.ids_T.split(LENGTHS)]
        ids[changed] = [5 + (token + 7) % 50 for token in ids[changed]]
        rows = [Pair(row, types.tolist()) for row, types in zip(ids, pairs.types_T.split(LENGTHS), strict=True)]
        after = score_pairs(packed, pack_pairs(rows, pairs.pad_id).to(torch.device("cuda")))
        same = torch.arange(len(LENGTHS), device="cuda") != changed
        assert torch.equal(after[same], before[same])
        assert after[changed] != before[changed]


def test_a_micro_step_reads_nothing_back_from_the_gpu() -> None:
    packed = packed_on_gpu(torch.bfloat16)
    rows = [[Pair([7] * length, [0] * length) for length in group] for group in ([5, 90, 3], [12, 400, 4])]
    batch = collate(rows, range(2), 3, pad_id=1).pin_memory()
    assert batch.packed.ids_T.is_pinned()
    assert batch.present_GP.is_pinned()
    for mode in ("default", "error"):  # the first loads kernels, which may wait
        on_device = batch.to(torch.device("cuda"))
        torch.cuda.set_sync_debug_mode(mode)
        try:
            chunks.forward_and_backward(
                on_device, [batch.packed], 1, objective=Objective(), score=lambda pairs: score_pairs(packed, pairs),
                backward=lambda loss: loss.backward(), share=0.5, seed=1,
            )  # fmt: skip
        finally:
            torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_the_packed_kernel_is_as_exact_as_the_padded_forward(dtype: torch.dtype) -> None:
    """Scores and gradients of pairs of 1 to 512 tokens, against float64 on the CPU."""
    model = model_of("xlm-roberta").to(dtype)
    if reason := why_padded(model.config, torch.device("cuda", 0), dtype):
        pytest.skip(reason)
    reference = copy.deepcopy(model).double()
    padded, packed = copy.deepcopy(model).cuda(), packed_copy(model).cuda()
    sums = {"padded": [0.0, 0.0], "packed": [0.0, 0.0]}
    for seed in range(8):
        pairs = some_pairs(LENGTHS, seed=seed)
        scores, gradients = scores_and_gradients(reference, pairs)
        for name, forward in (("padded", padded), ("packed", packed)):
            found, found_gradients = scores_and_gradients(forward, pairs.to(torch.device("cuda")))
            on_cpu = {key: gradient.cpu() for key, gradient in found_gradients.items()}
            sums[name][0] += error(centred(found.cpu()), centred(scores))
            sums[name][1] += error(together(on_cpu, gradients), together(gradients, gradients))
    for of_packed, of_padded in zip(sums["packed"], sums["padded"], strict=True):
        assert 0 < of_packed < 1.3 * of_padded

"""What DeepSpeed is told for which settings."""

from __future__ import annotations

from typing import Any

import pytest

from reranker.config.common import Precision
from reranker.config.training import PrecisionConfig
from reranker.train.deepspeed_config import bucket_size, deepspeed_config


def told(stage: int = 2, precision: Precision = Precision.fp32, offload: bool = False, clip: float = 1.0) -> Any:
    return deepspeed_config(stage, precision, PrecisionConfig(), clip, 1000, offload, pinned=False)


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_offload_keeps_the_optimizer_in_the_machines_memory(stage: int) -> None:
    assert told(stage, offload=True)["zero_optimization"]["offload_optimizer"] == {"device": "cpu", "pin_memory": False}
    assert told(stage, offload=True)["zero_force_ds_cpu_optimizer"] is False, "which is compiled for a minute"
    assert "offload_optimizer" not in told(stage)["zero_optimization"]


@pytest.mark.parametrize("precision", [Precision.fp16, Precision.bf16])
def test_weights_of_16_bits_have_gradients_in_float32(precision: Precision) -> None:
    config = told(precision=precision)
    assert config[precision.value]["enabled"] is True
    assert config["data_types"] == {"grad_accum_dtype": "fp32"}
    assert config["communication_data_type"] == "fp32"
    assert not {"fp16", "bf16", "data_types"} & told().keys()


def test_any_number_of_backwards_is_one_step() -> None:
    """DeepSpeed would count micro-batches itself, which differ from step to step here."""
    config = told()
    assert config["managed_gradient_accumulation"] is False
    assert config["gradient_accumulation_steps"] == 1
    assert config["zero_optimization"]["overlap_comm"] is False, "wrong with it but at stage 2"


def test_stage_0_is_always_clipped_by_us() -> None:
    assert told(0, clip=0.0)["gradient_clipping"] == 1.0, "where it is not, nobody knows the norm"
    assert told(1, clip=0.0)["gradient_clipping"] == 0.0


def test_a_bucket_is_sized_to_the_model() -> None:
    assert bucket_size(31_600_000) == 7_900_000
    assert bucket_size(560_000_000) == 140_000_000
    assert bucket_size(1000) == 1_000_000
    assert bucket_size(10**10) == 500_000_000

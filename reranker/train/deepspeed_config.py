"""The settings of an engine -> DeepSpeed's own configuration. Pure: DeepSpeed is not imported."""

from __future__ import annotations

from typing import Any

from reranker.config.common import Precision
from reranker.config.training import PrecisionConfig


def bucket_size(parameters: int) -> int:
    """Elements of a gradient bucket: four to a model, as DeepSpeed's own 5e8 are allocated for the smallest as well."""
    return max(1_000_000, min(500_000_000, parameters // 4))


def deepspeed_config(
    stage: int, precision: Precision, scaling: PrecisionConfig, clip: float, bucket: int, offload: bool, pinned: bool
) -> dict[str, Any]:
    """What `deepspeed.initialize` takes.

    Args:
        precision: of the weights that DeepSpeed holds for the forward.
        clip: norm that gradients are clipped to, 0 for none; bucket: elements of a gradient bucket.
        offload: masters and moments in the machine's memory, in pinned pages if `pinned`.

    Accumulation is ours (`managed_gradient_accumulation: false`): any number of backwards, then one step.
    With it DeepSpeed overlaps reductions with the backward at stages 2 and 3 alone, and at 2 not safely: a rank that
    owns no part of a parameter larger than a bucket drops its gradient while the reduction may still read it.
    """
    config: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "managed_gradient_accumulation": False,
        # At stage 0 any value calls `_clip_at_stage_0`, which knows the limit.
        "gradient_clipping": clip if stage else 1.0,
        "steps_per_print": 10**12,
        "zero_optimization": {
            "stage": stage,
            "overlap_comm": False,
            "reduce_bucket_size": bucket,
            "allgather_bucket_size": bucket,
        },
    }
    if offload:
        config["zero_optimization"]["offload_optimizer"] = {"device": "cpu", "pin_memory": pinned}
        # DeepSpeed's own CPUAdam is compiled for a minute at the first start; torch's fused AdamW is there.
        config["zero_force_ds_cpu_optimizer"] = False
    if precision is Precision.fp16:
        config["fp16"] = {
            "enabled": True,
            "loss_scale": 0,
            "initial_scale_power": scaling.initial_scale_power,
            "loss_scale_window": scaling.loss_scale_window,
            "hysteresis": scaling.hysteresis,
            "min_loss_scale": scaling.min_loss_scale,
        }
    if precision is Precision.bf16:
        config["bf16"] = {"enabled": True}
    if precision is not Precision.fp32:
        # Sixteen bits lose small gradients over 32 micro-batches.
        config["data_types"] = {"grad_accum_dtype": "fp32"}
        config["communication_data_type"] = "fp32"
    return config

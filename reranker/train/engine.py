"""DeepSpeed behind a few verbs: score, backward, step, and the state that a checkpoint holds.

The only file that imports deepspeed. In: a model in float32 and settings. Out: an `Engine` of one ZeRO
stage and precision; autocast is float32 to it, as the products of the forward alone have 16 bits.
`backward` accumulates (in float32, also where weights have 16 bits); `step` clips and updates. The ranks reduce
their gradients once in `step` at stages 0 and 1, in every `backward` at 2 and 3, in float32 throughout. What
DeepSpeed does otherwise than its documentation suggests is said where it matters here.
"""

from __future__ import annotations

import contextlib
import gc
import io
import logging
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import deepspeed
import deepspeed.ops
import torch
from deepspeed.accelerator import get_accelerator
from deepspeed.utils import logger as deepspeed_logger
from torch import nn

from reranker.checks import Arithmetic
from reranker.config.common import Precision
from reranker.config.training import OptimConfig, PrecisionConfig
from reranker.data.collate import MicroBatch, PackedPairs, ghost
from reranker.model.cross_encoder import autocast, score_pairs
from reranker.model.losses import listwise_cross_entropy
from reranker.train.deepspeed_config import bucket_size, deepspeed_config
from reranker.train.fragments import Fragment, read_parameter, write_parameter

# DeepSpeed compiles this op when it meets gloo (28-60 s), though training never calls it.
deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
deepspeed_logger.setLevel(logging.ERROR)
# DeepSpeed calls collectives by names that torch 2.13 deprecates: every rank would say so at every stage.
warnings.filterwarnings("ignore", category=FutureWarning, module=r"torch\.distributed\..*")

_SCALER_STATE = ("cur_scale", "cur_iter", "last_overflow_iter", "cur_hysteresis")
"""What fp16's loss scaler has come to; the rest of it are settings."""


@dataclass(frozen=True)
class StepOutcome:
    """What an optimizer step did.

    Attributes:
        grad_norm: norm of the gradient before clipping, maybe still on the device; None if the step was skipped.
        skipped: the gradient of some rank was not finite, and nothing was updated. All ranks agree. In fp16 that is
            an overflow, after which the scale falls.
        loss_scale: fp16's scale behind the step, else 1.
        at_floor: fp16: skipped with the scale at its least, which cannot fall any more.
    """

    grad_norm: float | torch.Tensor | None
    skipped: bool
    loss_scale: float
    at_floor: bool = False


class Engine:
    """A model under DeepSpeed ZeRO.

    Args:
        arithmetic: as resolved by `checks.resolve_precision`.
        offload: keep masters and moments in the machine's memory, and update them there.
        reduce_bucket_size: elements; None sizes it to the model.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        optim: OptimConfig,
        arithmetic: Arithmetic,
        scaling: PrecisionConfig,
        offload: bool,
        reduce_bucket_size: int | None,
        device: torch.device,
        timeout: float,
    ) -> None:
        self.arithmetic, self.device, self._offload = arithmetic, device, offload
        self.precision, by_autocast, self.stage = arithmetic
        if self.precision is Precision.fp16 and device.type == "cpu":
            assert scaling.fp16_on_cpu
            get_accelerator().is_fp16_supported = lambda: True
        if by_autocast:
            autocast(model, device, torch.bfloat16)
        kept = Precision.fp32 if by_autocast else self.precision
        optimizer = torch.optim.AdamW(
            parameter_groups(model, optim.weight_decay), lr=0.0, betas=(optim.betas[0], optim.betas[1]), eps=optim.eps,
            fused=True,
        )  # fmt: skip
        bucket = reduce_bucket_size or bucket_size(sum(parameter.numel() for parameter in model.parameters()))
        # At stage 1 in bf16 DeepSpeed prints its memory use, whatever its log level, and collects garbage for it.
        with contextlib.redirect_stdout(io.StringIO()), _without_old_garbage():
            self._engine, *_ = deepspeed.initialize(
                model=model.to(device),
                optimizer=optimizer,
                config=deepspeed_config(
                    self.stage, kept, scaling, optim.max_grad_norm, bucket, offload, pinned=device.type == "cuda"
                ),
                dist_init_required=False,
            )
        if self.precision is Precision.fp16:
            # DeepSpeed raises a bare Exception at the scale's floor; the loop says what to do (`at_floor`).
            self._engine.optimizer.loss_scaler.raise_error_at_min_scale = False
        self._clip_norm, self._least_scale = optim.max_grad_norm, scaling.min_loss_scale
        self._norm_at_stage_0: torch.Tensor | None = None
        self._skipped_at_stage_0 = False
        if self.stage == 0:
            # get_global_grad_norm() is None here; the clipping is the one place that knows the norm.
            self._engine.clip_fp32_gradients = self._clip_at_stage_0
        _set_timeouts(timeout)

    @property
    def module(self) -> nn.Module:
        return self._engine.module

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The whole shape of every parameter."""
        named = self.module.named_parameters()
        return {name: tuple(getattr(parameter, "ds_shape", parameter.shape)) for name, parameter in named}

    def train(self) -> None:
        self._engine.train()

    def eval(self) -> None:
        self._engine.eval()

    def score(self, batch: MicroBatch) -> torch.Tensor:
        """scores_GP of a micro-batch on this rank's device."""
        return self.score_pairs(batch.packed).view(batch.present_GP.shape)

    def score_pairs(self, pairs: PackedPairs) -> torch.Tensor:
        """scores_N of N pairs on this rank's device."""
        return score_pairs(self._engine, pairs)

    @property
    def forward(self) -> Any:
        """The model as a callable that every rank must call alike."""
        return self._engine

    def backward(self, loss: torch.Tensor) -> None:
        """Accumulate gradients. loss.backward() itself raises or miscounts under ZeRO."""
        self._engine.backward(loss)

    def step(self, learning_rate: float) -> StepOutcome:
        """Reduce, clip and update with what has been accumulated; not at all where the gradient is not finite."""
        for group in self._engine.optimizer.param_groups:
            group["lr"] = learning_rate
        skipped_before, scale_before = self._engine.skipped_steps, self._loss_scale
        self._engine.step()
        skipped = self._skipped_at_stage_0 if self.stage == 0 else self._engine.skipped_steps > skipped_before
        if skipped and self._offload and self.stage in (1, 2):
            # DeepSpeed forgets to empty what it accumulates in: every later gradient would be added to this one.
            gradients = self._engine.optimizer.averaged_gradients
            gradients.update(dict.fromkeys(gradients))
        norm = self._norm_at_stage_0 if self.stage == 0 else self._engine.get_global_grad_norm()
        at_floor = self.precision is Precision.fp16 and skipped and scale_before <= self._least_scale
        return StepOutcome(None if skipped else norm, skipped, self._loss_scale, at_floor)

    def discard(self) -> StepOutcome:
        """Throw away what has been accumulated: nothing is updated, and fp16's scale stays. A collective call.

        A gradient that is not a number makes DeepSpeed do so at every stage; it has no word of its own for it.
        """
        scaler = self.scaler_state()
        self.backward(self.score(ghost(pad_id=0).to(self.device)).sum() * float("nan"))
        outcome = self.step(0.0)
        assert outcome.skipped
        self.load_scaler(scaler)
        return outcome

    @property
    def _loss_scale(self) -> float:
        return float(self._engine.optimizer.loss_scale) if self.precision is Precision.fp16 else 1.0

    def fragments(self) -> Iterator[Fragment]:
        """This rank's share of every parameter's master weights and moments, on the CPU.

        A collective call while fp16 overflow has skipped every step so far, as there are no moments yet.
        """
        if not any("exp_avg" in state for state in self._torch_optimizer.state.values()):
            self.make_states()
        self._link_states()
        for name, parameter in self._engine.module.named_parameters():
            state, rank, world = self._plain_state(parameter), self._engine.global_rank, self._engine.dp_world_size
            yield from read_parameter(name, parameter, state, rank, world)

    def load(self, read: Callable[[str, str, int, int], torch.Tensor], steps: int) -> None:
        """Set masters and moments of every parameter; `read(name, kind, offset, count)` returns a slice.

        `steps` is the number of updates behind the state, for AdamW's bias correction.
        """
        self.make_states()
        self._link_states()
        world = self._engine.dp_world_size
        for name, parameter in self._engine.module.named_parameters():
            state, rank = self._plain_state(parameter), self._engine.global_rank
            write_parameter(parameter, partial(read, name), state, rank, world)
        if hasattr(self._engine.optimizer, "update_lp_params"):
            # Stages 1 and 2 set the master only; the weights of the forward follow from it.
            self._engine.optimizer.update_lp_params()
        self._set_updates(steps)

    def scaler_state(self) -> dict[str, Any]:
        """fp16's loss scaler as plain numbers."""
        if self.precision is not Precision.fp16:
            return {}
        scaler = vars(self._engine.optimizer.loss_scaler)
        return {key: scaler[key] for key in _SCALER_STATE}

    def load_scaler(self, state: dict[str, Any]) -> None:
        if self.precision is Precision.fp16:
            # Not what is set by precision.*, which an earlier version kept as well.
            scaler = vars(self._engine.optimizer.loss_scaler)
            scaler.update({key: state[key] for key in _SCALER_STATE if key in state})

    @property
    def _torch_optimizer(self) -> torch.optim.Optimizer:
        optimizer = self._engine.optimizer
        return optimizer if self.stage == 0 else optimizer.optimizer

    def _plain_state(self, parameter: nn.Parameter) -> dict[str, torch.Tensor] | None:
        return self._torch_optimizer.state[parameter] if self.stage == 0 else None

    def _clip_at_stage_0(self) -> None:
        limit = self._clip_norm or float("inf")
        self._norm_at_stage_0 = nn.utils.clip_grad_norm_(self.module.parameters(), limit)
        self._skipped_at_stage_0 = not bool(self._norm_at_stage_0.isfinite())
        if self._skipped_at_stage_0:
            # What ZeRO does at the other stages: parameters without a gradient are not updated.
            self.module.zero_grad(set_to_none=True)

    def make_states(self) -> None:
        """The optimizer's state, which must exist before it is set or measured: a step at rate zero on a loss of zero.

        A collective call, before the first step.
        """
        scaler = self.scaler_state()
        batch = ghost(pad_id=0).to(self.device)
        self.backward(listwise_cross_entropy(self.score(batch), batch.present_GP, batch.weight_G))
        self.step(0.0)
        self.load_scaler(scaler)  # it counts steps, and this was none
        self._set_updates(0)

    def _set_updates(self, count: int) -> None:
        """The number of updates that AdamW's bias correction knows of."""
        for state in self._torch_optimizer.state.values():
            if torch.is_tensor(state.get("step")):
                state["step"].fill_(count)

    def _link_states(self) -> None:
        """DeepSpeed links states to parameters after its first group's first step: later groups are missed."""
        optimizer = self._engine.optimizer
        if hasattr(optimizer, "_hp_optimizer_states_linked"):
            optimizer._hp_optimizer_states_linked = False
            optimizer._lazy_init_hp_params_optimizer_state()


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """AdamW's groups: matrices with weight decay; biases and LayerNorm (one dimension) without."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return [
        {"params": [parameter for parameter in parameters if parameter.ndim >= 2], "weight_decay": weight_decay},
        {"params": [parameter for parameter in parameters if parameter.ndim < 2], "weight_decay": 0.0},
    ]


def forget_groups() -> None:
    """Let a later training of this process join anew: DeepSpeed keeps the groups of the earlier one."""
    if deepspeed.comm.is_initialized():
        deepspeed.comm.destroy_process_group()


@contextlib.contextmanager
def _without_old_garbage() -> Iterator[None]:
    """Let collections of garbage look at new objects alone: among all imports each takes a third of a second."""
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def _set_timeouts(seconds: float) -> None:
    """init_process_group's timeout covers only the world group; DeepSpeed's own would stay at 30 minutes."""
    import datetime

    import torch.distributed.distributed_c10d as c10d

    for group in list(c10d._world.pg_map):
        c10d._set_pg_timeout(datetime.timedelta(seconds=seconds), group)

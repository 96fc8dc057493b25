"""`reranker replay`: one optimizer step once more, from a checkpoint, in one process and without DeepSpeed.

In: a checkpoint and the number of a step. Out: what the step saw and what came of it: its loss and gradient, and of
every group the loss, the scores, and where it came from. All ranks are imitated one after another, with the plan, the
packing, the precision, the dropout and the objective of the run: the step right behind the checkpoint has the loss and
the gradient norm that the run recorded for it, to rounding. Nothing is updated. Raises `UserError`.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from typing import Any

import torch

from reranker.checks import check_at_least
from reranker.config.common import Precision
from reranker.config.training import ReplayConfig
from reranker.data.collate import MicroBatch
from reranker.data.permutation import keyed
from reranker.data.plan import Step
from reranker.data.stream import PlanSource, stream
from reranker.files import write_json
from reranker.model import chunks
from reranker.model.cross_encoder import load_config, score_pairs, set_dropout
from reranker.model.losses import Objective
from reranker.model.reranker import as_in_training
from reranker.model.unpad import pack
from reranker.progress import progress_bar
from reranker.train.checkpoint import Pieces, read_weights
from reranker.train.checkpoints import refuse_directory
from reranker.train.distributed import set_arithmetic
from reranker.train.job import Job, make_plan
from reranker.train.replay_report import GroupResult, MicroBatchResult, Replayed, show, to_json
from reranker.train.replay_setup import Replay, in_words_of_replay, open_replay, recorded
from reranker.train.schedule import learning_rate


def replay_command(config: ReplayConfig) -> int:
    """`reranker replay`."""
    check_at_least((key, value, least) for key, value, least in
                   (("step", config.step, 1), ("world", config.world, 1)) if value is not None)  # fmt: skip
    refuse_directory(config.output)
    replayed = run_step(open_replay(config), config.texts)
    show(replayed)
    if config.output:
        write_json(config.output, to_json(replayed))
    return 0


def run_step(replay: Replay, texts: bool = False) -> Replayed:
    """Run the step forward and backward, rank by rank; with `texts` the groups come with theirs. Raises UserError."""
    job, step, settings = replay.job, replay.step, replay.job.config
    set_arithmetic(settings.train.deterministic, settings.precision.tf32)
    model, plan = _model(replay), make_plan(job, replay.number, None)
    gradient = Gradient(model, _loss_scale(replay), job.world)
    micro_batches: list[MicroBatchResult] = []
    groups: list[GroupResult] = []
    bad: list[str] = []
    with progress_bar(desc="replay", unit=" micro-batches", total=job.world * len(step.slots)) as bar:
        for rank in range(job.world):
            for index, batch in enumerate(_micro_batches(job, step, rank)):
                cut = chunks.split(batch.packed, plan.chunk_tokens, plan.packed)
                scores_GP, loss = chunks.forward_and_backward(
                    batch.to(replay.device), cut, len(cut), objective=plan.objective,
                    score=lambda pairs: score_pairs(model, pairs), backward=gradient.backward,
                    share=job.world / step.groups,
                    seed=keyed(plan.seed, replay.number, index, rank),  # the loop's own: the same dropout
                )  # fmt: skip
                norm = gradient.add()
                micro_batches.append(MicroBatchResult(rank, index, batch.positions, batch.tokens, loss.item(), norm))
                groups += _groups(replay, plan.objective, batch, scores_GP.cpu(), rank, index, texts)
                bad += batch.bad
                bar.update()
    return Replayed(
        checkpoint=str(replay.path),
        step=replay.number + 1,
        behind=replay.behind,
        epoch=step.epoch,
        positions=(step.first, step.last),
        world=job.world,
        precision=job.precision.value,
        packed=job.packed,
        device=str(replay.device),
        loss=sum(one.loss for one in micro_batches) / max(1, step.groups - len(bad)),
        grad_norm=gradient.norm(),
        max_grad_norm=settings.optim.max_grad_norm,
        loss_scale=gradient.scale,
        learning_rate=learning_rate(replay.number, plan.total, plan.lr, plan.warmup),
        recorded=recorded(replay.path, replay.number),
        non_finite_parameters=tuple(gradient.non_finite()),
        micro_batches=tuple(micro_batches),
        groups=tuple(groups),
        bad=tuple(bad),
        notes=replay.notes,
    )


class Gradient:
    """The gradient of a step, accumulated in float32 over micro-batches and ranks, as the engine does.

    Args:
        scale: what a loss is multiplied by before its backward pass: fp16's loss scale, else 1.
        world: ranks over which gradients are averaged.
    """

    def __init__(self, model: Any, scale: float, world: int) -> None:
        self.scale, self._divisor = scale, scale * world
        self._parameters = {name: one for name, one in model.named_parameters() if one.requires_grad}
        self._sums = {name: torch.zeros_like(one, dtype=torch.float32) for name, one in self._parameters.items()}
        self._micro_batch: dict[str, torch.Tensor] = {}

    def backward(self, loss: torch.Tensor) -> None:
        """Add the gradient of a loss to that of the micro-batch."""
        (loss * self.scale).backward()
        for name, one in self._parameters.items():
            if one.grad is None:
                continue
            before, self._micro_batch[name], one.grad = self._micro_batch.get(name), one.grad, None
            if before is not None:
                self._micro_batch[name] = before.float() + self._micro_batch[name]

    def add(self) -> float:
        """Add the micro-batch's gradient to the step's; the norm of its share."""
        found, self._micro_batch = self._micro_batch, {}
        for name, gradient in found.items():
            self._sums[name] += gradient
        return _norm(found.values()) / self._divisor

    def norm(self) -> float:
        """The norm before clipping."""
        return _norm(self._sums.values()) / self._divisor

    def non_finite(self) -> list[str]:
        """The parameters whose gradient is not finite."""
        return [name for name, one in self._sums.items() if not one.isfinite().all()]


def _norm(tensors: Any) -> float:
    """The norm of all elements in float64, read from the device once."""
    norms = [torch.linalg.vector_norm(tensor, dtype=torch.float64) for tensor in tensors]
    return math.hypot(*torch.stack(norms).tolist()) if norms else 0.0


def _model(replay: Replay) -> Any:
    """The stock model of the run with the checkpoint's weights, in training mode. Raises UserError."""
    # Read by deepspeed, which transformers may import: it would search for an accelerator, and say so.
    os.environ.setdefault("DS_ACCELERATOR", replay.device.type)
    from transformers import AutoModelForSequenceClassification

    settings, job = replay.job.config.model, replay.job
    with in_words_of_replay(replay.path):
        config = load_config(settings.name, settings.revision)
    set_dropout(config, settings.dropout)
    model = AutoModelForSequenceClassification.from_config(config, dtype=torch.float32)
    Pieces(replay.path).check({name: tuple(parameter.shape) for name, parameter in model.named_parameters()})
    model.load_state_dict(read_weights(replay.path), strict=False)  # all parameters, by the check; no buffers
    if settings.gradient_checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    if job.packed:
        pack(model)
    return as_in_training(model, job.precision, job.arithmetic.autocast, replay.device).train()


def _loss_scale(replay: Replay) -> float:
    """fp16's loss scale behind the checkpoint, else 1."""
    if replay.job.precision is not Precision.fp16:
        return 1.0
    return float((replay.state.get("scaler") or {}).get("cur_scale", 1.0))


def _micro_batches(job: Job, step: Step, rank: int) -> list[MicroBatch]:
    """The micro-batches of a step on one rank, by the way that they took in training."""
    source = PlanSource(lambda: iter([(step.epoch, step.step)]), lambda epoch, number: step, rank)
    (found,) = stream(job.data, source, workers=0, prefetch=1, pin_memory=False)
    return found.micro_batches


def _groups(
    replay: Replay, objective: Objective, batch: MicroBatch, scores_GP: torch.Tensor, rank: int, index: int, texts: bool
) -> Iterator[GroupResult]:
    """What came of each group of micro-batch `index` of a rank; a ghost is none."""
    data = replay.job.data
    lengths_GP = batch.packed.cu_seqlens.diff().view(batch.present_GP.shape)
    for row, position in enumerate(batch.positions):
        one, present_P = slice(row, row + 1), batch.present_GP[row]
        loss = objective(
            scores_GP[one], batch.positive_GP[one], batch.teacher_GP[one], batch.present_GP[one], batch.weight_G[one]
        )
        place = data.locate(replay.step.epoch, position)
        query: str | None = None
        passages: tuple[str, ...] = ()
        if texts:
            group = place.reader.group(place.shard, place.index)
            query, passages = group.prompted_query, data.passages(place, group, replay.step).texts
        yield GroupResult(
            position=position, member=place.name, rank=rank, micro_batch=index, loss=loss.item(),
            scores=tuple(scores_GP[row][present_P].tolist()), positives=int(batch.positive_GP[row].sum()),
            tokens=int(lengths_GP[row][present_P].sum()),
            query=query, passages=passages,
        )  # fmt: skip

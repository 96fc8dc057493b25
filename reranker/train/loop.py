"""The training loop.

In: an engine, the planned steps, a stream of this rank's micro-batches. Out: a trained engine, records,
checkpoints. One pass: take the step's micro-batches, forward and backward each, step, log, maybe evaluate,
maybe save. Everything that needs a paragraph lives elsewhere behind one verb.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from reranker.data.collate import MicroBatch
from reranker.data.permutation import keyed
from reranker.data.plan import Step
from reranker.data.stream import StepBatches
from reranker.errors import UserError
from reranker.model.losses import Objective
from reranker.train.distributed import Ranks
from reranker.train.flops import ModelFlops
from reranker.train.meter import Meter
from reranker.train.schedule import learning_rate

if TYPE_CHECKING:  # deepspeed takes seconds to import: the engine is made when everything else is in order
    from reranker.train.engine import Engine, StepOutcome


@dataclass(frozen=True)
class Plan:
    """What the loop has to do in a training of `total` steps, of which `done` are behind it."""

    done: int
    total: int
    seed: int
    lr: float
    warmup: float
    bad_limit: int
    packed: bool
    flops: ModelFlops | None
    objective: Objective
    evaluate_after: Callable[[int], bool]
    save_after: Callable[[int], bool]
    log_after: Callable[[int], bool]


@dataclass
class Tally:
    """What a run has lost so far, over its resumes.

    Attributes:
        skipped: steps that fp16 overflow has skipped: DeepSpeed's own step counter includes them.
        bad: groups that could not be read, of all ranks, up to the last record.
    """

    skipped: int = 0
    bad: int = 0


def run(
    engine: Engine,
    plan: Plan,
    batches: Iterator[StepBatches],
    ranks: Ranks,
    *,
    tally: Tally,
    log: Callable[[int, dict[str, Any]], None],
    evaluate: Callable[[], dict[str, Any]],
    save: Callable[[int, Step, dict[str, Any] | None], None],
) -> None:
    """Train from `plan.done` to the end of the plan."""
    meter = Meter(ranks.device, plan.packed, plan.flops)
    engine.train()
    for number in range(plan.done, plan.total):
        step, micro_batches = take(batches, ranks, meter)
        for index, batch in enumerate(micro_batches):
            torch.manual_seed(keyed(plan.seed, number, index, ranks.rank))  # dropout, replayable
            batch = batch.to(ranks.device)
            loss = plan.objective(engine.score(batch), batch.teacher_GP, batch.present_GP, batch.weight_G)
            # DeepSpeed averages over ranks: this makes the gradient the step's sum over its groups / their number, as
            # planned: a group that cannot be read adds nothing, and the others weigh what they would have with it.
            engine.backward(loss * (ranks.world / step.groups))
            meter.count(micro_batches[index], loss)
        rate = learning_rate(number, plan.total, plan.lr, plan.warmup)
        outcome = engine.step(rate)
        tally.skipped += outcome.skipped
        meter.skipped += outcome.skipped
        meter.groups, meter.steps, done = meter.groups + step.groups, meter.steps + 1, number + 1
        if plan.log_after(done):
            record = meter.record(ranks, outcome, rate, step.epoch + (step.last + 1) / step.groups_in_epoch)
            log(done, record)
            stop_if_lost(done, record["train/loss"], outcome)
            tally.bad += record["data/bad_groups"]
            stop_if_many(tally.bad, plan.bad_limit)
            meter = Meter(ranks.device, plan.packed, plan.flops)
        scores, paused = None, time.perf_counter()
        if plan.evaluate_after(done):
            log(done, scores := evaluate())
            engine.train()
        if plan.save_after(done):
            save(done, step, scores)
        meter.started += time.perf_counter() - paused  # evaluations and checkpoints are not training speed


def stop_if_lost(step: int, loss: float, outcome: StepOutcome) -> None:
    """Raise UserError, on every rank alike, if the weights can no longer learn anything.

    An overflow that fp16's scaler has skipped is no loss: nothing was updated.
    """
    if math.isfinite(loss) or outcome.skipped:
        return
    error = UserError(
        "train/loss", f"{loss} at step {step}", "a finite number",
        "lower optim.lr or say precision=bf16 or fp32, then run again: it resumes from the last checkpoint",
    )  # fmt: skip
    error.agreed = True
    raise error


def stop_if_many(bad: int, limit: int) -> None:
    """Raise UserError, on every rank alike, if more groups than `limit` could not be read so far."""
    if bad <= limit:
        return
    error = UserError("data.bad_limit", f"{bad} groups that could not be read", f"at most {limit}",
                      "see what is wrong with reranker data verify, or raise the limit")  # fmt: skip
    error.agreed = True
    raise error


def take(batches: Iterator[StepBatches], ranks: Ranks, meter: Meter) -> tuple[Step, list[MicroBatch]]:
    """The next step and this rank's micro-batches of it, taken before the first forward.

    Raises UserError on all ranks alike if any rank's data is bad: none is left waiting in a collective.
    """
    started = time.perf_counter()
    taken = ranks.together(lambda: next(batches, None))
    assert taken is not None, "the stream is shorter than the plan"
    meter.waited += time.perf_counter() - started
    for line in dict.fromkeys(line for batch in taken.micro_batches for line in batch.bad):
        print(f"data.bad=ghost: {line}", file=sys.stderr, flush=True)
    return taken.step, taken.micro_batches

"""The training loop.

In: an engine, the planned steps, a stream of this rank's micro-batches. Out: a trained engine, records,
checkpoints. One pass: take the step's micro-batches, forward and backward each, step, log, maybe evaluate,
maybe save. Everything that needs a paragraph lives elsewhere behind one verb.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import torch
import torch.distributed as dist

from reranker.data.collate import PackedPairs
from reranker.data.permutation import keyed
from reranker.data.plan import Step
from reranker.data.stream import StepBatches
from reranker.model import chunks
from reranker.model.losses import Objective
from reranker.train.distributed import Ranks
from reranker.train.flops import ModelFlops
from reranker.train.guards import SPIKE, Health, stop_if_lost, stop_if_many, stop_without_update
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
    skip_spikes: bool
    packed: bool
    chunk_tokens: int | None
    precision: str
    flops: ModelFlops | None
    objective: Objective
    evaluate_after: Callable[[int], bool]
    save_after: Callable[[int], bool]
    log_after: Callable[[int], bool]


@dataclass
class Tally:
    """What a run has lost so far, over its resumes.

    Attributes:
        skipped: steps without an update, for an overflow of fp16 or a spike: DeepSpeed's own counter includes them.
        bad: groups that could not be read, of all ranks, up to the last record.
    """

    skipped: int = 0
    bad: int = 0


class Events(Protocol):
    """What happens around the steps: files, screens, other processes."""

    def beat(self, doing: str, step: int | None = None, batch: Callable[[], Any] | None = None) -> None:
        """This rank is alive, and what it does."""

    def stop_requested(self) -> bool:
        """Whether this rank was asked to stop."""

    def log(self, step: int, metrics: dict[str, Any]) -> None:
        """One record."""

    def warn(self, cause: str, line: str) -> None:
        """Something that the user should look at."""

    def evaluate(self, step: int) -> dict[str, Any]:
        """Metrics of the weights behind `step`."""

    def save(self, step: int, planned: Step, scores: dict[str, Any] | None) -> None:
        """A checkpoint behind `step`."""

    def dump(self, step: int, taken: StepBatches, losses: list[torch.Tensor]) -> str:
        """Write down the batch of the step behind which `step` steps would have been done; where."""


def run(
    engine: Engine, plan: Plan, batches: Iterator[StepBatches], ranks: Ranks, health: Health, tally: Tally,
    events: Events,
) -> int:  # fmt: skip
    """Train from `plan.done` to the end of the plan, or until a stop is requested; the steps that are done then."""
    meter, done = make_meter(plan, ranks), plan.done
    last: Step | None = None
    outcome: StepOutcome | None = None
    engine.train()
    for number in range(plan.done, plan.total):
        events.beat("waiting for data", number)
        taken, stopping = take(batches, ranks, meter, events)
        if stopping:
            if last is not None:
                if meter.steps:
                    report(done, last, meter, outcome, plan, ranks, health, tally, events)
                events.save(done, last, None)
            return done
        events.beat("forward", number, lambda taken=taken: describe(taken))  # type: ignore[misc]
        losses = forward_and_backward(engine, plan, number, taken, ranks, meter, events)
        events.beat("step", number)
        if plan.skip_spikes and health.is_spike(mean_loss(losses, taken.step, ranks)):
            outcome = engine.discard()
        else:
            outcome = engine.step(learning_rate(number, plan.total, plan.lr, plan.warmup))
            if outcome.skipped and (plan.precision != "fp16" or outcome.at_floor):
                stop_without_update(number + 1, plan.precision, outcome, events.dump(number + 1, taken, losses))
        tally.skipped, meter.skipped = tally.skipped + outcome.skipped, meter.skipped + outcome.skipped
        meter.groups, meter.steps = meter.groups + taken.step.groups, meter.steps + 1
        done, last = number + 1, taken.step
        if plan.log_after(done):
            meter = report(done, last, meter, outcome, plan, ranks, health, tally, events)
        scores, paused = None, time.perf_counter()
        if plan.evaluate_after(done):
            events.log(done, scores := events.evaluate(done))
            engine.train()
        if plan.save_after(done):
            events.save(done, last, scores)
        meter.started += time.perf_counter() - paused  # evaluations and checkpoints are not training speed
    return done


def report(
    done: int, last: Step, meter: Meter, outcome: StepOutcome | None, plan: Plan, ranks: Ranks, health: Health,
    tally: Tally, events: Events,
) -> Meter:  # fmt: skip
    """Log what was counted since the last record, and stop where it shows that nothing is learned any more.

    Returns: a new meter. Raises UserError, on every rank alike.
    """
    assert outcome is not None
    rate = learning_rate(done - 1, plan.total, plan.lr, plan.warmup)
    record = meter.record(ranks, outcome, rate, last.epoch + (last.last + 1) / last.groups_in_epoch)
    if spiked := health.is_spike(record["train/loss"]):
        record["train/spike_position"] = last.first
    events.log(done, record)
    if spiked:
        events.warn(
            SPIKE,
            f"the loss of step {done} is {record['train/loss']:.3f}, far above those before it: epoch {last.epoch},"
            f" positions {last.first} to {last.last}; reranker replay CHECKPOINT step={done} shows its groups",
        )
    for cause, line in health.see(record):
        events.warn(cause, line)
    stop_if_lost(done, record["train/loss"], skipped=meter.skipped > 0)
    tally.bad += record["data/bad_groups"]
    stop_if_many(tally.bad, plan.bad_limit)
    return make_meter(plan, ranks)


def make_meter(plan: Plan, ranks: Ranks) -> Meter:
    objective = None if plan.objective.softmax_of_labels else plan.objective
    return Meter(ranks.device, plan.packed, plan.flops, objective)


def take(batches: Iterator[StepBatches], ranks: Ranks, meter: Meter, events: Events) -> tuple[StepBatches, bool]:
    """(the next step with this rank's micro-batches, taken before the first forward; whether to stop before it).

    Raises UserError on all ranks alike if any rank's data is bad: none is left waiting in a collective. The same
    agreement carries a request to stop: whichever rank was asked, all stop before the same step.
    """
    started = time.perf_counter()
    taken, stopping = ranks.agree(lambda: next(batches, None), events.stop_requested())
    assert taken is not None, "the stream is shorter than the plan"
    meter.waited += time.perf_counter() - started
    for line in dict.fromkeys(line for batch in taken.micro_batches for line in batch.bad):
        print(f"data.bad=ghost: {line}", file=sys.stderr, flush=True)
    return taken, stopping


def forward_and_backward(
    engine: Engine, plan: Plan, number: int, taken: StepBatches, ranks: Ranks, meter: Meter, events: Events
) -> list[torch.Tensor]:
    """Accumulate the gradient of a step's micro-batches; the loss of each, on the device."""

    def score(pairs: PackedPairs) -> torch.Tensor:
        events.beat("forward", number)
        return engine.score_pairs(pairs)

    def backward(loss: torch.Tensor) -> None:
        events.beat("backward", number)
        engine.backward(loss)

    losses = []
    cut = [chunks.split(batch.packed, plan.chunk_tokens, plan.packed) for batch in taken.micro_batches]
    passes = ranks.most([len(each) for each in cut]) if plan.chunk_tokens else [1] * len(cut)
    for index, batch in enumerate(taken.micro_batches):
        moved = batch.to(ranks.device)
        scores_GP, loss = chunks.forward_and_backward(
            moved, cut[index], passes[index], objective=plan.objective, score=score, backward=backward,
            # DeepSpeed averages over ranks: this makes the gradient the step's sum over its groups / their number, as
            # planned: a group that cannot be read adds nothing, and the others weigh what they would have with it.
            share=ranks.world / taken.step.groups,
            seed=keyed(plan.seed, number, index, ranks.rank),  # dropout, replayable
        )  # fmt: skip
        meter.count(batch, moved, cut[index], scores_GP, loss)
        losses.append(loss)
    return losses


def mean_loss(losses: list[torch.Tensor], step: Step, ranks: Ranks) -> float:
    """The loss of a step, of all ranks; a collective call."""
    total = torch.stack(losses).sum()
    dist.all_reduce(total)
    return float(total) / step.groups


def describe(taken: StepBatches) -> dict[str, Any]:
    """What this rank has in hand, so that it can be found again: (epoch, positions) are those of the plan."""
    step = taken.step
    return {
        "epoch": step.epoch, "step_of_epoch": step.step, "first_position": step.first,
        "micro_batches": [list(batch.positions) for batch in taken.micro_batches],
    }  # fmt: skip

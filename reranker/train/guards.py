"""What a training looks like that learns nothing or loses what it learnt: told while it runs, not afterwards.

In: the records of `meter.Meter`, one after another. Out: (cause, line for the user), each cause told once. The most
reported failures of reranker training are these: a loss that stays at chance, a model that ends up giving every passage
the same score, a loss that jumps and never comes back (FlagEmbedding #240, #276, #858, #864, #865, #891). Pure: the
same records give the same lines.

Scores collapse that were ten times further apart. Where a softmax of labels is all of the loss, that is enough: it
draws no scores together. A teacher may: its scores, divided by its temperature, are how far those of the model should
part, and a model that comes from far outside is on its way to them. So beside a softmax of labels three things must
hold, each on average over a window:
  1. the spread is below a tenth of its widest;
  2. it is below a tenth of the teacher's, where there is one: a model that comes from outside does not get there;
  3. the loss is that of equal scores, or above: what is left of the spread tells nothing. A teacher that the model can
     follow a little, or whose temperature asks for more than a model gives, is learnt with a loss below that.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from reranker.errors import UserError

if TYPE_CHECKING:  # deepspeed takes seconds to import
    from reranker.train.engine import StepOutcome

NEAR_CHANCE = 0.98
"""Of the loss of equal scores, ln(passages of a group) in a softmax, that of a model that cannot tell them apart."""
EQUAL = 1e-3
"""Standard deviation of a group's scores below which they are as good as equal; a fresh head's is about 0.1."""
COLLAPSED = 0.1
"""Of the largest spread that there was, and of a teacher's."""
CAUSES = {"equal": "equal scores", "collapse": "collapsing scores", "chance": "loss at chance"}
SPIKE = "loss spike"


@dataclass
class Health:
    """Watches the records of a training.

    Args:
        steps: so many of the last records are averaged; nothing is said before as many have passed.
        spike: standard deviations above their mean from which on a loss is a spike.
        labels: weight of the softmax of labels, where that is all of the loss (`Objective.softmax_of_labels`); None:
            records have `train/equal_loss` and, where there is a teacher, `train/teacher_spread`.
    """

    steps: int
    spike: float
    labels: float | None = 1.0
    _losses: deque[float] = field(init=False)
    _chances: deque[float] = field(init=False)
    _spreads: deque[float] = field(init=False)
    _equals: deque[float] = field(init=False)
    _teachers: deque[float] = field(init=False)
    _widest: float = 0.0
    _told: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        self._losses, self._chances, self._spreads = (deque(maxlen=self.steps) for _ in range(3))
        self._equals, self._teachers = (deque(maxlen=self.steps) for _ in range(2))

    def is_spike(self, loss: float) -> bool:
        """Whether a step's loss is far above those before it; one that is not finite is worse than that."""
        return math.isfinite(loss) and loss > self._limit()

    def _limit(self) -> float:
        if len(self._losses) < self.steps:
            return math.inf
        mean = math.fsum(self._losses) / self.steps
        deviation = math.sqrt(math.fsum((loss - mean) ** 2 for loss in self._losses) / self.steps)
        return mean + self.spike * max(deviation, 1e-3 * abs(mean))

    def see(self, record: dict[str, Any]) -> list[tuple[str, str]]:
        """(cause, line) of what a record, and those before it, should tell the user."""
        loss, chance, spread = (record[f"train/{name}"] for name in ("loss", "chance_loss", "score_spread"))
        equal = record["train/equal_loss"] if self.labels is None else self.labels * chance
        teacher = record.get("train/teacher_spread", math.inf)
        if not all(map(math.isfinite, (loss, chance, spread, equal))):
            return []  # fp16 overflow; whatever else is not finite ends the training
        # A spike widens what counts as one by a little: where it is a new level (harder negatives), it is one soon.
        self._losses.append(min(loss, self._limit()))
        self._chances.append(chance)
        self._spreads.append(spread)
        self._equals.append(equal)
        self._teachers.append(teacher)
        if len(self._losses) < self.steps or len(self._spreads) < self.steps:
            return []
        mean_loss, mean_chance, mean_spread = map(_mean, (self._losses, self._chances, self._spreads))
        self._widest = max(self._widest, mean_spread)
        lines: list[tuple[str, str]] = []
        if mean_spread < EQUAL:
            lines += self._once("equal", (
                f"the scores of a group are all the same (standard deviation {mean_spread:.1e}): the model has"
                " collapsed or sees no passages; lower optim.lr, use optim.warmup, see that data.max_length leaves room"
                " for the passages behind the query"
            ))  # fmt: skip
        elif mean_spread < COLLAPSED * self._widest and (self.labels is not None or self._tells_nothing()):
            lines += self._once("collapse", (
                f"the scores of a group are {self._widest / mean_spread:.0f} times closer to each other than they were:"
                " the model is collapsing; lower optim.lr, keep optim.max_grad_norm, in fp16 try precision=bf16"
            ))  # fmt: skip
        elif self.labels is not None and mean_loss >= NEAR_CHANCE * self.labels * mean_chance:
            lines += self._once("chance", (
                f"the loss ({mean_loss:.3f}) has stayed at that of a guess, ln of the group's passages"
                f" ({mean_chance:.3f}), for {self.steps} records: a fresh head wants a larger optim.lr (1e-4),"
                " optim.warmup=0.1 and random negatives first (data.negatives.warmup); a trained one wants a smaller"
                " optim.lr; positives no better than the negatives look the same, see reranker data inspect"
            ))  # fmt: skip
        return lines

    def _tells_nothing(self) -> bool:
        """Whether scores are closer than a teacher wants them, and worth no more than equal ones."""
        if len(self._equals) < self.steps:  # a checkpoint of before they were recorded
            return False
        narrow = _mean(self._spreads) < COLLAPSED * _mean(self._teachers)
        return narrow and _mean(self._losses) >= NEAR_CHANCE * _mean(self._equals)

    def to_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps, so that a resumed training skips and warns as if it had not been interrupted."""
        return {
            "losses": list(self._losses), "chances": list(self._chances), "spreads": list(self._spreads),
            "equals": list(self._equals), "teachers": [None if math.isinf(one) else one for one in self._teachers],
            "widest": self._widest, "told": sorted(self._told),
        }  # fmt: skip

    def restore(self, state: dict[str, Any]) -> None:
        self._losses.extend(state["losses"])
        self._chances.extend(state["chances"])
        self._spreads.extend(state["spreads"])
        self._equals.extend(state.get("equals", []))
        self._teachers.extend(math.inf if one is None else one for one in state.get("teachers", []))
        self._widest, self._told = state["widest"], set(state["told"])

    def _once(self, cause: str, line: str) -> list[tuple[str, str]]:
        if cause in self._told:
            return []
        self._told.add(cause)
        return [(CAUSES[cause], line)]


def _mean(values: Collection[float]) -> float:
    return math.fsum(values) / len(values)


def stop_without_update(step: int, precision: str, outcome: StepOutcome, dump: str) -> None:
    """Raise UserError, on every rank alike, for a gradient that was not finite: nothing was updated with it."""
    if outcome.at_floor:
        key, found = (
            "precision.min_loss_scale",
            f"overflow at step {step} at the least loss scale, {outcome.loss_scale:g}",
        )
        expected = "gradients that fp16 can hold"
    else:
        key, found = "train/grad_norm", f"a gradient that is not finite at step {step}, before its update"
        expected = "finite numbers"
    other = "precision=fp32" if precision == "bf16" else "precision=bf16"
    fix = (
        f"see the batch in {dump}, or reranker replay CHECKPOINT step={step}; lower optim.lr or say {other},"
        " then run again: it resumes from the last checkpoint"
    )
    raise _agreed(key, found, expected, fix)


def stop_if_lost(step: int, loss: float, skipped: bool) -> None:
    """Raise UserError, on every rank alike, if the loss is not finite.

    An overflow that fp16's scaler has skipped is no loss: nothing was updated.
    """
    if not math.isfinite(loss) and not skipped:
        raise _agreed("train/loss", f"{loss} at step {step}", "a finite number", "lower optim.lr or say precision=bf16"
                      " or fp32, then run again: it resumes from the last checkpoint")  # fmt: skip


def stop_if_many(bad: int, limit: int) -> None:
    """Raise UserError, on every rank alike, if more groups than `limit` could not be read so far."""
    if bad > limit:
        raise _agreed("data.bad_limit", f"{bad} groups that could not be read", f"at most {limit}",
                      "see what is wrong with reranker data verify, or raise the limit")  # fmt: skip


def _agreed(*parts: str) -> UserError:
    error = UserError(*parts)
    error.agreed = True
    return error

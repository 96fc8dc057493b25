"""What a replayed step was, for a reader and as JSON. Nothing is computed here but what is counted.

In: `Replayed`. Out: lines and a table of the groups with the largest losses on standard output, or a dict.
"""

from __future__ import annotations

import dataclasses
import math
import sys
import textwrap
from dataclasses import dataclass
from typing import Any

from reranker.train.tables import print_table

SHOWN = 10
"""Groups in the table, and names of parameters whose gradient is not finite."""


@dataclass(frozen=True)
class MicroBatchResult:
    """A micro-batch: its positions, tokens, summed loss, and the norm of its share of the step's gradient."""

    rank: int
    micro_batch: int
    positions: tuple[int, ...]
    tokens: int
    loss: float
    grad_norm: float


@dataclass(frozen=True)
class GroupResult:
    """A group: its position in the epoch, its member in the shards, where it ran, and what came of it.

    Attributes:
        loss: its own part of the objective, not divided by anything; scores: of its passages, the positives first.
        positives: how many of them answer the query.
        tokens: of its pairs, special tokens included.
        query, passages: its texts as the model read them, where they are asked for.
    """

    position: int
    member: str
    rank: int
    micro_batch: int
    loss: float
    scores: tuple[float, ...]
    positives: int
    tokens: int
    query: str | None = None
    passages: tuple[str, ...] = ()

    @property
    def finite(self) -> bool:
        return all(map(math.isfinite, (self.loss, *self.scores)))


@dataclass(frozen=True)
class Replayed:
    """A step that was run once more.

    Attributes:
        checkpoint: its directory; step: from 0 over the whole training; behind: the steps behind the checkpoint.
        positions: the first and the last one that the step owns.
        loss, grad_norm: as the run records them: the mean over groups, and the norm before clipping.
        recorded: the run's own record of this step alone, if there is one.
        bad: of each group that could not be read, why.
    """

    checkpoint: str
    step: int
    behind: int
    epoch: int
    positions: tuple[int, int]
    world: int
    precision: str
    packed: bool
    device: str
    loss: float
    grad_norm: float
    max_grad_norm: float
    loss_scale: float
    learning_rate: float
    recorded: dict[str, float | None] | None
    non_finite_parameters: tuple[str, ...]
    micro_batches: tuple[MicroBatchResult, ...]
    groups: tuple[GroupResult, ...]
    bad: tuple[str, ...]
    notes: tuple[str, ...]

    @property
    def exact(self) -> bool:
        """Whether the weights are those that the step had in training."""
        return self.step == self.behind + 1

    @property
    def by_loss(self) -> list[GroupResult]:
        """The groups, those that are not finite first, then by their loss."""
        return sorted(self.groups, key=lambda group: (group.finite, -group.loss if group.finite else 0.0))


def show(replayed: Replayed) -> None:
    """Print a replayed step; what could not be read or repeated goes to standard error."""
    for line in (*replayed.notes, *(f"a group that cannot be read: {line}" for line in replayed.bad)):
        print(f"note: {line}", file=sys.stderr)
    first, last = replayed.positions
    print(f"step {replayed.step} from {replayed.checkpoint}: epoch {replayed.epoch}, positions {first} to {last}")
    for name, text in _facts(replayed):
        print(textwrap.fill(text, 100, initial_indent=f"  {name:14}", subsequent_indent=" " * 16))
    print()
    shown = replayed.by_loss[:SHOWN]
    columns = ("loss", "position", "rank", "micro-\nbatch", "tokens", "scores", "group")
    print_table(
        columns,
        [
            (f"{group.loss:.4f}", str(group.position), str(group.rank), str(group.micro_batch), str(group.tokens),
             " ".join(f"{score:.3f}" for score in group.scores), group.member.rpartition("/")[2])
            for group in shown
        ],
        numbers=columns[:5],
        wrapped=columns[5:],
    )  # fmt: skip
    if len(shown) < len(replayed.groups):
        print(f"and {len(replayed.groups) - len(shown)} more groups of smaller losses")
    for group in shown:
        if group.query is not None:
            print(f"\nposition {group.position}, loss {group.loss:.4f}\n  {'query':8} {group.query}")
            for place, (score, passage) in enumerate(zip(group.scores, group.passages, strict=True)):
                print(f"  {score:8.3f} {'+' if place < group.positives else '-'} {passage}")


def to_json(replayed: Replayed) -> dict[str, Any]:
    """Everything, with numbers that are not finite as texts: JSON has none."""
    value = dataclasses.asdict(replayed)
    value |= {"exact": replayed.exact}
    value["groups"] = [dataclasses.asdict(group) for group in replayed.by_loss]
    value["non_finite_groups"] = [group.position for group in replayed.groups if not group.finite]
    return _finite(value)


def _facts(replayed: Replayed) -> list[tuple[str, str]]:
    weights = "exactly those that this step had in training: it is the one right behind the checkpoint"
    if not replayed.exact:
        weights = f"those behind step {replayed.behind}, which the checkpoint holds, and not those that this step had"
    own = replayed.recorded or {}
    clip = f", before clipping to {replayed.max_grad_norm:g}" if replayed.max_grad_norm else ""
    ran = f"{len(replayed.micro_batches)} micro-batches of {replayed.world} rank{'s' * (replayed.world > 1)}"
    how = f"{'packed' if replayed.packed else 'padded'} in {replayed.precision} on {replayed.device}"
    facts = [
        ("weights", weights),
        ("ran", f"{len(replayed.groups)} groups in {ran}, {how}"),
        ("loss", f"{replayed.loss:.6f}{_beside(own.get('loss'))}"),
        ("gradient norm", f"{replayed.grad_norm:.6f}{_beside(own.get('grad_norm'))}{clip}"),
        ("learning rate", f"{replayed.learning_rate:.4g}"),
    ]  # fmt: skip
    if replayed.loss_scale != 1:
        facts.append(("loss scale", f"{replayed.loss_scale:g}"))
    facts.append(("not finite", _not_finite(replayed)))
    return facts


def _beside(value: float | None) -> str:
    return "" if value is None else f" (recorded: {value:.6f})"


def _not_finite(replayed: Replayed) -> str:
    said = []
    if lost := [str(group.position) for group in replayed.by_loss if not group.finite]:
        said.append(f"loss or scores of {len(lost)} groups, positions {_some(lost)}")
    if names := replayed.non_finite_parameters:
        said.append(f"the gradient of {len(names)} parameters: {_some(names)}")
        broken = [one for one in replayed.micro_batches if not math.isfinite(one.grad_norm)]
        if broken:
            said.append(f"first in micro-batch {broken[0].micro_batch} of rank {broken[0].rank}")
        said.append("training does not update with such a gradient")
    return "; ".join(said) or "no loss, no score, no gradient"


def _some(names: Any) -> str:
    return ", ".join(names[:SHOWN]) + (", ..." if len(names) > SHOWN else "")


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(one) for one in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value

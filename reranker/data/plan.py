"""One optimizer step -> its micro-batches on every rank: pure functions of numbers.

Step s of an epoch owns the positions [s B, min((s + 1) B, N)), B = groups of a step. B never depends on
the number of ranks; the last step of an epoch is short; nothing is dropped and nothing repeats. Every
rank runs the same number of micro-batches; a rank without groups in one of them runs a ghost (an empty
slot here), so that all ranks meet in the collectives.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from reranker.config import accumulation
from reranker.errors import UserError

SCHEMA = 1

Slot = tuple[int, ...]
"""Positions of the groups of one micro-batch on one rank; empty: a ghost."""


@dataclass(frozen=True)
class Step:
    """A planned optimizer step.

    Attributes:
        epoch, step: which one, both from 0; `step` counts within the epoch.
        groups: how many groups it really has: B, or less in the last step of an epoch.
        groups_in_epoch: groups of the data set.
        slots: [micro-batch][rank].
    """

    epoch: int
    step: int
    groups: int
    groups_in_epoch: int
    slots: tuple[tuple[Slot, ...], ...]

    @property
    def positions(self) -> list[int]:
        return sorted(position for row in self.slots for slot in row for position in slot)


@dataclass(frozen=True)
class Cursor:
    """Where a training stands in its data: all that a resume needs.

    Attributes:
        position: groups of this epoch already taken; groups: B; fingerprint: of the data set.
    """

    seed: int
    epoch: int
    position: int
    groups: int
    fingerprint: str
    schema: int = SCHEMA

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    def after(self, step: Step) -> Cursor:
        """The cursor behind a step."""
        position = step.step * self.groups + step.groups
        if position < step.groups_in_epoch:
            return dataclasses.replace(self, epoch=step.epoch, position=position)
        return dataclasses.replace(self, epoch=step.epoch + 1, position=0)


def steps_per_epoch(total: int, groups: int) -> int:
    return -(-total // groups)


def plan_fixed(epoch: int, step: int, total: int, groups: int, per_gpu: int, world: int) -> Step:
    """Policy `fixed`: micro-batches of `per_gpu` groups.

    Raises UserError where `groups` is no multiple of `per_gpu` x `world`.
    """
    accumulation(groups, per_gpu, world)
    first = step * groups
    positions = range(first, min(first + groups, total))
    assert positions, f"step {step} is beyond the epoch's {total} groups"
    rows = -(-len(positions) // (per_gpu * world))
    slots = tuple(
        tuple(
            tuple(positions[(row * world + rank) * per_gpu : (row * world + rank + 1) * per_gpu])
            for rank in range(world)
        )
        for row in range(rows)
    )
    return Step(epoch, step, len(positions), total, slots)


def planned_steps(
    cursor: Cursor, total: int, per_gpu: int, world: int, epochs: int, max_steps: int | None = None
) -> Iterator[Step]:
    """The steps from `cursor` to the end of training, in order."""
    each = steps_per_epoch(total, cursor.groups)
    last = min(epochs * each, max_steps or epochs * each)
    for number in range(steps_taken(cursor, total), last):
        yield plan_fixed(number // each, number % each, total, cursor.groups, per_gpu, world)


def steps_taken(cursor: Cursor, total: int) -> int:
    """Optimizer steps behind the cursor."""
    return cursor.epoch * steps_per_epoch(total, cursor.groups) + steps_per_epoch(cursor.position, cursor.groups)


def check_cursor(stored: dict[str, Any], expected: Cursor, where: object) -> Cursor:
    """The stored cursor, if it continues the training that `expected` starts. Raises UserError if not."""
    names = {"schema": "schema", "seed": "train.seed", "groups": "batch.groups", "fingerprint": "data.shards"}
    for field, key in names.items():
        if stored[field] != getattr(expected, field):
            raise UserError(
                key, f"{getattr(expected, field)}, but {where} was made with {stored[field]}", "the same value",
                "restore it or choose another run_dir",
            )  # fmt: skip
    return Cursor(**stored)

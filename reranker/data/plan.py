"""One optimizer step -> its micro-batches on every rank: pure functions of numbers.

Step s of an epoch owns the positions [s B, min((s + 1) B, N)), B = groups of a step. B never depends on
the number of ranks; the last step of an epoch is short; nothing is dropped and nothing repeats. Every
rank runs the same number of micro-batches; a rank without groups in one of them runs a ghost (an empty
slot here), so that all ranks meet in the collectives.
"""

from __future__ import annotations

import dataclasses
import heapq
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from reranker.checks import accumulation

SCHEMA = 1

Slot = tuple[int, ...]
"""Positions of the groups of one micro-batch on one rank; empty: a ghost."""

Lengths = Callable[[int], Sequence[int]]
"""Position -> tokens of each pair that its group shows."""


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

    @property
    def first(self) -> int:
        """The first position that the step owns."""
        return min(slot[0] for row in self.slots for slot in row if slot)

    @property
    def last(self) -> int:
        return self.first + self.groups - 1


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


def step_positions(step: int, total: int, groups: int) -> range:
    """The positions that step `step` of an epoch of `total` positions owns."""
    positions = range(step * groups, min((step + 1) * groups, total))
    assert positions, f"step {step} is beyond the epoch's {total} groups"
    return positions


def plan_fixed(epoch: int, step: int, total: int, groups: int, per_gpu: int, world: int) -> Step:
    """Policy `fixed`: micro-batches of `per_gpu` groups.

    Raises UserError where `groups` is no multiple of `per_gpu` x `world`.
    """
    accumulation(groups, per_gpu, world)
    positions = step_positions(step, total, groups)
    rows = -(-len(positions) // (per_gpu * world))
    slots = tuple(
        tuple(
            tuple(positions[(row * world + rank) * per_gpu : (row * world + rank + 1) * per_gpu])
            for rank in range(world)
        )
        for row in range(rows)
    )
    return Step(epoch, step, len(positions), total, slots)


def plan_tokens(
    epoch: int, step: int, total: int, groups: int, tokens: int, world: int, lengths: Lengths, packed: bool
) -> Step:
    """Policy `tokens`: micro-batches that cost `tokens` at most, as few as will do, as equal as can be.

    Args:
        lengths: tokens of each pair of the group at a position, special tokens included.
        packed: a micro-batch costs its tokens; if not, its pairs, each padded to the longest.

    A single group that costs more than `tokens` is refused by the settings (`check_train`), and an assertion here.
    """
    positions = step_positions(step, total, groups)
    pairs = {position: lengths(position) for position in positions}
    slots = _packed_slots(pairs, tokens, world) if packed else _padded_slots(pairs, tokens, world)
    costs = {slot: slot_cost([pairs[position] for position in slot], packed) for slot in slots}
    assert max(costs.values()) <= tokens, f"a micro-batch of more than {tokens} tokens"
    # Ranks wait for each other: micro-batches of like cost run at the same time. Every other row runs backwards,
    # so that no rank has the largest of every row.
    ranked = sorted(slots, key=lambda slot: (-costs[slot], slot))
    ranked += [()] * (-len(ranked) % world)
    rows = [ranked[first : first + world] for first in range(0, len(ranked), world)]
    turned = (row if number % 2 == 0 else row[::-1] for number, row in enumerate(rows))
    return Step(epoch, step, len(positions), total, tuple(tuple(row) for row in turned))


def slot_cost(groups: Sequence[Sequence[int]], packed: bool) -> int:
    """Tokens that a micro-batch of groups computes, from the lengths of each group's pairs.

    A group of fewer pairs than the others gets pairs of one token: as many places when padded; packed, they are not
    counted.
    """
    if not groups:
        return 0
    if packed:
        return sum(sum(pairs) for pairs in groups)
    return len(groups) * max(map(len, groups)) * max(max(pairs) for pairs in groups)


def _packed_slots(pairs: dict[int, Sequence[int]], tokens: int, world: int) -> list[Slot]:
    """The longest group first, each into the lightest slot (Graham, 1969: at most a third above the best)."""
    order = sorted(pairs, key=lambda position: (-sum(pairs[position]), position))
    rows = max(1, -(-sum(map(sum, pairs.values())) // (tokens * world)))
    while True:
        heap = [(0, slot) for slot in range(min(rows * world, len(pairs)))]
        filled: list[list[int]] = [[] for _ in heap]
        for position in order:
            cost, slot = heap[0]
            heapq.heapreplace(heap, (cost + sum(pairs[position]), slot))
            filled[slot].append(position)
        if max(cost for cost, _ in heap) <= tokens or rows * world >= len(pairs):
            return [tuple(sorted(slot)) for slot in filled]
        rows += 1


def _padded_slots(pairs: dict[int, Sequence[int]], tokens: int, world: int) -> list[Slot]:
    """Groups of like length together: runs of them, sorted, none above the lowest limit that needs no more rows."""
    order = sorted(pairs, key=lambda position: (-max(pairs[position]), position))
    rows = -(-len(_runs(order, pairs, tokens)) // world)
    low, high = 1, tokens
    while low < high:
        limit = (low + high) // 2
        runs = _runs(order, pairs, limit)
        widest = max(slot_cost([pairs[position] for position in run], packed=False) for run in runs)
        fits = len(runs) <= rows * world and widest <= limit
        low, high = (low, limit) if fits else (limit + 1, high)
    return [tuple(sorted(run)) for run in _runs(order, pairs, low)]


def _runs(order: Sequence[int], pairs: dict[int, Sequence[int]], limit: int) -> list[list[int]]:
    """`order` cut into runs, each as long as its padded cost allows; a single group may exceed the limit."""
    runs: list[list[int]] = []
    longest = places = 0
    for position in order:
        wider = max(places, len(pairs[position]))
        if runs and (len(runs[-1]) + 1) * wider * longest <= limit:
            runs[-1].append(position)
            places = wider
        else:
            runs.append([position])
            longest, places = max(pairs[position]), len(pairs[position])
    return runs


def step_numbers(cursor: Cursor, total: int, epochs: int, max_steps: int | None = None) -> Iterator[tuple[int, int]]:
    """(epoch, step) of every optimizer step from `cursor` to the end of training, in order."""
    each = steps_per_epoch(total, cursor.groups)
    last = min(epochs * each, max_steps or epochs * each)
    return (divmod(number, each) for number in range(steps_taken(cursor, total), last))


def steps_taken(cursor: Cursor, total: int) -> int:
    """Optimizer steps behind the cursor."""
    return cursor.epoch * steps_per_epoch(total, cursor.groups) + steps_per_epoch(cursor.position, cursor.groups)

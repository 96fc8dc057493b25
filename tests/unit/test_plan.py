"""The make-up of every optimizer step: the same groups on any number of ranks, before and after a resume."""

from __future__ import annotations

import random
import tracemalloc
from collections.abc import Iterable, Iterator
from itertools import islice

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reranker.data.order import Order
from reranker.data.plan import (
    Cursor,
    Step,
    plan_fixed,
    plan_tokens,
    slot_cost,
    step_numbers,
    steps_per_epoch,
    steps_taken,
)
from reranker.errors import UserError

START = Cursor(seed=42, epoch=0, position=0, groups=12, fingerprint="0123456789abcdef")
WORLDS = (1, 2, 3, 4, 6, 12)


def start(groups: int) -> Cursor:
    return Cursor(42, 0, 0, groups, "f")


def fixed_steps(
    cursor: Cursor, total: int, per_gpu: int, world: int, epochs: int, max_steps: int | None = None
) -> Iterator[Step]:
    """The steps of policy `fixed` from a cursor on."""

    for epoch, step in step_numbers(cursor, total, epochs, max_steps):
        yield plan_fixed(epoch, step, total, cursor.groups, per_gpu, world)


@st.composite
def batches(draw: st.DrawFn) -> tuple[int, int, int]:
    """(groups of a step, groups of a micro-batch, ranks) that divide."""
    per_gpu, world, micro_batches = draw(st.integers(1, 4)), draw(st.integers(1, 16)), draw(st.integers(1, 4))
    return per_gpu * world * micro_batches, per_gpu, world


@settings(max_examples=150)
@given(total=st.integers(1, 300), batch=batches(), epochs=st.integers(1, 3))
def test_every_group_is_seen_once_per_epoch_on_any_world_size(
    total: int, batch: tuple[int, int, int], epochs: int
) -> None:
    groups, per_gpu, world = batch
    steps = list(fixed_steps(start(groups), total, per_gpu, world, epochs))
    for epoch in range(epochs):
        # Listed as the ranks run them, with nothing sorted away.
        seen = [p for s in steps if s.epoch == epoch for row in s.slots for slot in row for p in slot]
        assert sorted(seen) == list(range(total))


@settings(max_examples=150)
@given(total=st.integers(1, 300), batch=batches())
def test_a_step_owns_its_stretch_of_positions(total: int, batch: tuple[int, int, int]) -> None:
    groups, per_gpu, world = batch
    for number in range(steps_per_epoch(total, groups)):
        step = plan_fixed(5, number, total, groups, per_gpu, world)
        own = list(range(number * groups, min((number + 1) * groups, total)))
        assert step.positions == own
        assert (step.epoch, step.step, step.groups, step.groups_in_epoch) == (5, number, len(own), total)


@settings(max_examples=150)
@given(total=st.integers(1, 300), batch=batches())
def test_all_ranks_run_as_many_micro_batches_of_the_set_size(total: int, batch: tuple[int, int, int]) -> None:
    groups, per_gpu, world = batch
    for step in fixed_steps(start(groups), total, per_gpu, world, 1):
        assert all(len(row) == world for row in step.slots)
        assert all(len(slot) <= per_gpu for row in step.slots for slot in row)
        # None more than it takes: every micro-batch has at least one group on some rank.
        assert all(any(row) for row in step.slots)
        if step.groups == groups:
            assert len(step.slots) == groups // (per_gpu * world)


@settings(max_examples=150)
@given(total=st.integers(1, 300), batch=batches())
def test_only_the_short_last_step_has_ghosts(total: int, batch: tuple[int, int, int]) -> None:
    groups, per_gpu, world = batch
    *full, last = fixed_steps(start(groups), total, per_gpu, world, 1)
    full += [last] if total % groups == 0 else []
    assert all(len(slot) == per_gpu for step in full for row in step.slots for slot in row)


def test_the_short_last_step_fills_ranks_in_order_and_ends_with_ghosts() -> None:
    step = plan_fixed(0, 1, total=17, groups=12, per_gpu=1, world=4)
    assert step == Step(0, 1, 5, 17, (((12,), (13,), (14,), (15,)), ((16,), (), (), ())))
    assert plan_fixed(0, 0, total=3, groups=12, per_gpu=2, world=2).slots == (((0, 1), (2,)),)


@pytest.mark.parametrize("world", WORLDS)
@pytest.mark.parametrize("total", [1, 11, 12, 13, 100])
def test_the_make_up_of_a_step_does_not_depend_on_the_world_size(total: int, world: int) -> None:
    def made_up(ranks: int) -> list[tuple[int, int, int, list[int]]]:
        return [(s.epoch, s.step, s.groups, s.positions) for s in fixed_steps(START, total, 1, ranks, 2)]

    assert made_up(world) == made_up(1)


def test_a_batch_that_does_not_divide_is_refused_with_its_three_numbers() -> None:
    with pytest.raises(UserError) as caught:
        plan_fixed(0, 0, total=100, groups=32, per_gpu=2, world=3)
    assert str(caught.value) == (
        "batch: found groups=32, per_gpu=2, ranks=3, expected 32 to be a multiple of 2 x 3; "
        "set batch.groups to a multiple of 6"
    )
    with pytest.raises(UserError, match=r"expected 32 to be a multiple of 3 x 4; set batch\.per_gpu to one of \[1, 2"):
        plan_fixed(0, 0, total=100, groups=32, per_gpu=3, world=4)


def test_max_steps_ends_the_training_in_the_middle_of_an_epoch() -> None:
    # 25 groups, 12 a step: three steps an epoch.
    assert [(s.epoch, s.step) for s in fixed_steps(START, 25, 1, 1, 3, max_steps=4)] == [
        (0, 0), (0, 1), (0, 2), (1, 0),
    ]  # fmt: skip
    assert len(list(fixed_steps(START, 25, 1, 1, 3, max_steps=100))) == 9


@pytest.mark.parametrize("total", [1, 12, 13, 24, 40])
@pytest.mark.parametrize("world", WORLDS)
def test_a_cursor_continues_exactly_at_any_step_under_any_world_size(total: int, world: int) -> None:
    whole = [(s.epoch, s.positions) for s in fixed_steps(START, total, 1, 1, 3)]
    cursor = START
    for done, step in enumerate(fixed_steps(START, total, 1, 2, 3)):
        assert steps_taken(cursor, total) == done
        rest = fixed_steps(Cursor(**cursor.to_dict()), total, 1, world, 3)
        assert [(s.epoch, s.positions) for s in rest] == whole[done:]
        cursor = cursor.after(step)
    assert steps_taken(cursor, total) == len(whole)
    assert list(fixed_steps(cursor, total, 1, world, 3)) == []


def test_max_steps_counts_from_the_beginning_and_not_from_the_cursor() -> None:
    cursor = START
    for step in islice(fixed_steps(START, 25, 1, 1, 3), 4):
        cursor = cursor.after(step)
    assert (cursor.epoch, cursor.position) == (1, 12)
    assert [(s.epoch, s.step) for s in fixed_steps(cursor, 25, 1, 1, 3, max_steps=6)] == [(1, 1), (1, 2)]


# --- policy `tokens` -------------------------------------------------------------------------------------------


@st.composite
def steps_by_tokens(draw: st.DrawFn) -> tuple[int, int, int, list[list[int]], bool]:
    """(total, groups of a step, limit, lengths of each group's pairs, packed)."""
    total, passages = draw(st.integers(1, 60)), draw(st.integers(1, 5))
    pairs = [draw(st.lists(st.integers(4, 60), min_size=1, max_size=passages)) for _ in range(total)]
    return total, draw(st.integers(1, 40)), draw(st.integers(60 * passages, 900)), pairs, draw(st.booleans())


def by_tokens(step: int, world: int, total: int, groups: int, limit: int, pairs: list[list[int]], packed: bool) -> Step:
    return plan_tokens(0, step, total, groups, limit, world, pairs.__getitem__, packed)


@settings(max_examples=200)
@given(given_step=steps_by_tokens(), world=st.integers(1, 16))
def test_tokens_every_group_is_seen_once_per_epoch_on_any_world_size(
    given_step: tuple[int, int, int, list[list[int]], bool], world: int
) -> None:
    total, groups, *rest = given_step
    seen: list[int] = []
    for number in range(steps_per_epoch(total, groups)):
        step = by_tokens(number, world, total, groups, *rest)
        mine = [position for row in step.slots for slot in row for position in slot]
        # The same groups as under policy `fixed`, whatever the world size.
        assert sorted(mine) == plan_fixed(0, number, total, groups, groups, 1).positions == step.positions
        assert (step.groups, step.first, step.last) == (len(mine), min(mine), max(mine))
        seen += mine
    assert sorted(seen) == list(range(total))


@settings(max_examples=200)
@given(given_step=steps_by_tokens(), world=st.integers(1, 16))
def test_tokens_all_ranks_run_as_many_micro_batches_and_none_costs_more_than_the_limit(
    given_step: tuple[int, int, int, list[list[int]], bool], world: int
) -> None:
    total, groups, limit, pairs, packed = given_step
    step = by_tokens(0, world, total, groups, limit, pairs, packed)
    assert all(len(row) == world for row in step.slots)
    assert all(any(row) for row in step.slots)
    costs = [slot_cost([pairs[position] for position in slot], packed) for row in step.slots for slot in row]
    assert max(costs) <= limit
    # A rank may have a ghost in the last row only.
    assert all(slot for row in step.slots[:-1] for slot in row)


@pytest.mark.parametrize("packed", [True, False])
def test_tokens_the_plan_is_a_pure_function(packed: bool) -> None:
    pairs = [[(17 * position + 5 * pair) % 57 + 4 for pair in range(3)] for position in range(64)]
    assert by_tokens(0, 4, 64, 64, 500, pairs, packed) == by_tokens(0, 4, 64, 64, 500, pairs, packed)


def test_tokens_the_plan_never_changes() -> None:
    pairs = [[10, 12], [50, 8], [20, 20], [9, 9], [40, 41], [11, 30]]
    assert by_tokens(0, 2, 6, 6, 120, pairs, True).slots == (((4,), (0, 2)), ((1,), (3, 5)))
    assert by_tokens(0, 2, 6, 6, 120, pairs, False).slots == (((2, 5), (1,)), ((0, 3), (4,)))
    assert by_tokens(0, 4, 6, 6, 100, pairs, False).slots == (((1,), (4,), (0, 2), (5,)), ((), (), (), (3,)))


@pytest.mark.parametrize("world", [1, 8])
def test_tokens_as_few_micro_batches_as_the_limit_allows(world: int) -> None:
    pairs = [[100] * 3] * 64
    # 300 tokens a group, 6 groups in a micro-batch of 2,000 tokens: 11 micro-batches, or 2 rows of 8.
    assert len(by_tokens(0, world, 64, 64, 2000, pairs, True).slots) == {1: 11, 8: 2}[world]
    assert len(by_tokens(0, world, 64, 64, 2000, pairs, False).slots) == {1: 11, 8: 2}[world]


def useful_share(steps: Iterable[Step], pairs: list[list[int]], packed: bool) -> float:
    """Tokens of real pairs / tokens that ranks in lockstep compute or wait for."""
    useful = spent = 0
    for step in steps:
        for row in step.slots:
            costs = [slot_cost([pairs[position] for position in slot], packed) for slot in row]
            spent += max(costs) * len(row)
            useful += sum(sum(pairs[position]) for slot in row for position in slot)
    return useful / spent


@pytest.mark.parametrize("seed", range(3))
def test_tokens_most_of_the_lockstep_time_is_useful(seed: int) -> None:
    # Lognormal lengths as of real pairs: 130 tokens on average, cut at 512; 8 ranks, 256 groups of 3.
    draw = random.Random(seed)
    pairs = [[min(512, max(8, int(draw.lognormvariate(4.6, 0.75)))) for _ in range(3)] for _ in range(2560)]
    planned = {
        packed: [by_tokens(number, 8, 2560, 256, 8192, pairs, packed) for number in range(10)]
        for packed in (True, False)
    }
    fixed = [plan_fixed(0, number, 2560, 256, 8, 8) for number in range(10)]
    assert useful_share(planned[True], pairs, True) > 0.95
    # Padding inside the groups stays; sorting and balance save most of what `fixed` wastes beside it.
    assert useful_share(planned[False], pairs, False) > 1.7 * useful_share(fixed, pairs, False)


def test_tokens_a_step_of_a_hundred_million_groups_in_ten_thousand_shards_takes_no_array_of_their_size() -> None:
    order = Order([10_000] * 10_000, 42, 0, 64)
    total = order.groups

    def lengths(position: int) -> list[int]:
        shard, index = order.locate(position)
        return [(shard * 31 + index * 17 + pair) % 500 + 12 for pair in range(3)]

    tracemalloc.start()
    try:
        steps = [plan_tokens(0, number, total, 256, 8192, 8, lengths, True) for number in (0, 200_000, 390_624)]
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert total == 10**8
    assert [step.groups for step in steps] == [256, 256, 256]
    assert steps[-1].positions == list(range(10**8 - 256, 10**8))
    assert peak < 2_000_000

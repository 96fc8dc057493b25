"""The order of an epoch: every group once, its shards read together, the same on every machine."""

from __future__ import annotations

import tracemalloc
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reranker.data.order import Order

shard_sizes = st.lists(st.integers(1, 40), min_size=1, max_size=12)


def places(order: Order) -> list[tuple[int, int]]:
    return [order.locate(position) for position in range(order.groups)]


@settings(max_examples=80)
@given(sizes=shard_sizes, seed=st.integers(0, 2**63), epoch=st.integers(0, 100), block=st.integers(1, 20))
def test_every_group_stands_in_the_order_once(sizes: list[int], seed: int, epoch: int, block: int) -> None:
    found = places(Order(sizes, seed, epoch, block))
    assert sorted(found) == [(shard, index) for shard, size in enumerate(sizes) for index in range(size)]


@settings(max_examples=80)
@given(sizes=shard_sizes, epoch=st.integers(0, 100), block=st.integers(1, 6))
def test_a_block_holds_the_groups_of_its_shards_and_no_others(sizes: list[int], epoch: int, block: int) -> None:
    found = places(Order(sizes, 42, epoch, block))
    seen: set[int] = set()
    while found:
        # A block: as many shards as it may have, none of them seen before, all of their groups.
        shards = set(list(dict.fromkeys(shard for shard, _ in found))[:block])
        assert not shards & seen
        seen |= shards
        count = sum(sizes[shard] for shard in shards)
        assert {shard for shard, _ in found[:count]} == shards
        found = found[count:]


def test_the_order_never_changes() -> None:
    assert places(Order([3, 1, 4, 2], 42, 0, 2)) == [
        (1, 0), (2, 3), (2, 1), (2, 2), (2, 0), (0, 2), (3, 0), (0, 0), (3, 1), (0, 1),
    ]  # fmt: skip
    assert places(Order([3, 1, 4, 2], 42, 1, 2)) == [
        (3, 1), (3, 0), (1, 0), (0, 2), (0, 0), (2, 1), (2, 2), (2, 0), (0, 1), (2, 3),
    ]  # fmt: skip


@pytest.mark.parametrize("sizes", [[400], [100, 200, 50, 50], [4] * 100], ids=str)
@pytest.mark.parametrize("changed", [{"number": 1}, {"number": 2}, {"seed": 43}], ids=str)
def test_another_epoch_or_seed_has_another_order(sizes: list[int], changed: dict[str, int]) -> None:
    first, second = (
        places(Order(sizes, **values, block=64))
        for values in ({"seed": 42, "number": 0}, {"seed": 42, "number": 0, **changed})
    )
    same = sum(a == b for a, b in zip(first, second, strict=True))
    assert same < 20


def test_small_data_is_shuffled_as_a_whole() -> None:
    found = places(Order([100] * 8, 42, 0, 64))
    counts = Counter((position // 100, shard) for position, (shard, _) in enumerate(found))
    # Each hundred positions take about 12.5 groups from each of the eight shards; six standard deviations.
    assert len(counts) == 64
    assert max(counts.values()) < 35


def test_shards_take_another_place_in_each_epoch() -> None:
    firsts = [Order([1] * 50, 42, epoch, 1).locate(0)[0] for epoch in range(40)]
    assert len(set(firsts)) > 15


def test_ten_thousand_shards_of_ten_thousand_groups_take_no_array_of_groups() -> None:
    sizes = [10_000] * 10_000
    tracemalloc.start()
    try:
        order = Order(sizes, 7, 3, 64)
        found = [order.locate(position) for position in (0, 1, 2, 99_999_999)]
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert found == [(3219, 4502), (6004, 5341), (6946, 6295), (5340, 1998)]
    assert peak < 2_000_000

"""A keyed permutation is a bijection, the same everywhere and for ever, and random enough to shuffle with."""

from __future__ import annotations

import math
import tracemalloc
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reranker.data.permutation import Permutation, keyed, mix

N = 1 << 16
keys = st.lists(st.integers(-(2**63), 2**64 - 1), max_size=4)


def elements(n: int, *key: int) -> list[int]:
    permutation = Permutation(n, *key)
    return [permutation(position) for position in range(n)]


@pytest.fixture(scope="module")
def large() -> list[int]:
    return elements(N, 42, 1)


@pytest.mark.parametrize("key", [(), (0,), (42, 7)])
def test_every_small_size_is_permuted_whole(key: tuple[int, ...]) -> None:
    for n in range(1, 130):
        assert sorted(elements(n, *key)) == list(range(n)), n


@settings(max_examples=60)
@given(n=st.integers(1, 3000), key=keys)
def test_every_size_and_key_is_permuted_whole(n: int, key: list[int]) -> None:
    assert sorted(elements(n, *key)) == list(range(n))


@settings(max_examples=100)
@given(n=st.integers(1, 2**60), key=keys, data=st.data())
def test_elements_of_a_huge_permutation_stay_in_it_and_differ(n: int, key: list[int], data: st.DataObject) -> None:
    permutation = Permutation(n, *key)
    positions = data.draw(st.lists(st.integers(0, n - 1), unique=True, min_size=1, max_size=8))
    found = [permutation(position) for position in positions]
    assert all(0 <= element < n for element in found)
    assert len(set(found)) == len(found)


def test_the_permutation_never_changes() -> None:
    assert elements(10, 0) == [6, 1, 8, 5, 3, 7, 9, 2, 0, 4]
    assert elements(13, 42, 7) == [0, 1, 5, 7, 8, 10, 2, 4, 11, 6, 12, 3, 9]
    recipe = Permutation(499_184, 42, 0, 1)
    assert [recipe(position) for position in range(8)] == [
        418037, 95911, 23621, 5620, 26845, 293197, 386522, 157456,
    ]  # fmt: skip


def test_the_keyed_numbers_never_change() -> None:
    # The first number is that of Java's SplittableRandom(0) and of every other splitmix64.
    assert mix(0) == 0xE220A8397B1DCDAF
    assert keyed() == 0
    assert keyed(0) == 12035550249420947055
    assert keyed(1, 2) == 15671754871817308195
    assert keyed(2, 1) == 1759269079544140422
    assert keyed(-1) == keyed(2**64 - 1) == 6755974106381971767


def test_keys_that_differ_in_one_part_give_unrelated_permutations() -> None:
    given_keys = [(), (0,), (1,), (2,), (1, 0), (0, 1), (1, 1), (1, 2), (2, 1), (42, 0, 1), (42, 1, 1), (42, 1, 2)]
    found = [elements(1000, *key) for key in given_keys]
    for first in range(len(found)):
        for second in range(first):
            same = sum(a == b for a, b in zip(found[first], found[second], strict=True))
            # One agreement is expected; ten or more have a chance of one in ten million.
            assert same < 10, (given_keys[first], given_keys[second])


def test_few_elements_stay_where_they_were(large: list[int]) -> None:
    assert sum(position == element for position, element in enumerate(large)) < 10


@pytest.mark.parametrize("bit", range(16))
def test_no_bit_of_neighbours_is_related(bit: int, large: list[int]) -> None:
    bits = [element >> bit & 1 for element in large]
    differing = sum(a != b for a, b in pairwise(bits))
    # A coin thrown 65,535 times; six standard deviations.
    assert abs(differing - (N - 1) / 2) < 6 * math.sqrt(N) / 2


@pytest.mark.parametrize("distance", [1, 2, 3, 16, 255, 256, 257, 4096, N // 2])
def test_no_distance_between_positions_is_kept(distance: int, large: list[int]) -> None:
    found: dict[int, int] = {}
    for position in range(N):
        difference = (large[(position + distance) % N] - large[position]) % N
        found[difference] = found.get(difference, 0) + 1
    # Each of 65,535 differences about once (Poisson): eleven or more of one have a chance of 1 in 2,000.
    assert max(found.values()) < 12


def test_elements_rise_as_often_as_they_fall(large: list[int]) -> None:
    rises = sum(a < b for a, b in pairwise(large))
    assert abs(rises - N / 2) < 6 * math.sqrt(N / 12)


@pytest.mark.parametrize("buckets", [16, 64])
@pytest.mark.parametrize("low", [False, True], ids=["high bits", "low bits"])
def test_every_part_of_the_positions_gets_every_part_of_the_elements(buckets: int, low: bool, large: list[int]) -> None:
    def bucket(number: int) -> int:
        return number % buckets if low else number * buckets // N

    counts = [[0] * buckets for _ in range(buckets)]
    for position, element in enumerate(large):
        counts[bucket(position)][bucket(element)] += 1
    expected = N / buckets**2
    chi_square = sum((count - expected) ** 2 / expected for row in counts for count in row)
    freedom = (buckets - 1) ** 2
    assert abs(chi_square - freedom) < 6 * math.sqrt(2 * freedom)


def test_a_size_that_is_no_power_of_two_is_as_even() -> None:
    n, buckets = 40_000, 20
    counts = [[0] * buckets for _ in range(buckets)]
    for position, element in enumerate(elements(n, 7)):
        counts[position * buckets // n][element * buckets // n] += 1
    expected = n / buckets**2
    chi_square = sum((count - expected) ** 2 / expected for row in counts for count in row)
    assert abs(chi_square - (buckets - 1) ** 2) < 6 * math.sqrt(2) * (buckets - 1)


def test_a_permutation_needs_no_memory() -> None:
    tracemalloc.start()
    try:
        permutation = Permutation(10**12, 42)
        found = {permutation(position) for position in (0, 1, 10**6, 10**12 - 1)}
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert len(found) == 4
    assert peak < 100_000


# --- at the sizes of real data ------------------------------------------------------------------------------------

SIZES = [1 << 20, 1_000_000]


@pytest.fixture(scope="module", params=SIZES, ids=["2^20", "10^6"])
def whole(request: pytest.FixtureRequest) -> np.ndarray:
    return Permutation(request.param, 42, 3).all()


@pytest.mark.parametrize("n", [1, 2, 3, 100, 1 << 10, 5_000])
def test_all_elements_at_once_are_the_elements_one_by_one(n: int) -> None:
    assert Permutation(n, 42, 7).all().tolist() == elements(n, 42, 7)


def test_a_million_elements_are_permuted_whole(whole: np.ndarray) -> None:
    assert np.array_equal(np.sort(whole), np.arange(len(whole)))


def test_no_bit_of_a_million_neighbours_is_related(whole: np.ndarray) -> None:
    for bit in range(19):
        bits = whole >> bit & 1
        share = float(bits.mean())
        expected = 2 * share * (1 - share) * (len(whole) - 1)
        differing = int((bits[1:] != bits[:-1]).sum())
        assert abs(differing - expected) < 6 * math.sqrt(len(whole)) / 2, bit


@pytest.mark.parametrize("low", [False, True], ids=["high bits", "low bits"])
def test_a_million_positions_get_every_part_of_the_elements(low: bool, whole: np.ndarray) -> None:
    n, buckets = len(whole), 256
    positions = np.arange(n)
    parts = (positions % buckets, whole % buckets) if low else (positions * buckets // n, whole * buckets // n)
    counts = np.bincount(parts[0] * buckets + parts[1], minlength=buckets**2)
    chi_square = float(((counts - n / buckets**2) ** 2 / (n / buckets**2)).sum())
    freedom = (buckets - 1) ** 2
    assert abs(chi_square - freedom) < 6 * math.sqrt(2 * freedom)


@pytest.mark.parametrize("distance", [1, 2, 512, 1024, 1 << 19])
def test_no_distance_between_a_million_positions_is_kept(distance: int, whole: np.ndarray) -> None:
    found = np.bincount((np.roll(whole, -distance) - whole) % len(whole))
    # Each difference about once (Poisson): thirteen or more of one have a chance of 1 in 15,000.
    assert found.max() < 13

"""p-values, their correction and the intervals over sets, each against a plain computation of its definition."""

from __future__ import annotations

import itertools
import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from reranker.evaluate.metrics import estimate
from reranker.evaluate.statistics import estimate_over_sets, holm, p_value


def exact(sums: list[float]) -> float:
    """The share of all signs under which the total is as far from 0 as it is, or farther."""
    found = abs(sum(sums))
    totals = [
        abs(sum(s * v for s, v in zip(signs, sums, strict=True)))
        for signs in itertools.product((1, -1), repeat=len(sums))
    ]
    return sum(total >= found - 1e-12 for total in totals) / len(totals)


def test_the_p_value_is_the_share_of_all_signs_that_are_as_far_from_zero() -> None:
    differences = np.array([0.5, -0.25, 1.0, 0.5, 0.0, 0.75, -0.5])
    clusters = list("abcdefg")
    assert p_value([(differences, clusters)]) == pytest.approx(exact(differences.tolist()))


def test_queries_of_one_document_change_sides_together() -> None:
    differences = np.array([0.5, 0.5, 0.5, 0.25, 0.25, -0.5])
    assert p_value([(differences, list("aaabbc"))]) == pytest.approx(exact([1.5, 0.5, -0.5]))
    assert p_value([(differences, list("aaabbc"))]) > 2 * p_value([(differences, list("abcdef"))])


def test_over_sets_each_set_counts_alike_whatever_its_size() -> None:
    large, small = np.array([0.5, -0.25, 0.75, 0.5]), np.array([-1.0, 0.5])
    parts = [*(large / 4 / 2), *(small / 2 / 2)]
    assert p_value([(large, list("abcd")), (small, list("xy"))]) == pytest.approx(exact(parts))


def test_queries_that_several_sets_share_change_sides_together_and_make_nothing_surer() -> None:
    one = (np.random.default_rng(4).normal(0.1, 0.5, 120), list(range(120)))
    assert p_value([one] * 4) == p_value([one])
    widths = [found.high - found.low for found in (estimate_over_sets([one] * count) for count in (1, 2, 4))]
    assert widths == pytest.approx([widths[0]] * 3)
    part = (one[0][:3], one[1][:3])
    shared = [value / 6 / 2 + (value / 3 / 2 if place < 3 else 0) for place, value in enumerate(one[0][:6])]
    assert p_value([(one[0][:6], one[1][:6]), part]) == pytest.approx(exact(shared))


def test_a_set_that_another_holds_is_never_without_a_query() -> None:
    large = (np.zeros(500), list(range(500)))
    found = estimate_over_sets([large, (np.array([0.0, 1.0]), [0, 1])])
    assert 0 <= found.low < 0.25 < found.high <= 0.5


def test_p_values_are_scipys() -> None:
    from scipy.stats import permutation_test

    for count, permutations, tolerance in ((7, 10_000, 1e-12), (150, 20_000, 0.1)):
        differences = np.random.default_rng(count).normal(0.06, 0.5, count)
        theirs = permutation_test(
            (differences,), np.sum, permutation_type="samples", n_resamples=permutations, vectorized=True,
            rng=np.random.default_rng(3),
        )  # fmt: skip
        ours = p_value([(differences, list(range(count)))], permutations)
        assert ours == pytest.approx(theirs.pvalue, rel=tolerance)


def test_the_memory_of_a_p_value_does_not_grow_with_its_permutations() -> None:
    differences = np.random.default_rng(5).normal(0, 1, 50_000)
    clusters = list(range(50_000))
    tracemalloc.start()
    try:
        p_value([(differences, clusters)], permutations=300)
        assert tracemalloc.get_traced_memory()[1] < 80e6  # 300 signs of each, in doubles: 120e6
    finally:
        tracemalloc.stop()


def test_many_queries_are_permuted_at_random_and_come_near_the_normal_distribution() -> None:
    differences = np.random.default_rng(0).normal(0.05, 0.5, 400)
    from scipy.stats import norm

    expected = 2 * norm.sf(abs(differences.sum()) / np.sqrt((differences**2).sum()))
    assert p_value([(differences, list(range(400)))], permutations=4000) == pytest.approx(expected, rel=0.25)
    assert p_value([(differences, list(range(400)))], seed=1) == p_value([(differences, list(range(400)))], seed=1)


def test_p_values_of_equal_systems_are_uniform() -> None:
    draw = np.random.default_rng(2)
    values = [p_value([(draw.normal(0, 1, 30), list(range(30)))], permutations=200, seed=seed) for seed in range(200)]
    assert 0.02 <= np.mean(np.array(values) < 0.1) <= 0.19  # 5 standard deviations around 0.1


@pytest.mark.parametrize("values", [[0.0, 0.0, 0.0], [0.0, 0.5, 0.0], [0.5]])
def test_no_difference_or_a_single_one_says_nothing(values: list[float]) -> None:
    assert p_value([(np.array(values), list(range(len(values))))]) == 1


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_holm_rejects_what_its_definition_rejects(p_values: list[float]) -> None:
    corrected = holm(p_values)
    for level in (0.01, 0.05, 0.2, 0.5):
        # Step down from the smallest: stop at the first that is above level / (how many are left).
        rejected = set()
        for place, index in enumerate(sorted(range(len(p_values)), key=lambda index: p_values[index])):
            if p_values[index] * (len(p_values) - place) > level:
                break
            rejected.add(index)
        assert {index for index, value in enumerate(corrected) if value <= level} == rejected


def test_the_interval_over_one_set_is_that_of_the_set() -> None:
    values = np.random.default_rng(1).random(120)
    clusters = [number // 3 for number in range(120)]
    ours, theirs = estimate_over_sets([(values, clusters)], 4000), estimate(values, clusters, 4000)
    assert ours.value == theirs.value
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), abs=0.006)


def test_the_mean_over_sets_is_as_sure_as_its_parts_make_it() -> None:
    draw = np.random.default_rng(3)
    samples = [(draw.normal(mean, 1.0, count), list(range(count))) for mean, count in ((0.0, 100), (1.0, 400))]
    found = estimate_over_sets(samples, 4000)
    assert found.value == pytest.approx((samples[0][0].mean() + samples[1][0].mean()) / 2)
    deviation = np.sqrt(samples[0][0].var() / 100 + samples[1][0].var() / 400) / 2
    assert found.high - found.low == pytest.approx(2 * 1.96 * deviation, rel=0.08)

from __future__ import annotations

import math

import numpy as np
import pytest

from reranker.evaluate.metrics import Estimate, estimate, estimate_difference, per_query, rank_of_right, ranking


def test_metrics_equal_the_values_worked_out_by_hand() -> None:
    rankings = [["a", "b", "c"], ["x", "y", "z"], ["p", "q", "r"]]
    relevant = [["b"], ["z", "y"], ["not ranked"]]
    values = per_query(rankings, relevant, contexts=2)
    assert values["has_right_in_contexts"].tolist() == [1, 1, 0]
    assert values["mrr"].tolist() == [1 / 2, 1 / 2, 0]
    second, third = 1 / math.log2(3), 1 / math.log2(4)
    assert values["ndcg@10"] == pytest.approx([second, (second + third) / (1 + second), 0])


def test_has_right_in_contexts_looks_among_the_contexts_only() -> None:
    rankings, relevant = [["a", "b", "c", "d"]], [["c"]]
    found = [per_query(rankings, relevant, contexts)["has_right_in_contexts"][0] for contexts in (1, 2, 3, 4)]
    assert found == [0, 0, 1, 1]


def test_an_equivalent_passage_counts_as_right() -> None:
    assert per_query([["twin", "right"]], [["right", "twin"]], 1)["mrr"].tolist() == [1]
    assert rank_of_right(["other", "twin", "right"], ["right", "twin"]) == 2


def test_a_rank_beyond_ten_counts_for_mrr_and_not_for_ndcg() -> None:
    names = [f"p{place}" for place in range(20)]
    values = per_query([names], [["p14"]], contexts=20)
    assert (values["mrr"][0], values["ndcg@10"][0]) == (pytest.approx(1 / 15), 0)


def test_a_query_without_candidates_scores_zero() -> None:
    values = per_query([[], ["a"]], [["a"], ["a"]], contexts=5)
    assert values["mrr"].tolist() == values["ndcg@10"].tolist() == [0, 1]
    assert per_query([[]], [["a"]], contexts=5)["mrr"].tolist() == [0]


def test_scoring_everything_alike_gives_the_worst_rank_and_not_the_first_stages_order() -> None:
    order = ranking(["right", "b", "twin", "d"], [0.5, 0.5, 0.5, 0.5], ["right", "twin"])
    assert order == ["b", "d", "right", "twin"]
    assert rank_of_right(order, ["right"]) == 3


def test_a_tie_costs_no_more_than_the_passages_it_ties_with() -> None:
    assert ranking(["right", "b", "c", "d"], [0.5, 0.5, 0.9, 0.1], ["right"]) == ["c", "b", "right", "d"]


def test_the_library_keeps_the_order_that_it_is_handed() -> None:
    # trec_eval breaks ties by name; equal scores must not reach it.
    for order in (["z", "a", "m"], ["a", "m", "z"], ["m", "z", "a"]):
        assert per_query([order], [["m"]], 5)["mrr"][0] == 1 / (order.index("m") + 1)


def test_nan_gets_no_rank() -> None:
    with pytest.raises(ValueError, match="'b' is NaN"):
        ranking(["a", "b"], [0.1, float("nan")], ["a"])


def test_correlated_queries_of_one_document_widen_the_interval() -> None:
    rng = np.random.default_rng(0)
    values = np.repeat(rng.random(20) < 0.5, 10).astype(float)  # 20 documents, their 10 queries agree
    together = estimate(values, [f"d{query // 10}" for query in range(200)])
    apart = estimate(values, [f"q{query}" for query in range(200)])
    assert together.value == apart.value == values.mean()
    assert together.high - together.low > 2.5 * (apart.high - apart.low)
    # sqrt(p (1 - p) / documents), normal approximation
    expected = 2 * 1.96 * math.sqrt(values.mean() * (1 - values.mean()) / 20)
    assert together.high - together.low == pytest.approx(expected, rel=0.15)


def test_the_interval_is_that_of_a_plain_bootstrap_where_no_document_is_shared() -> None:
    values = np.random.default_rng(1).random(100)
    ours = estimate(values, list(range(100)), resamples=4000)
    draws = np.random.default_rng(2).choice(values, (4000, 100)).mean(axis=1)
    assert (ours.low, ours.high) == pytest.approx(tuple(np.percentile(draws, [2.5, 97.5])), abs=0.005)


def test_the_same_seed_gives_the_same_interval() -> None:
    values, clusters = np.random.default_rng(1).random(50), list(range(50))
    assert estimate(values, clusters, seed=7) == estimate(values, clusters, seed=7)
    assert estimate(values, clusters, seed=7) != estimate(values, clusters, seed=8)


def test_a_paired_difference_is_surer_than_its_parts() -> None:
    base = np.random.default_rng(3).random(100)
    clusters = list(range(100))
    difference = estimate_difference(base + 0.01, base, clusters)
    assert difference.low == pytest.approx(0.01) == difference.high
    assert estimate(base, clusters).low < base.mean() - 0.03


@pytest.mark.parametrize(
    ("values", "clusters"), [([0.25], ["d"]), ([0.0, 1.0], ["d", "d"]), ([0.3, 0.3, 0.3], ["a", "b", "c"])]
)
def test_nothing_to_resample_gives_an_interval_of_no_width(values: list[float], clusters: list[str]) -> None:
    mean = float(np.mean(values))
    assert estimate(np.array(values), clusters) == Estimate(mean, mean, mean)

"""A model fails where it loses more than allowed on any guard set, and by default no p-value excuses that."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reranker.errors import UserError
from reranker.evaluate.regression_gate import Paired, Rule, Verdict, judge
from reranker.evaluate.statistics import holm, p_value

VALUES = st.lists(st.tuples(st.integers(0, 20), st.integers(0, 20)), min_size=1, max_size=8)
"""(value of the base, of the model) of each query, in twentieths."""


def paired(name: str, values: list[tuple[int, int]]) -> Paired:
    base, model = zip(*values, strict=True)
    return Paired(name, [one / 20 for one in base], [one / 20 for one in model], range(len(values)))


def drop(base: float, model: float, queries: int = 40, name: str = "set") -> Paired:
    return Paired(name, [base] * queries, [model] * queries, range(queries))


@settings(max_examples=30, deadline=None)
@given(st.lists(VALUES, min_size=1, max_size=4), st.integers(0, 20))
def test_a_model_passes_if_it_loses_no_more_than_allowed_on_every_set(
    sets: list[list[tuple[int, int]]], twentieths: int
) -> None:
    verdict = judge(
        Rule("ndcg@10", twentieths / 20), "base", "here", [paired(f"s{i}", one) for i, one in enumerate(sets)]
    )
    # In whole numbers: a loss of exactly what is allowed passes, whatever the rounding of a mean.
    lost = [sum(base - model for base, model in one) for one in sets]
    fine = [loss <= twentieths * len(one) for loss, one in zip(lost, sets, strict=True)]
    assert [one.passed for one in verdict.sets] == fine
    assert verdict.passed == all(fine)
    assert [one.queries for one in verdict.sets] == [len(one) for one in sets]
    for one, loss, values in zip(verdict.sets, lost, sets, strict=True):
        assert one.drop == pytest.approx(loss / 20 / len(values))
        assert one.difference.low <= one.difference.value + 1e-9
        assert one.difference.value <= one.difference.high + 1e-9
        assert one.difference.value == pytest.approx(-one.drop)


@settings(max_examples=30, deadline=None)
@given(VALUES)
def test_a_model_that_is_its_base_passes_whatever_is_allowed(values: list[tuple[int, int]]) -> None:
    same = [(base, base) for base, _ in values]
    verdict = judge(Rule("mrr", 0.0), "base", "here", [paired("same", same)])
    assert verdict.passed
    assert (verdict.sets[0].drop, verdict.sets[0].p) == (0.0, 1.0)


def test_a_large_loss_on_one_set_is_not_made_up_for_by_a_gain_on_another() -> None:
    # Half a point of nDCG won on one set, 14.7 lost on another.
    verdict = judge(Rule("ndcg@10", 0.01), "base", "here",
                    [drop(0.700, 0.705, name="won"), drop(0.800, 0.653, name="lost"), drop(0.5, 0.495, name="little")])  # fmt: skip
    assert [one.passed for one in verdict.sets] == [True, False, True]
    assert not verdict.passed
    assert verdict.losses() == "loses 0.1470 ndcg@10 on lost (0.8000 to 0.6530, p < 0.001)"
    better = judge(Rule("ndcg@10", 0.01), "base", "here", [drop(0.7, 0.9)])
    assert (better.passed, better.losses()) == (True, "")


def test_by_default_a_loss_that_is_not_significant_fails_too_and_with_a_level_it_is_excused() -> None:
    unsure = Paired("few", [1.0, 0.0, 1.0, 1.0], [0.0, 0.5, 0.5, 1.0], "abcd")
    by_default, excused, sure = (
        judge(Rule("mrr", 0.01, level), "base", "here", [one])
        for level, one in ((None, unsure), (0.05, unsure), (0.05, drop(0.9, 0.8)))
    )
    assert by_default.sets[0].p > 0.05
    assert not by_default.passed
    assert excused.passed
    assert not sure.passed
    assert sure.sets[0].p < 0.01


def test_p_is_that_of_the_paired_randomisation_test_corrected_for_the_number_of_sets() -> None:
    draw = np.random.default_rng(3)
    sets = [
        Paired(name, draw.random(30).tolist(), draw.random(30).tolist(), [i // 2 for i in range(30)]) for name in "abc"
    ]
    verdict = judge(Rule("mrr", 0.05), "base", "here", sets)
    expected = [p_value([(np.array(one.model_Q) - np.array(one.base_Q), one.clusters)]) for one in sets]
    assert [one.p for one in verdict.sets] == expected
    assert [one.p_holm for one in verdict.sets] == holm(expected)
    assert len(set(expected)) == 3

    # It is the corrected one that a level is for.
    lost = Paired("lost", [1.0] * 6, [0.5] * 6, range(6))
    alone, among = (judge(Rule("mrr", 0.05, 0.05), "base", "here", one) for one in ([lost], [lost, *sets]))
    assert (alone.sets[0].p, among.sets[0].p) == (2 / 64, 2 / 64)
    assert (alone.sets[0].passed, among.sets[0].passed) == (False, True)


@settings(max_examples=30, deadline=None)
@given(st.lists(VALUES, min_size=1, max_size=3))
def test_a_verdict_is_the_same_behind_its_json(sets: list[list[tuple[int, int]]]) -> None:
    verdict = judge(
        Rule("recall@5", 0.1, 0.05), "base", "in bf16", [paired(f"s{i}", one) for i, one in enumerate(sets)]
    )
    stored = json.loads(json.dumps(verdict.to_dict()))
    assert stored["passed"] == verdict.passed
    assert Verdict.of(stored) == verdict


def test_what_is_logged_is_named_by_set() -> None:
    logged = judge(
        Rule("ndcg@10", 0.01), "base", "here", [drop(0.75, 0.5, name="old"), drop(0.5, 0.75, name="new")]
    ).metrics()
    assert {name: value for name, value in logged.items() if not name.endswith("/p")} == {
        "gate/passed": 0.0, "gate/old/ndcg@10": 0.5, "gate/old/drop": 0.25, "gate/new/ndcg@10": 0.75, "gate/new/drop": -0.25,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"metric": "ndgc@10"}, r"gate\.metric: found 'ndgc@10', expected one of .*; did you mean ndcg@10\?"),
        ({"max_drop": -0.1}, r"gate\.max_drop: found -0\.1, expected 0 or more"),
        ({"max_drop": float("nan")}, r"gate\.max_drop: found nan"),
        ({"significance": 1.5}, r"gate\.significance: found 1\.5, expected a probability, or null"),
        ({"significance": 0.0}, r"gate\.significance: found 0\.0"),
    ],
)
def test_a_rule_that_cannot_be_is_one_line(values: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        Rule(**{"metric": "mrr", "max_drop": 0.0, **values})

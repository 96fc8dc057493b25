"""Every measure equals trec_eval's, through pytrec-eval and ir-measures, on runs with ties, grades and holes."""

from __future__ import annotations

from typing import Any

import ir_measures
import pytest
import pytrec_eval
from hypothesis import given, settings
from hypothesis import strategies as st
from ir_measures import AP, RR, R, Success, nDCG

from reranker.errors import UserError
from reranker.evaluate.measures import NAMES, measure
from reranker.evaluate.metrics import per_query, ranking

PASSAGES = [f"p{place}" for place in range(14)]
QUERIES = ["q1", "q2", "q3", "q4"]
GRADES = st.integers(-1, 3)
LEVELS = st.sampled_from([0.0, 0.25, 0.5, 1.0])
"""Few, so that most runs have ties."""

# trec_eval counts from grade 0 to the highest of a query: where that is below 0 it does not come to an end.
judged = st.dictionaries(st.sampled_from(PASSAGES), GRADES, min_size=1).filter(lambda grades: max(grades.values()) >= 0)
qrels = st.fixed_dictionaries(dict.fromkeys(QUERIES, judged))
runs = st.dictionaries(st.sampled_from(QUERIES), st.dictionaries(st.sampled_from(PASSAGES), LEVELS, min_size=1))
CUTS = (1, 3, 5, 10)


def as_trec_eval_orders(run: dict[str, float]) -> list[str]:
    """By falling score, ties by falling name."""
    return sorted(sorted(run, reverse=True), key=lambda passage: -run[passage])


def ours(name: str, qrels: dict[str, dict[str, int]], run: dict[str, dict[str, float]]) -> dict[str, float]:
    rankings = [as_trec_eval_orders(run.get(query, {})) for query in QUERIES]
    values = per_query(rankings, [qrels[query] for query in QUERIES], contexts=5, metrics=[name])[name]
    return dict(zip(QUERIES, values.tolist(), strict=True))


@settings(max_examples=100, deadline=None)
@given(qrels, runs)
def test_measures_equal_pytrec_evals_to_the_last_bit(qrels: Any, run: Any) -> None:
    cuts = ",".join(map(str, CUTS))
    names = {f"ndcg_cut.{cuts}", "ndcg", "recip_rank", "map", f"map_cut.{cuts}", f"recall.{cuts}", f"success.{cuts}"}
    found = pytrec_eval.RelevanceEvaluator(qrels, names).evaluate(run)
    theirs = {"mrr": "recip_rank", "map": "map", "ndcg": "ndcg"}
    for cut in CUTS:
        theirs |= {f"ndcg@{cut}": f"ndcg_cut_{cut}", f"map@{cut}": f"map_cut_{cut}", f"recall@{cut}": f"recall_{cut}"}
        theirs |= {f"has_right_in_contexts@{cut}": f"success_{cut}"}
    for name, their in theirs.items():
        # A query that the run does not have is none of trec_eval's, unless it is asked to count all: then it has 0.
        expected = {query: found.get(query, {}).get(their, 0.0) for query in QUERIES}
        assert ours(name, qrels, run) == expected, name


@settings(max_examples=15, deadline=None)
@given(qrels, runs.filter(bool))
def test_measures_equal_ir_measures(qrels: Any, run: Any) -> None:
    pairs: dict[str, Any] = {"mrr": RR, "map": AP, "ndcg": nDCG, "has_right_in_contexts": Success @ 5}
    for cut in CUTS:
        pairs |= {f"mrr@{cut}": RR @ cut, f"recall@{cut}": R @ cut, f"ndcg@{cut}": nDCG @ cut, f"map@{cut}": AP @ cut}
    # Its own nDCG(gains=...) beside nDCG finds 0 or 1 for the same ranking, from one process to another.
    exponential = {
        query: {name: 2 ** max(grade, 0) - 1 for name, grade in judged.items()} for query, judged in qrels.items()
    }
    # Its providers do not agree on ties: the order is handed over in scores that fall.
    ordered = {
        query: {passage: float(-rank) for rank, passage in enumerate(as_trec_eval_orders(scores))}
        for query, scores in run.items()
    }
    for judged, asked in ((qrels, pairs), (exponential, {f"ndcg_exponential@{cut}": nDCG @ cut for cut in CUTS})):
        names = {str(theirs): name for name, theirs in asked.items()}
        for result in ir_measures.iter_calc(list(asked.values()), judged, ordered):
            name = names[str(result.measure)]
            assert result.value == pytest.approx(ours(name, qrels, run)[result.query_id], abs=1e-12), name


@given(
    st.dictionaries(st.sampled_from(PASSAGES), LEVELS, min_size=1), st.dictionaries(st.sampled_from(PASSAGES), GRADES)
)
def test_no_order_of_equal_scores_is_worse_than_ours(run: dict[str, float], judged: dict[str, int]) -> None:
    worst = ranking(list(run), list(run.values()), judged)
    for other in (as_trec_eval_orders(run), sorted(sorted(run), key=lambda passage: -run[passage])):
        for name in (name for name in NAMES if not name.startswith("reference")):
            for cut in ("", "@1", "@3"):
                of = measure(name + cut, contexts=5)
                assert of.of(worst, judged) <= of.of(other, judged) + 1e-12, name


def test_a_grade_counts_linearly_or_exponentially() -> None:
    judged = {"a": 3, "b": 1}
    linear, exponential = (measure(name, 5).of(["b", "a"], judged) for name in ("ndcg", "ndcg_exponential"))
    discount = 1 / 1.584962500721156  # log2(3)
    assert linear == pytest.approx((1 + 3 * discount) / (3 + discount))
    assert exponential == pytest.approx((1 + 7 * discount) / (7 + discount))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("mmr@10", "metrics: found 'mmr@10', expected one of has_right_in_contexts, mrr, ndcg, ndcg_exponential, map, recall, reference_has_right_context, reference_mrr; did you mean mrr@10?"),
        ("ndcg@0", "metrics: found 'ndcg@0', expected a number of ranks behind the @; write ndcg@10, for example"),
        ("ndcg@", "metrics: found 'ndcg@', expected a number of ranks behind the @; write ndcg@10, for example"),
    ],
)  # fmt: skip
def test_an_unknown_measure_is_refused(name: str, message: str) -> None:
    with pytest.raises(UserError) as caught:
        measure(name, 5)
    assert str(caught.value) == message

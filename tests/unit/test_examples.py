"""The table of examples is bounded, and shows the same queries every time."""

from __future__ import annotations

from reranker.groups import Group
from reranker.train.examples import CHARACTERS, PASSAGES, chosen, example, rows


def test_the_queries_are_chosen_by_their_text_and_not_by_their_place() -> None:
    queries = [f"질문 {number}" for number in range(100)]
    picked = {queries[place] for place in chosen(queries, 8)}
    assert len(picked) == 8
    assert {queries[::-1][place] for place in chosen(queries[::-1], 8)} == picked
    assert {queries[place] for place in chosen(queries, 4)} <= picked
    assert chosen(queries, 0) == frozenset()
    assert len(chosen(queries[:3], 8)) == 3


def test_a_table_holds_the_best_passages_and_the_right_one_wherever_it_is() -> None:
    group = Group("질문", ("옳은 글",), tuple(f"다른 글 {number}" for number in range(40)))
    ranked = [*range(1, 31), 0, *range(31, 41)]
    scores = [0.0] * 41
    for rank, passage in enumerate(ranked):
        scores[passage] = -float(rank)
    one = example(7, group, ranked, scores)
    assert one.right_at == 31
    assert [rank for rank, *_ in one.passages] == [*range(1, PASSAGES + 1), 31]
    assert one.passages[-1] == (31, -30.0, True, "옳은 글")
    table = rows([one], {"7": 40})
    assert len(table) == PASSAGES + 1
    assert table[-1] == ("질문", 31, 40, 31, -30.0, True, "옳은 글")


def test_a_long_text_is_cut_with_a_sign_that_it_was() -> None:
    one = example(0, Group("질" * 500, ("글" * 500,), ("짧은 글",)), [0, 1], [1.0, 0.0])
    assert one.query == "질" * (CHARACTERS - 1) + "…"
    assert [text for *_, text in one.passages] == ["글" * (CHARACTERS - 1) + "…", "짧은 글"]

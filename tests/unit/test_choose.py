"""Which passages a group shows in an epoch: nothing decides but the seed, the epoch and the group."""

from __future__ import annotations

import math
import random
from collections import Counter
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reranker.data.choose import Choice, Neighbours, choose
from reranker.data.index import GroupTexts, text_hash
from reranker.errors import UserError
from reranker.groups import Group


def make(count: int, positives: int = 1, negatives: int = 5) -> list[Group]:
    return [
        Group(f"q{n}", tuple(f"g{n} p{i}" for i in range(positives)), tuple(f"g{n} n{i}" for i in range(negatives)))
        for n in range(count)
    ]


def hashed(group: Group) -> GroupTexts:
    return GroupTexts(tuple(map(text_hash, group.pos)), tuple(map(text_hash, group.neg)))


def show(
    groups: list[Group], number: int, epoch: int = 0, progress: float = 0.5, seed: int = 42, **choice: Any
) -> list[str]:
    """The texts that a group shows: the choice itself sees hashes only."""
    settings_ = Choice(**{"group_size": 3, **choice})
    neighbours = Neighbours(len(groups), number, lambda place: hashed(groups[place]))
    shown = choose(
        hashed(groups[number]), number, neighbours, seed=seed, pass_=epoch, progress=progress, choice=settings_,
        name=f"group {number}",
    )  # fmt: skip
    owners = [(groups[number if passage.neighbour is None else passage.neighbour], passage) for passage in shown]
    return [(*owner.pos, *owner.neg)[passage.passage] for owner, passage in owners]


def test_the_choice_does_not_depend_on_what_was_chosen_before() -> None:
    groups = make(20, positives=3)
    calls = [(number, epoch) for number in range(20) for epoch in range(6)]
    first = {call: show(groups, *call, random=0.5) for call in calls}
    random.Random(0).shuffle(calls)
    assert {call: show(groups, *call, random=0.5) for call in calls} == first


def test_the_choice_never_changes() -> None:
    groups = make(4, positives=2)
    assert show(groups, 1, epoch=0) == ["g1 p0", "g1 n3", "g1 n0"]
    assert show(groups, 1, epoch=1) == ["g1 p1", "g1 n1", "g1 n4"]
    assert show(groups, 1, epoch=1, random=0.5) == ["g1 p1", "g1 n0", "g3 n2"]
    assert show(make(4, positives=3), 1, epoch=1, positives=2) == ["g1 p1", "g1 p0", "g1 n0"]
    assert show(groups, 1, epoch=1, progress=0.0, warmup=0.1) == ["g1 p1", "g3 n2", "g0 p1"]


@pytest.mark.parametrize("changed", [{"seed": 43}, {"epoch": 1}, {"number": 1}], ids=str)
def test_seed_epoch_and_group_each_change_the_choice(changed: dict[str, int]) -> None:
    # Groups of equal passages: only the keys can make a difference.
    groups = [Group("q", ("p",), tuple(f"n{i}" for i in range(50)))] * 2
    call = {"number": 0, "epoch": 0, "seed": 42}
    assert show(groups, **call, group_size=9) != show(groups, **{**call, **changed}, group_size=9)


@settings(max_examples=60)
@given(size=st.integers(2, 9), negatives=st.integers(1, 12), number=st.integers(0, 2), seed=st.integers(0, 2**32))
def test_all_negatives_are_shown_before_one_repeats(size: int, negatives: int, number: int, seed: int) -> None:
    groups = make(3, negatives=negatives)
    places = size - 1
    if places >= negatives:
        assert show(groups, number, seed=seed, group_size=size, short_groups="shrink")[1:] == list(groups[number].neg)
        return
    hands = -(-negatives // places)
    for cycle in range(3):
        dealt = [
            n for e in range(hands) for n in show(groups, number, cycle * hands + e, seed=seed, group_size=size)[1:]
        ]
        assert set(dealt[:negatives]) == set(groups[number].neg)
        assert len(dealt) == hands * places


def test_no_negative_stands_twice_in_one_hand() -> None:
    groups = make(3, negatives=5)
    for epoch in range(30):
        shown = show(groups, 0, epoch, group_size=4)
        assert len(set(shown)) == 4


def test_each_cycle_deals_the_negatives_in_another_order() -> None:
    groups = make(1, negatives=12)
    cycles = {tuple(n for e in range(6) for n in show(groups, 0, 6 * c + e)[1:]) for c in range(10)}
    assert len(cycles) == 10


@pytest.mark.parametrize("positives", [1, 2, 3, 7])
def test_positives_take_turns(positives: int) -> None:
    groups = make(2, positives=positives)
    shown = [show(groups, 1, epoch)[0] for epoch in range(3 * positives)]
    assert Counter(shown) == dict.fromkeys(groups[1].pos, 3)
    assert shown[:positives] * 3 == shown


@settings(max_examples=60)
@given(has=st.integers(1, 7), wanted=st.integers(1, 5), first=st.integers(0, 9), seed=st.integers(0, 2**32))
def test_several_positives_stand_first_and_take_turns(has: int, wanted: int, first: int, seed: int) -> None:
    groups = make(2, positives=has, negatives=9)
    at_once = min(has, wanted)
    seen: Counter[str] = Counter()
    for epoch in range(first, first + has):
        shown = show(groups, 1, epoch, seed=seed, group_size=6, positives=wanted)
        assert len(set(shown)) == 6
        assert set(shown[:at_once]) <= set(groups[1].pos)
        assert set(shown[at_once:]) <= set(groups[1].neg)
        seen.update(shown[:at_once])
    assert seen == dict.fromkeys(groups[1].pos, at_once)


def test_a_choice_knows_its_positives() -> None:
    groups = make(5, positives=2)
    neighbours = Neighbours(5, 1, lambda place: hashed(groups[place]))
    choice = Choice(5, random=0.5, positives=3)
    shown = choose(hashed(groups[1]), 1, neighbours, seed=0, pass_=0, progress=1.0, choice=choice)
    assert [passage.positive for passage in shown] == [True, True, False, False, False]


def test_a_share_of_random_negatives_is_one_of_the_places_that_are_left() -> None:
    groups = make(50, positives=2)
    for positives, left in ((1, 5), (2, 4)):
        shown = show(groups, 7, group_size=6, random=0.5, positives=positives)
        assert own(groups, 7, shown[positives:]) == left - round(0.5 * left)


def test_a_short_group_repeats_shrinks_or_is_an_error() -> None:
    groups = make(3, negatives=1)
    assert show(groups, 2, group_size=4) == ["g2 p0", "g2 n0", "g2 n0", "g2 n0"]
    assert show(groups, 2, group_size=4, short_groups="shrink") == ["g2 p0", "g2 n0"]
    with pytest.raises(UserError) as caught:
        show(groups, 2, group_size=4, short_groups="error")
    assert str(caught.value) == (
        "group 2: found 1 negatives, expected 3, as data.group_size=4; "
        "mine more, or say data.short_groups=repeat or shrink"
    )


def test_repeat_shows_all_negatives_about_equally_often() -> None:
    shown = show(make(3, negatives=2), 0, group_size=6)
    assert sorted(Counter(shown[1:]).values()) == [2, 3]


def test_enough_negatives_are_no_short_group() -> None:
    for short_groups in ("repeat", "shrink", "error"):
        assert len(set(show(make(3, negatives=2), 0, short_groups=short_groups))) == 3


def own(groups: list[Group], number: int, passages: list[str]) -> int:
    return sum(passage in groups[number].neg for passage in passages)


@pytest.mark.parametrize(("share", "drawn"), [(0.0, 0), (0.25, 1), (0.5, 2), (1.0, 4)])
def test_a_share_of_the_negatives_comes_from_other_groups(share: float, drawn: int) -> None:
    groups = make(50)
    for epoch in range(20):
        _, *negatives = show(groups, 7, epoch, group_size=5, random=share)
        assert own(groups, 7, negatives) == 4 - drawn
        assert len(negatives) == 4


def test_during_the_warm_up_every_negative_is_random() -> None:
    groups = make(50)
    for progress in (0.0, 0.05, 0.0999):
        assert own(groups, 7, show(groups, 7, progress=progress, warmup=0.1)[1:]) == 0
    for progress in (0.1, 0.5, 1.0):
        assert own(groups, 7, show(groups, 7, progress=progress, warmup=0.1)[1:]) == 2


def test_behind_the_warm_up_random_negatives_become_fewer_in_a_line() -> None:
    choice = Choice(9, warmup=0.2, random=0.25, decay=0.4)
    counts = [choice.random_count(progress, 8) for progress in (0.0, 0.19, 0.2, 0.3, 0.4, 0.5, 0.599, 0.6, 1.0)]
    assert counts == [8, 8, 8, 6, 5, 4, 2, 2, 2]
    groups = make(50)
    for progress, drawn in ((0.0, 4), (0.25, 3), (0.5, 2), (0.75, 1), (1.0, 0)):
        assert own(groups, 7, show(groups, 7, progress=progress, group_size=5, decay=1.0)[1:]) == 4 - drawn


def test_random_negatives_reach_all_groups_and_all_their_passages() -> None:
    groups = make(10, positives=2, negatives=2)
    drawn = {passage for epoch in range(300) for passage in show(groups, 3, epoch, random=1.0)[1:]}
    assert drawn == {passage for n, group in enumerate(groups) if n != 3 for passage in (*group.pos, *group.neg)}


@settings(max_examples=60)
@given(epoch=st.integers(0, 1000), size=st.integers(2, 8), share=st.sampled_from([0.25, 0.5, 0.75, 1.0]))
def test_a_random_negative_is_no_positive_of_the_group_and_no_passage_stands_twice(
    epoch: int, size: int, share: float
) -> None:
    # Mined groups share passages: what is one's positive or negative is found in others again.
    texts = [f"t{i}" for i in range(12)]
    groups = [
        Group(f"q{i}", (texts[i], texts[(i + 1) % 12]), tuple(texts[(i + k) % 12] for k in (2, 3, 4, 5, 6, 7, 8)))
        for i in range(12)
    ]
    for number in range(12):
        positive, *negatives = show(groups, number, epoch, group_size=size, random=share)
        assert positive in groups[number].pos
        assert not set(negatives) & set(groups[number].pos)
        assert len(negatives) == len(set(negatives)) == size - 1


def test_where_no_other_passage_can_be_drawn_the_groups_own_negatives_stand_in() -> None:
    alike = [Group("q", ("p",), ("n0", "n1"))] * 3
    assert sorted(show(alike, 0, random=1.0)[1:]) == ["n0", "n1"]
    assert sorted(show([alike[0]], 0, random=1.0)[1:]) == ["n0", "n1"]


def scored(scores: tuple[float, ...], pass_: int, number: int = 5, seed: int = 42, **choice: Any) -> list[int]:
    """The places of the negatives that a group of so many scored negatives shows."""
    group = GroupTexts((0,), tuple(range(1, 7)))
    neighbours = Neighbours(1, 0, lambda place: group)
    settings_ = Choice(**{"group_size": 3, "score_temperature": 0.5, **choice})
    shown = choose(
        group, number, neighbours, seed=seed, pass_=pass_, progress=1.0, choice=settings_, scores=lambda: scores
    )
    assert [passage.positive for passage in shown] == [True] + [False] * (len(shown) - 1)
    return [passage.passage - 1 for passage in shown[1:]]


def test_negatives_come_as_often_as_their_scores_say() -> None:
    scores, passes = (1.0, 0.5, 0.0, -0.5, 2.0, 0.5), 20_000
    first = Counter(scored(scores, pass_)[0] for pass_ in range(passes))
    weights = [math.exp(score / 0.5) for score in scores]
    for place, weight in enumerate(weights):
        share = weight / sum(weights)
        assert first[place] / passes == pytest.approx(share, abs=4 * math.sqrt(share * (1 - share) / passes))
    # The second one is drawn among those that are left.
    second = Counter(places[1] for pass_ in range(passes) if (places := scored(scores, pass_))[0] == 4)
    left = sum(weights) - weights[4]
    for place in (0, 1, 2, 3, 5):
        share = weights[place] / left
        assert second[place] / first[4] == pytest.approx(share, abs=4 * math.sqrt(share * (1 - share) / first[4]))


def test_a_draw_by_scores_keeps_to_the_hardest_and_shows_nothing_twice() -> None:
    scores = (0.1, 0.2, 0.3, 0.1, 9.0, 9.0)
    for pass_ in range(50):
        assert sorted(scored(scores, pass_, hardest=4, group_size=5)) == [0, 1, 2, 3]
        assert len(set(scored(scores, pass_, group_size=5))) == 4
    assert {place for pass_ in range(50) for place in scored(scores, pass_, hardest=3)} == {0, 1, 2}


def test_a_draw_by_scores_never_changes_and_is_each_groups_own() -> None:
    scores = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5)
    assert [scored(scores, pass_) for pass_ in range(3)] == [[3, 4], [2, 5], [3, 0]]
    draws = {(number, seed): [scored(scores, pass_, number, seed) for pass_ in range(9)]
             for number in (5, 6) for seed in (42, 43)}  # fmt: skip
    assert len({str(draw) for draw in draws.values()}) == 4


def test_hardest_keeps_to_the_first_negatives() -> None:
    groups = make(2, negatives=10)
    shown = {n for epoch in range(40) for n in show(groups, 0, epoch, hardest=4)[1:]}
    assert shown == set(groups[0].neg[:4])
    assert show(groups, 0, hardest=1) == ["g0 p0", "g0 n0", "g0 n0"]

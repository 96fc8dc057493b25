"""Sources mixed into epochs: each group as often as its source's weight says, none a second time before all once."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reranker.data.mixture import Mixture, Share

weights = st.sampled_from([0.1, 0.25, 1 / 3, 0.5, 1.0, 1.5, 2.0, 3.7])
sources = st.lists(st.tuples(st.integers(1, 40), weights), min_size=1, max_size=5)


def mixture(described: list[tuple[int, float]]) -> Mixture:
    return Mixture([Share.weighted(groups, weight) for groups, weight in described])


def shown(mixed: Mixture, epochs: int) -> list[tuple[int, int, int]]:
    """(source, pass, place) of every position of the epochs in order."""
    places = (mixed.locate(epoch, position) for epoch in range(epochs) for position in range(mixed.positions))
    return [(place.source, place.number, place.position) for place in places]


@settings(max_examples=100)
@given(described=sources, epochs=st.integers(1, 5))
def test_all_groups_of_a_source_are_shown_before_one_is_shown_again(
    described: list[tuple[int, float]], epochs: int
) -> None:
    mixed = mixture(described)
    found = shown(mixed, epochs)
    for source, share in enumerate(mixed.shares):
        own = [(number, place) for origin, number, place in found if origin == source]
        # Pass after pass, each from its first place to its last.
        assert own == [divmod(count, share.groups) for count in range(epochs * share.positions)]


@settings(max_examples=100)
@given(described=sources)
def test_an_epoch_shows_a_source_as_often_as_its_weight_says(described: list[tuple[int, float]]) -> None:
    counts = Counter(source for source, _, _ in shown(mixture(described), 1))
    assert counts == {source: max(1, round(weight * groups)) for source, (groups, weight) in enumerate(described)}


@pytest.mark.parametrize("sizes", [[10], [7, 13], [1, 5, 2, 9]])
def test_at_weight_one_every_group_of_every_source_is_shown_once_per_epoch(sizes: list[int]) -> None:
    mixed = mixture([(size, 1.0) for size in sizes])
    everything = [(source, place) for source, size in enumerate(sizes) for place in range(size)]
    for epoch in range(3):
        found = [mixed.locate(epoch, position) for position in range(mixed.positions)]
        assert {place.number for place in found} == {epoch}
        assert sorted((place.source, place.position) for place in found) == everything


def test_one_source_at_weight_one_is_left_in_its_own_order() -> None:
    mixed = mixture([(50, 1.0)])
    assert [mixed.locate(3, position).position for position in range(50)] == list(range(50))


@settings(max_examples=60)
@given(described=sources)
def test_sources_are_spread_evenly_over_an_epoch(described: list[tuple[int, float]]) -> None:
    mixed = mixture(described)
    seen: Counter[int] = Counter()
    for position in range(mixed.positions):
        seen[mixed.locate(0, position).source] += 1
        for source, share in enumerate(mixed.shares):
            # A source's own rounding, and that of each source before it.
            fair = (position + 1) * share.positions / mixed.positions
            assert abs(seen[source] - fair) <= source + 1


def test_the_mixture_never_changes() -> None:
    found = [(p.source, p.number, p.position) for p in (mixture([(4, 0.5), (3, 2.0)]).locate(1, n) for n in range(8))]
    assert found == [
        (1, 2, 0), (1, 2, 1), (1, 2, 2), (0, 0, 2), (1, 3, 0), (1, 3, 1), (1, 3, 2), (0, 0, 3),
    ]  # fmt: skip


def test_a_source_of_a_hundred_million_groups_takes_no_memory_of_its_size() -> None:
    mixed = mixture([(10**8, 1.0), (10**7, 0.3)])
    places = {position: mixed.locate(5, position) for position in (0, 1, 10**7, mixed.positions - 1)}
    assert mixed.positions == 103_000_000
    assert places[mixed.positions - 1].source in (0, 1)
    assert places[10**7].number in (1, 5)

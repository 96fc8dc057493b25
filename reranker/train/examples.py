"""A few dev queries with their passages as the model in training ranks them, for a table at each evaluation.

In: rankings that the evaluation has made anyhow. Out: rows of plain values, bounded: the same queries every time, of
each the best passages and the first right one, texts cut. Pure.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from reranker.groups import Group

PASSAGES = 10
"""Of a query, beside the first right one."""
CHARACTERS = 300
"""Of a text; what is longer ends with an ellipsis."""
COLUMNS = ("query", "right at", "right at first", "place", "score", "right", "passage")


@dataclass(frozen=True)
class Example:
    """A query and its passages, ranked.

    Attributes:
        number: the query's place in the dev file, from 0.
        right_at: the rank, from 1, of the first right passage.
        passages: (rank from 1, score, whether it is right, text), best first.
    """

    number: int
    query: str
    right_at: int
    passages: tuple[tuple[int, float, bool, str], ...]


def chosen(queries: Sequence[str], count: int) -> frozenset[int]:
    """The places of `count` queries: those of the least hashes, wherever in the file they stand."""
    order = sorted(range(len(queries)), key=lambda place: (hashlib.sha256(queries[place].encode()).digest(), place))
    return frozenset(order[:count])


def example(number: int, group: Group, ranked: Sequence[int], scores: Sequence[float]) -> Example:
    """The example of a group whose passages, positives before negatives, are `ranked` by these `scores`."""
    texts = (*group.pos, *group.neg)
    right_at = next(rank for rank, passage in enumerate(ranked, 1) if passage < len(group.pos))
    passages = tuple(
        (rank, float(scores[passage]), passage < len(group.pos), _cut(texts[passage]))
        for rank, passage in enumerate(ranked, 1)
        if rank <= PASSAGES or rank == right_at
    )
    return Example(number, _cut(group.prompted_query), right_at, passages)


def rows(examples: Sequence[Example], first: Mapping[str, int]) -> list[tuple[object, ...]]:
    """The rows of a table with `COLUMNS`; `first` has the ranks of the right ones at first, by number."""
    return [
        (one.query, one.right_at, first.get(str(one.number)), rank, score, right, passage)
        for one in examples
        for rank, score, right, passage in one.passages
    ]


def _cut(text: str) -> str:
    return text if len(text) <= CHARACTERS else text[: CHARACTERS - 1] + "…"

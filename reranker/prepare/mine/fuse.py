"""Several rankings as one: reciprocal rank fusion (Cormack, Clarke and Büttcher, SIGIR 2009)."""

from __future__ import annotations

from collections.abc import Sequence


def fuse(rankings: Sequence[Sequence[int]], constant: int) -> list[int]:
    """Places by falling sum of 1 / (constant + rank) over the rankings that hold them, equal sums by place."""
    scores: dict[int, float] = {}
    for ranked in rankings:
        for rank, place in enumerate(ranked, 1):
            scores[place] = scores.get(place, 0.0) + 1 / (constant + rank)
    return sorted(scores, key=lambda place: (-scores[place], place))

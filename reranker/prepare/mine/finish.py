"""Pools and a reranker's scores -> the groups with their negatives and teacher scores, and what to tell of them.

In: a block's pools. Out: a line of groups.jsonl or rejected.jsonl for each request, in order, one of removed.jsonl for
each negative that came with a group and is right for its query, and counts that add up over blocks. Negatives stand so:
those that were there, those of the window by rank, those drawn.
"""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from reranker.groups import Group
from reranker.prepare.mine import filters
from reranker.prepare.mine.pool import DOCUMENT, RANDOM, RANKED, Candidate, Plan, Pool, pools, scorers_of
from reranker.prepare.mine.rescore import Rescoring, scores_of
from reranker.prepare.mine.store import open_store


@dataclass(frozen=True)
class Finish:
    """What `finish_block` needs; it pickles.

    Attributes:
        rescoring, margin, threshold: the reranker's part, or None.
        least: negatives that a group needs.
        teacher: "none", "bm25", "dense" or "rescore". With "none" a group keeps the scores that it came with if its
            negatives are still those; otherwise it loses them, which is counted.
    """

    plan: Plan
    rescoring: Rescoring | None
    margin: float | None
    threshold: float | None
    least: int
    teacher: str


@dataclass
class Found:
    """The lines of a block, and counts."""

    groups: list[str] = field(default_factory=list)
    rejected: list[str] = field(default_factory=list)
    removed: list[str] = field(default_factory=list)
    dropped: Counter[str] = field(default_factory=Counter)
    origins: Counter[str] = field(default_factory=Counter)
    ranks: Counter[int] = field(default_factory=Counter)
    positive_ranks: Counter[int] = field(default_factory=Counter)
    sizes: Counter[int] = field(default_factory=Counter)
    scores_dropped: int = 0

    @property
    def requests(self) -> int:
        """Groups that were looked at."""
        return sum(self.positive_ranks.values())

    def add(self, other: Found) -> None:
        """Add another block's counts, not its lines."""
        self.scores_dropped += other.scores_dropped
        for name in _COUNTERS:
            getattr(self, name).update(getattr(other, name))

    def to_json(self) -> str:
        """One line; JSON's own keys are texts."""
        value = {name: list(getattr(self, name).items()) for name in _COUNTERS}
        return json.dumps(dataclasses.asdict(self) | value, ensure_ascii=False)

    @classmethod
    def from_json(cls, line: bytes) -> Found:
        value = json.loads(line)
        return cls(**value | {name: Counter(dict(map(tuple, value[name]))) for name in _COUNTERS})


_COUNTERS = ("dropped", "origins", "ranks", "positive_ranks", "sizes")


def finish_block(finish: Finish, number: int) -> Found:
    """The groups of a block."""
    store, found = open_store(finish.plan.store), Found()
    of_block = pools(finish.plan, number)
    rescored = scores_of(finish.rescoring, number) if finish.rescoring else {}
    teacher = _teacher(finish, number, of_block, rescored)
    for index, pool in enumerate(of_block):
        chosen, dropped = _choose(finish, index, pool, rescored)
        existing = pool.request.neg if finish.plan.keep_existing else ()
        gone = pool.request.removed if finish.plan.keep_existing else ()
        found.removed += [_removal(pool.request.query, pool.request.id, store.text(place)) for place in gone]
        places = [*existing, *(candidate.place for candidate in chosen)]
        found.dropped += dropped
        found.positive_ranks[pool.positive_rank or 0] += 1
        request, pos = pool.request, tuple(store.text(place) for place in pool.request.pos)
        if len(places) < finish.least:
            found.rejected.append(_rejection(finish.least, pool, dropped, len(places), pos))
            continue
        found.sizes[len(places)] += 1
        found.origins.update({"existing": len(existing)} if existing else {})
        found.origins.update(candidate.origin for candidate in chosen)
        found.ranks.update(candidate.rank for candidate in chosen if candidate.rank)
        scores: Sequence[tuple[float, ...] | None] = (request.pos_scores, request.neg_scores)
        if teacher:
            scores = (teacher(index, request.pos), teacher(index, places))
        elif tuple(places) != request.neg and scores != (None, None):
            # Scores of some passages alone train nothing, and another teacher's cannot stand beside them.
            scores = (None, None)
            found.scores_dropped += 1
        group = Group(
            query=request.query,
            pos=pos,
            neg=tuple(store.text(place) for place in places),
            pos_scores=scores[0],
            neg_scores=scores[1],
            id=request.id,
            prompt=request.prompt,
        )
        found.groups.append(group.to_json())
    return found


def _choose(
    finish: Finish, index: int, pool: Pool, rescored: dict[tuple[int, int], float]
) -> tuple[list[Candidate], Counter[str]]:
    """The candidates that become negatives, and how many each filter dropped."""
    plan, dropped = finish.plan, Counter(pool.dropped)
    passed = list(pool.kept)
    if finish.rescoring:
        positives = [rescored[index, place] for place in pool.request.pos]
        passed = [
            candidate
            for candidate in pool.kept
            if not filters.rescored_as_right(
                rescored[index, candidate.place], positives, finish.margin, finish.threshold
            )
        ]
        if len(passed) < len(pool.kept):
            dropped[filters.RESCORED] += len(pool.kept) - len(passed)
    room = plan.negatives - (len(pool.request.neg) if plan.keep_existing else 0)
    drawn = [candidate for candidate in passed if candidate.origin != RANKED][: max(0, room)]
    return [
        *[candidate for candidate in passed if candidate.origin == RANKED][: max(0, room - len(drawn))],
        *[candidate for candidate in drawn if candidate.origin == DOCUMENT],
        *[candidate for candidate in drawn if candidate.origin == RANDOM],
    ], dropped


def _teacher(
    finish: Finish, number: int, of_block: Sequence[Pool], rescored: dict[tuple[int, int], float]
) -> Callable[[int, Sequence[int]], tuple[float, ...]] | None:
    if finish.teacher == "none":
        return None
    if finish.teacher == "rescore":
        return lambda index, places: tuple(round(rescored[index, place], 4) for place in places)
    scorer = scorers_of(finish.plan)[0 if finish.teacher == "bm25" else -1]
    scores: Callable[[int, Sequence[int]], Any] = scorer.of_block(number, [pool.request for pool in of_block])
    return lambda index, places: tuple(round(float(score), 4) for score in scores(index, places))


def _removal(query: str, name: str | None, text: str) -> str:
    value = {"query": query, "id": name, "negative": text, "reason": "right for the same query"}
    return json.dumps({key: item for key, item in value.items() if item is not None}, ensure_ascii=False)


def _rejection(least: int, pool: Pool, dropped: Counter[str], count: int, pos: Sequence[str]) -> str:
    request = pool.request
    why = ", ".join(f"{number} dropped by {reason}" for reason, number in sorted(dropped.items()))
    reason = f"{count} of at least {least} negatives left; {why or 'no other candidate in the window'}"
    value = {"query": request.query, "pos": pos, "id": request.id, "prompt": request.prompt, "reason": reason}
    return json.dumps({key: item for key, item in value.items() if item is not None}, ensure_ascii=False)

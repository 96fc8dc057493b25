"""The candidates of each query that pass the cheap filters: window, draws, equivalents, margin, near-duplicates.

In: the store, the rankings found, settings. Out: a `Pool` for each request of a block. A pure function of these: what
is drawn is keyed by the seed and the query's own text, so that no process, block or other query changes it.
Candidates are looked at in their turn, until enough have passed: similarity costs more than all the rest.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from reranker.prepare.mine import filters
from reranker.prepare.mine.cache import Blocks
from reranker.prepare.mine.fuse import fuse
from reranker.prepare.mine.near import shingles, similarity
from reranker.prepare.mine.scorers import LexicalScorer, Scorer, open_dense
from reranker.prepare.mine.store import Request, Store, open_store

RANKED, DOCUMENT, RANDOM = "ranked", "same document", "random"


@dataclass(frozen=True)
class Plan:
    """Where the stages lie and what the pool depends on; it pickles.

    Attributes:
        store: directory of the store.
        lexical, dense: where their rankings lie, and how each scores; None where a retriever is not used.
        negatives: wanted of each group; of these `random` and `document` are drawn so.
        ranked: candidates of the window that are kept at most.
        window: first and last rank.
    """

    store: Path
    lexical: LexicalScorer | None
    dense: Path | None
    rankings: tuple[Path, ...]
    fusion_constant: int
    negatives: int
    random: int
    document: int
    ranked: int
    window: tuple[int, int]
    draw_random: bool
    keep_existing: bool
    filters: filters.Settings
    seed: int


@dataclass(frozen=True)
class Candidate:
    """A passage that may become a negative; `rank` counts from 1 and is None for one that was drawn."""

    place: int
    origin: str
    rank: int | None = None


@dataclass(frozen=True)
class Pool:
    """What passed, in the order in which it will be taken, and how many each filter dropped."""

    request: Request
    kept: tuple[Candidate, ...]
    dropped: Counter[str] = field(default_factory=Counter)
    positive_rank: int | None = None


def pools(plan: Plan, number: int) -> list[Pool]:
    """The pools of a block of requests."""
    store = open_store(plan.store)
    requests = store.block(number)
    rankings = [Blocks(directory).get(number)["places"] for directory in plan.rankings]
    scorers: list[Callable[[int, Sequence[int]], Any]] = []
    for scorer in scorers_of(plan):
        scorers.append(scorer.of_block(number, requests))
    found = []
    for index, request in enumerate(requests):
        rows = [[int(place) for place in ranking[index] if place >= 0] for ranking in rankings]
        order = fuse(rows, plan.fusion_constant) if len(rows) > 1 else rows[0]
        scores = [_bound(scorer, index) for scorer in scorers]
        found.append(_pool(plan, store, request, order, scores))
    return found


def scorers_of(plan: Plan) -> list[Scorer]:
    used: list[Scorer] = [plan.lexical] if plan.lexical else []
    return [*used, open_dense(plan.dense)] if plan.dense else used


def _bound(scorer: Callable[[int, Sequence[int]], Any], index: int) -> Callable[[Sequence[int]], Any]:
    return lambda places: scorer(index, places)


def _pool(
    plan: Plan, store: Store, request: Request, order: list[int], scorers: list[Callable[[Sequence[int]], Any]]
) -> Pool:
    import numpy as np

    generator = np.random.default_rng(_key(plan.seed, request.query))
    pos = set(request.pos)
    positive_rank = next((rank for rank, place in enumerate(order, 1) if place in pos), None)
    others = [place for place in order if place not in pos]
    first, last = plan.window
    window: list[Candidate] = []
    rank = 1
    for place in others:
        if first <= rank <= last:
            window.append(Candidate(place, RANKED, rank))
        rank += place not in request.same  # what is right as well takes no rank, and is counted where it is dropped
    if plan.draw_random:
        window = [window[place] for place in generator.permutation(len(window))]
    near_by = np.unique(np.concatenate([store.neighbours(place) for place in request.pos]))
    document = [Candidate(int(place), DOCUMENT) for place in generator.permutation(near_by)] if plan.document else []
    drawn = generator.integers(0, store.candidates, 4 * plan.random + 16 if plan.random else 0)
    anywhere = [Candidate(place, RANDOM) for place in dict.fromkeys(drawn.tolist())]
    judge = _Judge(plan, store, request, scorers)
    existing = set(request.neg) if plan.keep_existing else set()
    taken = pos | existing
    kept: list[Candidate] = []
    # Those drawn come first: the window would otherwise have the best of a document already.
    for candidates, most in ((document, plan.document), (anywhere, plan.random), (window, plan.ranked)):
        passed = judge.passing([candidate for candidate in candidates if candidate.place not in taken], most)
        taken |= {candidate.place for candidate in passed}
        kept += passed
    kept.sort(key=lambda candidate: candidate.rank or len(store) + 1)  # stable: those drawn stay behind, in order
    return Pool(request, tuple(kept), judge.dropped, positive_rank)


class _Judge:
    """The filters of one request; what they need of what is right is computed once."""

    def __init__(
        self, plan: Plan, store: Store, request: Request, scorers: list[Callable[[Sequence[int]], Any]]
    ) -> None:
        self.dropped: Counter[str] = Counter()
        self._settings, self._store, self._request = plan.filters, store, request
        self._scorers = scorers if plan.filters.margin is not None else []
        self._positive = [[float(score) for score in scorer(request.pos)] for scorer in self._scorers]
        near = plan.filters.near is not None
        # A copy of what is right is right, be it a positive of this group or not.
        self._shingles = [shingles(store.text(place)) for place in (*request.pos, *request.same)] if near else []

    def passing(self, candidates: Sequence[Candidate], most: int) -> list[Candidate]:
        """The first `most` that no filter drops."""
        passed: list[Candidate] = []
        if not candidates or most <= 0:
            return passed
        scores = [scorer([candidate.place for candidate in candidates]) for scorer in self._scorers]
        for index, candidate in enumerate(candidates):
            if reason := self._reason(candidate.place, [float(row[index]) for row in scores]):
                self.dropped[reason] += 1
                continue
            passed.append(candidate)
            if len(passed) == most:
                break
        return passed

    def _reason(self, place: int, scores: Sequence[float]) -> str | None:
        if place in self._request.same:
            return filters.EQUIVALENT
        margin, near = self._settings.margin, self._settings.near
        if margin is not None and any(
            filters.above_margin(score, positive, margin)
            for score, positive in zip(scores, self._positive, strict=True)
        ):
            return filters.MARGIN
        if near is not None:
            own = shingles(self._store.text(place))
            if any(similarity(own, positive) >= near for positive in self._shingles):
                return filters.NEAR
        return None


def _key(seed: int, query: str) -> int:
    return int.from_bytes(hashlib.sha256(f"{seed}\0{query}".encode()).digest()[:16], "big")

"""What was seen in all chunks, put together: the findings, and what describes the groups as a whole.

In: `Seen` in the order of the input. Out: `Collected`. Memory: the keys (see `duplicates.py`), nothing of the texts.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np

from reranker.prepare.check.duplicates import contradictions, repeated
from reranker.prepare.check.inspect import Seen


@dataclass
class Collected:
    """What was found.

    Attributes:
        groups, unreadable, pairs: how many records of each came, and pairs of query and passage.
        without_negatives: how many of the groups hold positives alone.
        counts, examples, reasons, lengths, scripts: as in `Seen`.
        leaked: of each group, whether it is one of the evaluation's.
        positive_keys: pairs that are positive, of queries that repeat, 16 bytes each.
    """

    groups: int = 0
    unreadable: int = 0
    pairs: int = 0
    without_negatives: int = 0
    counts: Counter[str] = field(default_factory=Counter)
    examples: dict[str, list[tuple[str, str]]] = field(default_factory=dict)
    reasons: Counter[str] = field(default_factory=Counter)
    lengths: dict[str, np.ndarray] = field(default_factory=dict)
    scripts: dict[str, Counter[str]] = field(default_factory=dict)
    leaked: np.ndarray = field(default_factory=lambda: np.zeros(0, dtype=bool))
    positive_keys: frozenset[bytes] = frozenset()


class _Places:
    """`where` of a group by its place in the whole input, without a string for each."""

    def __init__(self) -> None:
        self._starts: list[int] = []
        self._chunks: list[tuple[str, np.ndarray]] = []
        self.total = 0

    def add(self, prefix: str, numbers: np.ndarray) -> None:
        if len(numbers):
            self._starts.append(self.total)
            self._chunks.append((prefix, numbers))
            self.total += len(numbers)

    def __getitem__(self, place: int) -> str:
        chunk = int(np.searchsorted(self._starts, place, side="right")) - 1
        prefix, numbers = self._chunks[chunk]
        return f"{prefix}{numbers[place - self._starts[chunk]]}"


def collect(chunks: Iterable[Seen], most: int) -> Collected:
    """Everything that was found; at most `most` examples of each kind."""
    whole, places = Collected(), _Places()
    columns: dict[str, list[np.ndarray]] = {
        name: [] for name in ("leaked", "groups", "queries", "pairs", "positives", "negatives")
    }
    prompts = scored = 0
    for seen in chunks:
        whole.counts.update(seen.counts)
        whole.reasons.update(seen.reasons)
        for kind, examples in seen.examples.items():
            own = whole.examples.setdefault(kind, [])
            own += examples[: most - len(own)]
        for role, scripts in seen.scripts.items():
            whole.scripts.setdefault(role, Counter()).update(scripts)
        for name, lengths in seen.lengths.items():
            whole.lengths[name] = _added(whole.lengths.get(name), lengths)
        for name, parts in columns.items():
            parts.append(getattr(seen, name))
        places.add(seen.prefix, seen.numbers)
        prompts, scored = prompts + seen.prompts, scored + seen.scored
    whole.groups, whole.unreadable = places.total, whole.counts["unreadable"]
    if whole.groups:
        _across(whole, {name: np.concatenate(parts) for name, parts in columns.items()}, places, most)
    for kind, count in (("mixed_prompts", prompts), ("mixed_scores", scored)):
        if 0 < count < whole.groups:
            whole.counts[kind] = min(count, whole.groups - count)
            word = "a prompt" if kind == "mixed_prompts" else "scores"
            whole.examples[kind] = [("all groups", f"{count:,} of {whole.groups:,} have {word}")][:most]
    return whole


def _across(whole: Collected, columns: dict[str, np.ndarray], places: _Places, most: int) -> None:
    whole.leaked, whole.pairs = columns["leaked"], len(columns["pairs"])
    whole.without_negatives = int((columns["negatives"] == 0).sum())

    def found(kind: str, later: np.ndarray, earlier: np.ndarray) -> None:
        if len(later):
            whole.counts[kind] = len(later)
            whole.examples[kind] = [
                (places[int(place)], f"as in {places[int(first)]}")
                for place, first in zip(later[:most], earlier[:most], strict=True)
            ]

    later, earlier = repeated(columns["groups"])
    found("duplicate_group", later, earlier)
    same_query, first_query = repeated(columns["queries"])
    other = ~np.isin(same_query, later)
    found("duplicate_query", same_query[other], first_query[other])
    later, earlier, keys = contradictions(
        columns["queries"], columns["pairs"], columns["positives"], columns["negatives"]
    )
    found("positive_elsewhere_negative", later, earlier)
    whole.positive_keys = frozenset(row.tobytes() for row in keys)


def _added(one: np.ndarray | None, other: np.ndarray) -> np.ndarray:
    if one is None or len(one) < len(other):
        one, other = other.copy(), one if one is not None else other[:0]
    one[: len(other)] += other
    return one

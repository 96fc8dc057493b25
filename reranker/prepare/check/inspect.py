"""A chunk of records -> what is found in it by itself, and what is needed to find what takes all of them.

In: `Chunk`s. Out: `Seen`: findings, lengths and keys as numpy arrays, small beside the texts. Runs in any number of
processes: what it says of a chunk depends on nothing but the chunk.
"""

from __future__ import annotations

import functools
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from reranker.errors import shorten
from reranker.groups import Group
from reranker.prepare.check.leaks import Evaluation
from reranker.prepare.check.texts import has_markup, is_error, key, same, script
from reranker.prepare.readers import Chunk

SHORTEST, LONGEST = 2, 20_000
"""Characters of a passage below and above which it is odd."""
_LONG = 65_535
"""Lengths are counted one by one up to this; what is longer counts as this."""


@dataclass
class Seen:
    """What was found in a chunk.

    Attributes:
        prefix, numbers: of the groups, in order, as in `where`.
        counts: of each kind, how many findings; `examples`: the first places of each with a detail.
        reasons: of each kind of unreadable record, how many.
        leaked: of each group, whether it holds a query or positive of the evaluation.
        groups, queries: 16 bytes for each group, (G, 2) u64: equal for equal ones.
        pairs: the same for each (query, passage), positives of a group before its negatives.
        positives, negatives: how many of each a group has.
        lengths: of query, passage and pair, how often each number of tokens (or characters) came.
        scripts: of queries and passages, how often each script came.
        prompts, scored: groups with a prompt, and with a teacher's scores.
    """

    prefix: str
    numbers: np.ndarray
    counts: Counter[str]
    examples: dict[str, list[tuple[str, str]]]
    reasons: Counter[str]
    leaked: np.ndarray
    groups: np.ndarray
    queries: np.ndarray
    pairs: np.ndarray
    positives: np.ndarray
    negatives: np.ndarray
    lengths: dict[str, np.ndarray] = field(default_factory=dict)
    scripts: dict[str, Counter[str]] = field(default_factory=dict)
    prompts: int = 0
    scored: int = 0


@dataclass(frozen=True)
class Inspector:
    """What is looked for. Pickles, so that each process has one.

    Attributes:
        negatives: whether groups must have negatives, and enough of them for the group size.
    """

    evaluation: Evaluation | None
    error_texts: tuple[str, ...]
    group_size: int
    examples: int
    tokenizer: str | None
    max_length: int
    negatives: bool = True

    def __call__(self, chunk: Chunk) -> Seen:
        counts: Counter[str] = Counter()
        examples: dict[str, list[tuple[str, str]]] = defaultdict(list)
        reasons: Counter[str] = Counter()

        def found(kind: str, where: str, detail: str, times: int = 1) -> None:
            counts[kind] += times
            if len(examples[kind]) < self.examples:
                examples[kind].append((where, detail))

        numbers, groups = [], []
        for number, record in chunk:
            if isinstance(record, Group):
                numbers.append(number)
                groups.append(record)
            else:
                reasons[record.kind] += 1
                found("unreadable", record.where, f"{record.kind}: {record.reason}")
        leaked = np.zeros(len(groups), dtype=bool)
        if self.evaluation:
            for place, leaks in enumerate(self.evaluation.leaks(groups)):
                for kind in dict.fromkeys(leak.kind for leak in leaks):
                    detail = next(leak.detail for leak in leaks if leak.kind == kind)
                    found(kind, chunk.where(numbers[place]), detail)
                leaked[place] = any(leak.kind != "leak_negative" for leak in leaks)
        for number, group in zip(numbers, groups, strict=True):
            for kind, detail in self._findings(group):
                found(kind, chunk.where(number), detail)
        keys = [keys_of(group) for group in groups]
        seen = Seen(
            chunk.prefix, np.array(numbers, dtype=np.int64), counts, dict(examples), reasons, leaked,
            _column(of.group for of in keys), _column(of.query for of in keys),
            _column(pair for of in keys for pair in of.pairs),
            np.array([len(group.pos) for group in groups], dtype=np.int64),
            np.array([len(group.neg) for group in groups], dtype=np.int64),
            prompts=sum(group.prompt is not None for group in groups),
            scored=sum(group.pos_scores is not None and group.neg_scores is not None for group in groups),
        )  # fmt: skip
        seen.scripts = {
            "query": Counter(script(group.query) for group in groups),
            "positive": Counter(script(group.pos[0]) for group in groups),
        }
        self._add_lengths(seen, chunk, groups, found)
        return seen

    def _findings(self, group: Group) -> Iterator[tuple[str, str]]:
        texts = (group.query, *group.pos, *group.neg)
        wrong = [text for text in texts if is_error(text, self.error_texts)]
        if wrong:
            yield "error_text", shorten(wrong[0])
        if self.negatives and not group.neg:
            yield "no_negatives", shorten(group.query)
        elif self.negatives and len(group.neg) < self.group_size - 1:
            yield "too_few_negatives", f"{len(group.neg)} of {self.group_size - 1}"
        pos, neg = [same(text) for text in group.pos], [same(text) for text in group.neg]
        if both := next((text for text in neg if text in set(pos)), None):
            yield "positive_among_negatives", shorten(both)
        for role, own, plain in (("positive", group.pos, pos), ("negative", group.neg, neg)):
            if len(set(plain)) < len(plain):
                space = "" if len(set(own)) < len(own) else ", but for white space"
                yield "duplicate_passage", f"{len(plain) - len(set(plain))} {role}s that came before{space}"
        if same(group.query) in pos:
            yield "query_equals_positive", shorten(group.query)
        if group.pos_scores and group.neg_scores and max(group.pos_scores) <= max(group.neg_scores):
            yield "score_order", f"positive {max(group.pos_scores):.3g}, negative {max(group.neg_scores):.3g}"
        of_query, of_positive = script(group.query), script(group.pos[0])
        if of_query != of_positive and "none" not in (of_query, of_positive):
            yield "other_script", f"query {of_query}, positive {of_positive}: {shorten(group.query)}"
        if marked := next((text for text in texts if has_markup(text)), None):
            yield "html_leftovers", shorten(marked)
        if odd := next((text for text in texts[1:] if not SHORTEST <= len(text.strip()) <= LONGEST), None):
            yield "odd_length", f"{len(odd):,} characters: {shorten(odd)}"

    def _add_lengths(self, seen: Seen, chunk: Chunk, groups: list[Group], found: Any) -> None:
        texts = [text for group in groups for text in (group.prompted_query, *group.pos, *group.neg)]
        tokenizer = load(self.tokenizer, self.max_length) if self.tokenizer else None
        measured = tokenizer.lengths(texts) if tokenizer else [len(text) for text in texts]
        special = tokenizer.special if tokenizer else 0
        queries: list[int] = []
        passages: list[int] = []
        pairs: list[int] = []
        place = 0
        for number, group in zip(seen.numbers.tolist(), groups, strict=True):
            count = len(group.pos) + len(group.neg)
            query, own = measured[place], measured[place + 1 : place + 1 + count]
            queries.append(query)
            passages += own
            whole = [query + passage + special for passage in own]
            pairs += whole
            if tokenizer and (above := sum(length > self.max_length for length in whole)):
                found("too_long", chunk.where(number), f"a pair of {max(whole):,} tokens", above)
            place += 1 + count
        for name, values in (("query", queries), ("passage", passages), ("pair", pairs)):
            seen.lengths[name] = np.bincount(np.minimum(np.array(values, dtype=np.int64), _LONG))


@dataclass(frozen=True)
class Keys:
    """What makes a group, its query and its pairs equal to others, white space and composition aside."""

    group: bytes
    query: bytes
    pairs: tuple[bytes, ...]


def keys_of(group: Group) -> Keys:
    """The keys of a group. The order of its passages does not matter."""
    query = (group.prompt or "", same(group.query))
    pos, neg = [[same(text) for text in texts] for texts in (group.pos, group.neg)]
    content = key(*query, *sorted(pos), "", *sorted(neg))
    return Keys(content, key(*query), tuple(key(*query, text) for text in (*pos, *neg)))


@functools.cache
def load(name: str, max_length: int) -> Any:
    """The tokenizer of a model, once in each process. Raises UserError."""
    from reranker.data.tokenize import Contract, PairTokenizer
    from reranker.model.cross_encoder import load_tokenizer

    return PairTokenizer(load_tokenizer(name, key="tokenizer"), Contract(max_length))


def _column(keys: Any) -> np.ndarray:
    return np.frombuffer(b"".join(keys), dtype=np.uint64).reshape(-1, 2)

"""Passages and queries -> groups: of headings, and of first sentences.

A heading's right passage is the text under it. A first sentence is a query out of the passage itself, the rest of
which is to be found (the inverse cloze task: Lee et al., 2019, "Latent Retrieval for Weakly Supervised Open Domain
Question Answering"): in documentation it says what its section is about, as page descriptions do. Negatives are
BM25's best others. Nothing is read or written here.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from reranker.groups import Group
from reranker.prepare.bm25 import BM25Index, kiwi_model

QUERY_LENGTH = (12, 150)
"""Characters of a query at least and at most."""
REST_LENGTH = 60
"""Characters that must be left of the passage."""

Splitter = Callable[[Sequence[str]], list[list[str]]]
"""Texts -> the sentences of each."""

_ENGLISH_END = re.compile(r"(?<=[.!?])\s+(?=[A-Z\"'(])")


def heading_groups(
    queries: Iterable[dict[str, Any]], passages: list[dict[str, Any]], index: BM25Index, negatives: int
) -> list[Group]:
    """A group for each query, a heading: its right passage and the equivalents among `passages`, BM25's best others.

    `index` is over the texts of `passages`. No negative is a positive, nor has the text of one. Raises
    KeyError if a right passage is not among `passages`.
    """
    queries = list(queries)
    place = {passage["id"]: position for position, passage in enumerate(passages)}
    positives = [[place[query["pos"]], *(place[also] for also in query["also"] if also in place)] for query in queries]
    texts = [passage["text"] for passage in passages]
    copies: dict[str, list[int]] = {}
    for position, text in enumerate(texts):
        copies.setdefault(text, []).append(position)
    excluded = [{copy for position in row for copy in copies[texts[position]]} for row in positives]
    depth = negatives + max(map(len, excluded), default=0)
    ranked = index.search([query["query"] for query in queries], depth)
    return [
        Group(
            query=query["query"],
            pos=tuple(dict.fromkeys(texts[position] for position in right)),
            neg=tuple([texts[position] for position, _ in found if position not in wrong][:negatives]),
            id=query["qid"],
        )
        for query, right, wrong, found in zip(queries, positives, excluded, ranked, strict=True)
    ]


def sentence_groups(
    passages: list[dict[str, Any]], sentences: Sequence[tuple[int, str, str]], index: BM25Index, negatives: int
) -> Iterator[tuple[dict[str, Any], Group]]:
    """(passage, its group) of each of the first sentences of `passages`, as `first_sentences` gives them.

    No negative is the passage itself, a copy of it, or another one that holds the sentence.
    """
    texts = [passage["text"] for passage in passages]
    ranked = index.search([sentence for _, sentence, _ in sentences], 2 * negatives)
    for (place, sentence, rest), hits in zip(sentences, ranked, strict=True):
        others = [texts[hit] for hit, _ in hits if texts[hit] != texts[place] and sentence not in texts[hit]]
        negative = tuple(dict.fromkeys(others))[:negatives]
        if negative:
            yield passages[place], Group(sentence, (rest,), negative, id=f"sentence:{passages[place]['id']}")


def first_sentences(texts: Sequence[str], split: Splitter) -> list[tuple[int, str, str]]:
    """(place of the text, its first sentence, the rest) of each text that makes a query."""
    rows = split(texts)
    seen = Counter(sentence for row in rows for sentence in set(row))
    found = []
    for place, row in enumerate(rows):
        if not row:
            continue
        first, rest = row[0], " ".join(row[1:])
        least, most = QUERY_LENGTH
        named = seen[first] == 1 and first not in rest and least <= len(first) <= most and not first.endswith(":")
        if named and len(rest) >= REST_LENGTH:
            found.append((place, first, rest))
    return found


def korean_sentences(texts: Sequence[str]) -> list[list[str]]:
    """The sentences of each text, by Kiwi."""
    found = kiwi_model().split_into_sents(texts, return_sub_sents=False)  # of those nothing is read
    return [[sentence.text.strip() for sentence in row] for row in found]


def english_sentences(texts: Sequence[str]) -> list[list[str]]:
    """The sentences of each text, by their marks: documentation abbreviates little."""
    return [_ENGLISH_END.split(text.strip()) for text in texts]

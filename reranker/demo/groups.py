"""Passages and queries -> groups to train on: of headings, and of first sentences.

A heading's right passage is the text under it. A first sentence is a query out of the passage itself, the rest of
which is to be found (the inverse cloze task: Lee et al., 2019, "Latent Retrieval for Weakly Supervised Open Domain
Question Answering"): in documentation it says what its section is about, as page descriptions do. Negatives are
BM25's best others. Nothing is read or written here.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from reranker.groups import Group
from reranker.prepare.bm25 import BM25Index, kiwi_model

QUERY_LENGTH = (12, 150)
"""Characters of a query at least and at most."""
REST_LENGTH = 60
"""Characters that must be left of the passage."""


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
    passages: list[dict[str, Any]], index: BM25Index, negatives: int
) -> Iterator[tuple[dict[str, Any], Group]]:
    """(passage, its group) of each passage whose first sentence makes a query.

    No negative is the passage itself, a copy of it, or another one that holds the sentence.
    """
    texts = [passage["text"] for passage in passages]
    made = first_sentences(texts)
    ranked = index.search([sentence for _, sentence, _ in made], 2 * negatives)
    for (place, sentence, rest), hits in zip(made, ranked, strict=True):
        others = [texts[hit] for hit, _ in hits if texts[hit] != texts[place] and sentence not in texts[hit]]
        negative = tuple(dict.fromkeys(others))[:negatives]
        if negative:
            yield passages[place], Group(sentence, (rest,), negative, id=f"sentence:{passages[place]['id']}")


def first_sentences(texts: Sequence[str]) -> list[tuple[int, str, str]]:
    """(place of the text, its first sentence, the rest) of each text that makes a query."""
    sentences = kiwi_model().split_into_sents(texts, return_sub_sents=False)  # of those nothing is read
    split = [[sentence.text.strip() for sentence in row] for row in sentences]
    seen = Counter(sentence for row in split for sentence in set(row))
    found = []
    for place, row in enumerate(split):
        if not row:
            continue
        first, rest = row[0], " ".join(row[1:])
        least, most = QUERY_LENGTH
        named = seen[first] == 1 and first not in rest and least <= len(first) <= most and not first.endswith(":")
        if named and len(rest) >= REST_LENGTH:
            found.append((place, first, rest))
    return found

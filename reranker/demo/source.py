"""The demo as its user comes to it: groups in English, and a translation memory that has their Korean.

In: the shipped documents, each with its English original. Out: groups of one negative, as MS MARCO's triplets are; the
pairs of the memory; and the Korean passages that negatives are mined from. Dev documents take no part in any of them: a
checkpoint would be selected on passages that it was trained on. A passage and what is left of it without its first
sentence are named as the same, so that neither becomes a negative of the other's query.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from reranker.demo.groups import (
    english_sentences,
    first_sentences,
    heading_groups,
    korean_sentences,
    sentence_groups,
)  # fmt: skip
from reranker.groups import Group
from reranker.prepare.bm25 import BM25Index

_NEGATIVES = 1


@dataclass(frozen=True)
class Source:
    """Attributes:
    groups: in English.
    memory: {"en", "ko"} of every text of the groups.
    passages: Korean, {"id", "text", "doc", "same"}.
    """

    groups: list[Group]
    memory: list[dict[str, str]]
    passages: list[dict[str, Any]]


def make_source(queries: list[dict[str, Any]], passages: list[dict[str, Any]], sentences: bool) -> Source:
    """The source of these training queries over these passages; with first sentences as further queries, or without.

    A query without its English, or whose passage has none, is left out.
    """
    english = [{**passage, "text": passage["text_en"]} for passage in passages if passage["text_en"]]
    known = {passage["id"] for passage in english}
    wanted = [query for query in queries if query["query_en"] and query["pos"] in known]
    index = BM25Index([passage["text"] for passage in english], "words")
    groups = heading_groups([{**query, "query": query["query_en"]} for query in wanted], english, index, _NEGATIVES)
    memory = {query["query_en"]: query["query"] for query in reversed(wanted)}
    memory |= {passage["text_en"]: passage["text"] for passage in reversed(passages) if passage["text_en"]}
    rests: dict[str, str] = {}
    if sentences:
        of_english = first_sentences([passage["text"] for passage in english], english_sentences)
        texts = {passage["id"]: passage["text"] for passage in passages}
        korean = dict(_first_of([texts[passage["id"]] for passage in english]))
        # Translators keep sentences together; where they did not, the gates of translate see lengths or numbers differ.
        both = [(place, first, rest) for place, first, rest in of_english if place in korean]
        groups += [group for _, group in sentence_groups(english, both, index, _NEGATIVES)]
        for place, first, rest in both:
            memory.setdefault(first, korean[place][0])
            rests[english[place]["id"]] = memory.setdefault(rest, korean[place][1])
    pairs = [{"en": text, "ko": translation} for text, translation in memory.items()]
    return Source(groups, pairs, list(_corpus(wanted, passages, rests)))


def _first_of(texts: list[str]) -> Iterator[tuple[int, tuple[str, str]]]:
    for place, first, rest in first_sentences(texts, korean_sentences):
        yield place, (first, rest)


def _corpus(
    queries: list[dict[str, Any]], passages: list[dict[str, Any]], rests: dict[str, str]
) -> Iterator[dict[str, Any]]:
    """The passages, and the rests behind them; what says the same as another is named with it."""
    names = {passage["id"] for passage in passages}
    same: dict[str, list[str]] = {}
    for query in queries:
        same.setdefault(query["pos"], []).extend(name for name in query["also"] if name in names)
    for passage in passages:
        row = {"id": passage["id"], "text": passage["text"], "doc": passage["doc"]}
        yield {**row, "same": same[passage["id"]]} if same.get(passage["id"]) else row
    for passage in passages:
        if passage["id"] in rests:
            yield {"id": f"{passage['id']} (rest)", "text": rests[passage["id"]], "doc": passage["doc"],
                   "same": [passage["id"]]}  # fmt: skip

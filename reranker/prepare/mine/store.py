"""Corpus and groups -> every distinct text once, by its place, on the disk.

In: groups and corpus, read once and record by record. Out: a directory that processes open without copying it: the
texts end to end, where each begins, the document of each, and the groups with their texts as places. The first
`candidates` places are those of the corpus, in its order; behind them stand texts of the groups alone, which are
scored but never mined. Memory holds 16 bytes of digest and a dict entry for each text, not the texts.
"""

from __future__ import annotations

import functools
import hashlib
import json
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from reranker.config.reading import ReaderConfig
from reranker.errors import UserError, shorten
from reranker.files import atomic_directory, read_json, write_json
from reranker.prepare.mine.cache import QUERIES
from reranker.prepare.mine.records import GROUP_FORM, PASSAGE_FORM, Passage, read_passages, read_wanted
from reranker.progress import progress_bar


@dataclass(frozen=True)
class Request:
    """A group, its texts as places in the store.

    Attributes:
        query, id, prompt: as in the group.
        pos, neg: its positives, and the negatives that it has already.
        same: what is right as well although no positive of it: the right passages of the query in any group, and
            what says the same as one of them or as a positive, through any number of others.
        pos_scores, neg_scores: those that it came with, one for each of `pos` and `neg`.
        removed: negatives that it came with and that are right for its query.
    """

    query: str
    pos: tuple[int, ...]
    neg: tuple[int, ...]
    same: frozenset[int]
    id: str | None
    prompt: str | None
    pos_scores: tuple[float, ...] | None = None
    neg_scores: tuple[float, ...] | None = None
    removed: tuple[int, ...] = ()

    def depth(self, last: int) -> int:
        """Places that a search keeps to fill ranks up to `last`, which nothing takes that is right."""
        return last + len(self.pos) + len(self.same)


class Store:
    """The texts and groups of a directory that `build_store` wrote."""

    def __init__(self, directory: Path) -> None:
        import numpy as np

        self.directory = directory
        meta = read_json(directory / "meta.json")
        self.candidates: int = meta["candidates"]
        self.requests: int = meta["requests"]
        self._starts = np.load(directory / "starts.npy", mmap_mode="r")
        self._texts = np.memmap(directory / "texts.bin", np.uint8, "r")
        self._documents = np.load(directory / "documents.npy", mmap_mode="r")
        self._blocks: list[int] = meta["blocks"]

    def __len__(self) -> int:
        return len(self._starts) - 1

    def text(self, place: int) -> str:
        return bytes(self._texts[self._starts[place] : self._starts[place + 1]]).decode("utf-8")

    @property
    def blocks(self) -> int:
        return len(self._blocks) - 1

    def block(self, number: int) -> list[Request]:
        """The requests of a block."""
        with open(self.directory / "requests.jsonl", "rb") as stream:
            stream.seek(self._blocks[number])
            lines = stream.read(self._blocks[number + 1] - self._blocks[number]).splitlines()
        values = map(json.loads, lines)
        return [_request(*value) for value in values]

    def neighbours(self, place: int) -> Any:
        """Places of the candidates of the same document, itself included; none where no document is named."""
        import numpy as np

        document = self._documents[place]
        if document < 0:
            return np.empty(0, np.int64)
        order, ordered = self._by_document
        first, last = np.searchsorted(ordered, [document, document + 1])
        return order[first:last]

    @functools.cached_property
    def _by_document(self) -> tuple[Any, Any]:
        import numpy as np

        documents = np.asarray(self._documents[: self.candidates])
        order = np.argsort(documents, kind="stable")
        return order, documents[order]


@functools.lru_cache(maxsize=2)
def open_store(directory: Path) -> Store:
    """The store, opened once by each process."""
    return Store(directory)


def build_store(groups: Path, corpus: Path | None, directory: Path, reading: ReaderConfig | None = None) -> None:
    """Read both inputs and write the directory, whole or not at all; another task may be first. Raises UserError."""
    with atomic_directory(directory, first_stays=True) as staging:
        builder = _Builder(staging)
        with open(staging / "texts.bin", "wb") as builder.stream:
            if corpus is not None:
                _read_corpus(corpus, builder)
            candidates = len(builder.documents)
            rows = _read_groups(groups, reading or ReaderConfig(), builder)
        if corpus is None:
            candidates = len(builder.documents)
        builder.save(rows, candidates)


def _request(
    query: str, pos: list[int], neg: list[int], same: list[int], name: str | None, prompt: str | None,
    pos_scores: list[float] | None, neg_scores: list[float] | None, removed: list[int],
) -> Request:  # fmt: skip
    return Request(
        query, tuple(pos), tuple(neg), frozenset(same), name, prompt,
        pos_scores=None if pos_scores is None else tuple(pos_scores),
        neg_scores=None if neg_scores is None else tuple(neg_scores),
        removed=tuple(removed),
    )  # fmt: skip


@dataclass(frozen=True)
class _Row:
    """A group with its texts as places; each with its score, or None."""

    query: str
    pos: dict[int, float | None]
    neg: dict[int, float | None]
    also: set[int]
    id: str | None
    prompt: str | None


class _Equivalents:
    """Places in classes that say the same: union-find, whose paths are halved at each look."""

    def __init__(self) -> None:
        self._parents: dict[int, int] = {}

    def join(self, one: int, other: int) -> None:
        self._parents.setdefault(one, one)
        self._parents.setdefault(other, other)
        self._parents[self._root(one)] = self._root(other)

    def classes(self) -> dict[int, tuple[int, ...]]:
        """All places of its class, for each place that was joined."""
        members: dict[int, list[int]] = defaultdict(list)
        for place in self._parents:
            members[self._root(place)].append(place)
        return {place: of_class for of_class in map(tuple, members.values()) for place in of_class}

    def _root(self, place: int) -> int:
        while (parent := self._parents[place]) != place:
            self._parents[place] = self._parents[parent]
            place = self._parents[place]
        return place


class _Builder:
    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.stream: Any = None
        self.documents: list[int] = []
        self.equivalents = _Equivalents()
        self.names: dict[str, int] = {}
        self._ends = [0]
        self._places: dict[bytes, int] = {}
        self._numbers: dict[str, int] = {}

    def add(self, text: str, document: str | None = None) -> int:
        """The place of a text: a new one if it was not there."""
        content = text.encode("utf-8")
        # A Python string of each text would take three times the memory of all the rest.
        key = hashlib.sha256(content).digest()[:16]
        place = self._places.setdefault(key, len(self.documents))
        if place == len(self.documents):
            self.stream.write(content)
            self._ends.append(self._ends[-1] + len(content))
            number = -1 if document is None else self._numbers.setdefault(document, len(self._numbers))
            self.documents.append(number)
        return place

    def resolve(self, names: Iterable[str], key: str, where: str) -> set[int]:
        found = set()
        for name in names:
            if name not in self.names:
                raise UserError(where, f'"{key}" {shorten(name)}', "the id of a passage in the corpus",
                                "add the passage to the corpus or leave the id out")  # fmt: skip
            found.add(self.names[name])
        return found

    def save(self, rows: Sequence[_Row], candidates: int) -> None:
        import numpy as np

        classes = self.equivalents.classes()
        right: dict[str, set[int]] = defaultdict(set)
        for row in rows:
            for place in (*row.pos, *row.also):
                right[_plain(row.query)].update(classes.get(place, (place,)))
        blocks = [0]
        with open(self.directory / "requests.jsonl", "wb") as stream:
            for number, row in enumerate(rows):
                known = right[_plain(row.query)]
                neg = {place: score for place, score in row.neg.items() if place not in known}
                value = [
                    row.query, list(row.pos), list(neg), sorted(known.difference(row.pos)), row.id, row.prompt,
                    _scores(row.pos, row.pos), _scores(row.neg, neg), [place for place in row.neg if place in known],
                ]  # fmt: skip
                stream.write(json.dumps(value, ensure_ascii=False).encode("utf-8") + b"\n")
                if (number + 1) % QUERIES == 0 or number + 1 == len(rows):
                    blocks.append(stream.tell())
        np.save(self.directory / "starts.npy", np.array(self._ends, np.int64))
        np.save(self.directory / "documents.npy", np.array(self.documents, np.int32))
        write_json(self.directory / "meta.json", {"candidates": candidates, "requests": len(rows), "blocks": blocks})


def _read_corpus(path: Path, builder: _Builder) -> None:
    named: list[tuple[int, Passage, str]] = []
    with progress_bar(desc="corpus", unit=" passages") as bar:
        for where, passage in read_passages(path):
            if passage.id in builder.names:
                raise UserError(where, f'a second passage "{passage.id}"', "ids that differ", "rename or remove one")
            place = builder.names[passage.id] = builder.add(passage.text, passage.doc)
            if passage.same:
                named.append((place, passage, where))
            bar.update()
    if not builder.names:
        raise UserError(path, "an empty file", f"one {PASSAGE_FORM} a line", "check how the file was made")
    for place, passage, where in named:
        for other in builder.resolve(passage.same, "same", where):
            builder.equivalents.join(place, other)


def _read_groups(path: Path, reading: ReaderConfig, builder: _Builder) -> list[_Row]:
    rows = []
    with progress_bar(desc="groups", unit=" groups") as bar:
        for where, group in read_wanted(path, reading):
            pos = _places(builder, group.pos, group.pos_scores)
            neg = _places(builder, group.neg, group.neg_scores)
            also = builder.resolve(group.also, "also", where)
            rows.append(_Row(group.query, pos, neg, also, group.id, group.prompt))
            bar.update()
    if not rows:
        raise UserError(path, "an empty file", f"one {GROUP_FORM} a line", "check how the file was made")
    return rows


def _places(builder: _Builder, texts: Sequence[str], scores: Sequence[float] | None) -> dict[int, float | None]:
    """Each distinct text's place and score: of a text that is there twice, the first one's."""
    found: dict[int, float | None] = {}
    for text, score in zip(texts, scores if scores is not None else [None] * len(texts), strict=True):
        found.setdefault(builder.add(text), score)
    return found


def _scores(given: Mapping[int, float | None], kept: Iterable[int]) -> list[float | None] | None:
    """The scores of those kept; None for a group that came without."""
    return [given[place] for place in kept] if given and None not in given.values() else None


def _plain(query: str) -> str:
    """A query as it is compared with others: in NFC, each run of blanks one. Case may carry meaning and stays."""
    return " ".join(unicodedata.normalize("NFC", query).split())

"""What an evaluation holds, and which groups hold it as well.

In: paths of groups, of queries or passages by id (jsonl, tsv), or of directories (BEIR, MS MARCO, Hugging Face
datasets), of which every split but train is the evaluation. Out: `Evaluation`, which finds in a group a query or
positive of the evaluation, exactly (but for white space) or nearly, and so its passages among the group's negatives.
Raises UserError for an evaluation of which a line cannot be read: half of it protects from nothing.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from reranker.config.reading import ReaderConfig
from reranker.errors import UserError, shorten
from reranker.groups import Group, parse_text, read_lines
from reranker.prepare.check.near import Near
from reranker.prepare.check.texts import key, same
from reranker.prepare.readers import Unreadable, read_strict
from reranker.prepare.readers.arrow import split_names
from reranker.prepare.readers.lines import bounded_lines

_COLUMNS = {"positive", "answer"}
_EXPECTED = "groups, queries (query or text with _id) or passages (id, text)"


@dataclass(frozen=True)
class Leak:
    """A finding: its kind, and in words what was found."""

    kind: str
    detail: str


class Evaluation:
    """Queries and passages that training must not see."""

    def __init__(self, queries: Sequence[str], passages: Sequence[str], threshold: float) -> None:
        self.queries, self.passages = list(dict.fromkeys(queries)), list(dict.fromkeys(passages))
        self._query_keys = frozenset(key(same(text)) for text in self.queries)
        self._passage_keys = frozenset(key(same(text)) for text in self.passages)
        self._near_queries = Near(self.queries, threshold)
        self._near_passages = Near(self.passages, threshold)

    def leaks(self, groups: Sequence[Group]) -> list[list[Leak]]:
        """The leaks of each group."""
        near_queries = self._near_queries.find([group.query for group in groups])
        near_passages = iter(self._near_passages.find([text for group in groups for text in (*group.pos, *group.neg)]))
        found: list[list[Leak]] = []
        for group, near_query in zip(groups, near_queries, strict=True):
            leaks = []
            if key(same(group.query)) in self._query_keys:
                leaks.append(Leak("leak_exact", f"query {shorten(group.query)}"))
            elif near_query:
                leaks.append(_near("query", group.query, self.queries, near_query))
            for text in group.pos:
                near = next(near_passages)
                if key(same(text)) in self._passage_keys:
                    leaks.append(Leak("leak_exact", f"positive {shorten(text)}"))
                elif near:
                    leaks.append(_near("positive", text, self.passages, near))
            for text in group.neg:
                near = next(near_passages)
                if key(same(text)) in self._passage_keys:
                    leaks.append(Leak("leak_negative", f"negative {shorten(text)}"))
                elif near:
                    leaks.append(_near("negative", text, self.passages, near, "leak_negative"))
            found.append(leaks)
        return found


def _near(role: str, text: str, known: Sequence[str], near: tuple[int, float], kind: str = "leak_near") -> Leak:
    return Leak(kind, f"{role} {shorten(text)} is {near[1]:.0%} {shorten(known[near[0]])}")


def evaluation_paths(value: Any) -> list[str]:
    """The paths that the key `evaluation` names. Raises UserError for what is no path, or leads to nothing."""
    paths = [] if value is None else [value] if isinstance(value, str) else list(value)
    if not all(isinstance(path, str) for path in paths):
        raise UserError("evaluation", str(value), "a path or a list of paths", "say evaluation=dev.jsonl")
    for path in paths:
        if not Path(path).exists():
            raise UserError("evaluation", f"{path}, no such file or directory", _EXPECTED, "check the path")
    return paths


def load_evaluation(paths: Sequence[str], threshold: float, config: ReaderConfig) -> Evaluation:
    """The evaluation in all of `paths`. Raises UserError."""
    queries: list[str] = []
    passages: list[str] = []
    for path in paths:
        for role, text in _texts(Path(path), config):
            (queries if role == "query" else passages).append(text)
    if not queries and not passages:
        raise UserError("evaluation", f"no texts in {', '.join(paths)}", _EXPECTED, "check how the files were made")
    return Evaluation(queries, passages, threshold)


def _texts(path: Path, config: ReaderConfig) -> Iterator[tuple[str, str]]:
    if path.is_file() and ".tsv" in path.suffixes:
        for number, line in bounded_lines(path):
            text = parse_text(_second(line, f"{path}:{number}"), "text behind a tab", f"{path}:{number}")
            # Only a name tells queries from passages here: without one the texts are guarded as both.
            yield "query", text
            if not path.name.startswith("queries"):
                yield "passage", text
        return
    if path.is_file() and ".jsonl" in path.suffixes:
        first = next(read_lines(path), (None, None))[1]
        if isinstance(first, dict) and not isinstance(first.get("pos"), list) and not _COLUMNS & set(first):
            yield from _by_id(path)
            return
    for split, qrels in _splits(path):
        settings = ReaderConfig(longest_line=config.longest_line, split=split, qrels=qrels)
        for group in read_strict(path, config=settings, negatives=False):
            yield "query", group.query
            yield from (("passage", text) for text in group.pos)


def _second(line: bytes | Unreadable, where: str) -> str:
    """The text behind the tab. Raises UserError for a line that is none: a text that is read wrong guards nothing."""
    reason, expected = "", "id<tab>text in UTF-8"
    if isinstance(line, Unreadable):
        reason = line.reason.removeprefix("found ").partition(", expected ")[0]
    else:
        try:
            return line.decode("utf-8").rstrip().partition("\t")[2]
        except UnicodeDecodeError as error:
            reason = f"bytes that are not UTF-8 ({error.reason})"
    raise UserError(where, reason, expected, "mend or convert the file")


def _by_id(path: Path) -> Iterator[tuple[str, str]]:
    for where, value in read_lines(path):
        if not isinstance(value, dict) or not {"query", "text"} & set(value):
            raise UserError(where, shorten(json.dumps(value, ensure_ascii=False)), _EXPECTED, "mend the line")
        of_queries = "query" in value or path.name.startswith("queries")
        text = value["query"] if "query" in value else value["text"]
        role = "query" if of_queries else "passage"
        yield role, parse_text(text, '"query" or "text"', where)
        title = value.get("title")
        if role == "passage" and isinstance(title, str) and title.strip():
            # As the readers and BEIR's own retrieval put the two together.
            yield role, parse_text(f"{title} {text}", '"title"', where)


def _splits(path: Path) -> list[tuple[str | None, str | None]]:
    """(split, file of its judgements or None) of what is the evaluation: all but train, or the only one."""
    if path.is_file():
        return [(None, None)]
    found: list[tuple[str | None, str | None]] = [
        *((file.stem, str(file)) for file in sorted((path / "qrels").glob("*.tsv"))),
        *((file.name.split(".")[1], str(file)) for file in sorted(path.glob("qrels.*.tsv"))),
    ]  # fmt: skip
    found = found or [(name, None) for name in split_names(path)]
    return [(name, qrels) for name, qrels in found if name != "train"] or [(None, None)]

"""The group: one query with its positives and negatives, as every part of the project knows it.

In: JSON lines (plain, .gz, .zst), each a FlagEmbedding object
`{"query": str, "pos": [str, ...], "neg": [str, ...]}` with optional `pos_scores`, `neg_scores`, `id` and
`prompt`, or a sentence-transformers triplet `[query, positive, negative]`.
Out: `Group` records. Every line is checked; the first wrong one raises `UserError` with file and line.
"""

from __future__ import annotations

import dataclasses
import json
import re
import sys
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from reranker.errors import UserError, closest, shorten
from reranker.files import atomic_open, open_text

FORM = '{"query": "...", "pos": ["..."], "neg": ["..."]}'
_HALF = re.compile("[\ud800-\udfff]")  # of a surrogate pair


@dataclass(frozen=True)
class Group:
    """One query, its positives and its negatives.

    Attributes:
        query: the query, not empty.
        pos: at least one positive passage.
        neg: at least one negative passage.
        pos_scores, neg_scores: a teacher's scores, one for each passage, or None.
        id: the user's own name for the group, or None.
        prompt: an instruction put before the query by models that take one, or None.
    """

    query: str
    pos: tuple[str, ...]
    neg: tuple[str, ...]
    pos_scores: tuple[float, ...] | None = None
    neg_scores: tuple[float, ...] | None = None
    id: str | None = None
    prompt: str | None = None

    @property
    def prompted_query(self) -> str:
        """The query as the model reads it, in training and in evaluation alike: behind the prompt, if there is one."""
        return f"{self.prompt} {self.query}" if self.prompt else self.query

    def to_json(self) -> str:
        """The record as one line, with the optional keys that it has, in a fixed order."""
        # Not dataclasses.asdict, which copies every tuple: with it a line takes four times as long.
        record = {key: value for key in _KEYS if (value := getattr(self, key)) is not None}
        return json.dumps(record, ensure_ascii=False, separators=(",", ":"))


_KEYS = tuple(field.name for field in dataclasses.fields(Group))


def parse_group(value: Any, where: object) -> Group:
    """A `Group` from one decoded JSON value.

    `where` is named in the error, as in `train.jsonl:12`. Raises UserError.
    """
    if isinstance(value, list):
        return _parse_triplet(value, where)
    if not isinstance(value, dict):
        raise UserError(where, f"{kind_of(value)} {shorten(value)}", "a JSON object", f"write {FORM}")
    for key in ("query", "pos", "neg"):
        if key not in value:
            near = closest(key, value)
            fix = f'rename "{near}" to "{key}"' if near and near not in _KEYS else f"write {FORM}"
            raise UserError(where, f"keys {sorted(value)}", f'a key "{key}"', fix)
    pos = parse_texts(value["pos"], "pos", where)
    neg = parse_texts(value["neg"], "neg", where)
    return Group(
        query=parse_text(value["query"], '"query"', where),
        pos=pos,
        neg=neg,
        pos_scores=_scores(value.get("pos_scores"), "pos_scores", len(pos), where),
        neg_scores=_scores(value.get("neg_scores"), "neg_scores", len(neg), where),
        id=parse_id(value.get("id"), where),
        prompt=None if not value.get("prompt") else parse_text(value["prompt"], '"prompt"', where),
    )


def read_groups(path: str | Path) -> Iterator[Group]:
    """The groups of a `.jsonl`, `.jsonl.gz` or `.jsonl.zst` file in order; blank lines are passed over.

    Raises UserError at the first line that is not a group, or if the file holds none.
    """
    found = False
    for where, value in read_lines(path):
        found = True
        yield parse_group(value, where)
    if not found:
        raise UserError(path, "an empty file", f"one group a line, {FORM}", "check how the file was made")


def read_lines(path: str | Path) -> Iterator[tuple[str, Any]]:
    """(`file:line`, decoded JSON value) of each line of a file that is not blank. Raises UserError."""
    yield from decode_lines(raw_lines(path), path)


def raw_lines(path: str | Path) -> Iterator[bytes]:
    """The lines of a file as they are, decompressed. Raises UserError for a file that is missing or cut short."""
    with open_text(path) as stream:
        # The bytes: a text stream decodes ahead, and would name the wrong line.
        yield from _to_the_end(stream.buffer, path)  # type: ignore[attr-defined]


def decode_lines(stream: Iterable[bytes], name: object, first: int = 1) -> Iterator[tuple[str, Any]]:
    """The same of the lines of an open binary stream, which errors call `name`, and its first line `first`."""
    for number, line in enumerate(_to_the_end(stream, name), first):
        if line.strip():
            try:
                value = json.loads(text := line.decode("utf-8").rstrip())
            except UnicodeDecodeError as error:
                raise UserError(f"{name}:{number}", f"bytes that are not UTF-8 ({error.reason})", "UTF-8 text",
                                "convert the file, for example with iconv") from None  # fmt: skip
            except (RecursionError, ValueError) as error:
                if isinstance(error, json.JSONDecodeError):
                    why = f"{error.msg} at column {error.colno}"
                else:
                    why = "brackets too deep" if isinstance(error, RecursionError) else "a number of too many digits"
                raise UserError(f"{name}:{number}", f"{shorten(text)} ({why})", "one JSON value a line",
                                "write each record on one line of its own") from None  # fmt: skip
            yield f"{name}:{number}", value


def _to_the_end(stream: Iterable[bytes], name: object) -> Iterator[bytes]:
    try:
        yield from stream
    except (EOFError, OSError, zlib.error) as error:
        raise UserError(name, f"a file that cannot be read to its end ({error})", "a whole file",
                        "copy or make the file anew") from None  # fmt: skip


def write_groups(path: str | Path, groups: Iterable[Group]) -> int:
    """Write groups as JSON lines, whole or not at all. Returns how many were written."""
    count = 0
    with atomic_open(path) as stream:
        for group in groups:
            stream.write(group.to_json().encode("utf-8") + b"\n")
            count += 1
    return count


def _parse_triplet(value: list[Any], where: object) -> Group:
    if len(value) != 3:
        raise UserError(where, f"an array of {len(value)}", "[query, positive, negative]", "write three texts")
    query, positive, negative = (
        parse_text(text, name, where) for text, name in zip(value, ("query", "positive", "negative"), strict=True)
    )
    return Group(query, (positive,), (negative,))


def parse_texts(value: Any, key: str, where: object) -> tuple[str, ...]:
    """The texts of a list that is not empty. Raises UserError that names `key` and `where`."""
    # "pos": "text" instead of ["text"] silently trains on single characters elsewhere.
    if not isinstance(value, list):
        raise UserError(
            where, f'"{key}" {kind_of(value)} {shorten(value)}', "a list of strings", f'write "{key}": ["..."]'
        )
    if not value:
        fix = "mine negatives for the group or leave it out" if key == "neg" else "add a passage or leave it out"
        raise UserError(where, f'an empty "{key}" list', "at least one passage", fix)
    return tuple(parse_text(text, f'"{key}"[{index}]', where) for index, text in enumerate(value))


def parse_text(value: Any, name: str, where: object) -> str:
    """A text that is not empty. Raises UserError that calls it `name`."""
    if not isinstance(value, str):
        raise UserError(where, f"{name} {kind_of(value)} {shorten(value)}", "a string", "write it as text")
    if not value.strip():
        raise UserError(where, f"an empty {name}", "some text", "fill it in or leave the record out")
    _refuse_halves(value, name, where)
    return value


def parse_id(value: Any, where: object) -> str | None:
    """A group's name, as text: numbers are common. Raises UserError."""
    if value is None:
        return None
    _refuse_halves(str(value), '"id"', where)
    return str(value)


def _refuse_halves(value: str, name: str, where: object) -> None:
    # JSON can escape half of a surrogate pair; nothing after us could write or tokenize it.
    if half := _HALF.search(value):
        raise UserError(where, f"{name} with half a character (\\u{ord(half[0]):04x})", "text that UTF-8 can hold",
                        "mend or leave the record out")  # fmt: skip


def _scores(value: Any, key: str, count: int, where: object) -> tuple[float, ...] | None:
    if value is None:
        return None
    # math.isfinite fails for a whole number that no float can hold.
    numbers = isinstance(value, list) and all(
        isinstance(score, (int, float)) and not isinstance(score, bool) and abs(score) <= sys.float_info.max
        for score in value
    )
    if not numbers or len(value) != count:
        found = f"{len(value)} of them" if numbers else shorten(value)
        raise UserError(where, f'"{key}" {found}', f"{count} numbers, one a passage", f'mend or remove "{key}"')
    return tuple(float(score) for score in value)


def kind_of(value: Any) -> str:
    """What a decoded JSON value is, in words."""
    names = {dict: "an object", list: "a list", str: "a string", bool: "a boolean", type(None): "a null"}
    return names.get(type(value), "a number")

"""One record of an input as it came, and what is made of it: a `Group`, or an `Unreadable` that says where and why.

In: bytes of a line, or a decoded value. Out: records in chunks that pickle, which are parsed when iterated, so in the
process that needs them. Parsing never raises: whatever the bytes are, the answer is a record.
"""

from __future__ import annotations

import base64
import dataclasses
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from reranker.errors import UserError, shorten
from reranker.groups import FORM, Group, parse_group
from reranker.prepare.readers.columns import group_of_columns, has_columns

MOST_NEGATIVES = 10_000


@dataclass(frozen=True)
class Unreadable:
    """A record that is no group.

    Attributes:
        where: `file:line`, of a parquet file or a JSON array `file#record`.
        kind: json, encoding, nul, pos_string, surrogate, empty_text, schema, long_line, many_negatives, missing_text
            or cut_short.
        reason: what was found and expected, in one line.
        line: the bytes themselves; None where they were not kept (too long, or never read).
        offset: where they begin in the decompressed file, for those not kept; None otherwise.
        size: how many they are, for those not kept.
    """

    where: str
    kind: str
    reason: str
    line: bytes | None = None
    offset: int | None = None
    size: int | None = None

    def to_json(self) -> bytes:
        """All of it as one line: the bytes as text, those that are none in base64."""
        told: dict[str, Any] = {"where": self.where, "kind": self.kind, "reason": self.reason}
        if self.line is not None:
            try:
                told["line"] = self.line.decode("utf-8")
            except UnicodeDecodeError:
                told["line_base64"] = base64.b64encode(self.line).decode("ascii")
        told |= {name: value for name in ("offset", "size") if (value := getattr(self, name)) is not None}
        # What could not be read may hold half a character: it goes as an escape, as JSON has it.
        return json.dumps(told, ensure_ascii=False).encode("utf-8", "backslashreplace") + b"\n"


Record: TypeAlias = "Group | Unreadable"


@dataclass(frozen=True)
class Chunk:
    """Consecutive records of one file.

    Attributes:
        prefix: what stands before the number in `where`, as in `train.jsonl:`.
        items: (number, bytes of a line or a record that is made) of each record.
        lines: what the bytes are: JSON, or three texts between tabs.
        most_negatives: a group with more is unreadable.
    """

    prefix: str
    items: list[tuple[int, bytes | Group | Unreadable]]
    lines: Literal["json", "tsv"] = "json"
    most_negatives: int = MOST_NEGATIVES

    def __iter__(self) -> Iterator[tuple[int, Record]]:
        """(number, record) of each."""
        for number, item in self.items:
            record = parse_line(item, self.where(number), self.lines) if isinstance(item, bytes) else item
            if isinstance(record, Group) and len(record.neg) > self.most_negatives:
                record = Unreadable(
                    self.where(number), "many_negatives",
                    f"found {len(record.neg):,} negatives, expected at most most_negatives={self.most_negatives:,}",
                    item if isinstance(item, bytes) else record.to_json().encode("utf-8"),
                )  # fmt: skip
            yield number, record

    def where(self, number: int) -> str:
        return f"{self.prefix}{number}"


def parse_line(line: bytes, where: str, lines: Literal["json", "tsv"] = "json") -> Record:
    """The record in the bytes of one line."""
    value = decode_line(line, where, lines)
    return value if isinstance(value, Unreadable) else parse_value(value, where, line)


def decode_line(line: bytes, where: str, lines: Literal["json", "tsv"] = "json") -> Any:
    """The value in the bytes of one line, or an Unreadable."""
    try:
        text = line.decode("utf-8-sig" if line[:3] == b"\xef\xbb\xbf" else "utf-8")
    except UnicodeDecodeError as error:
        nul = b"\x00" in line
        reason = f"found a byte {line[error.start]:#04x} at column {error.start + 1} that is not UTF-8, expected UTF-8"
        return Unreadable(where, "nul" if nul else "encoding", reason + (" (NUL bytes too: UTF-16?)" if nul else ""),
                          line)  # fmt: skip
    if "\x00" in text:
        column = text.index("\x00") + 1
        return Unreadable(where, "nul", f"found a NUL byte at column {column}, expected text", line)
    if lines == "tsv":
        texts: Any = text.rstrip("\r\n").split("\t")
        if len(texts) != 3:
            return Unreadable(where, "schema", f"found {len(texts)} columns, expected query, positive and negative",
                              line)  # fmt: skip
        return texts
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        return Unreadable(where, "json", f"found {shorten(text)} ({error.msg} at column {error.colno}), expected one "
                          "JSON value", line)  # fmt: skip
    except (ValueError, RecursionError) as error:  # a number of thousands of digits; brackets in brackets
        return Unreadable(where, "json", f"found {shorten(text)} ({shorten(error)}), expected one JSON value", line)


def parse_value(value: Any, where: str, line: bytes | None = None) -> Record:
    """The record in a decoded value: a FlagEmbedding object, a triplet as an array, or one as an object of columns."""
    try:
        group = _group(value, where)
    except UserError as error:
        kept = line if line is not None else json.dumps(value, default=str).encode("ascii")
        return Unreadable(where, _kind(value, error), f"found {error.found}, expected {error.expected}", kept)
    for text in (group.query, *group.pos, *group.neg, group.prompt or "", group.id or ""):
        if "\x00" in text:
            kept = line if line is not None else group.to_json().encode("utf-8")
            return Unreadable(where, "nul", f"found a NUL character in {shorten(text)}, expected text", kept)
    return group


def _group(value: Any, where: str) -> Group:
    if not isinstance(value, dict):
        if not isinstance(value, list):
            raise UserError(where, f"{shorten(value)}", f"a JSON object, {FORM}", "write one")
        return parse_group(value, where)
    if "pos" not in value and has_columns(value):
        return group_of_columns(value, where)
    if value.get("neg") or "pos" not in value:
        return parse_group(value, where)
    if "neg" in value and value["neg"] not in (None, []):
        return parse_group(value, where)  # raises
    # Positives alone are what `mine` begins with: that there are no negatives is for the reader's user to judge.
    alone = {key: item for key, item in value.items() if key != "neg_scores"} | {"neg": ["none"]}
    return dataclasses.replace(parse_group(alone, where), neg=())


def _kind(value: Any, error: UserError) -> str:
    if isinstance(value, dict) and isinstance(value.get("pos"), str):
        return "pos_string"
    if "half a character" in error.found:
        return "surrogate"
    return "empty_text" if error.found.startswith("an empty") else "schema"

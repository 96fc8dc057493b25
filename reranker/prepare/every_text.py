"""What people have -> every text in it, whatever it is for: what a vocabulary is cut to.

In: files and directories: groups in any form that `readers` reads, passages or queries (`{"id", "text"}`,
`{"qid", "query"}`, BEIR's `{"_id", "title", "text"}` a line, MS MARCO's `id<tab>text`), requests of `reranker score`,
or plain text, a text a line (`.txt`); `.gz` and `.zst` as they are. Out: the texts, one after another. Raises UserError
at the first record that is none of these.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from reranker.config.reading import Form, ReaderConfig
from reranker.errors import UserError, shorten
from reranker.groups import decode_lines, parse_text, parse_texts, raw_lines
from reranker.prepare.readers import detect, read_strict

FORMS = '{"query", "pos", "neg"}, {"text"} or {"query"} a line, or plain text in a .txt file'


def every_text(paths: Sequence[str], reading: ReaderConfig) -> Iterator[str]:
    """The texts of all files and directories, in order. Raises UserError."""
    for path in paths:
        found = False
        for text in _texts(Path(path), reading):
            found = True
            yield text
        if not found:
            raise UserError(path, "no texts", "at least one", "check how the file was made")


def _texts(path: Path, reading: ReaderConfig) -> Iterator[str]:
    if path.is_file() and reading.form is Form.auto:
        if ".txt" in path.suffixes:
            yield from (text for _, line in _decoded(path) if (text := line.strip()))
            return
        if ".tsv" in path.suffixes and _first_line(path).count(b"\t") == 1:
            for where, line in _decoded(path):
                yield parse_text(line.rstrip("\r\n").partition("\t")[2], "text", where)
            return
        if _is_of_records(path):
            for where, value in decode_lines(raw_lines(path), path):
                yield from _of_record(value, where)
            return
    detect(path, reading)  # a path of no form is told with all that was looked for
    for group in read_strict(path, config=reading, negatives=False):
        yield group.prompted_query
        yield from group.pos
        yield from group.neg


def _decoded(path: Path) -> Iterator[tuple[str, str]]:
    """(`file:line`, line) of all lines."""
    for number, line in enumerate(raw_lines(path), 1):
        try:
            yield f"{path}:{number}", line.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError as error:
            raise UserError(f"{path}:{number}", f"bytes that are not UTF-8 ({error.reason})", "UTF-8 text",
                            "convert the file, for example with iconv") from None  # fmt: skip


def _first_line(path: Path) -> bytes:
    return next((line for line in raw_lines(path) if line.strip()), b"")


def _is_of_records(path: Path) -> bool:
    """Whether the first line is a passage, a query or a request, and no group."""
    line = _first_line(path)
    try:
        value = json.loads(line.decode("utf-8"))
    except (ValueError, RecursionError):
        return False
    if not isinstance(value, dict):
        return False
    if "text" in value or "passages" in value:
        return True
    return "query" in value and ("qid" in value or "_id" in value or set(value) == {"query"})


def _of_record(value: Any, where: str) -> Iterator[str]:
    if not isinstance(value, dict) or not ("text" in value or "query" in value):
        raise UserError(where, f"a record without text {shorten(value)}", FORMS, "mend or leave the record out")
    if "query" in value:
        yield parse_text(value["query"], '"query"', where)
    if "passages" in value:
        yield from parse_texts(value["passages"], "passages", where)
    if "text" in value:
        if title := value.get("title"):
            yield parse_text(title, '"title"', where)
        yield parse_text(value["text"], '"text"', where)

"""Rows of one query, one passage and a label, as sentence-transformers keeps pairs for classification -> groups.

In: decoded rows in order; label (or score) 1 says that the passage is a positive, 0 that it is a negative. Out: one
record for the rows of a query that follow each other, named by the first of them; all other rows as they are.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Iterator
from typing import Any

from reranker.prepare.readers.columns import POSITIVES, QUERIES, label_of
from reranker.prepare.readers.lines import bounded_lines
from reranker.prepare.readers.record import Record, Unreadable, decode_line, parse_value


def joined(rows: Iterable[tuple[int, Any]], prefix: str) -> Iterator[tuple[int, Record]]:
    """(number, record) of rows that are decoded values, or unreadable already; `prefix` stands before the number."""
    for (query, _), run in itertools.groupby(rows, key=_query_of):
        if query is None:
            for number, value in run:
                yield number, value if isinstance(value, Unreadable) else parse_value(value, f"{prefix}{number}")
        else:
            numbers, values = zip(*run, strict=True)
            yield numbers[0], _group(values, f"{prefix}{numbers[0]}")


def labelled_lines(path: Any, longest: int) -> Iterator[tuple[int, Record]]:
    """(number, record) of a file of JSON lines with labels."""
    lines = bounded_lines(path, longest)
    yield from joined(
        (
            (number, decode_line(line, f"{path}:{number}") if isinstance(line, bytes) else line)
            for number, line in lines
        ),
        f"{path}:",
    )


def _query_of(row: tuple[int, Any]) -> tuple[str | None, str | None]:
    """The query and prompt that rows are joined by; (None, None) for a row that is read by itself."""
    value = row[1]
    if label_of(value) not in (0, 1):
        return None, None
    query, prompt = value[_name(value, QUERIES)], value.get("prompt")
    return (query, prompt) if isinstance(query, str) and isinstance(prompt, (str, type(None))) else (None, None)


def _group(rows: tuple[dict[str, Any], ...], where: str) -> Record:
    passages: dict[int, list[Any]] = {0: [], 1: []}
    for row in rows:
        own = row[_name(row, POSITIVES)]
        passages[int(label_of(row))] += own if isinstance(own, list) else [own]
    value = {"query": rows[0][_name(rows[0], QUERIES)], "pos": passages[1], "neg": passages[0]}
    ids = [row.get("id") for row in rows]
    for key, one in (("prompt", rows[0].get("prompt")), ("id", ids[0] if ids.count(ids[0]) == len(ids) else None)):
        if one is not None:
            value[key] = one
    if not passages[1]:
        reason = "found no row with label 1 of the query, expected one beside those with 0; sort the rows by query"
        return Unreadable(where, "schema", reason, json.dumps(value, default=str).encode("ascii"))
    return parse_value(value, where)


def _name(row: dict[str, Any], names: Iterable[str]) -> str:
    return next(name for name in names if name in row)

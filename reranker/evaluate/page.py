"""The report of an evaluation as one HTML file that needs no network: tables, intervals, ranks, and every query.

In: the rows of table.json, the content of details.json, the lines of queries.jsonl and passages.jsonl. Out: the text of
report.html. Nothing is computed here but positions on a scale. All texts are escaped: corpora hold markup, and worse.
However large the sets, the queries take no more than `BUDGET` bytes; what is left out is said. What the page does in a
browser is in page_queries.js, which tests run in V8, and, for all that needs a document, page.js.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from importlib.resources import files
from typing import Any

from reranker.evaluate.table import colours, described, others, tables, title

SHOWN = 2_000
"""Queries whose passages are in the file, those on which systems differ most: all of a large set would not load."""
FIRST = 20
"""Passages of a query that are shown of each system; the right ones are whatever their rank."""
CHARACTERS = 1_000
"""Of a text."""
BUDGET = 16_000_000
"""Bytes of the queries and their passages; no more than half of it are the queries' own lines."""
SCRIPTS = ("page_queries.js", "page.js")
"""One script of the page, in this order."""
RANKS = ("1", "2", "3", "4 to 5", "6 to 10", "below 10", "not found")


def page(
    rows: Sequence[Mapping[str, Any]],
    details: Mapping[str, Any],
    queries: Sequence[Mapping[str, Any]],
    passages: Sequence[Mapping[str, Any]],
    name: str,
) -> str:
    """report.html. `name` is what the reader knows the evaluated model by."""
    from jinja2 import Environment, StrictUndefined
    from markupsafe import Markup

    template, *scripts = (
        (files("reranker.evaluate") / name).read_text("utf-8") for name in ("page.html.jinja", *SCRIPTS)
    )
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    metrics = list(details["settings"]["metrics"])
    parts = [
        _part(heading, part, about, details, [line for line in queries if line["set"] == heading] or queries)
        for heading, part, about in tables(rows, details)
    ]
    embedded, left_out = _embedded(queries, passages, metrics)
    return environment.from_string(template).render(
        name=name,
        parts=parts,
        metrics=[title(metric) for metric in metrics],
        systems=_systems(queries),
        ranks=RANKS,
        count=len(queries),
        left_out=left_out,
        details=details,
        environment=sorted(details["environment"].items()),
        data=Markup(_written(embedded)),
        script=Markup("".join(scripts)),
    )


def _systems(queries: Sequence[Mapping[str, Any]]) -> list[dict[str, str]]:
    """Every system that has ranked, in order, with its colour."""
    names = list(dict.fromkeys(name for line in queries for name in line["order"]))
    return [{"name": name, "colour": colour} for name, colour in colours(names).items()]


def _part(
    heading: str, rows: Sequence[Mapping[str, Any]], about: Mapping[str, Any], details: Mapping[str, Any],
    queries: Sequence[Mapping[str, Any]],
) -> dict[str, Any]:  # fmt: skip
    """One table with its figures, as the template takes it."""
    metrics = details["settings"]["metrics"]
    colour_of = {one["name"]: one["colour"] for one in _systems(queries)}
    scales = {metric: _scale([row[metric] for row in rows]) for metric in metrics}
    return {
        "heading": heading,
        "described": " ".join([described(about, details), *others(details)]),
        "rows": [
            {
                "system": row["system"], "colour": colour_of.get(row["system"], "#6b7280"),
                "latency": row.get("latency"),
                "cells": [_cell(row[metric], *scales[metric]) for metric in metrics],
            }
            for row in rows
        ],
        "differences": [
            {
                "system": f"{row['system']} minus {row['minus']}",
                "cells": [_difference(row[metric]) for metric in metrics],
            }
            for row in about["differences"]
        ],
        "depths": [
            {"depth": depth, "rows": [{"system": row["system"], "cells": [row[metric]["value"] for metric in metrics]}
                                      for row in of_depth]}
            for depth, of_depth in about.get("depths", {}).items()
        ],
        "found": [
            {"system": name, "shares": _shares([line["ranks"][name] for line in queries if name in line["ranks"]])}
            for name in colour_of
        ],
    }  # fmt: skip


def _scale(cells: Sequence[Mapping[str, float]]) -> tuple[float, float]:
    """The ends of an axis on which all intervals lie, with some room."""
    low, high = min(cell["low"] for cell in cells), max(cell["high"] for cell in cells)
    room = 0.04 * (high - low) or 0.01
    return low - room, high + room


def _cell(cell: Mapping[str, float], low: float, high: float) -> dict[str, float]:
    """A value with its interval, and their places between 0 and 100 on the axis of its column."""

    def place(value: float) -> float:
        return round(100 * (value - low) / (high - low), 2)

    return {
        "value": cell["value"], "low": cell["low"], "high": cell["high"], "at": place(cell["value"]),
        "from": place(cell["low"]), "to": place(cell["high"]),
    }  # fmt: skip


def _difference(cell: Mapping[str, float]) -> dict[str, Any]:
    """A difference, and whether its interval leaves zero out."""
    sign = "better" if cell["low"] > 0 else "worse" if cell["high"] < 0 else "open"
    return {"value": cell["value"], "low": cell["low"], "high": cell["high"], "p": cell.get("p_holm"), "sign": sign}


def _shares(ranks: Sequence[int | None]) -> list[float]:
    """The share of queries, in percent, whose first right passage stands at each of `RANKS`."""
    counts = Counter(_bin(rank) for rank in ranks)
    return [round(100 * counts[name] / max(1, len(ranks)), 2) for name in RANKS]


def _bin(rank: int | None) -> str:
    if rank is None:
        return "not found"
    return str(rank) if rank <= 3 else "4 to 5" if rank <= 5 else "6 to 10" if rank <= 10 else "below 10"


def _embedded(
    queries: Sequence[Mapping[str, Any]], passages: Sequence[Mapping[str, Any]], metrics: Sequence[str]
) -> tuple[dict[str, Any], list[str]]:
    """What the page's script reads: a line for each query, and the texts of those that can be opened; what is not."""

    def apart(line: Mapping[str, Any]) -> float:
        return max(
            (max(values) - min(values) for metric in metrics
             if (values := [of[metric] for of in line["metrics"].values()])),
            default=0.0,
        )  # fmt: skip

    systems = [one["name"] for one in _systems(queries)]
    ordered = sorted(range(len(queries)), key=lambda number: (-apart(queries[number]), number))
    lines, room = {}, BUDGET // 2
    for number in ordered:
        line = _line(queries[number], systems, metrics)
        if (size := _size(line)) <= room:
            lines[number], room = line, room - size
    known = {(one["set"], one["id"]): one["text"] for one in passages}
    texts: dict[str, str] = {}
    room, opened = BUDGET // 2, 0
    for number in list(lines)[:SHOWN]:
        found = _passages(queries[number], systems)
        names = (*found["candidates"], *found["judged"])
        wanted = [(queries[number]["set"], name) for name in names]
        new = {_key(name): _cut(known[name]) for name in wanted if name in known and _key(name) not in texts}
        if (size := _size(found) + _size(new)) <= room:
            lines[number]["opened"], room, opened = found, room - size, opened + 1
            texts |= new
    data = {
        "systems": systems, "metrics": list(metrics), "titles": [title(metric) for metric in metrics],
        "queries": [lines[number] for number in sorted(lines)], "texts": texts,
    }  # fmt: skip
    left_out = []
    if len(lines) < len(queries):
        left_out.append(f"Listed are the {len(lines):,} on which systems differ most.")
    if opened < len(queries):
        left_out.append(f"Of the {opened:,} on which systems differ most the passages are here.")
    if any(len(line["candidates"]) > FIRST for line in queries):
        left_out.append(f"Of each system the first {FIRST} passages are shown, and the right ones.")
    if any(len(text) > CHARACTERS for text in (*known.values(), *(line["query"] for line in queries))):
        left_out.append(f"Texts are cut after {CHARACTERS:,} characters.")
    return data, [*left_out, "All is in queries.jsonl and passages.jsonl."] if left_out else []


def _line(line: Mapping[str, Any], systems: Sequence[str], metrics: Sequence[str]) -> dict[str, Any]:
    """A query that is not opened."""
    return {
        "set": line["set"], "qid": line["qid"], "query": _cut(line["query"]),
        "ranks": [line["ranks"].get(system) for system in systems],
        "values": [[round(of[metric], 6) for metric in metrics] if (of := line["metrics"].get(system)) else None
                   for system in systems],
        "opened": None,
    }  # fmt: skip


def _passages(line: Mapping[str, Any], systems: Sequence[str]) -> dict[str, Any]:
    """The candidates that are shown of any system; the order is that of the places among them, with their ranks."""
    candidates = line["candidates"]
    judged = {name: grade for name, grade in line["judged"].items() if grade > 0}
    ranked = {
        system: [(rank, place) for rank, place in enumerate(line["order"][system], 1)
                 if rank <= FIRST or candidates[place] in judged]
        for system in systems if system in line["order"]
    }  # fmt: skip
    kept = sorted({place for of in ranked.values() for _, place in of})
    new = {place: index for index, place in enumerate(kept)}
    return {
        "candidates": [candidates[place] for place in kept],
        "judged": judged,
        "order": [[new[place] for _, place in ranked[system]] if system in ranked else None for system in systems],
        "at": [[rank for rank, _ in ranked[system]] if system in ranked else None for system in systems],
        "scores": [
            [round(line["scores"][system][place], 4) for place in kept] if system in line["scores"] else None
            for system in systems
        ],
    }


def _cut(text: str) -> str:
    return text if len(text) <= CHARACTERS else text[:CHARACTERS] + " …"


def _key(name: tuple[str, str]) -> str:
    """(set, id) as the page's script writes it."""
    return json.dumps(name, ensure_ascii=False, separators=(",", ":"))


def _written(value: Any) -> str:
    """JSON as part of a script element: an end tag in a text must not end it."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")


def _size(value: Any) -> int:
    """Bytes that it takes in the page, with the comma behind it."""
    return len(_written(value).encode("utf-8")) + 1

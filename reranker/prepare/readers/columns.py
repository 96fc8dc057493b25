"""A row of columns, as sentence-transformers keeps triplets, -> a group.

In: a row with `anchor` (or `query`, `question`, `sentence1`), `positive` (or `answer`, `pos`) and `negative`,
`negatives`, `neg` or `negative_1`, `negative_2`, ...; a column holds a text or a list of them. Out: a `Group`. A row
of FlagEmbedding's own columns is one too. Where there are no negatives, a `label` or `score` says what the passage is:
see `labelled.py`. Raises UserError that names the row.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from reranker.errors import UserError, shorten
from reranker.groups import Group, parse_id, parse_text

QUERIES = ("anchor", "query", "question", "sentence1")
POSITIVES = ("positive", "pos", "answer")
NEGATIVE = re.compile(r"neg|negatives?|negative_(\d+)")
LABELS = ("label", "score")
LOOKED_FOR = "columns anchor (or query), positive and negative (or negative_1, negative_2, ...)"


def has_columns(names: Iterable[str]) -> bool:
    """Whether these are the columns of triplets."""
    known = set(names)
    return bool(known.intersection(QUERIES) and known.intersection(POSITIVES))


def label_of(row: Any) -> Any:
    """What the row's label says of its passage (0: negative, 1: positive; anything else is wrong); -1 without one."""
    if not isinstance(row, Mapping) or isinstance(row.get("pos"), list) or not has_columns(row):
        return -1
    if any(NEGATIVE.fullmatch(name) and row[name] is not None for name in row):
        return -1  # of a triplet, which says itself what is what, a score is the teacher's margin
    label = next((row[name] for name in LABELS if name in row), -1)
    return label if isinstance(label, (int, float)) else None


def group_of_columns(row: Mapping[str, Any], where: str) -> Group:
    """The group in a row. Raises UserError."""
    query = next((name for name in QUERIES if name in row), None)
    positive = next((name for name in POSITIVES if name in row), None)
    if query is None or positive is None:
        raise UserError(where, f"columns {sorted(row)}", LOOKED_FOR, "rename the columns")
    if (label := label_of(row)) not in (-1, 1):
        alone = label == 0  # the rows of a query are joined where the first row of the file has a label
        name = next(name for name in LABELS if name in row)
        expected = "a label in the first row of the file as well" if alone else "0 (negative) or 1 (positive)"
        raise UserError(where, f'"{name}" {shorten(row[name])}', expected, "give every row a label of 0 or 1")
    negatives = sorted((name for name in row if NEGATIVE.fullmatch(name)), key=_order)
    pos = _texts(row[positive], positive, where)
    if not pos:
        raise UserError(where, f'an empty "{positive}"', "a passage", "fill it in or leave the row out")
    # A row with fewer negatives than there are columns has nulls in the others.
    neg = tuple(text for name in negatives if row[name] is not None for text in _texts(row[name], name, where))
    prompt = row.get("prompt")
    return Group(
        parse_text(row[query], f'"{query}"', where), pos, neg,
        id=parse_id(row.get("id"), where),
        prompt=parse_text(prompt, '"prompt"', where) if prompt else None,
    )  # fmt: skip


def _order(name: str) -> tuple[int, str]:
    match = NEGATIVE.fullmatch(name)
    return (int(match[1]) if match and match[1] else 0, name)


def _texts(value: Any, name: str, where: str) -> tuple[str, ...]:
    values = value if isinstance(value, list) else [value]
    return tuple(parse_text(text, f'"{name}"', where) for text in values)

"""The records of the two inputs: groups that still want negatives, and passages.

In: groups as JSON lines or in another form that can be read; passages as JSON lines, ours or BEIR's, or as MS MARCO's
tsv. Out: frozen records. Raises UserError that names file and line. Other than `parse_group`, "neg" may be missing or
empty here: to fill it is what mining is for.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from reranker.config.reading import ReaderConfig
from reranker.errors import UserError, closest, shorten
from reranker.groups import Group, kind_of, parse_group, parse_id, parse_text, parse_texts, raw_lines, read_lines
from reranker.prepare.readers import detect, read_strict
from reranker.prepare.readers.columns import group_of_columns, has_columns

GROUP_FORM = '{"query": "...", "pos": ["..."]}'
PASSAGE_FORM = '{"id": "...", "text": "..."}'
_OTHERS = ("neg", "also", "id", "prompt", "pos_scores", "neg_scores")


@dataclass(frozen=True)
class Wanted:
    """A group that wants negatives; `also` are ids of passages that are right as well, the rest as in `Group`."""

    query: str
    pos: tuple[str, ...]
    neg: tuple[str, ...] = ()
    also: tuple[str, ...] = ()
    id: str | None = None
    prompt: str | None = None
    pos_scores: tuple[float, ...] | None = None
    neg_scores: tuple[float, ...] | None = None


@dataclass(frozen=True)
class Passage:
    """A passage; `same` are ids of passages that say the same, `doc` is the document that it was cut from."""

    id: str
    text: str
    doc: str | None = None
    same: tuple[str, ...] = ()


def read_wanted(path: Path, reading: ReaderConfig) -> Iterator[tuple[str, Wanted]]:
    """(where, group) of a file or directory."""
    if detect(path, reading).form != "lines":
        for number, group in enumerate(read_strict(path, config=reading, negatives=False), 1):
            yield f"{path}, record {number}", _wanted(group)
        return
    for where, value in read_lines(path):
        columns = isinstance(value, dict) and "pos" not in value and has_columns(value)
        yield where, _wanted(group_of_columns(value, where)) if columns else parse_wanted(value, where)


def read_passages(path: Path) -> Iterator[tuple[str, Passage]]:
    """(where, passage) of a jsonl or tsv file."""
    if ".tsv" not in path.suffixes:
        for where, value in read_lines(path):
            yield where, parse_passage(value, where)
        return
    for number, line in enumerate(raw_lines(path), 1):
        where = f"{path}:{number}"
        try:
            name, tab, text = line.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r\n").partition("\t")
        except UnicodeDecodeError as error:
            raise UserError(where, f"bytes that are not UTF-8 ({error.reason})", "UTF-8 text",
                            "convert the file, for example with iconv") from None  # fmt: skip
        if not tab:
            raise UserError(where, f"{shorten(name)} without a tab", "id<tab>text", "write one passage a line")
        yield where, Passage(_id(name, "id", where), parse_text(text, "text", where))


def parse_wanted(value: Any, where: str) -> Wanted:
    if isinstance(value, list):
        group = parse_group(value, where)
        return _wanted(group)
    _check_keys(value, ("query", "pos"), _OTHERS, GROUP_FORM, where)
    pos_scores, neg_scores = _scores(value, where)
    return Wanted(
        query=parse_text(value["query"], '"query"', where),
        pos=parse_texts(value["pos"], "pos", where),
        neg=parse_texts(value["neg"], "neg", where) if value.get("neg") not in (None, []) else (),
        also=_ids(value.get("also"), "also", where),
        id=parse_id(value.get("id"), where),
        prompt=parse_text(value["prompt"], '"prompt"', where) if value.get("prompt") else None,
        pos_scores=pos_scores,
        neg_scores=neg_scores,
    )


def parse_passage(value: Any, where: str) -> Passage:
    if isinstance(value, dict) and "_id" in value and "id" not in value:  # BEIR, whose titles are part of the text
        title = value.get("title")
        value = {**value, "id": value["_id"]}
        if isinstance(title, str) and title.strip() and isinstance(value.get("text"), str):
            value["text"] = f"{title} {value['text']}".strip()
    _check_keys(value, ("id", "text"), ("doc", "same"), PASSAGE_FORM, where)
    return Passage(
        id=_id(value["id"], '"id"', where),
        text=parse_text(value["text"], '"text"', where),
        doc=None if value.get("doc") is None else _id(value["doc"], '"doc"', where),
        same=_ids(value.get("same"), "same", where),
    )


def _wanted(group: Group) -> Wanted:
    return Wanted(
        group.query, group.pos, group.neg, id=group.id, prompt=group.prompt,
        pos_scores=group.pos_scores, neg_scores=group.neg_scores,
    )  # fmt: skip


def _scores(value: dict[str, Any], where: str) -> tuple[tuple[float, ...] | None, tuple[float, ...] | None]:
    given = {key: value[key] for key in ("pos_scores", "neg_scores") if value.get(key)}
    if not given:
        return None, None
    neg = value.get("neg")
    if not neg and "neg_scores" in given:
        raise UserError(where, '"neg_scores" of no negatives', 'a "neg" that they score', 'remove "neg_scores"')
    # A group has negatives: where these are still to be mined, anything stands for them.
    group = parse_group({"query": value["query"], "pos": value["pos"], "neg": neg or [GROUP_FORM], **given}, where)
    return group.pos_scores, group.neg_scores


def _check_keys(value: Any, needed: tuple[str, ...], others: tuple[str, ...], form: str, where: str) -> None:
    if not isinstance(value, dict):
        raise UserError(where, f"{kind_of(value)} {shorten(value)}", "a JSON object", f"write {form}")
    for key in needed:
        if key not in value:
            near = closest(key, [name for name in value if name not in (*needed, *others)])
            raise UserError(where, f"keys {sorted(value)}", f'a key "{key}"',
                            f'rename "{near}" to "{key}"' if near else f"write {form}")  # fmt: skip


def _id(value: Any, name: str, where: str) -> str:
    # Numbers are common as ids: 7 and "7" are the same one.
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else parse_text(value, name, where)


def _ids(value: Any, key: str, where: str) -> tuple[str, ...]:
    if value is None:
        return ()
    values = value if isinstance(value, list) else [value]
    return tuple(_id(item, f'"{key}"', where) for item in values)

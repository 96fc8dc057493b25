"""The forms that evaluation sets come in, each read into passages, judged queries, and candidates if it has any.

In: the files of a set. Out: `Material`. Every line is checked; the first wrong one raises `UserError` with file and
line. No query is left out: one of which nothing is relevant stays, and counts as 0 for every system.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import math
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from reranker.errors import UserError, shorten
from reranker.evaluate.rank import Passage, Query
from reranker.groups import kind_of, parse_text, parse_texts, raw_lines, read_groups, read_lines
from reranker.prepare.mine.records import read_passages
from reranker.prepare.readers.detect import corpus_file

QRELS_FORM = "qid<tab>pid<tab>grade, or TREC's qid 0 pid grade"
RUN_FORM = "TREC's qid Q0 pid rank score tag"
RERANKING_FORM = '{"query": "...", "positive": ["..."], "negative": ["..."]}'
CSV_COLUMNS = ("question", "answer", "doc_id", "doc")


@dataclass(frozen=True)
class Material:
    """What a set is made of; `candidates` are None where a first stage is to find them. `note` is for the user."""

    corpus: dict[str, Passage]
    queries: list[Query]
    candidates: list[list[str]] | None = None
    note: str = ""


def read_judged(corpus: Path, queries: Path, qrels: Path) -> Material:
    """BEIR or TREC: passages and queries by id, and graded judgements, of which the queries are those that count."""
    passages = _by_id(corpus_file(corpus), "passage")
    grades = read_qrels(qrels)
    texts = {qid: query.text for qid, query in _by_id(queries, "query").items()}
    found = []
    for qid, judged in grades.items():
        if qid not in texts:
            raise UserError(qrels, f"query {shorten(qid)}", f"one of {queries}", "leave it out or add its text")
        right = [name for name, grade in judged.items() if grade > 0]
        document = passages[right[0]].doc if right and right[0] in passages else None
        cluster = document or (f"passage {right[0]}" if right else f"query {qid}")
        found.append(Query(qid, texts[qid], tuple(right), cluster, judged))
    judged_ids = {name for judged in grades.values() for name in judged}
    if not (lost := judged_ids - passages.keys()):
        return Material(passages, found)
    if lost == judged_ids:
        raise UserError(qrels, f"judgements of other passages alone, such as {shorten(min(lost))}",
                        f"ids of {corpus}", "take the judgements of this corpus")  # fmt: skip
    note = f"{qrels}: {len(lost):,} of {len(judged_ids):,} judged passages are not in {corpus} and count as not found"
    return Material(passages, found, note=note)


def _by_id(path: Path, kind: str) -> dict[str, Passage]:
    found: dict[str, Passage] = {}
    for where, passage in read_passages(path):
        if passage.id in found:
            raise UserError(where, f'a second {kind} "{passage.id}"', "ids that differ", "rename or remove one")
        found[passage.id] = Passage(passage.id, passage.text, passage.doc)
    return found


def read_qrels(path: Path) -> dict[str, dict[str, int]]:
    """{qid: {pid: grade}} in the order of the file."""
    grades: dict[str, dict[str, int]] = {}
    for number, columns in _columns(path):
        if number == 1 and columns[0] in ("query-id", "qid"):  # BEIR's head
            continue
        where = f"{path}:{number}"
        try:
            if len(columns) not in (3, 4) or not math.isfinite(grade := float(columns[-1])) or grade != int(grade):
                raise ValueError
        except ValueError:
            raise UserError(where, shorten(" ".join(columns)), QRELS_FORM, "write whole grades") from None
        of_query = grades.setdefault(columns[0], {})
        if of_query.setdefault(columns[-2], int(grade)) != int(grade):
            raise UserError(where, f"another grade of {columns[-2]} for query {columns[0]}", "one", "remove one")
    if not grades:
        raise UserError(path, "an empty file", f"a judgement a line, {QRELS_FORM}", "check how the file was made")
    return grades


def read_run(path: Path) -> dict[str, dict[str, float]]:
    """{qid: {pid: score}} of a TREC run. Its ranks are not looked at, as trec_eval does not."""
    run: dict[str, dict[str, float]] = {}
    for number, columns in _columns(path):
        where = f"{path}:{number}"
        try:
            if len(columns) != 6 or not math.isfinite(score := float(columns[4])):
                raise ValueError
        except ValueError:
            raise UserError(where, shorten(" ".join(columns)), RUN_FORM, "write six columns") from None
        of_query = run.setdefault(columns[0], {})
        if columns[2] in of_query:
            raise UserError(where, f"passage {columns[2]} for query {columns[0]} once more", "each once", "remove one")
        of_query[columns[2]] = score
    if not run:
        raise UserError(path, "an empty file", f"a line for each passage, {RUN_FORM}", "check how the file was made")
    return run


def read_groups_set(path: Path) -> Material:
    """Groups: the candidates of a query are its positives and negatives."""
    groups = list(read_groups(path))
    return _with_candidates([(group.prompted_query, group.pos, group.neg) for group in groups])


def read_reranking(path: Path) -> Material:
    """MTEB's reranking: {"query", "positive", "negative"} a line; a query that is a list is each of its texts."""
    found = []
    for where, value in read_lines(path):
        if not isinstance(value, dict):
            raise UserError(where, f"{kind_of(value)} {shorten(value)}", "a JSON object", f"write {RERANKING_FORM}")
        for key in ("query", "positive", "negative"):
            if key not in value:
                raise UserError(where, f"keys {sorted(value)}", f'a key "{key}"', f"write {RERANKING_FORM}")
        asked = value["query"] if isinstance(value["query"], list) else [value["query"]]
        positives, negatives = (
            () if value[key] == [] else parse_texts(value[key], key, where) for key in ("positive", "negative")
        )
        if not (positives or negatives):
            raise UserError(where, "no passages", "at least one", "add a passage or leave the query out")
        found += [(parse_text(query, '"query"', where), positives, negatives) for query in asked]
    if not found:
        raise UserError(path, "an empty file", f"one {RERANKING_FORM} a line", "check how the file was made")
    return _with_candidates(found)


def _with_candidates(groups: Sequence[tuple[str, tuple[str, ...], tuple[str, ...]]]) -> Material:
    corpus: dict[str, Passage] = {}
    ids: dict[str, str] = {}
    queries, candidates = [], []
    for number, (query, positives, negatives) in enumerate(groups, 1):
        for text in (*positives, *negatives):
            name = ids.setdefault(text, f"p{len(ids) + 1}")
            corpus.setdefault(name, Passage(name, text))
        right = tuple(dict.fromkeys(ids[text] for text in positives))
        # A text that is both is right: it was written down as such.
        others = [name for name in dict.fromkeys(ids[text] for text in negatives) if name not in right]
        # By its text: another set that holds the passage counts it otherwise.
        cluster = f"passage {hashlib.sha256(positives[0].encode()).hexdigest()[:16]}" if right else f"query {number}"
        queries.append(Query(str(number), query, right, cluster))
        candidates.append([*right, *others])
    return Material(corpus, queries, candidates)


def read_csv(path: Path, corpus: Path | None) -> Material:
    """The reference's table: question, answer, doc_id, doc a line; the passages are its docs, and those of `corpus`.

    A question's right passage is the one of its doc_id. Questions of one passage are one cluster.
    """
    passages = _by_id(corpus, "passage") if corpus is not None else {}
    queries = []
    try:
        text = b"".join(raw_lines(path)).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(path, f"bytes that are not UTF-8 ({error.reason})", "UTF-8 text",
                        "convert the file, for example with iconv") from None  # fmt: skip
    csv.field_size_limit(sys.maxsize)
    rows = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    if rows.fieldnames is None or not set(CSV_COLUMNS) <= set(rows.fieldnames):
        raise UserError(path, f"columns {rows.fieldnames}", ", ".join(CSV_COLUMNS), "check how the file was made")
    try:
        for number, row in enumerate(rows, 1):
            where = f"{path}, record {number}"
            # A comma that is not quoted cuts a text in two.
            if None in row or None in row.values():
                count = sum(value is not None for key, value in row.items() if key) + len(row.get(None) or [])
                raise UserError(where, f"{count} columns", f"{len(rows.fieldnames)}", "quote texts that hold commas")
            question, name, doc = (parse_text(row[key], key, where) for key in ("question", "doc_id", "doc"))
            known = passages.setdefault(name, Passage(name, doc))
            if known.text != doc:
                raise UserError(where, f"another text of doc_id {name}", "one text for each", "give one another doc_id")
            queries.append(Query(str(number), question, (name,), f"passage {name}"))
    except csv.Error as error:
        raise UserError(f"{path}:{rows.line_num}", f"no csv ({error})", "csv as pandas writes it",
                        "quote texts that hold commas, quotes or line breaks") from None  # fmt: skip
    if not queries:
        raise UserError(path, "no records", "a question a line", "check how the file was made")
    return Material(passages, queries)


def first_record(path: Path) -> dict[str, object]:
    """The first line of a file as a JSON object; empty if it is none."""
    line = next(iter(raw_lines(path)), b"")
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def _columns(path: Path) -> Iterator[tuple[int, list[str]]]:
    """(line, columns) of what is not blank. They are split at tabs where there are any: an id may hold a blank."""
    for number, line in enumerate(raw_lines(path), 1):
        if text := line.decode("utf-8-sig", "replace").strip():
            yield number, [column.strip() for column in text.split("\t")] if "\t" in text else text.split()

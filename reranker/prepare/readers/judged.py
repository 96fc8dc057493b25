"""Ids -> groups: MS MARCO's triples of ids, and relevance judgements (BEIR, TREC) with or without a run.

In: the files of a `Found`. Out: (number, record). Judgements of one query become one group, in the order in which the
queries first come: what is judged above 0 is positive; negative is what is judged 0 or below, then the run's passages
that are not judged, best rank first. An id without a text makes the record unreadable, never shorter.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from pathlib import Path

from reranker.config.reading import ReaderConfig
from reranker.groups import Group
from reranker.prepare.readers.detect import Found
from reranker.prepare.readers.lines import bounded_lines
from reranker.prepare.readers.record import Record, Unreadable
from reranker.prepare.readers.texts import TextIndex

_SPARE = 64
_JUDGED = "qid<tab>pid<tab>relevance, or TREC's qid 0 pid relevance"


def triples_of_ids(found: Found, config: ReaderConfig) -> Iterator[tuple[int, Record]]:
    """A group for each line `qid<tab>pid<tab>pid`."""
    (file,) = found.files
    assert found.queries
    assert found.corpus
    with (
        TextIndex(found.queries, config.longest_line) as queries,
        TextIndex(found.corpus, config.longest_line) as corpus,
    ):
        yield from (*queries.unreadable, *corpus.unreadable)
        for number, line in bounded_lines(file, config.longest_line):
            where = f"{file}:{number}"
            if isinstance(line, Unreadable):
                yield number, line
                continue
            ids = line.decode("utf-8-sig", "replace").split()
            if len(ids) < 3:
                yield number, Unreadable(where, "schema", f"found {len(ids)} columns, expected qid, pid, pid", line)
                continue
            yield number, _group(ids[0], ids[1:2], ids[2:3], queries, corpus, where, line)


def judged_groups(found: Found, config: ReaderConfig) -> Iterator[tuple[int, Record]]:
    """A group for each query that is judged."""
    (file,) = found.files
    assert found.queries
    assert found.corpus
    positives: dict[str, dict[str, None]] = {}
    negatives: dict[str, dict[str, None]] = {}
    first: dict[str, tuple[int, bytes]] = {}
    for number, line in bounded_lines(file, config.longest_line):
        if isinstance(line, Unreadable):
            yield number, line
            continue
        columns = line.decode("utf-8-sig", "replace").split()
        try:
            qid, pid, relevance = columns[0], columns[-2], float(columns[-1])
            if len(columns) not in (3, 4) or not math.isfinite(relevance):
                raise ValueError
        except (ValueError, IndexError):
            if number > 1 or not columns or columns[0] not in ("query-id", "qid"):  # BEIR's head
                yield number, Unreadable(f"{file}:{number}", "schema", f"found {columns[:5]}, expected {_JUDGED}", line)
            continue
        first.setdefault(qid, (number, line))
        (positives if relevance > 0 else negatives).setdefault(qid, {})[pid] = None
    if found.run:
        yield from _add_run(found.run, config, first, positives, negatives)
    with (
        TextIndex(found.queries, config.longest_line) as queries,
        TextIndex(found.corpus, config.longest_line) as corpus,
    ):
        yield from (*queries.unreadable, *corpus.unreadable)
        for qid, (number, line) in first.items():
            pos, neg = positives.get(qid, {}), negatives.get(qid, {})
            yield number, _group(qid, pos, neg, queries, corpus, f"{file}:{number}", line)


def _add_run(
    run: Path, config: ReaderConfig, judged: dict[str, tuple[int, bytes]],
    positives: dict[str, dict[str, None]], negatives: dict[str, dict[str, None]],
) -> Iterator[tuple[int, Record]]:  # fmt: skip
    best: dict[str, list[tuple[int, str]]] = {}
    for number, line in bounded_lines(run, config.longest_line):
        columns = [] if isinstance(line, Unreadable) else line.decode("utf-8-sig", "replace").split()
        if isinstance(line, Unreadable) or len(columns) != 6 or not columns[3].isdecimal():
            reason = f"found {columns[:7]}, expected TREC's qid Q0 pid rank score tag"
            unread = line if isinstance(line, Unreadable) else Unreadable(f"{run}:{number}", "schema", reason, line)
            yield number, unread
            continue
        qid, pid, rank = columns[0], columns[2], int(columns[3])
        if qid in judged and pid not in positives.get(qid, ()) and pid not in negatives.get(qid, ()):
            others = best.setdefault(qid, [])
            others.append((rank, pid))
            if len(others) >= 2 * config.run_negatives + _SPARE:  # a run may be far longer than what is used of it
                others[:] = sorted(others)[: config.run_negatives]
    for qid, others in best.items():
        chosen = sorted(others)[: config.run_negatives]
        negatives.setdefault(qid, {}).update(dict.fromkeys(pid for _, pid in chosen))


def _group(
    qid: str, pos: Iterable[str], neg: Iterable[str], queries: TextIndex, corpus: TextIndex, where: str, line: bytes
) -> Record:
    pos, neg = list(pos), list(neg)
    if not pos:
        return Unreadable(where, "schema", f"found no passage judged relevant for query {qid}, expected one", line)
    texts = {("query", qid): queries.get(qid), **{("passage", pid): corpus.get(pid) for pid in (*pos, *neg)}}
    for (kind, name), text in texts.items():
        if text is None:
            file = (queries if kind == "query" else corpus).path
            return Unreadable(where, "missing_text", f"found {kind} {name}, expected one of {file}", line)
    known = {key: text for key, text in texts.items() if text is not None}
    return Group(
        known["query", qid], tuple(known["passage", pid] for pid in pos), tuple(known["passage", pid] for pid in neg),
        id=qid,
    )  # fmt: skip

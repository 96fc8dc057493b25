"""Corpus and queries -> the passages of each query in order, by the first stage and by rerankers.

In: the corpus, {"id", "text"} a line with an optional "doc"; the queries, {"qid", "query", "pos"} a line
with optional "also" (equivalents of the right passage) and "doc". Out: for each query its candidates, their
scores, their order. Every line is checked; the first wrong one raises `UserError` with file and line.
"""

from __future__ import annotations

import hashlib
import heapq
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from reranker.config.common import FirstStageConfig
from reranker.errors import UserError, closest, shorten
from reranker.evaluate.measures import Judged
from reranker.evaluate.metrics import ranking
from reranker.groups import kind_of, parse_text, read_lines

if TYPE_CHECKING:
    from reranker.model.reranker import Reranker

PASSAGE_FORM = '{"id": "...", "text": "..."}'
QUERY_FORM = '{"qid": "...", "query": "...", "pos": "..."}'
FUSION_CONSTANT = 60
"""k of reciprocal rank fusion, as its authors chose it."""
CHUNK = 64
"""Queries that the first stage answers between two moves of the progress bar."""


@dataclass(frozen=True)
class Passage:
    """A passage of the corpus; `doc` names the document that it was cut from, or is None."""

    id: str
    text: str
    doc: str | None = None


@dataclass(frozen=True)
class Query:
    """A query with its relevance judgement.

    Attributes:
        qid, query: its name and its text.
        relevant: ids of the right passages and of those marked equivalent.
        cluster: what its result depends on: queries of one document are resampled together.
        grades: {passage: grade} of all that are judged; empty: the relevant ones have 1.
    """

    qid: str
    query: str
    relevant: tuple[str, ...]
    cluster: str
    grades: Mapping[str, int] = field(default_factory=dict)

    @property
    def judged(self) -> Mapping[str, int]:
        return self.grades or dict.fromkeys(self.relevant, 1)


def read_corpus(path: str | Path) -> dict[str, Passage]:
    """{id: passage} in the order of the file. Raises UserError."""
    corpus: dict[str, Passage] = {}
    for where, value in _records(path, ("id", "text"), PASSAGE_FORM):
        name = _id(value["id"], '"id"', where)
        if name in corpus:
            raise UserError(where, f'a second passage "{name}"', "ids that differ", "rename or remove one")
        corpus[name] = Passage(name, parse_text(value["text"], '"text"', where), _doc(value, where))
    return corpus


def read_queries(path: str | Path, corpus: dict[str, Passage]) -> list[Query]:
    """The queries in the order of the file, their judgements being of `corpus`. Raises UserError."""
    queries: dict[str, Query] = {}
    for where, value in _records(path, ("qid", "query", "pos"), QUERY_FORM):
        qid = _id(value["qid"], '"qid"', where)
        if qid in queries:
            raise UserError(where, f'a second query "{qid}"', "qids that differ", "rename or remove one")
        pos = _ids(value["pos"], "pos", where)
        if not pos:
            raise UserError(where, 'an empty "pos" list', "at least one passage id", "add one or leave the query out")
        relevant = tuple(dict.fromkeys(pos + _ids(value.get("also") or [], "also", where)))
        for name in relevant:
            if name not in corpus:
                key = "pos" if name in pos else "also"
                raise UserError(where, f'"{key}" {shorten(name)}', "the id of a passage in the corpus",
                                "add the passage to the corpus or leave the query out")  # fmt: skip
        # A query that names no document shares that of its right passage, or else the passage itself.
        cluster = _doc(value, where) or corpus[pos[0]].doc or f"passage {pos[0]}"
        queries[qid] = Query(qid, parse_text(value["query"], '"query"', where), relevant, cluster)
    return list(queries.values())


def sample_queries(queries: Sequence[Query], count: int | None) -> list[Query]:
    """`count` of the queries in their order, always the same ones: those with the smallest sha256 of the qid.

    Depends on no generator and on no order of the file; a larger sample holds a smaller one.
    """
    if count is None or count >= len(queries):
        return list(queries)
    kept = heapq.nsmallest(count, (query.qid for query in queries), key=_hash)
    wanted = frozenset(kept)
    return [query for query in queries if query.qid in wanted]


def retrieve(
    queries: Sequence[Query],
    corpus: dict[str, Passage],
    settings: FirstStageConfig,
    depth: int,
    progress: bool = False,
) -> list[list[str]]:
    """The first stage: for each query the ids of at most `depth` passages, best first (BM25).

    Ties inside a result are broken against it. `progress` shows bars on standard error.
    """
    from reranker.prepare.bm25 import BM25Index
    from reranker.progress import progress_bar

    ids, texts = list(corpus), [passage.text for passage in corpus.values()]
    index = BM25Index(texts, settings.analyzer, settings.k1, settings.b, progress=progress)
    results: list[list[str]] = []
    with progress_bar(total=len(queries), desc="first stage", unit=" queries", disable=not progress) as bar:
        for start in range(0, len(queries), CHUNK):
            chunk = queries[start : start + CHUNK]
            for query, hits in zip(chunk, index.search([query.query for query in chunk], depth), strict=True):
                results.append(ranking([ids[hit] for hit, _ in hits], [score for _, score in hits], query.judged))
            bar.update(len(chunk))
    return results


def score_candidates(
    reranker: Reranker,
    queries: Sequence[Query],
    candidates: Sequence[Sequence[str]],
    corpus: dict[str, Passage],
    progress: bool | Callable[[int], object] = False,
) -> list[list[float]]:
    """A reranker's score of each candidate of each query."""
    pairs = [
        (query.query, corpus[name].text) for query, names in zip(queries, candidates, strict=True) for name in names
    ]
    scores = iter(reranker.score_pairs(pairs, progress=progress))
    return [[float(next(scores)) for _ in names] for names in candidates]


def rank_by_scores(
    queries: Sequence[Query], candidates: Sequence[Sequence[str]], scores: Sequence[Sequence[float]]
) -> list[list[str]]:
    """The candidates of each query by falling score, ties broken against the reranker."""
    triples = zip(queries, candidates, scores, strict=True)
    return [ranking(names, values, query.judged) for query, names, values in triples]


def fuse(rankings: Sequence[Sequence[str]], judged: Judged) -> list[str]:
    """One ranking out of several by reciprocal rank fusion: score = sum over rankings of 1 / (60 + rank).

    Cormack, Clarke and Büttcher, SIGIR 2009. Ties are broken against the fusion.
    """
    scores: dict[str, float] = {}
    for ranked in rankings:
        for rank, name in enumerate(ranked, 1):
            scores[name] = scores.get(name, 0.0) + 1 / (FUSION_CONSTANT + rank)
    return ranking(list(scores), list(scores.values()), judged)


def _records(path: str | Path, keys: tuple[str, ...], form: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """The objects of a file, each with all of `keys`; at least one."""
    where = ""
    for where, value in read_lines(path):
        if not isinstance(value, dict):
            raise UserError(where, f"{kind_of(value)} {shorten(value)}", "a JSON object", f"write {form}")
        for key in keys:
            if key not in value:
                near = closest(key, [name for name in value if name not in keys])
                raise UserError(where, f"keys {sorted(value)}", f'a key "{key}"',
                                f'rename "{near}" to "{key}"' if near else f"write {form}")  # fmt: skip
        yield where, value
    if not where:
        raise UserError(path, "an empty file", f"one {form} a line", "check how the file was made")


def _id(value: Any, name: str, where: str) -> str:
    # Numbers are common as ids: 7 and "7" are the same one.
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else parse_text(value, name, where)


def _ids(value: Any, key: str, where: str) -> tuple[str, ...]:
    values = value if isinstance(value, list) else [value]
    return tuple(_id(item, f'"{key}"[{index}]' if value is values else f'"{key}"', where)
                 for index, item in enumerate(values))  # fmt: skip


def _doc(value: dict[str, Any], where: str) -> str | None:
    return None if value.get("doc") is None else _id(value["doc"], '"doc"', where)


def _hash(qid: str) -> str:
    return hashlib.sha256(qid.encode("utf-8")).hexdigest()

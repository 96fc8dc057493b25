"""Sets -> first stage -> scores of every system -> what was found. All ranks run it together.

In: the settings, the digests of all inputs, and the scores that an earlier run has kept. Out: `Evaluation` on rank 0.
Each rank reads the sets by itself; what rank 0 alone finds goes to all, and what all find together is gathered, so that
every query is in the result once, whatever the number of ranks.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from reranker.config.models import EvaluateConfig
from reranker.errors import UserError
from reranker.evaluate.crew import Crew
from reranker.evaluate.fingerprint import Scores, digest, settings_of
from reranker.evaluate.first_stage import find
from reranker.evaluate.outcome import Outcome, outcome
from reranker.evaluate.rank import Passage, Query, sample_queries
from reranker.evaluate.sets import EvaluationSet
from reranker.evaluate.summary import details_of, differences_of, lines_of, rows_of
from reranker.evaluate.systems import System, latency
from reranker.progress import progress_bar


@dataclass(frozen=True)
class Evaluation:
    """What was found.

    Attributes:
        rows: the content of table.json.
        details: what details.json says of the result; the command adds what it was computed from.
        queries: the lines of queries.jsonl.
        passages: the lines of passages.jsonl: the texts of all candidates and judged passages, by set and id.
    """

    rows: list[dict[str, Any]]
    details: dict[str, Any]
    queries: list[dict[str, Any]]
    passages: list[dict[str, Any]]


@dataclass(frozen=True)
class Scored:
    """A set with the scores of its candidates, down to the deepest depth.

    Attributes:
        texts: the candidates and the judged passages: a corpus is let go of before that of the next set is read.
        passages: how many the corpus has.
    """

    of_set: EvaluationSet
    queries: list[Query]
    texts: dict[str, Passage]
    passages: int
    candidates: list[list[str]]
    scores: dict[str, list[list[float]]]
    latency: dict[str, dict[str, float]]

    def at(self, depth: int | None, config: EvaluateConfig) -> Outcome:
        return outcome(self.of_set.name, depth, self.queries, self.texts, self.passages, self.candidates, self.scores,
                       config.metrics, config.contexts, self.latency)  # fmt: skip


def evaluate(
    config: EvaluateConfig, sets: Sequence[EvaluationSet], systems: Sequence[System],
    inputs: dict[str, dict[str, Any]], cache: Scores, crew: Crew, device: str,
) -> Evaluation | None:  # fmt: skip
    """Run all systems over the queries of all sets. None on ranks other than 0. A collective call.

    `cache` gives scores only of these inputs and of systems that are these.
    """
    for system in systems:
        crew.from_first(system.check)
    scored = [_score(config, one, systems, inputs, cache, crew, device) for one in sets]
    return crew.together(lambda: _found(config, scored, systems) if crew.first else None)


def _score(
    config: EvaluateConfig, one: EvaluationSet, systems: Sequence[System], inputs: dict[str, dict[str, Any]],
    cache: Scores, crew: Crew, device: str,
) -> Scored:  # fmt: skip
    material = crew.together(one.read)
    if material.note and crew.first:
        print(f"note: {material.note}", file=sys.stderr)
    queries = sample_queries(material.queries, config.sample)
    candidates = find(one, material, queries, crew, device)
    _same_everywhere(one, queries, candidates, material.corpus, crew)
    pairs = [
        [(query.query, material.corpus[name].text) for name in names]
        for query, names in zip(queries, candidates, strict=True)
    ]
    total = sum(map(len, pairs))
    files = [inputs[one.key(role)]["sha256"] for role in one.files]
    scores: dict[str, list[list[float]]] = {}
    latencies: dict[str, dict[str, float]] = {}
    for system in systems:
        asked = digest([system.identity, files, [query.qid for query in queries], candidates])
        name = f"{one.name}.{system.name}" if one.name else system.name
        kept = crew.from_first(partial(cache.get, name, asked))
        if kept is None:
            with progress_bar(total=total, desc=name, unit=" pairs", disable=not crew.first) as bar:
                values = iter(system.score(pairs, crew, bar.update).tolist())
            kept = [[next(values) for _ in names] for names in candidates]
            crew.together(partial(_keep, cache, name, asked, kept, crew))
        scores[system.name] = kept
        if config.latency:
            some = [of_query for of_query in pairs if of_query][: config.latency]
            latencies[system.name] = crew.from_first(partial(latency, system, some))
    named = {name for names in candidates for name in names}.union(*(query.judged for query in queries))
    texts = {name: material.corpus[name] for name in sorted(named) if name in material.corpus}
    return Scored(one, queries, texts, len(material.corpus), candidates, scores, latencies)


def _keep(cache: Scores, name: str, asked: str, scores: list[list[float]], crew: Crew) -> None:
    if crew.first:
        cache.put(name, asked, scores)


def _same_everywhere(
    one: EvaluationSet, queries: Sequence[Query], candidates: Sequence[Sequence[str]], corpus: dict[str, Passage],
    crew: Crew,
) -> None:  # fmt: skip
    """Raise UserError where another rank has read other texts: its scores would be those of other passages."""
    if crew.world == 1:
        return
    texts = [
        [query.query, *(corpus[name].text for name in names)] for query, names in zip(queries, candidates, strict=True)
    ]
    digests = crew.gather(digest(texts))
    if len(set(digests)) > 1:
        rank = next(rank for rank, found in enumerate(digests) if found != digests[0])
        where = next(iter(one.files.values()))
        error = UserError(
            where, f"other texts on rank {rank} than on rank 0", "the same files on all nodes", "copy them anew"
        )
        error.agreed = True
        raise error


def _found(config: EvaluateConfig, scored: Sequence[Scored], systems: Sequence[System]) -> Evaluation:
    outcomes = [one.at(one.of_set.depths[0] if one.of_set.depths else None, config) for one in scored]
    differences = differences_of(config, [[one] for one in outcomes])
    details: list[dict[str, Any]] = []
    for one, found, of_set in zip(scored, outcomes, differences, strict=True):
        others = {
            str(depth): rows_of(config, [one.at(depth, config)]) for depth in one.of_set.depths[1:]
        }  # fmt: skip
        details.append(
            details_of(config, found, one.of_set.describe())
            | {"rows": rows_of(config, [found]), "differences": of_set, "depths": others}
        )
    lines = [line for found in outcomes for line in lines_of(found)]
    texts = [
        {"set": one.of_set.name, "id": name, "text": passage.text}
        for one in scored
        for name, passage in one.texts.items()
    ]
    told = {system.name: {"told": system.told, **system.identity} for system in systems if system.told}
    settings = {"settings": settings_of(config)} | ({"systems": told} if told else {})
    if len(scored) == 1 and not scored[0].of_set.name:
        alone = dict(details[0])
        return Evaluation(alone.pop("rows"), alone | settings, lines, texts)
    over_all = {
        "queries": sum(found["queries"] for found in details),
        "passages": sum(found["passages"] for found in details),
        "differences": differences_of(config, [outcomes])[0] if len(outcomes) > 1 else details[0]["differences"],
        "sets": {one.of_set.name: found for one, found in zip(scored, details, strict=True)},
    }
    return Evaluation(rows_of(config, outcomes), over_all | settings, lines, texts)

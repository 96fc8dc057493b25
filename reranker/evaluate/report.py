"""`reranker evaluate`: first stage, base and fine-tuned reranker, and their fusion, on one set of queries.

In: an `EvaluateConfig`. Out: a table on standard output and, in the output directory, table.json, table.md,
table.png, queries.jsonl and details.json. details.json is written last and names the others' sha256: without
it, or with other inputs, the evaluation is done again; with it, the saved table is shown at once.
"""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from reranker.config.models import EvaluateConfig
from reranker.errors import UserError
from reranker.evaluate import table
from reranker.evaluate.fingerprint import Scores, digest, environment_of, inputs_of, settings_of
from reranker.evaluate.metrics import METRICS, estimate, estimate_difference, per_query, rank_of_right
from reranker.evaluate.rank import (
    Passage,
    Query,
    fuse,
    rank_by_scores,
    read_corpus,
    read_queries,
    retrieve,
    sample_queries,
    score_candidates,
)
from reranker.files import atomic_open, sha256, write_json, write_text

WITHOUT, BASE, TUNED, FUSED = "without-reranker", "base", "fine-tuned", "fused"
COMPARED = ((TUNED, BASE), (TUNED, WITHOUT), (FUSED, WITHOUT))
FILES = ("table.json", "table.md", "table.png", "queries.jsonl", "details.json")


@dataclass(frozen=True)
class Evaluation:
    """What was found.

    Attributes:
        rows: the content of table.json.
        details: what details.json says of the result; the command adds what it was computed from.
        queries: the lines of queries.jsonl.
    """

    rows: list[dict[str, Any]]
    details: dict[str, Any]
    queries: list[dict[str, Any]]


def evaluate_command(config: EvaluateConfig) -> int:
    """Evaluate, or show the saved table if its inputs are unchanged. Raises UserError."""
    _check(config)
    output = Path(config.output) if config.output else None
    known = _saved(output, "details.json") or {}
    inputs = inputs_of(config, known.get("inputs") or {})
    environment = environment_of(config)
    contents = {name: entry["sha256"] for name, entry in inputs.items()}
    fingerprint = digest([environment, settings_of(config), contents])
    if output and not config.force and known.get("fingerprint") == fingerprint and _whole(output, known):
        rows = _saved(output, "table.json")
        table.show(rows, known)
        print(f"inputs unchanged: this is the table saved in {output}; force=true evaluates again")
        return 0
    found = evaluate(config, inputs, environment, Scores(output, read=not config.force))
    details = {"fingerprint": fingerprint, "environment": environment, **found.details, "inputs": inputs}
    if output:
        _write(output, found, details)
    table.show(found.rows, details)
    if output:
        print(f"written to {output}: {', '.join(FILES)}")
    return 0


def evaluate(
    config: EvaluateConfig, inputs: dict[str, dict[str, Any]], environment: dict[str, str], cache: Scores
) -> Evaluation:
    """Run all systems over the queries. `cache` gives scores only of these inputs in this environment."""
    corpus = read_corpus(config.corpus)
    queries = sample_queries(read_queries(config.queries, corpus), config.sample)
    candidates = retrieve(queries, corpus, config.first_stage, config.depth, progress=True)
    rankings = {WITHOUT: candidates}
    for system, key, name in ((BASE, "base", config.base), (TUNED, "model", config.model)):
        if name is not None:
            files = [inputs[which]["sha256"] for which in (key, "corpus", "queries")]
            asked = digest([environment, files, [query.qid for query in queries], candidates, config.max_length])
            scores = cache.get(system, asked)
            if scores is None:
                scores = _score(config, key, name, queries, candidates, corpus)
                cache.put(system, asked, scores)
            rankings[system] = rank_by_scores(queries, candidates, scores)
    rankings[FUSED] = [
        fuse(both, query.relevant)
        for query, both in zip(queries, zip(rankings[WITHOUT], rankings[TUNED], strict=True), strict=True)
    ]
    return summarize(config, queries, rankings, passages=len(corpus))


def summarize(
    config: EvaluateConfig, queries: Sequence[Query], rankings: dict[str, list[list[str]]], passages: int
) -> Evaluation:
    """Rankings of all systems -> the rows of the table, the differences and the rank of each query."""
    relevant = [query.relevant for query in queries]
    clusters = [query.cluster for query in queries]
    values = {system: per_query(ranked, relevant, config.contexts) for system, ranked in rankings.items()}
    resampling = (config.resamples, config.seed)
    rows = [
        {"system": system, "queries": len(queries)}
        | {metric: estimate(of[metric], clusters, *resampling).to_dict() for metric in METRICS}
        for system, of in values.items()
    ]
    differences = [
        {"system": ours, "minus": theirs}
        | {metric: estimate_difference(values[ours][metric], values[theirs][metric], clusters, *resampling).to_dict()
           for metric in METRICS}
        for ours, theirs in COMPARED if ours in values and theirs in values
    ]  # fmt: skip
    ranks = {
        system: [rank_of_right(names, wanted) for names, wanted in zip(ranked, relevant, strict=True)]
        for system, ranked in rankings.items()
    }
    details = {
        "queries": len(queries),
        "passages": passages,
        "clusters": len(set(clusters)),
        # No reranker can rank what the first stage did not find.
        "right_within_depth": float(np.mean([rank is not None for rank in ranks[WITHOUT]])),
        "settings": settings_of(config),
        "differences": differences,
    }
    lines = [
        {"qid": query.qid, "ranks": {system: ranks[system][index] for system in rankings}}
        for index, query in enumerate(queries)
    ]
    return Evaluation(rows, details, lines)


def _score(
    config: EvaluateConfig, key: str, name: str,
    queries: Sequence[Query], candidates: Sequence[Sequence[str]], corpus: dict[str, Passage],
) -> list[list[float]]:  # fmt: skip
    from reranker.model.reranker import Reranker
    from reranker.progress import progress_bar

    reranker = Reranker(
        name, device=config.device.value, precision=config.precision.value, max_length=config.max_length,
        batch_tokens=config.batch_tokens, packing=config.packing.value, untrained_head=key == "base", key=key,
    )  # fmt: skip
    if reranker.fresh_head:
        print(f"note: base={name} has no score head; its row is that of a randomly drawn one", file=sys.stderr)
    total = sum(map(len, candidates))
    with progress_bar(total=total, desc=BASE if key == "base" else TUNED, unit=" pairs") as bar:
        return score_candidates(reranker, queries, candidates, corpus, bar.update)


def _write(output: Path, found: Evaluation, details: dict[str, Any]) -> None:
    # Gone while the others change: a half-written report is none.
    (output / "details.json").unlink(missing_ok=True)
    write_json(output / "table.json", found.rows)
    write_text(output / "table.md", table.markdown(found.rows, details))
    with atomic_open(output / "queries.jsonl") as stream:
        for line in found.queries:
            stream.write(json.dumps(line, ensure_ascii=False).encode("utf-8") + b"\n")
    with atomic_open(output / "table.png") as stream:
        table.draw(found.rows, details, stream)
    files = {name: sha256(output / name) for name in FILES[:-1]}
    write_json(output / "details.json", details | {"files": files})


def _saved(output: Path | None, name: str) -> Any:
    """A JSON file of an earlier evaluation, or None."""
    with contextlib.suppress(OSError, ValueError):
        return json.loads((output / name).read_text("utf-8")) if output else None
    return None


def _whole(output: Path, details: dict[str, Any]) -> bool:
    """Whether the report's files are those that its details name."""
    files = details.get("files") or {}
    return bool(files) and all((output / name).is_file() and sha256(output / name) == files[name] for name in files)


def _check(config: EvaluateConfig) -> None:
    at_least = {"depth": 1, "contexts": 1, "sample": 1, "resamples": 100, "batch_tokens": 1, "seed": 0, "max_length": 8}
    for key, least in at_least.items():
        if (value := getattr(config, key)) is not None and value < least:
            raise UserError(key, str(value), f"{least} or more", "change the value")
    if config.contexts > config.depth:
        raise UserError("contexts", str(config.contexts), f"at most depth={config.depth}", "raise depth or lower it")
    if config.output and Path(config.output).exists() and not Path(config.output).is_dir():
        raise UserError("output", f"{config.output}, a file", "a directory", "name another one")
    for key, path in (("corpus", config.corpus), ("queries", config.queries)):
        if config.output and Path(path).resolve() in [(Path(config.output) / name).resolve() for name in FILES]:
            raise UserError("output", f"{config.output}, which would overwrite {key}={path}", "another directory",
                            "name one for the report alone")  # fmt: skip

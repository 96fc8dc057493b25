"""Outcomes -> the rows of the tables, and the differences of systems with interval and p-value.

In: the outcome of each set. Out: JSON values. A row holds the mean of each metric with its bootstrap interval; where
there are several sets, a table of each and one over all: each set counts alike, and a system stands in it that every
set has. p-values are of the paired randomisation test; `p_holm` is corrected (Holm) for all differences and sets of a
metric, those over all sets for each other. Pure functions.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from reranker.config.models import EvaluateConfig
from reranker.errors import UserError
from reranker.evaluate.metrics import estimate, rank_of_right
from reranker.evaluate.outcome import FUSED, WITHOUT, Outcome
from reranker.evaluate.statistics import Sample, estimate_over_sets, holm, p_value
from reranker.evaluate.systems import BASE, TUNED

COMPARED = ((TUNED, BASE), (TUNED, WITHOUT), (FUSED, WITHOUT))


def rows_of(config: EvaluateConfig, outcomes: Sequence[Outcome]) -> list[dict[str, Any]]:
    """The rows of the table of one set, or of that over several."""
    shared = [name for name in outcomes[0].values if all(name in one.values for one in outcomes)]
    rows = []
    for system in shared:
        row: dict[str, Any] = {"system": system, "queries": sum(len(one.queries) for one in outcomes)}
        for metric in config.metrics:
            row[metric] = _estimate([one.sample(system, metric) for one in outcomes], config)
        latencies = [one.latency[system] for one in outcomes if system in one.latency]
        if len(latencies) == len(outcomes):
            row["latency"] = {
                "median": float(np.mean([each["median"] for each in latencies])),
                "p95": float(np.mean([each["p95"] for each in latencies])),
                "queries": sum(int(each["queries"]) for each in latencies),
            }
        rows.append(row)
    return rows


def differences_of(config: EvaluateConfig, families: Sequence[Sequence[Outcome]]) -> list[list[dict[str, Any]]]:
    """The differences of each of `families`, a family being a set by itself or all; Holm over all that are given."""
    found = []
    for outcomes in families:
        rows = []
        for ours, theirs in _pairs(config, outcomes):
            row: dict[str, Any] = {"system": ours, "minus": theirs}
            for metric in config.metrics:
                samples = [one.difference(ours, theirs, metric) for one in outcomes]
                row[metric] = _estimate(samples, config) | {"p": p_value(samples, config.permutations, config.seed)}
            rows.append(row)
        found.append(rows)
    every = [row for rows in found for row in rows]
    for metric in config.metrics:
        for row, corrected in zip(every, holm([row[metric]["p"] for row in every]), strict=True):
            row[metric]["p_holm"] = corrected
    return found


def details_of(config: EvaluateConfig, one: Outcome, stage: str) -> dict[str, Any]:
    """What a set's table says below it."""
    found = [
        rank_of_right(names, query.judged) is not None
        for names, query in zip(one.candidates, one.queries, strict=True)
    ]  # fmt: skip
    return {
        "queries": len(one.queries),
        "passages": one.passages,
        "clusters": len(set(one.clusters)),
        # No reranker can rank what the first stage did not find.
        "right_within_depth": float(np.mean(found)),
        "without_relevant": sum(not query.relevant for query in one.queries),
        "stage": stage,
        "depth": one.depth,
        "contexts": config.contexts,
    }


def lines_of(one: Outcome) -> list[dict[str, Any]]:
    """The lines of queries.jsonl: of each query all that a later comparison wants, texts of passages apart."""
    lines = []
    for index, query in enumerate(one.queries):
        names = list(one.candidates[index])
        places = {name: place for place, name in enumerate(names)}
        rankings = {system: of[index] for system, of in one.rankings.items()}
        lines.append(
            {"set": one.name, "qid": query.qid, "query": query.query, "cluster": query.cluster,
             "judged": dict(query.judged), "candidates": names,
             "scores": {system: list(of[index]) for system, of in one.scores.items()},
             "order": {system: [places[name] for name in ranked] for system, ranked in rankings.items()},
             "ranks": {system: rank_of_right(ranked, query.judged) for system, ranked in rankings.items()},
             "metrics": {system: {metric: float(values[index]) for metric, values in of.items()}
                         for system, of in one.values.items()}}
        )  # fmt: skip
    return lines


def _pairs(config: EvaluateConfig, outcomes: Sequence[Outcome]) -> list[tuple[str, str]]:
    names = [name for name in outcomes[0].values if all(name in one.values for one in outcomes)]
    if config.baseline is None:
        others = [(TUNED, name) for name in names if name not in (WITHOUT, BASE, TUNED, FUSED)]
        return [(ours, theirs) for ours, theirs in (*COMPARED, *others) if ours in names and theirs in names]
    if config.baseline not in names:
        raise UserError("baseline", config.baseline, "one of " + ", ".join(names), "choose one, or leave it out")
    return [(name, config.baseline) for name in names if name != config.baseline]


def _estimate(samples: Sequence[Sample], config: EvaluateConfig) -> dict[str, float]:
    if len(samples) == 1:
        return estimate(*samples[0], config.resamples, config.seed).to_dict()
    return estimate_over_sets(samples, config.resamples, config.seed).to_dict()

"""Sets of an evaluation that a model is tried on again and again: read, their candidates found once, and then scored.

In: sets in the forms of `evaluate sets=`, the metrics that are wanted, the forward of a model. Out: {set: {metric:
value of each query}}, alike on every rank. What a model scores are the same pairs every time, so that values of two
models are paired. Raises `UserError`, in the words of the key that holds the sets.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from reranker.config.models import EvaluateConfig
from reranker.data.tokenize import PairTokenizer
from reranker.errors import UserError
from reranker.evaluate.crew import Crew
from reranker.evaluate.fingerprint import digest
from reranker.evaluate.first_stage import find
from reranker.evaluate.metrics import per_query
from reranker.evaluate.rank import Query, rank_by_scores
from reranker.evaluate.regression_gate import CONTEXTS
from reranker.evaluate.sets import EvaluationSet, sets_of
from reranker.evaluate.shared import Score, SharedScorer


@dataclass(frozen=True)
class ScoredSet:
    """A set with its candidates.

    Attributes:
        candidates: ids of what is scored for each query; texts: of these and of all judged passages.
        sha256: of all of it.
    """

    name: str
    queries: Sequence[Query]
    candidates: Sequence[Sequence[str]]
    texts: Mapping[str, str]
    sha256: str


class ScoredSets:
    """The sets of a setting. Read when it is made; `find` comes before all else.

    Args:
        key: the setting, as errors call it.
        sets: {NAME: path or settings}, or a yaml file that holds it.
        metrics: what is computed of each query, with `CONTEXTS` where a metric has no cutoff of its own.
    """

    def __init__(self, key: str, sets: Any, metrics: Sequence[str]) -> None:
        self.key, self.metrics = key, tuple(metrics)
        self._located = _located(key, sets)
        self._materials = [one.read() for one in self._located]
        self.queries = sum(len(material.queries) for material in self._materials)
        self._notes = [material.note for material in self._materials if material.note]
        self._found: list[ScoredSet] = []

    @property
    def names(self) -> list[str]:
        return [one.name for one in self._located]

    @property
    def notes(self) -> list[str]:
        """What there is to tell of what was read."""
        return self._notes

    @property
    def found(self) -> Sequence[ScoredSet]:
        """The sets whose candidates are found: none before `find`, and all of them behind it."""
        return self._found

    @property
    def digests(self) -> dict[str, str]:
        """{set: what changes with any text, judgement or candidate}."""
        return {one.name: one.sha256 for one in self._found}

    @property
    def sha256(self) -> str:
        """Changes with any of the digests, and with the metrics."""
        return digest([*self.metrics, *([one.name, one.sha256] for one in self._found)])

    def find(self, crew: Crew, device: str) -> None:
        """Find the candidates of all queries. A collective call. Raises UserError, on every rank alike."""
        for one, material in zip(self._located, self._materials, strict=True):
            candidates = find(one, material, material.queries, crew, device)
            named = {name for names in candidates for name in names}
            named |= {name for query in material.queries for name in query.judged if name in material.corpus}
            texts = {name: material.corpus[name].text for name in sorted(named)}
            described = [[query.query, query.cluster, dict(query.judged)] for query in material.queries]
            sha256 = digest([texts, described, candidates])
            if len(set(crew.gather(sha256))) > 1:
                error = UserError(f"{self.key}.{one.name}", "other texts on one rank than on another",
                                  "the same files on all nodes", "copy them anew")  # fmt: skip
                error.agreed = True
                raise error
            self._found.append(ScoredSet(one.name, material.queries, candidates, texts, sha256))
        self._materials.clear()  # of a large corpus only the candidates are wanted from here on

    def scorers(self, tokenizer: PairTokenizer, batch_tokens: int = 4096) -> list[SharedScorer]:
        """What scores the sets with a model of this tokenizer and contract."""
        return [
            SharedScorer(
                [(query.query, [one.texts[name] for name in names])
                 for query, names in zip(one.queries, one.candidates, strict=True)],
                tokenizer, batch_tokens,
            )
            for one in self._found
        ]  # fmt: skip

    def per_query(
        self, scorers: Sequence[SharedScorer], score: Score, crew: Crew, device: torch.device, packed: bool
    ) -> dict[str, dict[str, np.ndarray]]:
        """{set: {metric: values_Q}}. A collective call. Raises UserError, on every rank alike, for a score that is not
        finite."""
        found = {}
        for one, scorer in zip(self._found, scorers, strict=True):
            scores_N = scorer.scores(score, crew.rank, crew.world, crew.gather, device, packed)
            if lost := int((~np.isfinite(scores_N)).sum()):
                error = UserError(f"{self.key}.{one.name}", f"{lost} scores that are not finite", "numbers",
                                  "score in fp32 and check the weights; in a training lower optim.lr")  # fmt: skip
                error.agreed = True
                raise error
            scores = iter(scores_N.tolist())
            of_queries = [[next(scores) for _ in names] for names in one.candidates]
            rankings = rank_by_scores(one.queries, one.candidates, of_queries)
            judged = [query.judged for query in one.queries]
            text_of = functools.partial(_text, one.texts)
            found[one.name] = per_query(rankings, judged, CONTEXTS, self.metrics, text_of)
        return found


def _text(texts: Mapping[str, str], name: str) -> str:
    return texts.get(name, "")  # judged, and not in the corpus


def _located(key: str, sets: Any) -> list[EvaluationSet]:
    """The sets, their files found, in the words of the key."""
    try:
        return sets_of(EvaluateConfig(sets=sets, contexts=1))
    except UserError as error:
        first, dot, rest = error.where.partition(".")
        where = f"{key}{dot}{rest}" if first == "sets" else error.where
        fix = error.fix.replace("say sets", f"say {key}")
        raise UserError(where, error.found, error.expected, fix) from None

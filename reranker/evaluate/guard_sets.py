"""The guard sets of a regression gate: read, their candidates found, and each query's value of a model on them.

In: `gate.sets`, in the forms of `evaluate sets=`; a model in training, or one by name. Out: {set: value of each query},
alike on every rank. What a model scores are the same pairs every time, so that values of two models are paired. Raises
`UserError`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from reranker.config.models import EvaluateConfig
from reranker.config.regression_gate import ExportGateConfig, GateConfig
from reranker.data.tokenize import Contract, PairTokenizer
from reranker.errors import UserError
from reranker.evaluate.crew import Crew
from reranker.evaluate.fingerprint import digest
from reranker.evaluate.first_stage import find
from reranker.evaluate.metrics import per_query
from reranker.evaluate.rank import Query, rank_by_scores
from reranker.evaluate.regression_gate import CONTEXTS, Paired, Rule, Verdict, judge
from reranker.evaluate.sets import EvaluationSet, sets_of
from reranker.evaluate.shared import Score, SharedScorer
from reranker.model.cross_encoder import load_model, load_tokenizer, score_pairs
from reranker.model.reranker import DTYPES, as_in_training, contract_of, device_and_precision
from reranker.model.unpad import pack, resolve_packing
from reranker.train.gate import no_ranking

Values = dict[str, list[float]]
"""{set: the metric's value of each query}."""


@dataclass(frozen=True)
class Guard:
    """A guard set with its candidates.

    Attributes:
        candidates: ids of what is scored for each query; texts: of these and of all judged passages.
        sha256: of all of it.
    """

    name: str
    queries: Sequence[Query]
    candidates: Sequence[Sequence[str]]
    texts: Mapping[str, str]
    sha256: str


class GuardSets:
    """The guard sets of a gate. Read when it is made; `find` comes before all else.

    Args:
        sets: {NAME: path or settings}, or a yaml file that holds it.
    """

    def __init__(self, sets: Any, rule: Rule) -> None:
        self.rule = rule
        self._found = _located(sets)
        self._materials = [one.read() for one in self._found]
        self.queries = sum(len(material.queries) for material in self._materials)
        self._guards: list[Guard] = []

    @property
    def names(self) -> list[str]:
        return [one.name for one in self._found]

    @property
    def sha256(self) -> str:
        """Changes with any text, judgement or candidate, and with the metric."""
        return digest([self.rule.metric, *([one.name, one.sha256] for one in self._guards)])

    def find(self, crew: Crew, device: str) -> None:
        """Find the candidates of all queries. A collective call. Raises UserError, on every rank alike."""
        for one, material in zip(self._found, self._materials, strict=True):
            candidates = find(one, material, material.queries, crew, device)
            named = {name for names in candidates for name in names}
            named |= {name for query in material.queries for name in query.judged if name in material.corpus}
            texts = {name: material.corpus[name].text for name in sorted(named)}
            described = [[query.query, query.cluster, dict(query.judged)] for query in material.queries]
            sha256 = digest([texts, described, candidates])
            if len(set(crew.gather(sha256))) > 1:
                error = UserError(f"gate.sets.{one.name}", "other texts on one rank than on another",
                                  "the same files on all nodes", "copy them anew")  # fmt: skip
                error.agreed = True
                raise error
            self._guards.append(Guard(one.name, material.queries, candidates, texts, sha256))
        self._materials.clear()  # of a large corpus only the candidates are wanted from here on

    def scorers(self, tokenizer: PairTokenizer, batch_tokens: int = 4096) -> list[SharedScorer]:
        """What scores the sets with a model of this tokenizer and contract."""
        return [
            SharedScorer(
                [(query.query, [guard.texts[name] for name in names])
                 for query, names in zip(guard.queries, guard.candidates, strict=True)],
                tokenizer, batch_tokens,
            )
            for guard in self._guards
        ]  # fmt: skip

    def values(
        self, scorers: Sequence[SharedScorer], score: Score, crew: Crew, device: torch.device, packed: bool
    ) -> Values:
        """The metric of each query. A collective call. Raises UserError, on every rank alike, for a score that is not
        finite."""
        found: Values = {}
        for guard, scorer in zip(self._guards, scorers, strict=True):
            scores_N = scorer.scores(score, crew.rank, crew.world, crew.gather, device, packed)
            if lost := int((~np.isfinite(scores_N)).sum()):
                error = UserError(f"gate.sets.{guard.name}", f"{lost} scores that are not finite", "numbers",
                                  "score in fp32 and check the weights; in a training lower optim.lr")  # fmt: skip
                error.agreed = True
                raise error
            scores = iter(scores_N.tolist())
            of_queries = [[next(scores) for _ in names] for names in guard.candidates]
            rankings = rank_by_scores(guard.queries, guard.candidates, of_queries)
            judged = [query.judged for query in guard.queries]
            metric = self.rule.metric
            values = per_query(rankings, judged, CONTEXTS, [metric], lambda name, of=guard.texts: of.get(name, ""))  # type: ignore[misc]
            found[guard.name] = values[metric].tolist()
        return found

    def values_of(
        self, name: str, key: str, crew: Crew, device: str, precision: str = "auto", *,
        by_autocast: bool = False, revision: str | None = None, contract: Contract | None = None,
    ) -> Values:  # fmt: skip
        """The same of a model by directory or hub name, loaded for it; None: under the contract of its own.

        `key` is what errors call it. A collective call. Raises UserError, for a model without a trained head too.
        """
        at, meant = device_and_precision(device, precision)

        def load() -> tuple[Any, PairTokenizer]:
            model, fresh = load_model(name, revision=revision, key=key)
            if fresh:
                raise no_ranking(key, name)
            tokenizer = load_tokenizer(name, revision, key)
            cut = PairTokenizer(tokenizer, contract or contract_of(model.config))
            return as_in_training(model, meant, by_autocast, at).eval(), cut

        model, tokenizer = crew.together(load)
        packed, _ = resolve_packing("auto", model.config, at, DTYPES[meant])
        if packed:
            pack(model)
        return self.values(self.scorers(tokenizer), lambda pairs: score_pairs(model, pairs), crew, at, packed)

    def judge(self, base: Values, model: Values, name: str, measured: str) -> Verdict:
        """The verdict on a model against a base; of a base that is a directory only its own name is told."""
        paired = [
            Paired(guard.name, base[guard.name], model[guard.name], [query.cluster for query in guard.queries])
            for guard in self._guards
        ]
        return judge(self.rule, Path(name).name if Path(name).is_dir() else name, measured, paired)


def guard_sets(config: GateConfig | ExportGateConfig) -> GuardSets:
    """The guard sets of a gate's settings."""
    return GuardSets(config.sets, Rule(config.metric, config.max_drop, config.significance))


def _located(sets: Any) -> list[EvaluationSet]:
    """The sets, their files found, in the words of the gate's keys."""
    try:
        return sets_of(EvaluateConfig(sets=sets, contexts=1))
    except UserError as error:
        where = f"gate.{error.where}" if error.where.partition(".")[0] == "sets" else error.where
        raise UserError(where, error.found, error.expected, error.fix.replace("say sets.", "say gate.sets.")) from None

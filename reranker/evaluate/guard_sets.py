"""The guard sets of a regression gate, and each query's value of a model on them.

In: `gate.sets`, in the forms of `evaluate sets=`; a model in training, or one by name. Out: {set: value of each query},
alike on every rank, and the verdict on a model. How sets are read and scored is in `scored_sets.py`. Raises
`UserError`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from reranker.config.regression_gate import ExportGateConfig, GateConfig
from reranker.data.tokenize import Contract, PairTokenizer
from reranker.evaluate.crew import Crew
from reranker.evaluate.regression_gate import Paired, Rule, Verdict, judge
from reranker.evaluate.scored_sets import ScoredSets
from reranker.evaluate.shared import Score, SharedScorer
from reranker.model.cross_encoder import load_model, load_tokenizer, score_pairs
from reranker.model.reranker import DTYPES, as_in_training, contract_of, device_and_precision
from reranker.model.unpad import pack, resolve_packing
from reranker.train.gate import no_ranking

Values = dict[str, list[float]]
"""{set: the metric's value of each query}."""


class GuardSets(ScoredSets):
    """The guard sets of a gate. Read when it is made; `find` comes before all else.

    Args:
        sets: {NAME: path or settings}, or a yaml file that holds it.
    """

    def __init__(self, sets: Any, rule: Rule) -> None:
        super().__init__("gate.sets", sets, [rule.metric])
        self.rule = rule

    def values(
        self, scorers: Sequence[SharedScorer], score: Score, crew: Crew, device: torch.device, packed: bool
    ) -> Values:
        """The metric of each query. A collective call. Raises UserError, on every rank alike, for a score that is not
        finite."""
        found = self.per_query(scorers, score, crew, device, packed)
        return {name: of_metrics[self.rule.metric].tolist() for name, of_metrics in found.items()}

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
            for guard in self.found
        ]
        return judge(self.rule, Path(name).name if Path(name).is_dir() else name, measured, paired)


def guard_sets(config: GateConfig | ExportGateConfig) -> GuardSets:
    """The guard sets of a gate's settings."""
    return GuardSets(config.sets, Rule(config.metric, config.max_drop, config.significance))

"""What each alpha of a soup is worth: metrics on dev groups, and the verdict of a gate.

In: the settings of a soup, the model that weights are put into, weights. Out: a `Tasted` for each alpha, of which
`best` takes one. All are scored by one forward under one contract, as is the gate's base, unless it is another model.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from reranker.config.models import SoupConfig
from reranker.data.tokenize import PairTokenizer
from reranker.evaluate.crew import Alone
from reranker.evaluate.dev import DevEvaluator
from reranker.evaluate.guard_sets import GuardSets, guard_sets
from reranker.evaluate.metrics import METRICS
from reranker.evaluate.regression_gate import Verdict
from reranker.evaluate.table import title
from reranker.model.cross_encoder import score_pairs
from reranker.model.reranker import DTYPES, device_and_precision
from reranker.model.unpad import pack, resolve_packing

Weights = Mapping[str, torch.Tensor]


@dataclass(frozen=True)
class Tasted:
    """One alpha: its metrics on the dev groups, {} without any, and its verdict, None without a gate."""

    alpha: float
    metrics: Mapping[str, float] = field(default_factory=dict)
    verdict: Verdict | None = None

    @property
    def passed(self) -> bool:
        return self.verdict is None or self.verdict.passed


class Taster:
    """Tries weights on the dev groups and the guard sets that the settings name, if they name any.

    Args:
        model: of the weights' architecture; it is moved, and holds the weights that were tried last.
        base: weights with which those of others are compared.

    Raises UserError for files that cannot be read.
    """

    def __init__(self, config: SoupConfig, model: Any, encoder: PairTokenizer, base: Weights) -> None:
        self._model = model
        self._dev = DevEvaluator(config.dev, encoder) if config.dev else None
        self._guards: GuardSets | None = guard_sets(config.gate) if config.gate.sets is not None else None
        if self._dev is None and self._guards is None:
            return
        self._device, precision = device_and_precision(config.device.value, "auto")
        self._packed, _ = resolve_packing("auto", model.config, self._device, DTYPES[precision])
        model.to(self._device, DTYPES[precision]).eval()
        if self._packed:
            pack(model)
        if self._guards is not None:
            self._guards.find(Alone(), config.device.value)
            self._scorers = self._guards.scorers(encoder)
            self._measured = f"at the mixing, {precision.value} ({self._device.type})"
            self._name = config.gate.base or config.base
            if config.gate.base is None:
                self._put(base)
                self._base = self._guards.values(self._scorers, self._score, Alone(), self._device, self._packed)
            else:
                self._base = self._guards.values_of(config.gate.base, "gate.base", Alone(), config.device.value)

    def taste(self, alpha: float, weights: Weights) -> Tasted:
        """What `weights` are worth."""
        metrics: dict[str, float] = {}
        verdict = None
        if self._dev is not None or self._guards is not None:
            self._put(weights)
        if self._dev is not None:
            metrics, _ = self._dev.evaluate(self._score, 0, 1, lambda values: [values], self._device, self._packed)
        if self._guards is not None:
            values = self._guards.values(self._scorers, self._score, Alone(), self._device, self._packed)
            verdict = self._guards.judge(self._base, values, self._name, self._measured)
        return Tasted(alpha, metrics, verdict)

    def _put(self, weights: Weights) -> None:
        self._model.load_state_dict(weights, strict=False)  # buffers are the model's own

    def _score(self, pairs: Any) -> torch.Tensor:
        return score_pairs(self._model, pairs)


def best(tasted: Sequence[Tasted], metric: str) -> Tasted:
    """The best by `metric` of those that pass; among equals the one that is nearer to the tuned model.

    The base passes by nature. Where nothing else does, it is no answer: then the best of the others, which fails.
    """
    passing = [one for one in tasted if one.passed]
    if not any(one.alpha for one in passing):
        passing = [one for one in tasted if one.alpha] or list(tasted)
    return max(passing, key=lambda one: (one.metrics.get(metric, 0.0), one.alpha))


def table(tasted: Sequence[Tasted], chosen: Tasted) -> str:
    """All of them as Markdown, a line each; "" where there is nothing to tell."""
    metrics = [metric for metric in METRICS if metric in tasted[0].metrics]
    verdict = tasted[0].verdict
    guards = [f"{title(verdict.rule.metric)} on {one.name}" for one in verdict.sets] if verdict else []
    if not metrics and not guards:
        return ""
    lines = ["| alpha | " + " | ".join([*metrics, *guards]) + " |", "|---|" + "---:|" * len([*metrics, *guards])]
    for one in tasted:
        cells = [f"{one.metrics[metric]:.4f}" for metric in metrics]
        for of_set in one.verdict.sets if one.verdict else ():
            cells.append(f"{of_set.difference.value:+.4f}{'' if of_set.passed else ' (failed)'}")
        mark = " (chosen)" if math.isclose(one.alpha, chosen.alpha) else ""
        lines.append(f"| {one.alpha:g}{mark} | {' | '.join(cells)} |")
    if verdict:
        lines += ["", f"On guard sets: the difference to {verdict.base}; {verdict.rule.max_drop:g} may be lost."]
    return "\n".join(lines) + "\n"

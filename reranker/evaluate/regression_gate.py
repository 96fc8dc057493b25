"""The regression gate: whether a model loses more than allowed against its base on any guard set.

In: a rule, and what base and model have on each query of each set. Out: a `Verdict`. A set fails where the mean
difference is below -max_drop, however sure that is; with a `significance` only where the p-value, corrected for the
number of sets, is that small as well. The model fails where a set does. Pure functions.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from reranker.errors import UserError
from reranker.evaluate.measures import measure
from reranker.evaluate.metrics import Estimate, estimate_difference
from reranker.evaluate.statistics import holm, p_value, told_p

FILE = "gate.json"
"""A verdict as JSON, in the directory of an exported model."""
CONTEXTS = 5
"""What measures without a cutoff of their own look among, as in the evaluation on dev groups."""
_ROUNDING = 1e-9
"""A difference of means is a sum of rounded numbers: 0.50 - 0.49 is no more than 0.01."""


@dataclass(frozen=True)
class Rule:
    """What is allowed; `significance` None: a loss fails however sure it is. Raises UserError for what cannot be."""

    metric: str
    max_drop: float
    significance: float | None = None

    def __post_init__(self) -> None:
        try:
            measure(self.metric, CONTEXTS)
        except UserError as error:
            raise UserError("gate.metric", error.found, error.expected, error.fix) from None
        if not 0 <= self.max_drop < math.inf:
            raise UserError("gate.max_drop", str(self.max_drop), "0 or more", "change the value")
        if self.significance is not None and not 0 < self.significance < 1:
            raise UserError("gate.significance", str(self.significance), "a probability, or null", "say 0.05, or null")


@dataclass(frozen=True)
class Paired:
    """A guard set and what two models have on its queries; queries of one cluster are not independent."""

    name: str
    base_Q: Sequence[float]
    model_Q: Sequence[float]
    clusters: Sequence[Hashable]


@dataclass(frozen=True)
class SetVerdict:
    """A guard set.

    Attributes:
        name, queries: the user's name and how many queries it has.
        base, model: means of the metric.
        difference: model minus base with its 95% interval (bootstrap over clusters of queries).
        p: of the paired randomisation test that there is none; p_holm: corrected for the number of sets.
    """

    name: str
    queries: int
    base: float
    model: float
    difference: Estimate
    p: float
    p_holm: float
    passed: bool

    @property
    def drop(self) -> float:
        """What is lost; negative where something is gained."""
        return self.base - self.model


@dataclass(frozen=True)
class Verdict:
    """Attributes:
    base: what the model was compared with. measured: how both scored, in words.
    """

    rule: Rule
    base: str
    measured: str
    sets: tuple[SetVerdict, ...]

    @property
    def passed(self) -> bool:
        return all(one.passed for one in self.sets)

    def metrics(self) -> dict[str, float]:
        """What a training logs."""
        logged = {"gate/passed": float(self.passed)}
        for one in self.sets:
            logged |= {f"gate/{one.name}/{self.rule.metric}": one.model, f"gate/{one.name}/drop": one.drop,
                       f"gate/{one.name}/p": one.p_holm}  # fmt: skip
        return logged

    def losses(self) -> str:
        """Where it fails, in words, the largest loss first; "" where it does not."""
        failed = sorted((one for one in self.sets if not one.passed), key=lambda one: -one.drop)
        lost = ", ".join(
            f"{one.drop:.4f} {self.rule.metric} on {one.name} ({one.base:.4f} to {one.model:.4f}, {told_p(one.p_holm)})"
            for one in failed
        )
        return f"loses {lost}" if lost else ""

    def to_dict(self) -> dict[str, Any]:
        """As JSON holds it."""
        sets = [asdict(one) for one in self.sets]
        return {"passed": self.passed, **asdict(self.rule), "base": self.base, "measured": self.measured, "sets": sets}

    @classmethod
    def of(cls, stored: Mapping[str, Any]) -> Verdict:
        """The verdict that `to_dict` gave."""
        sets = tuple(SetVerdict(**{**one, "difference": Estimate(**one["difference"])}) for one in stored["sets"])
        rule = Rule(stored["metric"], stored["max_drop"], stored["significance"])
        return cls(rule, stored["base"], stored["measured"], sets)


def judge(rule: Rule, base: str, measured: str, paired: Sequence[Paired]) -> Verdict:
    """The verdict on a model; `base` and `measured` are for whoever reads it."""
    differences = [np.asarray(one.model_Q, np.float64) - np.asarray(one.base_Q, np.float64) for one in paired]
    p_values = [p_value([(values_Q, one.clusters)]) for values_Q, one in zip(differences, paired, strict=True)]
    sets = []
    for one, p, p_holm in zip(paired, p_values, holm(p_values), strict=True):
        base_Q, model_Q = np.asarray(one.base_Q, np.float64), np.asarray(one.model_Q, np.float64)
        difference = estimate_difference(model_Q, base_Q, one.clusters)
        too_much = difference.value < -rule.max_drop - _ROUNDING
        excused = rule.significance is not None and p_holm > rule.significance
        sets.append(
            SetVerdict(one.name, len(base_Q), float(base_Q.mean()), float(model_Q.mean()), difference, p, p_holm,
                       passed=not too_much or excused)
        )  # fmt: skip
    return Verdict(rule, base, measured, tuple(sets))

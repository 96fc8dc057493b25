"""The settings of the regression gate: what a model may lose against its base on guard sets."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Optional

# omegaconf reads Optional[...] on every Python that we support; the X | None form it does not.
# ruff: noqa: UP045


class GateAction(Enum):
    refuse = "refuse"
    mark = "mark"


@dataclass
class GateConfig:
    sets: Any = field(default=None, metadata={"kind": "mapping or yaml file, or null"})
    """Guard sets, on each of which the base is compared: {NAME: groups file}, or as evaluate has them; null: no gate"""
    metric: str = "ndcg@10"
    """What is compared: any of evaluate's metrics"""
    max_drop: float = 0.01
    """Allowed loss of that metric against the base on any set, absolute; a set on which more is lost fails"""
    significance: Optional[float] = None
    """null: such a loss fails however sure it is; a number: only if its p, Holm over the sets, is at most this"""
    base: Optional[str] = None
    """Directory or hub name of the reranker to compare with; null: the one that the model was tuned from"""
    action: GateAction = GateAction.refuse
    """A model that fails: `refuse` to write it, or write it and `mark` it in its card"""


@dataclass
class ExportGateConfig:
    sets: Any = field(default=None, metadata={"kind": "mapping or yaml file, or null"})
    """Guard sets on which the exported weights are tried; null: what the training's own gate found, if it had one"""
    metric: str = "ndcg@10"
    """With sets: what is compared, any of evaluate's metrics"""
    max_drop: float = 0.01
    """With sets: allowed loss of that metric against the base on any set, absolute"""
    significance: Optional[float] = None
    """With sets; null: more loss fails however sure it is; a number: only if its p, Holm over sets, is at most this"""
    base: Optional[str] = None
    """With sets: directory or hub name of the reranker to compare with; null: the one that the training began with"""
    action: Optional[GateAction] = None
    """A model that fails: `refuse` to write it, or write it and `mark` it in its card; null: as the training has it"""

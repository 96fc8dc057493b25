"""Which metric selects the best checkpoint: one of the dev groups, or of an evaluation set.

In: the settings of a training, and the names of its sets once they are read. Out: what `train.metric` names. Raises
`UserError` for a metric by which nothing can be selected. By what a training has selected is told by its checkpoints
alone: every start writes its settings anew, also one that finds the training finished.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from reranker.config.training import TrainConfig
from reranker.errors import UserError, closest

SELECTING = ("mrr", "ndcg@10")
"""The metrics that may select."""


def of_set(metric: str) -> tuple[str | None, str]:
    """(the set, its metric) of `SET/METRIC`; (None, metric) for one of the dev groups."""
    name, slash, own = metric.rpartition("/")
    return (name if slash else None), own


def best_of(state: Mapping[str, Any]) -> dict[str, Any] | None:
    """The entry of the best checkpoint, with its `metric`, that the state of the newest one holds; None where none was
    evaluated. Where a gate has let none pass it is the best of those that failed."""
    return next((entry for entry in (state.get("best"), *(state.get("ranking") or ())) if entry), None)


def check_selection(config: TrainConfig) -> None:
    """Refuse what no set of data.dev_sets, whatever its name, could select by; an empty data.dev is none.

    Raises UserError.
    """
    data, metric = config.data, config.train.metric
    if config.gate.sets is not None and not data.dev and data.dev_sets is None:
        raise UserError("data.dev", "no groups beside gate.sets", "groups that select among the checkpoints that pass",
                        "say data.dev=dev.jsonl, or leave gate.sets out")  # fmt: skip
    name, own = of_set(metric)
    if own not in SELECTING:
        sets = "" if data.dev_sets is None else ", or NAME/mrr or NAME/ndcg@10 of a set in data.dev_sets"
        raise UserError("train.metric", metric, f"mrr or ndcg@10{sets}", "change the value")
    if name is not None and data.dev_sets is None:
        raise UserError("train.metric", f"{metric} without data.dev_sets", "mrr or ndcg@10 of data.dev",
                        f"say data.dev_sets={{{name}: ...}}, or train.metric={own}")  # fmt: skip
    if name is None and not data.dev and data.dev_sets is not None:
        raise UserError("train.metric", f"{metric}, which is of data.dev, and no data.dev",
                        "a metric of a set in data.dev_sets",
                        f"say train.metric=NAME/{metric} with the NAME of a set, or data.dev=dev.jsonl")  # fmt: skip


def check_set(metric: str, sets: Sequence[str]) -> None:
    """Refuse a metric of a set that is not among `sets`. Raises UserError."""
    name, own = of_set(metric)
    if name is None or name in sets:
        return
    near = closest(name, sets)
    raise UserError("train.metric", f"{metric}, and no set of that name in data.dev_sets",
                    "one of " + ", ".join(f"{known}/{own}" for known in sets),
                    f"did you mean {near}/{own}?" if near else "change the value")  # fmt: skip

"""The settings of a training -> the rows of its model card's table, (name in the words, value); None: not known."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from reranker.config.common import LabelLoss, TeacherLoss
from reranker.export import passages
from reranker.export.card_words import Words

if TYPE_CHECKING:
    from reranker.export.model_card import CardFacts


def training_rows(facts: CardFacts, say: Words) -> list[tuple[str, Any]]:
    """What the model was trained with, and how far. A pure function."""
    model, data, batch, optim, train = (
        facts.settings.get(name) or {} for name in ("model", "data", "batch", "optim", "train")
    )
    groups, per_gpu = batch.get("groups"), batch.get("per_gpu")
    by_tokens = batch.get("policy") == "tokens"
    per_gpu = None if by_tokens else per_gpu
    accumulation = groups // (per_gpu * facts.world) if groups and per_gpu and facts.world else None
    warmup, dropout = optim.get("warmup"), model.get("dropout")
    clipping, betas = optim.get("max_grad_norm"), ", ".join(f"{beta:g}" for beta in optim.get("betas", ()))
    contract = facts.contract
    return [
        ("loss", _loss(facts.settings.get("loss") or {}, say)),
        ("recipe", facts.settings.get("recipe")),
        ("revision", model.get("revision")),
        ("lr", _number(optim.get("lr"))),
        ("epochs", train.get("epochs")),
        ("max_steps", train.get("max_steps")),
        ("per_gpu", per_gpu),
        ("accumulation", accumulation),
        ("tokens", (facts.measured_tokens or batch.get("tokens")) if by_tokens else None),
        ("groups", groups),
        ("group_size", data.get("group_size")),
        *passages.rows(data, say),
        ("max_length", contract.max_length),
        ("query_max_length", contract.query_max_length),
        ("passage_max_length", contract.passage_max_length),
        ("query_prefix", _quoted(contract.query_prefix)),
        ("passage_prefix", _quoted(contract.passage_prefix)),
        ("truncation", contract.truncation),
        ("weight_decay", _number(optim.get("weight_decay"))),
        ("schedule", say("training.values.schedule") if "lr" in optim else None),
        ("warmup", say("training.values.warmup", warmup) if warmup else None),
        ("optimizer", f"AdamW, betas {betas}, eps {optim['eps']:g}" if betas else None),
        ("clipping", _number(clipping) if clipping else None),
        ("dropout", _number(dropout)),
        ("checkpointing", say("training.values.yes") if model.get("gradient_checkpointing") else None),
        ("seed", train.get("seed")),
        ("step", facts.step),
        ("epoch", None if facts.epoch is None else f"{facts.epoch:.2f}"),
        ("groups_seen", None if facts.groups_seen is None else f"{facts.groups_seen:,}"),
    ]


def _loss(settings: Mapping[str, Any], say: Words) -> str:
    weights = {
        settings.get("by_label", LabelLoss.listwise.value): settings.get("labels", 1.0),
        settings.get("by_teacher", TeacherLoss.kl.value): settings.get("distillation", 0.0),
    }
    temperatures = {
        "training.scores_divided": settings.get("score_temperature", 1.0),
        "training.teacher_divided": settings.get("temperature", 1.0),
    }
    parts = []
    for name, weight in (*weights.items(), *sorted((settings.get("more") or {}).items())):
        if weight:
            divided = "training.scores_divided" if name in LabelLoss.__members__ else "training.teacher_divided"
            temperature = temperatures[divided]
            times = "" if weight == 1 else f"{weight:g} x "
            parts.append(times + say(f"training.losses.{name}")
                         + ("" if temperature == 1 else say(divided, temperature=temperature)))  # fmt: skip
    return " + ".join(parts)


def _quoted(prefix: str) -> str | None:
    """A prefix for a cell of a table, with the blanks at its ends to be seen; None for an empty one."""
    return f"`{json.dumps(prefix, ensure_ascii=False)}`".replace("|", "\\|") if prefix else None


def _number(value: float | None) -> str | None:
    return None if value is None else f"{value:g}"

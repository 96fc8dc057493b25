"""What is known of a training run -> the README.md of its exported model. A pure function.

In: `CardFacts`. Out: Markdown with YAML front matter, in the shape of Dongjin-kr/ko-reranker's card: what the
model is, how four libraries score with it, its data, its performance, how it was trained. A fact that is not
known is left out, never guessed. How the facts are gathered is `export.huggingface`'s business.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from reranker.config.common import LabelLoss, TeacherLoss
from reranker.data.tokenize import Contract
from reranker.evaluate.regression_gate import Verdict
from reranker.export import gate, passages
from reranker.export.performance import Performance
from reranker.export.quantize import Agreement
from reranker.export.usage import usage

LICENSES = {
    "BAAI/bge-reranker-base": "mit",
    "BAAI/bge-reranker-large": "mit",
    "BAAI/bge-reranker-v2-m3": "apache-2.0",
    "FacebookAI/xlm-roberta-base": "mit",
    "FacebookAI/xlm-roberta-large": "mit",
}
"""Licenses of base models as their own cards state them."""

_LOSSES = {
    "listwise": "cross-entropy over the scores of each group, the positive being the target",
    "multi_positive": "cross-entropy of each positive of a group among itself and the negatives",
    "pointwise": "binary cross-entropy of each passage",
    "ranknet": "RankNet over the pairs of a positive and a negative",
    "lambdaloss": "LambdaLoss (NDCG-Loss2++)",
    "listmle": "ListMLE",
    "plistmle": "position-aware ListMLE",
    "kl": "divergence from the softmax of a teacher's scores",
    "mse": "mean squared difference from a teacher's scores",
    "margin_mse": "mean squared difference from a teacher's margins",
}

METRICS = {"has_right_in_contexts": "has-right-in-contexts", "mrr": "MRR", "ndcg@10": "nDCG@10"}
"""Metrics of a report's rows and their names in the table."""


@dataclass(frozen=True)
class CardFacts:
    """What the card may say.

    Attributes:
        name: of the run, the card's title.
        base: hub name of the base model, or the last part of its directory's path.
        base_on_hub: whether `base` is a hub name; only such a name may stand in the front matter.
        contract: how pairs are cut.
        dtype: of the weights on the disk: fp32, fp16 or bf16.
        parameters: how many, or None.
        settings: the resolved training config, nested as TrainConfig; keys may be missing.
        license: an SPDX-like name of the Hugging Face hub, or None.
        groups: in the training data, or None.
        step, epoch, groups_seen: of the chosen checkpoint, or None.
        world, precision, stage: ranks, precision and ZeRO stage that the training ran with, or None; the
            settings hold what was asked for.
        packed: whether its forward was packed, which has no attention dropout, or None.
        measured_tokens: tokens of a micro-batch, where they were measured.
        dev: metrics of the chosen checkpoint on the dev groups.
        performance: of exactly the exported weights in an evaluation, or None.
        versions: of the libraries that trained.
        onnx: whether the model lies in the directory in ONNX as well.
        int8: how far the ONNX file in 8 bits agrees with the model, or None where there is none.
        gate: what it lost against its base on guard sets, or None where there was no gate.
    """

    name: str
    base: str
    base_on_hub: bool
    contract: Contract
    dtype: str
    parameters: int | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    license: str | None = None
    groups: int | None = None
    step: int | None = None
    epoch: float | None = None
    groups_seen: int | None = None
    world: int | None = None
    precision: str | None = None
    stage: int | None = None
    packed: bool | None = None
    measured_tokens: int | None = None
    dev: Mapping[str, float] = field(default_factory=dict)
    performance: Performance | None = None
    versions: Mapping[str, str] = field(default_factory=dict)
    onnx: bool = False
    int8: Agreement | None = None
    gate: Verdict | None = None


def model_card(facts: CardFacts) -> str:
    """The card as Markdown."""
    sections = (_front_matter, _introduction, _gate, _usage, _data, _performance, _training)
    return "\n\n".join(text for section in sections if (text := section(facts))) + "\n"


def _front_matter(facts: CardFacts) -> str:
    lines = ["---"]
    if facts.license:
        lines.append(f"license: {facts.license}")
    if language := facts.settings.get("language"):
        lines += ["language:", f"- {language}"]
    lines += ["library_name: transformers", "pipeline_tag: text-ranking"]
    if facts.base_on_hub:
        lines += ["base_model:", f"- {facts.base}"]
    lines += ["tags:", "- reranker", "- cross-encoder", "- sentence-transformers", "- text-embeddings-inference", "---"]
    return "\n".join(lines)


def _introduction(facts: CardFacts) -> str:
    base = f"[{facts.base}](https://huggingface.co/{facts.base})" if facts.base_on_hub else f"`{facts.base}`"
    size = f" It has {facts.parameters:,} parameters, stored in {facts.dtype}." if facts.parameters else ""
    return f"""# {facts.name}

A cross-encoder reranker, fine-tuned from {base}. It reads a query and a passage together and answers
with one relevance score. The score is a logit: it is trained by cross-entropy over the passages of a query, so it
is not confined to a range, and scores compare passages of the same query, not of different queries.{size}

This is a stock `AutoModelForSequenceClassification` with one label: no code of its own is needed to load it."""


def _gate(facts: CardFacts) -> str:
    """Above all else: whoever takes the model should know what it is worse at."""
    return gate.section(facts.gate) if facts.gate else ""


def _usage(facts: CardFacts) -> str:
    return usage(facts.name, facts.contract, facts.onnx, facts.int8)


def _data(facts: CardFacts) -> str:
    data = facts.settings.get("data", {})
    count = "" if facts.groups is None else f"{facts.groups:,} "
    what = f"The training data are {count}groups: a query with its positive and negative passages."
    return "## Data\n\n" + " ".join([what, *passages.sentences(data)])


def _performance(facts: CardFacts) -> str:
    if facts.performance is None:
        dtype = "" if facts.dtype == "fp32" else f" dtype={facts.dtype}"
        return f"""## Performance

This card has no evaluation of exactly these weights on a corpus with queries. To put one here:

```bash
reranker evaluate model=MODEL base={facts.base} corpus=corpus.jsonl queries=queries.jsonl output=RUN/report
reranker export run=RUN{dtype}
```"""
    lines = [
        "## Performance",
        "",
        "| system | " + " | ".join(METRICS.values()) + " |",
        "|---|" + "---:|" * len(METRICS),
    ]
    for row in facts.performance.rows:
        lines.append(f"| {row['system']} | " + " | ".join(_interval(row.get(metric)) for metric in METRICS) + " |")
    queries = {row["queries"] for row in facts.performance.rows if row.get("queries") is not None}
    count = f"{queries.pop():,} queries. " if len(queries) == 1 else ""
    lines += ["", f"{count}{facts.performance.scored}. In brackets: 95% bootstrap intervals."]
    return "\n".join(lines)


def _interval(cell: Mapping[str, float] | None) -> str:
    if not cell:
        return ""
    bounds = f" [{cell['low']:.3f}, {cell['high']:.3f}]" if "low" in cell and "high" in cell else ""
    return f"{cell['value']:.3f}{bounds}"


def _training(facts: CardFacts) -> str:
    rows = [(name, value) for name, value in _parameters(facts) if value is not None]
    lines = ["## Training", "", "| parameter | value |", "|---|---|"]
    lines += [f"| {name} | {value} |" for name, value in rows]
    groups = (facts.settings.get("batch") or {}).get("groups")
    if facts.settings.get("recipe") == "ko_reranker" and groups:
        link = "[Dongjin-kr/ko-reranker](https://huggingface.co/Dongjin-kr/ko-reranker)"
        lines += ["", f"The recipe follows {link}, whose run had 128 groups a step on 4 GPUs; here it is {groups}."]
    return "\n".join(lines)


def _loss(settings: dict[str, Any]) -> str:
    weights = {
        settings.get("by_label", LabelLoss.listwise.value): settings.get("labels", 1.0),
        settings.get("by_teacher", TeacherLoss.kl.value): settings.get("distillation", 0.0),
    }
    temperatures = {LabelLoss: settings.get("score_temperature", 1.0), TeacherLoss: settings.get("temperature", 1.0)}
    parts = []
    for name, weight in (*weights.items(), *sorted((settings.get("more") or {}).items())):
        if weight:
            of_labels = name in LabelLoss.__members__
            temperature = temperatures[LabelLoss if of_labels else TeacherLoss]
            whose = "the scores" if of_labels else "the teacher's scores"
            divided = "" if temperature == 1 else f", {whose} divided by {temperature:g}"
            parts.append(f"{'' if weight == 1 else f'{weight:g} x '}{_LOSSES[name]}{divided}")
    return " + ".join(parts)


def _parameters(facts: CardFacts) -> list[tuple[str, Any]]:
    """Rows of the training table; None where a value is not known."""
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
        ("loss", _loss(facts.settings.get("loss") or {})),
        ("recipe", facts.settings.get("recipe")),
        ("base model revision", model.get("revision")),
        ("learning rate", _number(optim.get("lr"))),
        ("precision", facts.precision),
        ("epochs", train.get("epochs")),
        ("steps at most", train.get("max_steps")),
        ("per-GPU batch (groups)", per_gpu),
        ("gradient accumulation", accumulation),
        ("per-GPU batch (tokens at most)", (facts.measured_tokens or batch.get("tokens")) if by_tokens else None),
        ("GPUs or processes", facts.world),
        ("groups a step", groups),
        ("group size", data.get("group_size")),
        *passages.rows(data),
        ("max_length", contract.max_length),
        ("query_max_length", contract.query_max_length),
        ("truncation", contract.truncation),
        ("weight decay", _number(optim.get("weight_decay"))),
        ("schedule", "linear decay" if "lr" in optim else None),
        ("warmup", f"{warmup:g} of the steps" if warmup else None),
        ("optimizer", f"AdamW, betas {betas}, eps {optim['eps']:g}" if betas else None),
        ("gradient clipping", _number(clipping) if clipping else None),
        ("dropout", None if dropout is None else f"{dropout:g}"),
        ("forward", {True: "packed (attention dropout 0)", False: "padded", None: None}[facts.packed]),
        ("gradient checkpointing", "yes" if model.get("gradient_checkpointing") else None),
        ("ZeRO stage", facts.stage),
        ("seed", train.get("seed")),
        ("steps of this checkpoint", facts.step),
        ("epochs behind this checkpoint", None if facts.epoch is None else f"{facts.epoch:.2f}"),
        ("groups seen", None if facts.groups_seen is None else f"{facts.groups_seen:,}"),
        *[(f"dev {METRICS.get(name, name)}", f"{value:.4f}") for name, value in facts.dev.items()],
        ("versions", ", ".join(f"{name} {version}" for name, version in facts.versions.items()) or None),
    ]


def _number(value: float | None) -> str | None:
    return None if value is None else f"{value:g}"

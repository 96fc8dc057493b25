"""What is known of a training run -> the README.md of its exported model. A pure function.

In: `CardFacts`. Out: Markdown with YAML front matter, in the shape of Dongjin-kr/ko-reranker's card: what the
model is, whether it passed its gate, how libraries score with it, its data, its performance, how and on what it was
trained, and its limits. A fact that is not known is left out, never guessed. A model for a language of which
`card_words` has the sentences gets all of it in that language, and in English below. How the facts are gathered is
`export.huggingface`'s business.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from reranker.config.models import ExportConfig
from reranker.data.tokenize import Contract
from reranker.evaluate.regression_gate import Verdict
from reranker.evaluate.statistics import told_p
from reranker.evaluate.table import title as title_of
from reranker.export import gate, origin, passages
from reranker.export.card_training import training_rows
from reranker.export.card_words import LANGUAGES, Words
from reranker.export.onnx import Fusion
from reranker.export.origin import Source
from reranker.export.performance import Performance
from reranker.export.quantize import Agreement
from reranker.export.usage import usage
from reranker.selection import of_set

LICENSES = {
    "BAAI/bge-reranker-base": "mit",
    "BAAI/bge-reranker-large": "mit",
    "BAAI/bge-reranker-v2-m3": "apache-2.0",
    "FacebookAI/xlm-roberta-base": "mit",
    "FacebookAI/xlm-roberta-large": "mit",
}
"""Licenses of base models as their own cards state them."""


@dataclass(frozen=True)
class CardFacts:
    """What the card may say.

    Attributes:
        name: of the run, the card's title.
        base: hub name of the base model, or the last part of its directory's path.
        base_on_hub: whether `base` is a hub name; only such a name may stand in the front matter.
        contract: how pairs are cut.
        dtype: of the weights on the disk: fp32, fp16 or bf16.
        checkpoint: what was asked for: best, last or a name.
        parameters: how many, or None.
        settings: the resolved training config, nested as TrainConfig; keys may be missing.
        license: an SPDX-like name of the Hugging Face hub, or None.
        groups: in the training data, or None.
        sources: of the training data, by their names; one alone has the name "".
        fingerprint: of the training data, or None.
        step, epoch, groups_seen: of the chosen checkpoint, or None.
        world, precision, stage: ranks, precision and ZeRO stage that the training ran with, or None; the
            settings hold what was asked for.
        packed: whether its forward was packed, which has no attention dropout, or None.
        measured_tokens: tokens of a micro-batch, where they were measured.
        device: what it trained on, by its name, or None.
        dev: metrics of this checkpoint on the dev groups, and as SET/METRIC on the set that the best is chosen by, if
            it is a set.
        chosen_by: the metric, as train.metric names it, by which it is the best of its run; None if it is not.
        performance: of exactly the exported weights in an evaluation, or None.
        gate: what it lost against its base on guard sets, or None where there was no gate.
        versions: of the libraries that trained.
        onnx: what became of the attentions in the ONNX file, or None where there is none.
        int8: how far the ONNX file in 8 bits agrees with the model, or None where there is none.
        int8_agreement: how far it had to, or None where that is not known.
    """

    name: str
    base: str
    base_on_hub: bool
    contract: Contract
    dtype: str
    checkpoint: str = "best"
    parameters: int | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    license: str | None = None
    groups: int | None = None
    sources: Mapping[str, Source] = field(default_factory=dict)
    fingerprint: str | None = None
    step: int | None = None
    epoch: float | None = None
    groups_seen: int | None = None
    world: int | None = None
    precision: str | None = None
    stage: int | None = None
    packed: bool | None = None
    measured_tokens: int | None = None
    device: str | None = None
    dev: Mapping[str, float] = field(default_factory=dict)
    chosen_by: str | None = None
    performance: Performance | None = None
    gate: Verdict | None = None
    versions: Mapping[str, str] = field(default_factory=dict)
    onnx: Fusion | None = None
    int8: Agreement | None = None
    int8_agreement: float | None = None


def model_card(facts: CardFacts) -> str:
    """The card as Markdown."""
    own = facts.settings.get("language")
    words = [Words(language) for language in dict.fromkeys((own, "en")) if language in LANGUAGES]
    title, several = f"# {facts.name}", len(words) > 1
    # A heading's anchor on the hub is its text, in any script.
    links = " · ".join(f"[{say('language')}](#{say('language').lower()})" for say in words)
    parts = [_front_matter(facts), title, *([links] if several else [])]
    for say in words:
        parts += [f"# {say('language')}"] if several else []
        parts += [text for section in _SECTIONS if (text := section(facts, say))]
    return "\n\n".join(parts) + "\n"


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


def _introduction(facts: CardFacts, say: Words) -> str:
    base = f"[{facts.base}](https://huggingface.co/{facts.base})" if facts.base_on_hub else f"`{facts.base}`"
    told = say("introduction.what", base=base)
    if facts.parameters:
        told += " " + say("introduction.size", parameters=facts.parameters, dtype=facts.dtype)
    return told + "\n\n" + say("introduction.stock")


def _usage(facts: CardFacts, say: Words) -> str:
    return usage(facts.name, facts.contract, say, facts.onnx, facts.int8)


def _data(facts: CardFacts, say: Words) -> str:
    data = facts.settings.get("data", {})
    told = [say("data.some") if facts.groups is None else say("data.groups", groups=facts.groups)]
    if known := origin.sentence(facts.sources, say):
        told.append(known)
    told += passages.sentences(data, say)
    if facts.fingerprint:
        told.append(say("data.fingerprint", fingerprint=facts.fingerprint))
    own = origin.own_words(data.get("origin"))
    return "\n\n".join([f"## {say('data.title')}", *([own] if own else []), " ".join(told)])


def _performance(facts: CardFacts, say: Words) -> str:
    title, found = f"## {say('performance.title')}", facts.performance
    if found is None:
        return f"""{title}

{say("performance.none")}

```bash
reranker evaluate model=MODEL base={facts.base} corpus=corpus.jsonl queries=queries.jsonl output=RUN/report
{_export_again(facts)}
```"""
    named = [(row["system"], row) for row in found.rows]
    lines = [title, "", *_table(say("performance.system"), found.metrics, named, "{:.3f}")]
    queries = {row["queries"] for row in found.rows if row.get("queries") is not None}
    told = [say("performance.queries", queries=queries.pop())] if len(queries) == 1 else []
    told.append(say("performance.scored_cut" if found.max_length else "performance.scored", precision=found.precision,
                    device=found.device, max_length=found.max_length))  # fmt: skip
    if found.windows:
        several = "several" if found.windows["best"] > 1 else "one"
        told.append(say(f"performance.windows.{several}", **found.windows))
    told.append(say("performance.intervals"))
    if found.stage:
        told.append(say("performance.stage", **found.stage))
    elif found.contexts:
        told.append(say("performance.candidates", contexts=found.contexts))
    known = [say(key) for name, _ in named if (key := f"performance.systems.{name}") in say]
    lines += ["", " ".join(told), *(["", "; ".join(known) + "."] if known else [])]
    if found.systems:
        lines += ["", say("performance.others"), "", *(f"- {name}: {how}" for name, how in found.systems.items())]
    if found.differences:
        named = [(say("performance.minus", system=row["system"], minus=row["minus"]), row) for row in found.differences]
        lines += ["", *_table(say("performance.difference"), found.metrics, named, "{:+.3f}")]
        lines += ["", say("performance.p")]
    return "\n".join(lines)


def _export_again(facts: CardFacts) -> str:
    """The command that made this export: a table is of exactly these weights, which must be written once more."""
    words = ["reranker export run=RUN"]
    words += [f"checkpoint={facts.checkpoint}"] if facts.checkpoint != ExportConfig.checkpoint else []
    words += [f"dtype={facts.dtype}"] if facts.dtype != ExportConfig.dtype.name else []
    words += ["onnx=true"] if facts.onnx else []
    words += ["int8=dev.jsonl"] if facts.int8 else []
    if facts.int8 and facts.int8_agreement not in (None, ExportConfig.int8_agreement):
        words.append(f"int8_agreement={facts.int8_agreement:g}")
    # Without it a model that fails its gate is refused.
    words += ["gate.action=mark"] if facts.gate and not facts.gate.passed else []
    return " ".join(words)


def _gate(facts: CardFacts, say: Words) -> str:
    """Above all else: whoever takes the model should know what it is worse at."""
    return gate.section(facts.gate, say) if facts.gate else ""


def _training(facts: CardFacts, say: Words) -> str:
    dev = ((_of_evaluation(name, say), f"{value:.4f}") for name, value in facts.dev.items())
    rows = [*training_rows(facts, say), *dev]
    lines = [f"## {say('training.title')}", "", *_facts_table(rows, "training.rows", say)]
    groups = (facts.settings.get("batch") or {}).get("groups")
    if facts.settings.get("recipe") == "ko_reranker" and groups:
        link = "[Dongjin-kr/ko-reranker](https://huggingface.co/Dongjin-kr/ko-reranker)"
        lines += ["", say("training.reference", link=link, groups=groups)]
    return "\n".join(lines)


def _environment(facts: CardFacts, say: Words) -> str:
    forward = None if facts.packed is None else say(f"environment.{'packed' if facts.packed else 'padded'}")
    rows = [
        ("device", facts.device),
        ("world", facts.world),
        ("precision", facts.precision),
        ("stage", facts.stage),
        ("forward", forward),
        ("versions", ", ".join(f"{name} {version}" for name, version in facts.versions.items()) or None),
    ]
    if all(value is None for _, value in rows):
        return ""
    return "\n".join([f"## {say('environment.title')}", "", *_facts_table(rows, "environment.rows", say)])


def _limits(facts: CardFacts, say: Words) -> str:
    language = facts.settings.get("language")
    named = f"languages.{language}"
    told = [
        say("limits.order"),
        say("limits.candidates"),
        say("limits.length", max_length=facts.contract.max_length),
        say("limits.language", language=say(named) if named in say else f"`{language}`") if language else None,
        say("limits.measured" if facts.performance else "limits.unmeasured"),
        _chosen_by(facts.chosen_by, say) if facts.chosen_by else None,
        None if facts.license else say("limits.license"),
    ]
    return f"## {say('limits.title')}\n\n" + "\n".join(f"- {text}" for text in told if text)


def _of_evaluation(name: str, say: Words) -> str:
    """What a row with a metric of an evaluation in training is called."""
    selecting, metric = of_set(name)
    if selecting is None:
        return say("training.rows.dev", metric=_title(metric))
    return say("training.rows.set", metric=_title(metric), set=selecting)


def _chosen_by(chosen_by: str, say: Words) -> str:
    """What the figures of the evaluations in training are worth."""
    selecting, metric = of_set(chosen_by)
    return say("limits.dev") if selecting is None else say("limits.set", set=selecting, metric=_title(metric))


_SECTIONS = (_introduction, _gate, _usage, _data, _performance, _training, _environment, _limits)


def _table(
    first: str, metrics: Sequence[str], rows: Sequence[tuple[str, Mapping[str, Any]]], form: str
) -> Iterator[str]:
    """A Markdown table of metrics with their intervals."""
    yield f"| {first} | {' | '.join(map(_title, metrics))} |"
    yield "|---|" + "---:|" * len(metrics)
    for name, row in rows:
        yield f"| {name} | {' | '.join(_interval(row.get(metric), form) for metric in metrics)} |"


def _title(metric: str) -> str:
    return title_of(metric).replace("mrr", "MRR")


def _interval(cell: Mapping[str, float] | None, form: str) -> str:
    if not cell:
        return ""
    low, high = (form.format(cell[side]) if side in cell else "" for side in ("low", "high"))
    p = f", {told_p(cell['p_holm'])}" if "p_holm" in cell else ""
    return form.format(cell["value"]) + (f" [{low}, {high}]" if low and high else "") + p


def _facts_table(rows: Sequence[tuple[str, Any]], names: str, say: Words) -> Iterator[str]:
    """A Markdown table of those rows that have a value; `names`: where in the words the parameters have theirs."""
    yield f"| {say('training.parameter')} | {say('training.value')} |"
    yield "|---|---|"
    for name, value in rows:
        if value is not None:
            known = f"{names}.{name}"
            yield f"| {say(known) if known in say else name} | {value} |"

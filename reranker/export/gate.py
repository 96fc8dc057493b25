"""The regression gate of a model that is to be written: try it, refuse it or mark it, and say so in its card.

In: the settings of an export and of its run, and the verdict that the training kept. Out: a `Verdict`, or a UserError
where the model fails and is not to be marked. Weights are tried as they were written: rounded, loaded, and cut by their
own contract, as is the base that they were tuned from.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from reranker.config.common import Device
from reranker.config.regression_gate import ExportGateConfig, GateAction, GateConfig
from reranker.data.tokenize import Contract
from reranker.errors import UserError
from reranker.evaluate.crew import Alone
from reranker.evaluate.guard_sets import guard_sets
from reranker.evaluate.regression_gate import Verdict
from reranker.evaluate.statistics import told_p
from reranker.evaluate.table import title
from reranker.export.card_words import Words
from reranker.model.reranker import device_and_precision

Try = Callable[[Path], Verdict | None]
"""The verdict on the weights in a directory, None without a gate. Raises UserError for a model that is refused."""


def gate_of_export(
    config: ExportGateConfig, settings: Mapping[str, Any], state: Mapping[str, Any], run: Path, checkpoint: str,
    asked: str, contract: Contract, device: Device,
) -> Try:  # fmt: skip
    """The gate of an export; what fails by the training's own verdict is refused at once.

    `settings` and `state` are those of the run and of its `checkpoint`, which was `asked` for as best, last or by name.
    Raises UserError.
    """
    own: dict[str, Any] = settings.get("gate") or {}
    action = config.action or GateAction[own.get("action", GateAction.refuse.name)]

    def judged(verdict: Verdict, what: str = checkpoint) -> Verdict:
        if action is GateAction.refuse:
            refuse(verdict, what, f"reranker export run={run} gate.action=mark exports it all the same, with a "
                   "card that says so, and reranker soup mixes that with its base; all checkpoints stay")  # fmt: skip
        return verdict

    if config.sets is None:
        _refuse_alone(config)
    if config.sets is None and own.get("sets") is None:
        return lambda written: None
    if config.sets is None and state.get("gate"):
        none = f"no checkpoint that passes: {checkpoint}, the best of them" if asked == "best" else checkpoint
        kept = judged(Verdict.of(state["gate"]), none)
        return lambda written: kept
    # Asked for anew, or a checkpoint that was saved between two evaluations.
    rule = config if config.sets is not None else _stored(own)
    sets, crew = guard_sets(rule), Alone()
    start: Mapping[str, Any] = settings["model"]
    base = rule.base or start["name"]

    def tried(written: Path) -> Verdict:
        at, precision = device_and_precision(device.value, "auto")
        sets.find(crew, device.value)
        model = sets.values_of(str(written), "output", crew, device.value)
        if rule.base is None:
            theirs = sets.values_of(
                base, "model.name", crew, device.value, revision=start.get("revision"), contract=contract
            )
        else:
            theirs = sets.values_of(base, "gate.base", crew, device.value)
        return judged(sets.judge(theirs, model, base, f"at its export, {precision.value} ({at.type})"))

    return tried


def _refuse_alone(config: ExportGateConfig) -> None:
    """Raise UserError for a rule without the sets that it is for: the training's own verdict has another."""
    usual = ExportGateConfig()
    for name in ("metric", "max_drop", "significance", "base"):
        if (value := getattr(config, name)) != getattr(usual, name):
            raise UserError(f"gate.{name}", f"{value} without gate.sets", "sets to try the weights on",
                            "say gate.sets={...} as well")  # fmt: skip


def refuse(verdict: Verdict, what: str, fix: str) -> None:
    """Raise UserError if the model that is called `what` fails."""
    if not verdict.passed:
        raise UserError("gate", f"{what}, which {verdict.losses()}", _expected(verdict), fix)


def section(verdict: Verdict, say: Words) -> str:
    """What the model card says."""
    rule, name = verdict.rule, title(verdict.rule.metric)
    told = {True: say("gate.passed"), False: f"**{say('gate.failed')}**"}
    sure = "" if rule.significance is None else say("gate.significance", significance=rule.significance)
    lines = [
        f"## {say('gate.title')}",
        "",
        say("gate.rule", base=verdict.base, metric=name, max_drop=rule.max_drop, sure=sure)
        + f" **{say('gate.passed' if verdict.passed else 'gate.failed').capitalize()}.**",
        "",
        f"| {say('gate.columns', metric=name)} |",
        "|---|---:|---:|---:|---:|---:|---|",
    ]
    for one in verdict.sets:
        low, high = one.difference.low, one.difference.high
        difference = f"{one.difference.value:+.4f} [{low:+.4f}, {high:+.4f}]"
        lines.append(f"| {one.name} | {one.queries:,} | {one.base:.4f} | {one.model:.4f} | {difference} | "
                     f"{told_p(one.p_holm).removeprefix('p ')} | {told[one.passed]} |")  # fmt: skip
    return "\n".join([*lines, "", say("gate.figures", measured=_measured(verdict, say))])


def _measured(verdict: Verdict, say: Words) -> str:
    """How both were scored, in the card's language: what verdicts say in English first is where."""
    where, *how = verdict.measured.split(", ")
    for place in ("gate.at_training", "gate.at_export", "gate.at_mixing"):
        where = where.replace(Words("en")(place), say(place))
    return ", ".join([where, *how])


def _expected(verdict: Verdict) -> str:
    return f"at most {verdict.rule.max_drop:g} lost against {verdict.base}{_sure(verdict)}"


def _sure(verdict: Verdict) -> str:
    significance = verdict.rule.significance
    return "" if significance is None else f", or more where p is above {significance:g}"


def _stored(own: Mapping[str, Any]) -> GateConfig:
    """The gate of a run's settings; what its version did not know has its default."""
    known = {key: own[key] for key in ("sets", "metric", "max_drop", "significance", "base") if key in own}
    return GateConfig(**known)

"""What the learning benchmark measured -> its record, tables and plot.

Intervals and p-values are those of `reranker evaluate compare`: of the paired difference of two arms over the same
queries, those of one document resampled together; p by paired randomisation, corrected for all differences of the record
(Holm). They speak of the queries alone: that another seed would have trained another model is not in them. All is over
the queries that the reports share, as a larger `sample` holds a smaller one. The losses of the first steps in float32 are
compared, ours with FlagEmbedding's; the benchmark fails if they differ by more than the tolerance. Speed is
`training.py`'s: these arms do not take turns.
"""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from reranker.evaluate.compare import compare, read_side
from reranker.evaluate.metrics import estimate
from reranker.evaluate.statistics import holm, told_p
from tests.benchmarks.learning_arms import BASE, PEER, PRESET, REFERENCE, report_of
from tests.benchmarks.learning_inputs import GROUPS, LR, shape_of
from tests.benchmarks.record import RECORDS, SEED, context, markdown
from tests.benchmarks.training_report import TOLERANCE

METRICS = ("has_right_in_contexts", "mrr", "ndcg@10")
FIRST, TUNED, FUSED = "without-reranker", "fine-tuned", "fused"
PACKAGES = ("torch", "transformers", "FlagEmbedding", "deepspeed", "accelerate", "kiwipiepy", "bm25s")
CHECKED_STEPS = 3
"""Steps in float32 whose losses are compared: what rounds otherwise grows from there."""
LAST = 10
"""Steps at the end whose losses are averaged."""


def report(arms: Sequence[Any], measured: dict[str, Any], settings: dict[str, str], work: Path) -> None:
    """Write the record of the arms that were evaluated. Exits with 1 if the losses in float32 differ."""
    names = [arm.name for arm in arms]
    command = "python tests/benchmarks/learning.py demo=... work=... " + " ".join(
        f"'{key}={value}'" if " " in value else f"{key}={value}"
        for key, value in settings.items()
        if key not in ("demo", "work") and (key, value) != ("arms", "*")
    )
    common = context(command, PACKAGES, "cpu", int(settings["threads"]))
    sides = {(name, system): side for name in names for system, side in sides_of(work, name).items()}
    shared = sorted(set.intersection(*(set(side.lines) for side in sides.values())))
    sides = {key: replace(side, lines={name: side.lines[name] for name in shared}) for key, side in sides.items()}
    rows = {key: row_of(side) for key, side in sides.items()}
    found = [difference(sides, *pair) for pair in asked_pairs(arms) if {one[0] for one in pair} <= set(names)]
    for one, corrected in zip(found, holm([one["p"] for one in found]), strict=True):
        one["p_holm"] = corrected
    agreed = losses_agree(measured, "train" if settings["precision"] == "fp32" else "fp32")
    inputs = json.loads((work / "inputs.json").read_text("utf-8"))
    inputs["asked"]["demo"] = Path(inputs["asked"]["demo"]).name  # where it lies is nobody's business
    shape = shape_of(settings["recipe"])
    details = {
        "benchmark": "learning-details", "recipe": settings["recipe"], "passages_of_a_group": shape.passages,
        "queries": len(shared), "groups_per_step": GROUPS,
        "steps": int(settings["steps"]), "learning_rate": LR, "max_length": shape.length, "dropout": 0.0,
        "precision": settings["precision"],
        "inputs": inputs, "losses_in_float32": agreed,
        "rows": {f"{name}: {system}": row for (name, system), row in rows.items()},
        "trainings": {name: measured[f"train:{name}"] for name in names if f"train:{name}" in measured},
    }  # fmt: skip
    table = tables(arms, rows, found, measured)
    path = RECORDS / f"{settings['record']}-{common['date']}.json"
    entries = [{**entry, **common} for entry in [*found, details]]
    path.write_text(json.dumps(entries, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    path.with_suffix(".md").write_text(table, encoding="utf-8")
    plot(names, rows, measured, settings["precision"], path.with_suffix(".png"))
    print(f"{table}\n{path}\nlosses in float32: {json.dumps(agreed)}")
    if agreed and not agreed["agree"]:
        sys.exit(1)


def asked_pairs(arms: Sequence[Any]) -> list[tuple[tuple[str, str], tuple[str, str]]]:
    """((arm, system), (arm, system)) of every difference: the main ones, then each lever's."""
    preset, reference, peer = ((name, TUNED) for name in (PRESET, REFERENCE, PEER))
    main = [(reference, peer), (preset, peer), (preset, reference), (preset, (PRESET, FIRST)),
            ((PRESET, FUSED), (PRESET, FIRST))]  # fmt: skip
    return main + [((arm.name, TUNED), (arm.of, TUNED)) for arm in arms if arm.of]


def difference(sides: Any, left: tuple[str, str], right: tuple[str, str]) -> dict[str, Any]:
    """The paired difference of two systems' MRR."""
    found = compare(sides[left], sides[right], "mrr", 2000, 10_000, SEED)
    ours, theirs = found.means
    return {
        "benchmark": "learning", "peer": told(*right), "setting": f"{told(*left)} beside {told(*right)}",
        "ours": round(ours, 4), "theirs": round(theirs, 4), "ratio": round(ours / theirs, 3), "unit": "MRR",
        "difference": found.difference.to_dict(), "p": found.p,
        "queries_won": len(found.won), "queries_lost": len(found.lost),
    }  # fmt: skip


def told(name: str, system: str) -> str:
    """What the tables call a system of an arm."""
    if system == FIRST:
        return "BM25"
    return f"{name}, fused with BM25" if system == FUSED else name


def sides_of(work: Path, name: str) -> dict[str, Any]:
    """{system: its side of an arm's report}."""
    directory = report_of(work, name)
    return {system: read_side(f"{directory}:{system}", "mrr") for system in (FIRST, TUNED, FUSED)}


def row_of(side: Any) -> dict[str, Any]:
    """{metric: its mean with the interval} over the side's queries."""
    clusters = [line["cluster"] for line in side.lines.values()]
    return {
        metric: estimate(np.array([side.value(name, metric) for name in side.lines]), clusters, 2000, SEED).to_dict()
        for metric in METRICS
    }  # fmt: skip


def losses_agree(measured: dict[str, Any], kind: str) -> dict[str, Any] | None:
    """The first steps' losses of ours and FlagEmbedding in float32; None if they were not measured."""
    found = [measured.get(f"{kind}:{name}", {}).get("losses") for name in (REFERENCE, PEER)]
    if None in found:
        return None
    ours, theirs = (losses[:CHECKED_STEPS] for losses in found)
    largest = max(abs(own - other) for own, other in zip(ours, theirs, strict=True))
    return {"ours": ours, "theirs": theirs, "largest_difference": largest, "tolerance": TOLERANCE,
            "agree": largest <= TOLERANCE}  # fmt: skip


def tables(arms: Sequence[Any], rows: dict[Any, Any], found: Sequence[dict[str, Any]], measured: dict[str, Any]) -> str:
    """The main table, the main differences, and one line for each lever."""
    main = [(name, system) for name, system in (
        (PRESET, FIRST), (BASE, TUNED), (PEER, TUNED), (REFERENCE, TUNED),
        (PRESET, TUNED), (PRESET, FUSED),
    ) if (name, system) in rows]  # fmt: skip
    text = markdown(
        [[told(*key), *(estimated(rows[key][metric]) for metric in METRICS)] for key in main],
        ["system", "has-right-in-contexts", "mrr", "nDCG@10"],
    )
    levers = {f"{told(arm.name, TUNED)} beside {told(arm.of, TUNED)}" for arm in arms if arm.of}
    text += "\n" + markdown(
        [[one["setting"], differing(one)] for one in found if one["setting"] not in levers], ["", "difference of MRR"]
    )
    by_setting = {one["setting"]: one for one in found}
    lines = []
    for arm in arms:
        training = measured.get(f"train:{arm.name}")
        if training:
            one = by_setting.get(f"{told(arm.name, TUNED)} beside {told(arm.of, TUNED)}")
            lines.append([
                arm.name, estimated(rows[arm.name, TUNED]["mrr"]), arm.of, differing(one) if one else "",
                f"{statistics.mean(training['losses'][-LAST:]):.3f}",
            ])  # fmt: skip
    return text + "\n" + markdown(
        lines, ["arm", "mrr", "beside", "difference", f"loss, last {LAST} steps"]
    )  # fmt: skip


def estimated(row: dict[str, float]) -> str:
    return f"{row['value']:.3f} [{row['low']:.3f}, {row['high']:.3f}]"


def differing(one: dict[str, Any]) -> str:
    of = one["difference"]
    return f"{of['value']:+.3f} [{of['low']:+.3f}, {of['high']:+.3f}], {told_p(one['p_holm'])}"


def plot(names: Sequence[str], rows: dict[Any, Any], measured: dict[str, Any], precision: str, path: Path) -> None:
    """Above, the MRR of every arm with its interval; below, where they are among the arms, the losses of ours and
    FlagEmbedding at the same objective."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    points = {told(name, TUNED): rows[name, TUNED]["mrr"] for name in names}
    points["BM25"] = rows[names[0], FIRST]["mrr"]
    ordered = sorted(points, key=lambda name: points[name]["value"])
    curves = {name: losses for name in (PEER, REFERENCE) if (losses := measured.get(f"train:{name}", {}).get("losses"))}
    height, panels = 0.9 + 0.32 * (len(points) + 1), [len(points) + 2]
    if curves:
        height, panels = height + 3.2, [*panels, 9]
    figure, axes = pyplot.subplots(len(panels), 1, figsize=(9, height), height_ratios=panels, squeeze=False)
    above = axes[0, 0]
    for place, name in enumerate(ordered):
        one = points[name]
        colour = "#b9bec4" if name in (PEER, BASE, "BM25") else "#1f6f8b"
        above.plot([one["low"], one["high"]], [place, place], color=colour, linewidth=2)
        above.plot([one["value"]], [place], "o", color=colour)
        above.annotate(f"{one['value']:.3f}", (one["high"], place), (5, -3), textcoords="offset points", fontsize=8)
    above.set_yticks(range(len(ordered)), ordered, fontsize=8)
    above.set_title("MRR on held-out queries, 95% intervals", fontsize=10, loc="left")
    if curves:
        below = axes[1, 0]
        for name, losses in curves.items():
            colour, style = ("#7d848b", "-") if name == PEER else ("#1f6f8b", "--")
            below.plot(range(1, len(losses) + 1), losses, style, color=colour, label=name)
        below.set_title(f"Loss of each step at the reference objective, {precision}", fontsize=10, loc="left")
        below.set_xlabel("step", fontsize=8)
        below.legend(fontsize=8, frameon=False)
    for axis in axes[:, 0]:
        axis.tick_params(labelsize=8)
        axis.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    figure.savefig(path, dpi=130)
    pyplot.close(figure)

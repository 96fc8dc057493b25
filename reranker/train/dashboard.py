"""`reranker dashboard`: a saved Weights & Biases workspace for the trainings of a project.

In: `logged.METRICS`, and the metrics of evaluation sets by the sets' names. Out: a workspace with a section for each of
`logged.SECTIONS` and in them a panel for each metric, drawn over optimizer steps; the table of ranked examples beside
the dev metrics; the runs ordered by the best value of one metric. Saved in the project, or written as JSON without a
network. Raises `UserError`.
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from reranker.config.tracking import DashboardConfig
from reranker.errors import UserError, closest, shorten
from reranker.files import write_text
from reranker.train.logged import EPOCH, EXAMPLES, METRICS, QUALITY, SECTIONS, STEP, Metric, of_sets

TOGETHER = {
    "train/chance_loss": "train/loss",
    "train/equal_loss": "train/loss",
    "train/teacher_spread": "train/score_spread",
}
"""Metrics that are drawn in the panel of another one: the loss says little without that of a guess."""
COLUMNS = ("eval/mrr.max", "eval/ndcg@10.max", "train/loss.min", "speed/pairs_per_second", EPOCH)
"""Of the runs' summaries, in the table of runs."""


def dashboard_command(config: DashboardConfig) -> int:
    """`reranker dashboard`. Returns the exit code."""
    if importlib.util.find_spec("wandb_workspaces") is None:
        raise UserError("dashboard", "no package wandb-workspaces", "that package",
                        'pip install "ko-reranker[dashboard]"')  # fmt: skip
    made = workspace(config)
    if config.output:
        write_text(Path(config.output), json.dumps(specification(made), indent=2, ensure_ascii=False) + "\n")
    if config.dry_run:
        for section in made.sections:
            print(f"{section.name}: {len(section.panels)} panels")
    elif not config.output:
        print(save(made, config))
    return 0


def workspace(config: DashboardConfig) -> Any:
    """The workspace as wandb-workspaces has it; nothing is sent. Raises UserError for a metric that is not shown."""
    import wandb_workspaces.reports.v2 as reports
    import wandb_workspaces.workspaces as workspaces
    from wandb_workspaces.expr import Ordering, Summary

    shown = (*METRICS, *of_sets(dict.fromkeys(config.sets)))
    best = _ordering(config.metric, shown)

    def line(metric: Metric, over: str) -> Any:
        names = [metric.name, *(name for name, place in TOGETHER.items() if place == metric.name)]
        title = metric.title if over == STEP else f"{metric.title}, over {over}s"
        return reports.LinePlot(title=title, x=over, y=names, title_x=over)

    sections = []
    for name in SECTIONS:
        own = [metric for metric in shown if metric.section == name and metric.name not in TOGETHER]
        panels = [line(metric, STEP) for metric in own]
        if name == QUALITY:
            # Steps of different sizes do not compare; passes over the data do.
            panels += [line(best, EPOCH)]
            panels += [reports.WeavePanelSummaryTable(table_name=EXAMPLES)]
        layout = workspaces.SectionLayoutSettings(columns=3, rows=2)
        sections.append(workspaces.Section(name=name, panels=panels, is_open=True, layout_settings=layout))
    columns = dict.fromkeys((f"{best.name}.max", *COLUMNS))
    return workspaces.Workspace(
        entity=config.entity,
        project=config.project,
        name=config.name,
        sections=sections,
        auto_generate_panels=False,
        settings=workspaces.WorkspaceSettings(x_axis=STEP),
        runset_settings=workspaces.RunsetSettings(
            order=[Ordering(Summary(f"{best.name}.max"), ascending=False)],
            pinned_columns=["run:displayName", *(f"summary:{column}" for column in columns)],
        ),
    )


def _ordering(metric: str, shown: Sequence[Metric]) -> Metric:
    """The entry of the metric that orders the runs: one whose best value a run's summary has. Raises UserError."""
    known = {one.name.removeprefix("eval/"): one for one in shown if one.section == QUALITY and one.summary == "max"}
    if metric not in known:
        near = closest(metric, known)
        raise UserError("metric", metric, f"one of {', '.join(known)}", f"did you mean {near}?" if near else
                        "change the value, or name its set in sets=[...]")  # fmt: skip
    return known[metric]


def specification(made: Any) -> dict[str, Any]:
    """What would be sent of a workspace."""
    told: dict[str, Any] = made._to_model().model_dump(mode="json", by_alias=True, exclude_none=True)
    return told


def save(made: Any, config: DashboardConfig) -> str:
    """Save a workspace; where it is. Raises UserError for what W&B refuses, or if it cannot be reached."""
    import wandb
    from wandb.sdk.lib.service.service_connection import WandbApiFailedError

    wandb.setup(settings=wandb.Settings(silent=True))
    try:
        return str(made.save().url)
    except (wandb.errors.Error, WandbApiFailedError, TimeoutError, ConnectionError) as error:
        raise UserError(
            "dashboard", shorten(error, 200), f"to save in {config.entity}/{config.project}",
            "wandb login, check entity and project (trainings make it), or write a file with output=FILE",
        ) from None  # fmt: skip

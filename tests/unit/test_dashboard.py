"""The dashboard shows each metric that a training logs, over the right axis."""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from reranker.cli import main
from reranker.config.tracking import DashboardConfig
from reranker.train import logged
from reranker.train.dashboard import TOGETHER, specification, workspace


def panels(spec: dict[str, Any]) -> Iterator[tuple[str, str, list[str]]]:
    """(section, x axis, metrics) of each line panel."""
    for section in spec["spec"]["section"]["panelBankConfig"]["sections"]:
        for panel in section["panels"]:
            if panel["viewType"] == "Run History Line Plot":
                yield section["name"], panel["config"]["xAxis"], panel["config"]["metrics"]


def test_there_is_a_panel_over_steps_for_each_metric_in_its_section_and_none_for_another() -> None:
    spec = specification(workspace(DashboardConfig(entity="team")))
    shown = Counter((section, name) for section, over, names in panels(spec) if over == "step" for name in names)
    assert shown == Counter((metric.section, metric.name) for metric in logged.METRICS)
    assert {section for section, _, _ in panels(spec)} == set(logged.SECTIONS)


def test_the_dev_metric_is_also_drawn_over_epochs_and_the_examples_have_their_table() -> None:
    spec = specification(workspace(DashboardConfig(entity="team")))
    assert [names for _, over, names in panels(spec) if over != "step"] == [["eval/mrr"]]
    assert {over for _, over, _ in panels(spec)} == {"step", "epoch"}
    (quality,) = (
        section
        for section in spec["spec"]["section"]["panelBankConfig"]["sections"]
        if section["name"] == logged.QUALITY
    )
    assert "eval/examples" in json.dumps(
        [panel for panel in quality["panels"] if "Run History" not in panel["viewType"]]
    )


def test_the_runs_are_ordered_by_the_summaries_that_a_run_has() -> None:
    runs = specification(workspace(DashboardConfig(entity="team")))["spec"]["section"]["runSets"][0]
    (key,) = runs["sort"]["keys"]
    assert (key["key"], key["ascending"]) == ({"section": "summary", "name": "eval/mrr.max"}, False)
    kept = {metric.name: metric.summary for metric in logged.METRICS}
    for column in runs["runFeed"]["columnOrder"][1:]:
        name, _, value = column.removeprefix("summary:").partition(".")
        assert kept[name] == (value or None), column


def test_sets_have_their_panels_and_a_metric_of_one_orders_the_runs() -> None:
    """As of trainings with `data.dev_sets` alone, which have no eval/mrr."""
    made = specification(workspace(DashboardConfig(entity="team", sets=["faq", "v1.2", "faq"], metric="faq/ndcg@10")))
    usual = specification(workspace(DashboardConfig(entity="team")))
    of_sets = {(logged.QUALITY, "step", f"eval/{name}/{metric}") for name in ("faq", "v1.2")
               for metric in ("mrr", "ndcg@10", "has_right_in_contexts")}  # fmt: skip
    shown, before = ({(*place, *names) for *place, names in panels(spec)} for spec in (made, usual))
    assert len(list(panels(made))) == len(shown)
    assert shown - before == of_sets | {(logged.QUALITY, "epoch", "eval/faq/ndcg@10")}
    assert before - shown == {(logged.QUALITY, "epoch", "eval/mrr")}
    runs = made["spec"]["section"]["runSets"][0]
    assert [key["key"]["name"] for key in runs["sort"]["keys"]] == ["eval/faq/ndcg@10.max"]
    assert runs["runFeed"]["columnOrder"][1] == "summary:eval/faq/ndcg@10.max"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["metric=map"], "map, expected one of mrr, ndcg@10, has_right_in_contexts; "
         "change the value, or name its set in sets=[...]"),
        (["sets=[faq]", "metric=fag/mrr"], "fag/mrr, expected one of mrr, ndcg@10, has_right_in_contexts, faq/mrr, "
         "faq/ndcg@10, faq/has_right_in_contexts; did you mean faq/mrr?"),
    ],
)  # fmt: skip
def test_an_order_by_what_is_not_shown_is_refused(
    words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["dashboard", "entity=team", "dry_run=true", *words]) == 2
    assert capsys.readouterr().err == f"reranker: error: metric: found {said}\n"


def test_a_file_of_the_workspace_is_written_without_a_network(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")  # nobody listens there
    assert main(["dashboard", "entity=team", f"output={tmp_path / 'spec.json'}", "dry_run=true"]) == 0
    spec = json.loads((tmp_path / "spec.json").read_text("utf-8"))
    assert (spec["entity"], spec["project"]) == ("team", "ko-reranker")
    assert len(list(panels(spec))) == len(logged.METRICS) - len(TOGETHER) + 1  # one is shown twice
    assert capsys.readouterr().out.startswith("learning: 3 panels\n")


def test_without_the_package_it_is_one_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "wandb_workspaces", None)
    assert main(["dashboard", "entity=team"]) == 2
    assert capsys.readouterr().err == (
        "reranker: error: dashboard: found no package wandb-workspaces, expected that package; "
        'pip install "ko-reranker[dashboard]"\n'
    )

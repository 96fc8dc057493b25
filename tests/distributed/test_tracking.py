"""What a real training leaves in its tracking: every metric under its name, the settings and what they came to."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from reranker.config.tracking import DashboardConfig
from reranker.groups import read_groups
from reranker.train import logged
from reranker.train.checkpoint import find, read_state
from reranker.train.dashboard import workspace
from reranker.train.examples import COLUMNS
from tests.distributed.conftest import Inputs, records
from tests.distributed.ranks import train, until
from tests.wandb_records import Run, read_run

SETTINGS = {
    "tracking": "offline", "batch.per_gpu": 8, "precision": "fp32", "deepspeed": "zero1", "train.epochs": 2,
    "train.save_every": 2, "train.eval_every": 2, "tracking.tensorboard": "true",
    "tracking.artifacts": "checkpoints", "name": "'ko 1'",
}  # fmt: skip


def offline_run(run_dir: Path) -> Run:
    """The last offline run under a run directory. W&B's own process may write behind finish()."""
    path = sorted(run_dir.glob("wandb/offline-run-*/run-*.wandb"))[-1]
    until(lambda: read_run(path).ended, lambda: f"{path} does not end", deadline=30)
    return read_run(path)


ELSEWHERE = ("a GPU of a known kind", "a spike", "gate.sets", "more than a softmax of labels", "a teacher")
"""What is not here, and makes metrics appear."""


@pytest.fixture(scope="module")
def trained(inputs: Inputs, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two ranks, six steps, evaluated behind steps 2, 4 and 6."""
    run = tmp_path_factory.mktemp("trained") / "run"
    train(2, inputs.overrides(run, **SETTINGS, **{"data.dev": inputs.dev}))
    return run


def test_each_metric_that_a_training_logs_is_defined_and_none_is_that_never_is(trained: Path) -> None:
    found = {name for record in records(trained) for name in record} - {logged.STEP}
    assert found <= {metric.name for metric in logged.METRICS}
    # Here are dev queries and a model whose FLOPs are known.
    always = {metric.name for metric in logged.METRICS if metric.where not in ELSEWHERE}
    assert found == always


def test_the_run_has_each_step_once_with_its_evaluation_beside_it(trained: Path) -> None:
    rows = offline_run(trained).history
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5, 6]
    assert [row["step"] for row in rows if "eval/mrr" in row] == [2, 4, 6]
    ours = {record["step"]: record["train/loss"] for record in records(trained) if "train/loss" in record}
    assert {row["step"]: row["train/loss"] for row in rows} == ours


def test_the_dashboard_has_a_panel_for_each_metric_that_a_training_logs(trained: Path) -> None:
    found = {name for record in records(trained) for name in record} - {logged.STEP}
    sections = workspace(DashboardConfig(entity="team")).sections
    shown = {name for section in sections for panel in section.panels for name in getattr(panel, "y", ())}
    assert found - shown == set()
    # A GPU, a spike, guard sets and a teacher would bring these.
    assert shown - found == {
        "speed/mfu", "train/spike_position", "gate/passed", "train/equal_loss", "train/teacher_spread",
    }  # fmt: skip


def test_tensorboard_shows_what_the_records_say(trained: Path) -> None:
    read = EventAccumulator(str(trained / "tensorboard"), size_guidance={"scalars": 0}).Reload()
    shown = {(name, event.step): event.value for name in read.Tags()["scalars"] for event in read.Scalars(name)}
    recorded = {
        (name, record["step"]): value
        for record in records(trained)
        for name, value in record.items()
        if name != "step" and value is not None
    }
    assert shown == pytest.approx(recorded, rel=1e-6)


def test_the_run_has_the_settings_and_what_they_came_to(trained: Path, inputs: Inputs) -> None:
    config = offline_run(trained).config
    assert config["optim"]["lr"] == 1e-3
    resolved = config["resolved"]
    expected = {"precision": "fp32", "zero_stage": 1, "packed": True, "ranks": 2, "steps": 6, "groups_an_epoch": 90}
    assert {key: resolved[key] for key in expected} == expected
    assert set(resolved["versions"]) >= {"torch", "deepspeed", "reranker"}
    assert len(resolved["data"]) >= 16


def test_each_evaluation_has_a_table_of_the_same_queries_ranked_then_and_at_first(
    trained: Path, inputs: Inputs
) -> None:
    run = offline_run(trained)
    shown = {row["step"]: row[logged.EXAMPLES] for row in run.history if logged.EXAMPLES in row}
    assert list(shown) == [2, 4, 6]
    assert {one["_type"] for one in shown.values()} == {"table-file"}
    (files,) = trained.glob("wandb/offline-run-*/files")
    tables = {step: json.loads((files / one["path"]).read_text("utf-8")) for step, one in shown.items()}
    groups = {group.query: group for group in read_groups(inputs.dev)}
    at = {}
    for step, table in tables.items():
        assert tuple(table["columns"]) == COLUMNS
        rows = [dict(zip(table["columns"], row, strict=True)) for row in table["data"]]
        at[step] = {row["query"]: (row["right at"], row["right at first"]) for row in rows}
        assert len(at[step]) == 8
        for query in at[step]:
            own = [row for row in rows if row["query"] == query]
            assert [row["place"] for row in own] == [1, 2, 3, 4, 5]
            assert {row["passage"] for row in own if row["right"]} == set(groups[query].pos)
            assert sorted((row["score"] for row in own), reverse=True) == [row["score"] for row in own]
    assert set(at[2]) == set(at[4]) == set(at[6])
    first = {query: right for query, (right, _) in at[2].items()}
    assert all({query: before for query, (_, before) in found.items()} == first for found in at.values())


def test_a_resumed_training_still_knows_where_the_right_passage_was_at_first(
    trained: Path, inputs: Inputs, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    shutil.copytree(trained, run, ignore=shutil.ignore_patterns("wandb"))
    shutil.rmtree(run / "checkpoints/step-00000006")
    train(1, inputs.overrides(run, **SETTINGS, **{"data.dev": inputs.dev}))

    def first(run_dir: Path) -> list[object]:
        (files,) = run_dir.glob("wandb/offline-run-*/files")
        path = offline_run(run_dir).history[-1][logged.EXAMPLES]["path"]
        return [(row[0], row[2]) for row in json.loads((files / path).read_text("utf-8"))["data"]]

    assert sorted(map(str, first(run))) == sorted(map(str, first(trained)))


def test_the_model_and_its_checkpoints_are_artifacts_made_of_the_data(trained: Path, inputs: Inputs) -> None:
    made = {}
    for artifact in offline_run(trained).of("artifact"):
        made.setdefault(artifact.type, []).append(artifact)
    best, last = (read_state(find(trained, which)) for which in ("best", "last"))
    resolved = offline_run(trained).config["resolved"]

    (model,) = made["model"]
    assert model.name == "ko-1"
    assert set(model.aliases) == {"latest", f"step-{best['step']:08d}"}  # W&B keeps them in no order
    metadata = json.loads(model.metadata)
    assert (metadata["step"], metadata["data"]) == (best["step"], resolved["data"])
    assert metadata["mrr"] == best["metrics"]["eval/mrr"]
    assert not model.use_after_commit
    # Their bytes are where they were: nothing is copied, and `wandb sync` finds them.
    files = {entry.path: Path(entry.local_path) for entry in model.manifest.contents}
    assert files == {path.name: path for path in (trained / "model").iterdir()}

    assert {artifact.name for artifact in made["checkpoint"]} == {"ko-1-checkpoint"}
    aliases = {json.loads(artifact.metadata)["step"]: set(artifact.aliases) for artifact in made["checkpoint"]}
    assert aliases.keys() == {best["step"], last["step"]}
    assert "best" in aliases[best["step"]]
    assert "last" in aliases[last["step"]]

    # What went in is named by what it is, and referred to where it lies.
    shards, dev = made["dataset"]
    assert shards.name == f"shards-{resolved['data'][:16]}"
    assert shards.use_after_commit
    assert dev.use_after_commit
    references = {entry.path: entry.ref for one in (shards, dev) for entry in one.manifest.contents}
    assert references == {
        "manifest.json": (inputs.shards / "manifest.json").as_uri(), "dev.jsonl": inputs.dev.as_uri(),
    }  # fmt: skip
    assert json.loads(shards.metadata)["fingerprint"] == resolved["data"]
    assert json.loads(dev.metadata)["groups"] == 9


def test_the_same_command_again_uploads_the_model_of_a_training_that_has_ended(
    trained: Path, inputs: Inputs, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    shutil.copytree(trained, run, ignore=shutil.ignore_patterns("wandb"))
    before = records(run)
    train(1, inputs.overrides(run, **SETTINGS | {"tracking.artifacts": "model"}, **{"data.dev": inputs.dev}))
    assert [one.type for one in offline_run(run).of("artifact")] == ["dataset", "dataset", "model"]
    assert records(run) == before
    train(1, inputs.overrides(run, **SETTINGS | {"tracking.artifacts": "none"}, **{"data.dev": inputs.dev}))
    assert len(list(run.glob("wandb/offline-run-*"))) == 1, "nothing is asked for, and nothing is begun"


def test_each_warning_of_a_training_is_alerted_where_that_is_asked_for(inputs: Inputs, tmp_path: Path) -> None:
    # Losses one standard deviation above the last four: some are.
    values = {
        "batch.groups": 8, "batch.per_gpu": 4, "precision": "fp32", "guards.window": 4, "guards.spike": 1,
        "tracking": "offline", "tracking.alerts": "true", "train.epochs": 2,
    }  # fmt: skip
    (rank,) = train(1, inputs.overrides(tmp_path / "run", **values))
    alerts = offline_run(tmp_path / "run").of("alert")
    assert alerts
    assert {one.level for one in alerts} == {"WARN"}
    assert [f"warning: {one.text}" for one in alerts] == re.findall(r"warning: .*", rank.err)
    assert "train: loss spike" in {one.title for one in alerts}

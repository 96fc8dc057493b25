"""Spikes that are skipped, by all ranks and by a resumed training alike; scores that collapse beside a teacher."""

from __future__ import annotations

import dataclasses
import filecmp
import itertools
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from reranker.prepare.pack import pack
from reranker.train import logged
from reranker.train.checkpoint import newest, read_state
from reranker.train.guards import COLLAPSED, NEAR_CHANCE
from tests.chaos.faults import Fault, start_hurt
from tests.distributed.conftest import Inputs, make_groups, records
from tests.distributed.ranks import train
from tests.tiny import tiny_model


def settings(**more: Any) -> dict[str, Any]:
    """36 steps of few groups in which a loss one standard deviation above the last four counts as a spike: some do."""
    return {
        "batch.groups": 8, "batch.per_gpu": 4, "train.epochs": 3, "train.save_every": 99, "precision": "fp32", "deepspeed": "zero1",
        "guards.window": 4, "guards.spike": 1, "guards.skip_spikes": "true", **more,
    }  # fmt: skip


def test_spikes_are_skipped_by_all_ranks_and_alike_when_interrupted(inputs: Inputs, tmp_path: Path) -> None:
    whole, run = tmp_path / "whole", tmp_path / "run"
    ranks = train(2, inputs.overrides(whole, **settings()))
    found = records(whole)
    skipped = [record["step"] for record in found if record["train/skipped"]]
    assert 2 <= len(skipped) <= 20
    assert all(record["train/grad_norm"] is None for record in found if record["step"] in skipped)
    positions = {record["step"]: record.get("train/spike_position") for record in found}
    assert {step for step, position in positions.items() if position is not None} >= set(skipped)
    assert positions[skipped[0]] == (skipped[0] - 1) % 12 * 8
    assert f"warning: the loss of step {skipped[0]} is " in ranks[0].err
    path, _ = newest(whole)
    assert path is not None
    assert read_state(path)["updates"] == 36 - len(skipped)

    # Stopped right before the last one: without the window it would be no spike.
    fault = Fault("data", "SIGTERM", skipped[-1], 1)
    start_hurt(2, ["train", *inputs.overrides(run, **settings())], [fault]).wait()
    train(2, inputs.overrides(run, **settings()))
    keys = ("step", "train/loss", "train/skipped", "train/spike_position", "train/grad_norm")
    assert [[one.get(key) for key in keys] for one in records(run)] == [[one.get(key) for key in keys] for one in found]
    assert filecmp.cmp(run / "model/model.safetensors", whole / "model/model.safetensors", shallow=False)


def test_spikes_are_logged_and_not_skipped_unless_asked_for(inputs: Inputs, tmp_path: Path) -> None:
    ranks = train(2, inputs.overrides(tmp_path / "run", **settings(**{"guards.skip_spikes": "false"})))
    found = records(tmp_path / "run")
    assert any("train/spike_position" in record for record in found)
    assert all(record["train/skipped"] == 0 for record in found)
    assert "far above those before it: epoch " in ranks[0].err


WINDOW = 10


def distilled(root: Path, apart: float, **more: Any) -> tuple[list[dict[str, Any]], list[str]]:
    """(records, warnings) of a training from a teacher alone, whose scores of a positive and a negative are `apart`.

    The model gives scores that are a hundred times further apart than those of a fresh head.
    """
    groups = [dataclasses.replace(one, pos_scores=(apart,), neg_scores=(0.0, 0.0)) for one in make_groups(90, 2)]
    pack(groups, root / "shards", {"name": "groups.jsonl"}, groups_per_shard=40)
    weights = tiny_model(root / "model") / "model.safetensors"
    tensors = load_file(weights)
    tensors["classifier.out_proj.weight"] *= 100
    save_file(tensors, weights, metadata={"format": "pt"})
    inputs = Inputs(root / "model", root / "shards", root / "dev.jsonl", groups)
    (rank,) = train(1, inputs.overrides(root / "run", **{
        "batch.groups": 10, "batch.per_gpu": 5, "train.save_every": 999, "precision": "fp32", "loss.labels": 0,
        "loss.distillation": 1, "guards.window": WINDOW, **more,
    }))  # fmt: skip
    found = records(root / "run")
    assert {name for record in found for name in record} <= {logged.STEP, *(metric.name for metric in logged.METRICS)}
    return found, [line for line in rank.err.splitlines() if line.startswith("warning: ")]


def means(found: list[dict[str, Any]], name: str) -> list[float]:
    """The mean of each window of records."""
    values = [record[f"train/{name}"] for record in found]
    return [sum(values[end - WINDOW : end]) / WINDOW for end in range(WINDOW, len(values) + 1)]


def test_scores_that_come_as_close_as_a_teachers_are_no_collapse(tmp_path: Path) -> None:
    found, warnings = distilled(tmp_path, 0.05, **{"train.epochs": 10})
    spreads, losses, equals = (means(found, name) for name in ("score_spread", "loss", "equal_loss"))
    widest = list(itertools.accumulate(spreads, max))
    # Ten times closer than they were, and with a loss that is not yet below that of equal scores: on their way.
    assert any(
        spread < COLLAPSED * most and loss > NEAR_CHANCE * equal
        for spread, most, loss, equal in zip(spreads, widest, losses, equals, strict=True)
    )
    assert found[-1]["train/teacher_spread"] == pytest.approx(0.05 * 2**0.5 / 3)
    assert warnings == []


def test_beside_a_teacher_scores_that_collapse_are_told(tmp_path: Path) -> None:
    found, warnings = distilled(tmp_path, 1.0, **{"train.epochs": 4, "optim.lr": 0.03})
    assert min(means(found, "score_spread")) < 0.01 * max(means(found, "score_spread"))
    assert "closer to each other than they were: the model is collapsing" in warnings[0]

"""Spikes that are skipped: by all ranks, and by a resumed training as by one that was not interrupted."""

from __future__ import annotations

import filecmp
from pathlib import Path
from typing import Any

from reranker.train.checkpoint import newest, read_state
from tests.chaos.faults import Fault, start_hurt
from tests.distributed.conftest import Inputs, records
from tests.distributed.ranks import train


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

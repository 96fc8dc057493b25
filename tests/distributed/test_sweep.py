"""A sweep on this machine: trainings one after another in one process, cut off once, shown at any time."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from reranker.cli import main
from tests.distributed.conftest import Inputs, records
from tests.distributed.ranks import start, until

RATES = ("0.001", "0.0001")


def test_a_local_sweep_is_shown_while_it_runs_when_it_is_cut_off_and_behind_its_end(
    inputs: Inputs, tmp_path: Path
) -> None:
    sweep, output = tmp_path / "rates", tmp_path / "out.json"
    words = [
        "train", "--multirun", f"hydra.sweep.dir={sweep}",
        *inputs.overrides(tmp_path / "run-${optim.lr}", **{
            "optim.lr": ",".join(RATES), "data.dev": inputs.dev, "batch.groups": 10, "batch.per_gpu": 5, "train.epochs": 4, "precision": "fp32",
        }),
    ]  # fmt: skip

    def shown() -> list[dict[str, Any]]:
        if not (sweep / "sweep.json").is_file():
            return []
        assert main(["sweep", "show", str(sweep), f"output={output}"]) == 0
        found: list[dict[str, Any]] = json.loads(output.read_text())
        return found

    def states() -> list[str]:
        return [one["state"] for one in sorted(shown(), key=lambda one: one["number"])]

    metrics = tmp_path / f"run-{RATES[0]}" / "metrics.jsonl"
    job = start(1, words)
    try:
        until(metrics.is_file, job.errors)
        assert states() == ["RUNNING", "PENDING"]
    finally:
        job.end()
    assert states() == ["ENDED", "NOT BEGUN"]
    ranks = start(2, words).wait()  # which meet again for the second training
    assert [rank.code for rank in ranks] == [0, 0], ranks[0].err
    found = shown()
    assert {one["state"] for one in found} == {"DONE"}
    assert [(one["step"], one["steps"]) for one in found] == [(36, 36)] * 2
    best = {
        f"optim.lr={rate}": max(one.get("eval/mrr", 0.0) for one in records(tmp_path / f"run-{rate}")) for rate in RATES
    }
    assert [(one["varied"], one["best"]) for one in found] == [
        ([word], value) for word, value in sorted(best.items(), key=lambda one: -one[1])
    ]
    assert len(set(best.values())) == 2, "one is better than the other, or the order says nothing"

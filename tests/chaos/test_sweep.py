"""A request to stop that comes while a sweep trains is one for the sweep."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from reranker.cli import main
from tests.chaos.faults import Fault, start_hurt
from tests.distributed.conftest import Inputs
from tests.distributed.ranks import run as run_ranks

RATES, STEPS = ("0.001", "0.0001"), 6


@pytest.mark.parametrize(
    ("fault", "state"),
    [(Fault("backward", "SIGTERM", 2, rank=1), "STOPPED"), (Fault("stepped", "SIGTERM", STEPS, rank=1), "DONE")],
    ids=["between_two_steps", "behind_the_last_one"],
)
def test_a_sweep_that_is_asked_to_stop_begins_no_further_training(
    inputs: Inputs, tmp_path: Path, fault: Fault, state: str
) -> None:
    sweep, output = tmp_path / "rates", tmp_path / "out.json"
    words = [
        "train", "--multirun", f"hydra.sweep.dir={sweep}",
        *inputs.overrides(tmp_path / "run-${optim.lr}", **{
            "optim.lr": ",".join(RATES), "batch.per_gpu": 8, "train.epochs": STEPS // 3, "precision": "fp32",
        }),
    ]  # fmt: skip

    def states() -> list[str]:
        assert main(["sweep", "show", str(sweep), f"output={output}"]) == 0
        return [one["state"] for one in sorted(json.loads(output.read_text()), key=lambda one: one["number"])]

    ranks = start_hurt(2, words, [fault]).wait()
    assert [rank.code for rank in ranks] == [0, 0], ranks[0].err
    assert states() == [state, "NOT BEGUN"]
    assert not (tmp_path / f"run-{RATES[1]}").exists()
    said = f"{sweep}: asked to stop, 1 of 2 trainings not begun; the same command goes on"
    assert (ranks[0].out.splitlines()[-1], ranks[1].out) == (said, "")
    ranks = run_ranks(2, words)
    assert [rank.code for rank in ranks] == [0, 0], ranks[0].err
    assert states() == ["DONE", "DONE"]

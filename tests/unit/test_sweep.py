"""What `sweep show` reads from the run directory of a training."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from reranker.cluster.sweep import result


@pytest.mark.parametrize(
    ("metric", "best", "step"), [("mrr", 0.75, 6), ("faq/mrr", 0.875, 2), ("v1.2/ndcg@10", 0.5, 4)]
)
def test_the_best_of_a_training_is_by_its_own_metric_of_the_dev_groups_or_of_a_set(
    metric: str, best: float, step: int, tmp_path: Path
) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"train": {"metric": metric}}))
    found = [
        {"step": 1, "train/loss": 1.0},
        {"step": 2, "eval/mrr": 0.25, "eval/faq/mrr": 0.875, "eval/v1.2/ndcg@10": 0.25},
        {"step": 4, "eval/mrr": 0.5, "eval/faq/mrr": 0.5, "eval/v1.2/ndcg@10": 0.5},
        {"step": 6, "eval/mrr": 0.75, "eval/faq/mrr": 0.25, "eval/v1.2/ndcg@10": 0.375},
    ]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in found))
    entry = {"run_dir": str(tmp_path), "varied": ["optim.lr=1e-5"]}
    told = result(0, entry, "7", None)
    assert (told.metric, told.best, told.best_step) == (metric, best, step)

    # The same command with another metric finds the training finished, and writes its settings all the same.
    (tmp_path / "config.json").write_text(json.dumps({"train": {"metric": "other/mrr"}}))
    ranked = {"best": None, "ranking": [{"metric": metric, "passed": False}]}
    for at, state in ((2, json.dumps({"best": {"metric": "older/mrr"}})), (4, json.dumps(ranked)), (6, "{")):
        (tmp_path / "checkpoints" / f"step-{at:08d}").mkdir(parents=True)
        (tmp_path / "checkpoints" / f"step-{at:08d}" / "state.json").write_text(state)
    told = result(0, entry, "7", None)
    assert (told.metric, told.best, told.best_step) == (metric, best, step)

"""A trimmed model trains, is exported and scores like any other."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from reranker import Reranker
from tests.tiny import tiny_model

GROUPS = [
    {
        "query": f"파이썬 질문 {number}",
        "pos": [f"정렬하는 방법 {number}"],
        "neg": [f"바꿀 수 없다 {number}", "튜플은 시퀀스이다"],
    }
    for number in range(8)
]


def run(*words: object) -> str:
    environment = {**os.environ, "WANDB_MODE": "disabled", "DS_ACCELERATOR": "cpu"}
    finished = subprocess.run([sys.executable, "-m", "reranker", *map(str, words)], env=environment, text=True,
                              capture_output=True, timeout=600)  # fmt: skip
    assert finished.returncode == 0, finished.stderr
    return finished.stdout


def test_a_trimmed_model_trains_is_exported_and_scores(tmp_path: Path) -> None:
    whole = tiny_model(tmp_path / "whole", vocabulary=["질문", "정렬하는", "쓰지않는", "낱말"])
    groups = tmp_path / "groups.jsonl"
    groups.write_text("".join(json.dumps(group) + "\n" for group in GROUPS), encoding="utf-8")
    told = run("trim", f"model={whole}", f"corpus={groups}", f"output={tmp_path / 'base'}", "characters=false")
    assert "| pieces |" in told
    run("pack", f"groups={groups}", f"output={tmp_path / 'shards'}")
    run(
        "train", f"model.name={tmp_path / 'base'}", f"data.shards={tmp_path / 'shards'}", f"run_dir={tmp_path / 'run'}",
        "data.max_length=32", "batch.groups=4", "train.epochs=2", "train.device=cpu", "precision=fp32", "tracking=none",
        "data.workers=0", "optim.lr=1e-3",
    )  # fmt: skip
    model, base = tmp_path / "run" / "model", tmp_path / "base"
    assert json.loads((model / "config.json").read_text())["vocab_size"] == len(
        json.loads((base / "tokenizer.json").read_text())["model"]["vocab"]
    )
    pairs = [("파이썬 질문 3", "정렬하는 방법 3"), ("파이썬 질문 3", "튜플은 시퀀스이다")]
    trained, untrained = (Reranker(one, device="cpu").score_pairs(pairs) for one in (model, base))
    assert abs(trained - untrained).max() > 1e-3, "training changed it"

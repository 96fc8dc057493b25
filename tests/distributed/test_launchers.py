"""Whatever starts the ranks, the same training comes out, and its model is a stock Hugging Face directory."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from reranker.train.checkpoint import newest, read_state, read_weights
from tests.distributed.conftest import Inputs, records
from tests.distributed.ranks import ROOT, environment, free_port, launch, naming, train, until

PYTHON = sys.executable
ALONE = [[PYTHON, "-m", "reranker", "train"], ["reranker", "train"]]


def on_two_ranks() -> list[list[str]]:
    """The command lines of the launchers, each with a port of its own."""
    deepspeed = ["deepspeed", "--no_local_rank", "--num_gpus", "2", "--master_port", str(free_port()), "--module"]
    torchrun = ["torchrun", "--standalone", "--nproc_per_node", "2", "-m"]
    return [[*deepspeed, "reranker.train"], [*torchrun, "reranker.train"]]


def settings(**more: Any) -> dict[str, Any]:
    return {
        "batch.per_gpu": 16, "train.max_steps": 3, "train.epochs": 1, "precision": "fp32", "deepspeed": "zero1", **more,
    }  # fmt: skip


def losses(run_dir: Path) -> list[float]:
    return [record["train/loss"] for record in records(run_dir) if "train/loss" in record]


def test_every_launcher_trains_to_the_same_losses(inputs: Inputs, tmp_path: Path) -> None:
    runs = {}
    for name, commands in {"alone": ALONE, "two": on_two_ranks()}.items():
        lines = []
        for number, command in enumerate(commands):
            runs[f"{name}-{number}"] = tmp_path / f"{name}-{number}"
            lines.append([*command, *inputs.overrides(runs[f"{name}-{number}"], **settings())])
        # Launched side by side where one rank each has a core of its own.
        finished = launch(*lines) if name == "alone" else [launch(line)[0] for line in lines]
        assert [process.code for process in finished] == [0] * len(lines), "\n".join(each.err for each in finished)
    found = {name: losses(run) for name, run in runs.items()}
    assert len(found["alone-0"]) == 3
    assert found["alone-1"] == found["alone-0"]
    assert found["two-1"] == found["two-0"]
    assert (torch.tensor(found["two-0"]) - torch.tensor(found["alone-0"])).abs().max() <= 1e-5
    # The ranks that other tests fork are those of a launcher.
    train(2, inputs.overrides(tmp_path / "forked", **settings()))
    assert losses(tmp_path / "forked") == found["two-0"]
    for run in runs.values():
        AutoModelForSequenceClassification.from_pretrained(run / "model")


@pytest.mark.parametrize("stage", ["zero0", "zero2", "zero3"])
def test_the_same_command_twice_is_bitwise_equal_with_dropout(inputs: Inputs, tmp_path: Path, stage: str) -> None:
    values = settings(deepspeed=stage) | {"model.dropout": 0.3, "data.workers": 1, "train.max_steps": 6,
                                          "train.epochs": 2}  # fmt: skip
    for name in ("one", "two"):
        train(2, inputs.overrides(tmp_path / name, **values))
    train(2, inputs.overrides(tmp_path / "plain", **values | {"model.dropout": 0.0}))
    assert len(losses(tmp_path / "one")) == 6
    assert losses(tmp_path / "one") == losses(tmp_path / "two")
    assert losses(tmp_path / "one") != losses(tmp_path / "plain")  # there is dropout
    weights = [(tmp_path / name / "model" / "model.safetensors").read_bytes() for name in ("one", "two")]
    assert weights[0] == weights[1]


def test_a_dry_run_is_told_once_and_writes_nothing(inputs: Inputs, tmp_path: Path) -> None:
    overrides = inputs.overrides(tmp_path / "run", **settings() | {"train.dry_run": "true", "data.dev": inputs.dev})
    first, second = train(2, overrides)
    report = first.out.splitlines()
    assert report[0] == "dry run: nothing is trained"
    told = {line[2:18].strip(): line[19:] for line in report[1:] if line[2:18].strip()}
    assert told["devices"] == "2 x CPU"
    assert told["precision"] == "fp32, ZeRO stage 1"
    assert told["data"] == "90 groups in 3 shards, 3 passages each"
    assert told["batch"] == "32 groups a step = 16 per rank x 2 ranks x 1 micro-batches"
    assert told["steps"] == "3, 90 groups, 270 pairs"
    assert (first.err, second.out, second.err) == ("", "", "")
    assert list(tmp_path.iterdir()) == []


def test_the_best_checkpoint_by_dev_mrr_is_the_model(inputs: Inputs, tmp_path: Path) -> None:
    # A rate so high that the model gets better and worse: the best checkpoint is not simply the last.
    values = settings() | {"data.dev": inputs.dev, "train.eval_every": 1, "train.max_steps": 12, "train.epochs": 4,
                           "optim.lr": 0.03, "train.keep_last": 99}  # fmt: skip
    run = tmp_path / "run"
    train(2, inputs.overrides(run, **values))
    scores = {record["step"]: record["eval/mrr"] for record in records(run) if "eval/mrr" in record}
    assert list(scores) == list(range(1, 13))
    best = max(scores, key=lambda step: (scores[step], -step))
    assert 1 <= best < 12, scores
    checkpoint = run / "checkpoints" / f"step-{best:08d}"
    state = json.loads((run / "checkpoints" / "step-00000012" / "state.json").read_text("utf-8"))
    chosen = {"checkpoint": checkpoint.name, "metric": "mrr", "value": scores[best], "step": best}
    assert state["best"].items() >= chosen.items()

    exported = load_file(run / "model" / "model.safetensors")
    expected = read_weights(checkpoint)
    assert exported.keys() == expected.keys()
    assert all(torch.equal(exported[name], expected[name]) for name in expected)

    # The stock classes load it and rank the dev groups as the training said.
    model = AutoModelForSequenceClassification.from_pretrained(run / "model")
    tokenizer = AutoTokenizer.from_pretrained(run / "model")
    assert model.config.num_labels == 1
    reciprocal = []
    for line in inputs.dev.read_text("utf-8").splitlines():
        group = json.loads(line)
        passages = group["pos"] + group["neg"]
        pairs = tokenizer([group["query"]] * len(passages), passages, truncation="longest_first", padding=True,
                          return_tensors="pt")  # fmt: skip
        with torch.no_grad():
            scores_P = model.eval()(**pairs).logits[:, 0]
        reciprocal.append(1 / (1 + int((scores_P[1:] >= scores_P[0]).sum())))
    assert sum(reciprocal) / len(reciprocal) == pytest.approx(scores[best], abs=1e-9)


def test_pruning_keeps_the_newest_and_the_best_checkpoint(inputs: Inputs, tmp_path: Path) -> None:
    values = settings() | {"data.dev": inputs.dev, "train.eval_every": 1, "train.max_steps": 12, "train.epochs": 4,
                           "optim.lr": 0.03, "train.keep_last": 2}  # fmt: skip
    run = tmp_path / "run"
    train(2, inputs.overrides(run, **values))
    scores = {record["step"]: record["eval/mrr"] for record in records(run) if "eval/mrr" in record}
    best = max(scores, key=lambda step: (scores[step], -step))
    kept = {int(path.name.removeprefix("step-")) for path in (run / "checkpoints").iterdir()}
    assert kept == {best, 11, 12}
    shutil.rmtree(run / "model")
    train(1, inputs.overrides(run, **values))  # finished: exported anew, from the checkpoint that was kept
    exported = load_file(run / "model" / "model.safetensors")
    assert torch.equal(exported["classifier.out_proj.weight"],
                       read_weights(run / "checkpoints" / f"step-{best:08d}")["classifier.out_proj.weight"])  # fmt: skip


@pytest.mark.parametrize("number", [0, 1], ids=["deepspeed", "torchrun"])
def test_a_signal_to_all_that_a_launcher_started_is_one_request_to_stop(
    inputs: Inputs, tmp_path: Path, number: int
) -> None:
    # The ranks get it twice: from whoever sends it to the group, and from their launcher, which hands it on.
    run = tmp_path / "run"
    values = settings(**{"train.max_steps": 300, "train.epochs": 100, "data.workers": 1})
    with open(tmp_path / "out", "wb") as out:
        process = subprocess.Popen(
            [*on_two_ranks()[number], *inputs.overrides(run, **values)], env=environment(), stdout=out, stderr=out,
            start_new_session=True, cwd=ROOT,
        )  # fmt: skip
    try:

        def under_way() -> bool:
            path = run / "metrics.jsonl"
            return process.poll() is not None or (path.exists() and path.read_text("utf-8").count("\n") >= 2)

        until(under_way, lambda: (tmp_path / "out").read_text("utf-8"))
        os.killpg(process.pid, signal.SIGTERM)
        marker = run / "requeue"
        until(lambda: marker.exists() or not naming(str(run)), lambda: (tmp_path / "out").read_text("utf-8"))
        until(lambda: not naming(str(run)), lambda: "a rank goes on")
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    assert marker.exists(), (tmp_path / "out").read_text("utf-8")
    told = json.loads(marker.read_text("utf-8"))
    path, passed = newest(run)
    assert passed == []
    assert path is not None
    assert told == {"step": read_state(path)["step"], "signal": "SIGTERM"}
    assert 2 <= told["step"] < 300

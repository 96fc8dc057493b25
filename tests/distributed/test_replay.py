"""`reranker replay` repeats a step of several ranks in one process, and tells which group did what."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from transformers import AutoTokenizer

from reranker import cli
from reranker.data.manifest import load_manifest
from reranker.data.order import Order
from reranker.data.plan import plan_fixed
from reranker.data.reader import ShardReader
from reranker.files import sha256
from reranker.prepare.pack import pack
from tests.distributed.conftest import Inputs, make_groups, records
from tests.distributed.ranks import train

STEPS, EPOCH = 6, 3
"""Steps of each training, and of an epoch: 32, 32 and 26 groups."""

TRAININGS: dict[str, dict[str, Any]] = {
    "packed": {"precision": "fp32", "deepspeed": "zero2"},
    "padded": {"precision": "fp32", "deepspeed": "zero0", "batch.packing": "padded"},
    "tokens": {"precision": "fp32", "deepspeed": "zero3", "batch.policy": "tokens", "batch.tokens": 300},
    "auto": {"precision": "fp32", "batch.policy": "tokens", "batch.tokens": "auto", "batch.packing": "padded"},
    "checkpointed": {"precision": "fp32", "model.gradient_checkpointing": "true"},
    "warmed": {"precision": "fp32", "optim.warmup": 0.5, "data.negatives.random": 0.5, "batch.per_gpu": 1},
    "bf16": {"precision": "bf16", "deepspeed": "zero1", "precision.autocast": "false"},
    "autocast": {"precision": "bf16", "deepspeed": "zero2", "model.gradient_checkpointing": "true"},
    "ranked": {"precision": "fp32", "loss.by_label": "lambdaloss", "loss.more": "{ranknet: 0.5, pointwise: 0.1}"},
    "chunks": {"precision": "fp32", "deepspeed": "zero3", "batch.chunk_tokens": 64},
    "fp16": {"precision": "fp16", "precision.fp16_on_cpu": "true", "precision.initial_scale_power": 10},
}
"""Dropout is on in all of them."""


@pytest.fixture(autouse=True)
def _as_many_threads_as_the_ranks_had() -> Iterator[None]:
    """A sum of 16-bit products over more threads is rounded otherwise."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def trained(inputs: Inputs, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Run directories of trainings on two ranks with a checkpoint behind every step."""
    root, made = tmp_path_factory.mktemp("trained"), {}

    def run(kind: str) -> Path:
        if kind not in made:
            values = {"batch.per_gpu": 4, "train.epochs": 2, "train.save_every": 1, "train.keep_last": 99,
                      "model.dropout": 0.1, **TRAININGS[kind]}  # fmt: skip
            train(2, inputs.overrides(root / kind, **values))
            made[kind] = root / kind
        return made[kind]

    return run


def checkpoint_of(run_dir: Path, step: int) -> Path:
    return run_dir / "checkpoints" / f"step-{step:08d}"


@pytest.fixture
def replay(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[dict[str, Any], str, str]]:
    """(what a replay wrote, what it printed, its notes)."""

    def run(path: Path, *arguments: str) -> tuple[dict[str, Any], str, str]:
        assert cli.main(["replay", str(path), f"output={tmp_path / 'replay.json'}", *arguments]) == 0
        out, err = capsys.readouterr()
        return json.loads((tmp_path / "replay.json").read_text("utf-8")), out, err

    return run


Replay = Callable[..., tuple[dict[str, Any], str, str]]
Trained = Callable[[str], Path]


@pytest.mark.parametrize("kind", TRAININGS)
def test_the_step_behind_a_checkpoint_has_the_loss_and_the_norm_that_its_ranks_recorded(
    kind: str, trained: Trained, replay: Replay
) -> None:
    run_dir = trained(kind)
    for step in (1, EPOCH - 1, EPOCH, STEPS - 1):  # in the epoch, its short last step, and into the next one
        found, out, _ = replay(checkpoint_of(run_dir, step))
        record = records(run_dir)[step]
        assert record["step"] == step + 1
        assert found["loss"] == pytest.approx(record["train/loss"], rel=1e-5)
        assert found["grad_norm"] == pytest.approx(record["train/grad_norm"], rel=1e-5)
        assert found["learning_rate"] == record["train/learning_rate"]
        assert found["recorded"] == {"loss": record["train/loss"], "grad_norm": record["train/grad_norm"]}
        assert (found["step"], found["exact"], found["world"]) == (step + 1, True, 2)
        assert "  weights       exactly those that this step had in training" in out
        assert f"(recorded: {record['train/loss']:.6f})" in out


def test_every_group_of_the_step_is_told_with_its_place_and_its_loss(
    inputs: Inputs, trained: Trained, replay: Replay
) -> None:
    found, out, _ = replay(checkpoint_of(trained("packed"), 5))
    manifest = load_manifest(inputs.shards)
    reader, order = ShardReader(inputs.shards, manifest), Order(manifest.sizes, 42, 1, 64)
    planned = plan_fixed(1, 2, manifest.groups, 32, 4, 2)
    places = {
        position: (rank, index)
        for index, row in enumerate(planned.slots)
        for rank, slot in enumerate(row)
        for position in slot
    }
    groups = {group["position"]: group for group in found["groups"]}
    assert sorted(groups) == list(range(64, 90)) == sorted(places)
    assert (found["epoch"], found["positions"]) == (1, [64, 89])
    for position, group in groups.items():
        assert group["member"] == reader.name(*order.locate(position))
        assert (group["rank"], group["micro_batch"]) == places[position]
        scores = torch.tensor(group["scores"])
        assert group["loss"] == pytest.approx(-scores.log_softmax(0)[0].item(), abs=1e-5)
    assert sum(group["loss"] for group in found["groups"]) / 26 == pytest.approx(found["loss"], rel=1e-5)
    assert sum(one["tokens"] for one in found["micro_batches"]) == sum(group["tokens"] for group in found["groups"])
    losses = [group["loss"] for group in found["groups"]]
    assert losses == sorted(losses, reverse=True)
    shown = [line.split() for line in out.splitlines() if "shard-" in line]
    assert [line[0] for line in shown] == [f"{loss:.4f}" for loss in losses[:10]]
    assert out.splitlines()[-1] == "and 16 more groups of smaller losses"


def test_another_step_has_its_own_groups_and_schedule_and_the_weights_of_the_checkpoint(
    trained: Trained, replay: Replay
) -> None:
    run_dir = trained("packed")
    own, _, _ = replay(checkpoint_of(run_dir, 4))
    found, out, _ = replay(checkpoint_of(run_dir, 2), "step=5")
    assert {group["member"] for group in found["groups"]} == {group["member"] for group in own["groups"]}
    assert found["learning_rate"] == own["learning_rate"] == records(run_dir)[4]["train/learning_rate"]
    assert (found["step"], found["behind"], found["exact"]) == (5, 2, False)
    assert found["loss"] != pytest.approx(own["loss"], rel=1e-5)
    assert "those behind step 2, which the checkpoint holds, and not those that this step had" in " ".join(out.split())


def test_any_number_of_ranks_can_be_imitated_and_changes_nothing_but_dropout(
    inputs: Inputs, tmp_path: Path, replay: Replay
) -> None:
    run_dir = tmp_path / "run"
    values = {"batch.policy": "tokens", "batch.tokens": 300, "train.epochs": 1, "train.save_every": 1, "train.keep_last": 9,
              "precision": "fp32"}  # fmt: skip
    train(1, inputs.overrides(run_dir, **values))
    record = records(run_dir)[1]
    for world in (1, 2, 5):
        found, _, err = replay(checkpoint_of(run_dir, 1), f"world={world}")
        assert found["world"] == world
        assert found["loss"] == pytest.approx(record["train/loss"], rel=1e-5)
        assert found["grad_norm"] == pytest.approx(record["train/grad_norm"], rel=1e-5)
        assert ("note: ranks: " in err) == (world > 1)


def test_the_texts_are_those_that_the_model_read(inputs: Inputs, trained: Trained, replay: Replay) -> None:
    found, out, _ = replay(checkpoint_of(trained("packed"), 1), "texts=true")
    known = {group.query + group.pos[0]: group for group in inputs.groups}
    for group in found["groups"]:
        own = known[group["query"] + group["passages"][0]]
        assert sorted(group["passages"][1:]) == sorted(own.neg)
    worst = found["groups"][0]
    assert f"\nposition {worst['position']}, loss {worst['loss']:.4f}\n  query    {worst['query']}\n" in out
    assert worst["positives"] == 1
    for place, mark in ((0, "+"), (2, "-")):
        assert f"\n  {worst['scores'][place]:8.3f} {mark} {worst['passages'][place]}\n" in out


def poison(path: Path, name: str, element: int) -> None:
    """Make one element of a parameter not a number, in a checkpoint that is whole in itself."""
    for file in sorted(path.glob("fragments-*")):
        with safe_open(file, framework="pt") as opened:
            metadata = opened.metadata()
            tensors = {key: opened.get_tensor(key) for key in opened.keys()}  # noqa: SIM118
        for key, (parameter, kind, _, offset) in json.loads(metadata["fragments"]).items():
            if (parameter, kind) == (name, "master") and offset <= element < offset + len(tensors[key]):
                tensors[key][element - offset] = float("nan")
        save_file(tensors, file, metadata)
    resign(path)


def resign(path: Path) -> None:
    """Write the manifest of files that a test has changed."""
    manifest = json.loads((path / "manifest.json").read_text("utf-8"))
    for name in manifest["files"]:
        manifest["files"][name] = {"bytes": (path / name).stat().st_size, "sha256": sha256(path / name)}
    (path / "manifest.json").write_text(json.dumps(manifest), "utf-8")


def copied(run_dir: Path, step: int, target: Path) -> Path:
    """A copy of a run with one checkpoint, which a test may change; the checkpoint."""
    shutil.copytree(run_dir, target, ignore=shutil.ignore_patterns("model", "wandb", "checkpoints"))
    return Path(shutil.copytree(checkpoint_of(run_dir, step), checkpoint_of(target, step)))


def test_the_groups_of_which_a_loss_is_not_finite_are_named_and_no_others(
    inputs: Inputs, trained: Trained, replay: Replay, tmp_path: Path
) -> None:
    path = copied(trained("packed"), 1, tmp_path / "run")
    whole, _, _ = replay(path, "texts=true")
    tokenizer = AutoTokenizer.from_pretrained(inputs.model)
    read = {
        group["position"]: {
            token
            for passage in group["passages"]
            for token in tokenizer(group["query"], passage, truncation="longest_first", max_length=48)["input_ids"]
        }
        for group in whole["groups"]
    }
    # A token that some groups of the step hold and others do not.
    token = next(token for token in range(5, len(tokenizer)) if 3 <= sum(token in one for one in read.values()) <= 9)
    expected = sorted(position for position, tokens in read.items() if token in tokens)
    poison(path, "roberta.embeddings.word_embeddings.weight", token * 32 + 7)
    found, out, _ = replay(path)
    assert sorted(found["non_finite_groups"]) == expected
    assert [group["position"] for group in found["groups"][: len(expected)]] == expected
    assert found["loss"] == "nan"
    assert "classifier.dense.weight" in found["non_finite_parameters"]
    listed = ", ".join(map(str, expected))
    words = " ".join(out.split())
    assert f"not finite loss or scores of {len(expected)} groups, positions {listed}; the gradient of " in words
    first = min((group["rank"], group["micro_batch"]) for group in found["groups"] if group["position"] in expected)
    assert f"first in micro-batch {first[1]} of rank {first[0]}; training does not update with such a gradient" in words


def rewrite(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change the state of a checkpoint that is whole."""
    state = json.loads((path / "state.json").read_text("utf-8"))
    change(state)
    (path / "state.json").write_text(json.dumps(state), "utf-8")
    resign(path)


def test_fp16_of_a_gpu_is_replayed_in_float32_on_a_cpu_and_says_so(
    trained: Trained, replay: Replay, tmp_path: Path
) -> None:
    path = copied(trained("fp16"), 1, tmp_path / "run")
    rewrite(path, lambda state: state["config"]["precision"].update(fp16_on_cpu=False))
    found, _, err = replay(path)
    assert (found["precision"], found["loss_scale"]) == ("fp32", 1.0)
    assert found["loss"] == pytest.approx(records(trained("fp16"))[1]["train/loss"], rel=1e-2)
    assert "note: precision: fp32 on a CPU instead of the run's fp16 on a GPU, and dropout draws other numbers\n" in err


def test_an_overflow_of_fp16_is_met_again_in_the_steps_that_met_it_and_in_no_others(
    inputs: Inputs, tmp_path: Path, replay: Replay
) -> None:
    run_dir = tmp_path / "run"
    values = {"batch.per_gpu": 4, "train.epochs": 2, "train.save_every": 1, "train.keep_last": 99, "precision": "fp16",
              "precision.fp16_on_cpu": "true", "precision.initial_scale_power": 24, "precision.hysteresis": 1}  # fmt: skip
    train(2, inputs.overrides(run_dir, **values))
    skipped = [record["train/skipped"] for record in records(run_dir)]
    assert 1 in skipped[1:]
    assert 0 in skipped[1:]
    for step in range(1, STEPS):
        found, out, _ = replay(checkpoint_of(run_dir, step))
        assert found["loss_scale"] == records(run_dir)[step - 1]["train/loss_scale"]
        assert bool(found["non_finite_parameters"]) == bool(skipped[step])
        assert ("training does not update with such a gradient" in " ".join(out.split())) == bool(skipped[step])
        assert found["non_finite_groups"] == []
        assert found["recorded"]["grad_norm"] == records(run_dir)[step]["train/grad_norm"]


def test_shards_that_have_moved_are_named_and_others_are_refused(
    inputs: Inputs, tmp_path: Path, replay: Replay, capsys: pytest.CaptureFixture[str]
) -> None:
    shards, run_dir = tmp_path / "shards", tmp_path / "run"
    shutil.copytree(inputs.shards, shards)
    values = {"batch.per_gpu": 8, "train.epochs": 1, "train.save_every": 1, "precision": "fp32", "data.shards": shards,
              "train.max_steps": 2}  # fmt: skip
    train(1, inputs.overrides(run_dir, **values))
    path = checkpoint_of(run_dir, 1)
    before, _, _ = replay(path)
    moved = shards.rename(tmp_path / "moved")
    fix = "say shards=DIR, where the shards of the training are"
    assert cli.main(["replay", str(path)]) == 2
    assert capsys.readouterr().err == (
        f"reranker: error: shards: found {shards}, no such directory, expected the shards of the training; {fix}\n"
    )
    after, _, _ = replay(path, f"shards={moved}")
    assert [group["loss"] for group in after["groups"]] == [group["loss"] for group in before["groups"]]
    other = tmp_path / "other"
    pack(make_groups(90, 2, seed=5), other, {"name": "other.jsonl"}, groups_per_shard=40)
    assert cli.main(["replay", str(path), f"shards={other}"]) == 2
    assert capsys.readouterr().err == (
        f"reranker: error: shards: found {load_manifest(other).fingerprint}, but {path} was made with "
        f"{load_manifest(moved).fingerprint}, expected the shards of the training; {fix}\n"
    )


@pytest.mark.parametrize(
    ("change", "found"),
    [
        ({"train": {"epoks": 1}}, "a setting train.epoks that this version does not know"),
        ({"train": {"epochs": "x"}}, "a value of train.epochs that does not fit"),
        ({"extra": 1}, "a setting extra that this version does not know"),
    ],
)
def test_settings_of_another_version_are_refused_by_name(
    change: dict[str, Any], found: str, trained: Trained, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = copied(trained("packed"), 2, tmp_path / "run")

    def apply(state: dict[str, Any]) -> None:
        for section, values in change.items():
            state["config"][section] = {**state["config"][section], **values} if isinstance(values, dict) else values

    rewrite(path, apply)
    assert cli.main(["replay", str(path)]) == 2
    assert capsys.readouterr().err == (
        f"reranker: error: {path}/state.json: found {found}, expected settings of this version; "
        "replay with the version that wrote it\n"
    )


def test_a_step_or_a_number_of_ranks_that_cannot_be_is_told_with_what_can(
    trained: Trained, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_dir = trained("packed")
    mistakes = {
        (
            STEPS,
            "",
        ): "step: found none behind step-00000006, the last one, expected 1 to 6, the steps of the training; say step=6",
        (2, "step=7"): "step: found 7, expected 1 to 6, the steps of the training; say step=6",
        (2, "world=3"): "world: found 3, expected 32 groups to be a multiple of 4 x 3; say world=2, as in training",
    }
    for (step, argument), line in mistakes.items():
        assert cli.main(["replay", str(checkpoint_of(run_dir, step)), *argument.split()]) == 2
        assert capsys.readouterr().err == f"reranker: error: {line}\n"


def test_a_damaged_checkpoint_is_not_replayed(
    trained: Trained, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = copied(trained("packed"), 2, tmp_path / "run")
    (path / "fragments-00001.safetensors").unlink()
    assert cli.main(["replay", str(path)]) == 2
    assert capsys.readouterr().err == (
        f"reranker: error: checkpoint: found {path}, fragments-00001.safetensors is missing, "
        "expected a complete checkpoint; choose another one\n"
    )


def test_a_checkpoint_away_from_its_run_wants_the_model_that_it_names(
    inputs: Inputs, trained: Trained, tmp_path: Path, replay: Replay, capsys: pytest.CaptureFixture[str]
) -> None:
    path = Path(shutil.copytree(checkpoint_of(trained("packed"), 1), tmp_path / "alone" / "step-00000001"))
    found, _, _ = replay(path)
    assert found["recorded"] is None
    assert found["loss"] == pytest.approx(records(trained("packed"))[1]["train/loss"], rel=1e-5)
    rewrite(path, lambda state: state["config"]["model"].update(name="/gone"))
    assert cli.main(["replay", str(path)]) == 2
    assert capsys.readouterr().err == (
        f"reranker: error: {path}: found the model /gone, which does not exist, expected initial/ in the run directory, "
        "or the model's directory; replay the checkpoint in its run directory\n"
    )

"""The same command again goes on where the last checkpoint stands, as if nothing had happened."""

from __future__ import annotations

import filecmp
import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from reranker.data.manifest import load_manifest
from reranker.prepare.pack import pack
from reranker.train.checkpoint import Pieces, newest, read_state
from reranker.train.fragments import KINDS
from tests.chaos.faults import Fault, start_hurt
from tests.distributed.conftest import Inputs, make_groups, records
from tests.distributed.ranks import run as run_ranks
from tests.distributed.ranks import start, train, until
from tests.tiny import tiny_model

STEPS, SAVE_EVERY = 24, 3
EPOCHS = STEPS // 3


def settings(**more: Any) -> dict[str, Any]:
    """24 steps of 32 groups: 8 epochs, the last step of each is short. Metrics of every step."""
    return {
        "batch.per_gpu": 8, "train.epochs": EPOCHS, "train.save_every": SAVE_EVERY, "train.keep_last": 99,
        "precision": "fp32", **more,
    }  # fmt: skip


def trajectory(run_dir: Path) -> list[tuple[int, float, float, float]]:
    """(step, loss, gradient norm, learning rate) of each record, in the order of the file."""
    keys = ("step", "train/loss", "train/grad_norm", "train/learning_rate")
    return [tuple(record[key] for key in keys) for record in records(run_dir)]


def tensors(checkpoint: Path) -> dict[tuple[str, str], torch.Tensor]:
    """Every master weight and moment of a checkpoint."""
    pieces = Pieces(checkpoint)
    return {(name, kind): pieces.full(name, kind) for name in pieces.names for kind in KINDS}


def last_checkpoint(run_dir: Path) -> Path:
    path, _ = newest(run_dir)
    assert path is not None
    return path


def snapshot(directory: Path) -> dict[Path, int]:
    """Every file under a directory with the time of its last change."""
    return {path: path.stat().st_mtime_ns for path in directory.rglob("*") if path.is_file()}


def train_until_killed(world: int, overrides: list[str], mark: Path, step: int) -> None:
    """Train, and kill -9 all ranks while the last one stands in the data behind `step`."""
    job = start_hurt(world, ["train", *overrides], [Fault("data", "hold", step + 1, world - 1, str(mark))])
    try:
        until(lambda: mark.exists() or not job.running, job.errors)
        job.kill()
        codes = [rank.code for rank in job.wait()]
    finally:
        job.end()
    assert codes == [-9] * world, "the training was over before it could be killed"


def rewound(source: Path, target: Path, step: int) -> Path:
    """A copy of a run directory as it stood when the checkpoint of `step` was the newest one."""
    shutil.copytree(source, target, ignore=shutil.ignore_patterns("model", "wandb"))
    for checkpoint in (target / "checkpoints").iterdir():
        if int(checkpoint.name.removeprefix("step-")) > step:
            shutil.rmtree(checkpoint)
    return target


@pytest.mark.parametrize(
    ("stage", "precision"),
    [
        ("zero0", "fp32"),
        ("zero1", "fp32"),
        ("zero2", "fp32"),
        ("zero3", "fp32"),
        ("zero1", "bf16"),
        ("zero2", "bf16"),
        ("zero3", "bf16"),
        ("zero0", "bf16 by autocast"),
        ("zero2", "bf16 by autocast"),
    ],
)
def test_resume_of_a_killed_training_is_bitwise_the_uninterrupted_one(
    inputs: Inputs, tmp_path: Path, stage: str, precision: str
) -> None:
    name, _, autocast = precision.partition(" by ")
    values = settings(deepspeed=stage, precision=name) | {"model.dropout": 0.1, "data.workers": 2}
    values["precision.autocast"] = str(bool(autocast)).lower()
    train(2, inputs.overrides(tmp_path / "whole", **values))

    run = tmp_path / "killed"
    again = inputs.overrides(run, **values)
    # The save of step 6 has waited for that of step 3, and goes on beside step 7.
    train_until_killed(2, again, tmp_path / "mark", step=7)
    stopped = last_checkpoint(run)
    assert stopped.name in ("step-00000003", "step-00000006")
    ranks = train(2, again)
    assert f"{stopped}: resuming behind step {int(stopped.name[-8:])}\n" in ranks[0].err

    # Each step once and in order, with dropout and all: the groups, their order and the noise are the same.
    assert [step for step, *_ in trajectory(run)] == list(range(1, STEPS + 1))
    assert trajectory(run) == trajectory(tmp_path / "whole")
    whole, resumed = (tensors(last_checkpoint(path)) for path in (tmp_path / "whole", run))
    assert whole.keys() == resumed.keys()
    assert all(torch.equal(whole[key], resumed[key]) for key in whole)
    model = "model/model.safetensors"
    assert filecmp.cmp(run / model, tmp_path / "whole" / model, shallow=False)


SAVED = [(1, "zero0"), (1, "zero1"), (2, "zero2"), (2, "zero3")]
"""(ranks, ZeRO stage)"""
CHOSEN = {1: 0, 2: 1}
"""The stage of so many ranks in float32 that are not told any."""
MOVES = [
    ((1, "zero0"), (2, "zero3")),
    ((1, "zero0"), (3, "zero1")),
    ((1, "zero0"), (2, "auto")),
    ((1, "zero1"), (1, "auto")),
    ((2, "zero2"), (1, "zero0")),
    ((2, "zero2"), (1, "zero3")),
    ((2, "zero2"), (2, "zero3")),
    ((2, "zero2"), (3, "zero2")),
    ((2, "zero3"), (1, "zero0")),
    ((2, "zero3"), (2, "zero1")),
    ((2, "zero3"), (3, "zero3")),
]


@pytest.fixture(scope="module")
def saved(inputs: Inputs, tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[int, str], Path]:
    """Uninterrupted trainings of 12 steps, 24 groups each, which 1, 2 and 3 ranks share out evenly."""
    root = tmp_path_factory.mktemp("saved")
    runs = {}
    for world, stage in SAVED:
        runs[world, stage] = root / f"{stage}-{world}"
        train(world, inputs.overrides(runs[world, stage], **topology_free(stage)))
    return runs


def topology_free(stage: str) -> dict[str, Any]:
    return settings(deepspeed=stage) | {"batch.groups": 24, "batch.per_gpu": 4, "train.epochs": 3}


@pytest.mark.parametrize(
    ("origin", "to"), MOVES, ids=[f"{one}-on-{ranks}-to-{other}-on-{others}" for (ranks, one), (others, other) in MOVES]
)
def test_resume_at_another_stage_or_number_of_ranks_has_the_same_losses(
    inputs: Inputs, saved: dict[tuple[int, str], Path], tmp_path: Path, origin: tuple[int, str], to: tuple[int, str]
) -> None:
    world, stage = to
    run = rewound(saved[origin], tmp_path / "run", step=6)
    ranks = train(world, inputs.overrides(run, **topology_free(stage)))
    assert "resuming behind step 6\n" in ranks[0].err
    chosen = CHOSEN[world] if stage == "auto" else int(stage[-1])
    told = f"deepspeed: ZeRO stage {chosen} from here on, and was {origin[1][-1]}\n"
    assert (told in ranks[0].err) == (chosen != int(origin[1][-1]))

    whole, resumed = (torch.tensor(trajectory(path), dtype=torch.float64) for path in (saved[origin], run))
    assert resumed[:, 0].tolist() == list(range(1, 13))
    assert torch.equal(resumed[:6], whole[:6])
    assert (resumed[:, 1] - whole[:, 1]).abs().max() <= 1e-5
    assert ((resumed[:, 2] - whole[:, 2]) / whole[:, 2]).abs().max() <= 1e-4
    assert torch.equal(resumed[:, 3], whole[:, 3])
    # The newest checkpoint is of the new topology, and of as many fragments.
    state = json.loads((last_checkpoint(run) / "state.json").read_text("utf-8"))
    assert (state["step"], state["world"], state["stage"]) == (12, world, chosen)


def test_one_rank_that_offloads_is_at_a_stage_that_does(inputs: Inputs, tmp_path: Path) -> None:
    values = topology_free("auto") | {"deepspeed.offload": "true", "train.max_steps": 1}
    train(1, inputs.overrides(tmp_path / "run", **values))
    assert read_state(last_checkpoint(tmp_path / "run"))["stage"] == 1


@pytest.fixture(scope="module")
def saved_by_tokens(inputs: Inputs, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An uninterrupted training of 12 steps of 32 groups, the last of each epoch of 26, on two ranks."""
    run = tmp_path_factory.mktemp("tokens") / "whole"
    train(2, inputs.overrides(run, **by_tokens("zero2")))
    return run


def by_tokens(stage: str) -> dict[str, Any]:
    return settings(deepspeed=stage) | {"batch.policy": "tokens", "batch.tokens": 300, "train.epochs": 4}


@pytest.mark.parametrize(("world", "stage", "workers"), [(1, "zero0", 3), (3, "zero2", 0), (4, "zero1", 1)])
def test_resume_with_micro_batches_by_tokens_takes_any_number_of_ranks_and_workers(
    inputs: Inputs, saved_by_tokens: Path, tmp_path: Path, world: int, stage: str, workers: int
) -> None:
    # Neither 32 nor 26 groups divide by 3: policy `fixed` would refuse.
    run = rewound(saved_by_tokens, tmp_path / "run", step=6)
    # Larger micro-batches, too, change nothing that is learned.
    tokens = "auto" if stage == "zero1" else 300
    ended = train(world, inputs.overrides(run, **by_tokens(stage) | {"data.workers": workers, "batch.tokens": tokens}))
    if tokens == "auto":
        # 8 groups a rank of 3 passages of 48 tokens: what no step can fill.
        assert "batch.tokens=auto: 1,152 tokens, measured\n" in ended[0].err
        assert read_state(last_checkpoint(run))["measured"]["tokens"] == 1152
        again = rewound(run, tmp_path / "again", step=9)
        ended = train(world, inputs.overrides(again, **by_tokens(stage) | {"batch.tokens": tokens}))
        assert "batch.tokens=auto: 1,152 tokens, as measured before\n" in ended[0].err
    else:
        assert read_state(last_checkpoint(run))["measured"] is None
    whole, resumed = (torch.tensor(trajectory(path), dtype=torch.float64) for path in (saved_by_tokens, run))
    assert resumed[:, 0].tolist() == list(range(1, 13))
    assert (resumed[:, 1] - whole[:, 1]).abs().max() <= 1e-5
    assert ((resumed[:, 2] - whole[:, 2]) / whole[:, 2]).abs().max() <= 1e-4


def train_counting(argv: list[str]) -> int:
    """The life of a rank that notes how many elements of a checkpoint it reads."""
    from reranker.cli import main

    read, elements = Pieces.read, 0

    def counted(self: Pieces, name: str, kind: str, offset: int, count: int) -> torch.Tensor:
        nonlocal elements
        elements += count
        return read(self, name, kind, offset, count)

    Pieces.read = counted  # type: ignore[method-assign]
    code = main(argv[1:])
    Path(f"{argv[0]}-{os.environ['RANK']}").write_text(str(elements), encoding="utf-8")
    return code


@pytest.mark.parametrize(("world", "stage"), [(2, "zero1"), (3, "zero2")])
def test_no_rank_reads_more_of_a_checkpoint_than_its_share(
    inputs: Inputs, saved: dict[tuple[int, str], Path], tmp_path: Path, world: int, stage: str
) -> None:
    run = rewound(saved[1, "zero0"], tmp_path / "run", step=6)
    wanted = sum(tensor.numel() for tensor in tensors(last_checkpoint(run)).values())
    values = topology_free(stage) | {"train.max_steps": 7, "train.dry_run": "false"}
    job = start(world, [str(tmp_path / "read"), "train", *inputs.overrides(run, **values)], function=train_counting)
    assert [rank.code for rank in job.wait()] == [0] * world
    # Rank 0 exports the model in the end, parameter by parameter: a third of the state, its masters.
    read = [
        int((tmp_path / f"read-{rank}").read_text("utf-8")) - (wanted // 3 if rank == 0 else 0) for rank in range(world)
    ]
    assert sum(read) == wanted
    assert max(read) <= wanted // world + wanted // 100


CHAIN = [(1, "zero2", 2), (2, "zero0", 5), (4, "zero3", 8), (3, "zero2_offload", 10), (2, "zero3_offload", 12)]
"""(ranks, stage, the step that it is stopped behind): steps 3, 6 and 9 end an epoch, the others are in the middle."""


def test_one_training_over_1_2_4_3_ranks_and_stages_2_0_3_is_the_uninterrupted_one(
    inputs: Inputs, saved_by_tokens: Path, tmp_path: Path
) -> None:
    run, before = tmp_path / "run", 0
    for world, stage, stop in CHAIN:
        values = by_tokens(stage) | {"train.save_every": 1}
        if stop < 12:
            # A request to stop is what ends a job in the middle of its data, and of its schedule.
            job = start_hurt(
                world, ["train", *inputs.overrides(run, **values)], [Fault("data", "SIGUSR1", stop - before + 1, 0)]
            )
            ranks = job.wait()
            assert [rank.code for rank in ranks] == [0] * world, ranks
        else:
            ranks = train(world, inputs.overrides(run, **values))
        if before:
            assert f"resuming behind step {before}\n" in ranks[0].err
        state = read_state(last_checkpoint(run))
        assert (state["world"], state["stage"]) == (world, int(stage.removesuffix("_offload")[-1]))
        assert state["config"]["deepspeed"]["offload"] is stage.endswith("_offload")
        assert state["step"] == stop
        before = stop
    whole, resumed = (torch.tensor(trajectory(path), dtype=torch.float64) for path in (saved_by_tokens, run))
    # The loss of each step is that of the same groups under the same weights.
    assert resumed[:, 0].tolist() == list(range(1, 13))
    assert (resumed[:, 1] - whole[:, 1]).abs().max() <= 1e-5
    assert ((resumed[:, 2] - whole[:, 2]) / whole[:, 2]).abs().max() <= 1e-4
    seen, expected = (read_state(last_checkpoint(path)) for path in (run, saved_by_tokens))
    assert seen["cursor"] == expected["cursor"]


def every_file(run: Path) -> list[str]:
    return sorted(path.name for path in last_checkpoint(run).iterdir())


@pytest.mark.parametrize("damage", ["cut short", "a flipped byte", "emptied", "deleted"])
def test_no_torn_checkpoint_is_ever_loaded_whatever_file_is_damaged(
    inputs: Inputs, saved: dict[tuple[int, str], Path], tmp_path: Path, damage: str
) -> None:
    origin = saved[2, "zero2"]
    for name in every_file(origin):
        run = rewound(origin, tmp_path / name, step=9)
        torn = last_checkpoint(run)
        content = (torn / name).read_bytes()
        if damage == "cut short":
            (torn / name).write_bytes(content[: len(content) // 2])
        elif damage == "a flipped byte":
            middle = len(content) // 2
            (torn / name).write_bytes(content[:middle] + bytes([content[middle] ^ 4]) + content[middle + 1 :])
        elif damage == "emptied":
            (torn / name).write_bytes(b"")
        else:
            (torn / name).unlink()
        older, passed = newest(run)
        assert older == torn.with_name("step-00000006"), (name, passed)
        assert [line.startswith(f"{torn}: passed over, ") for line in passed] == [True]


@pytest.mark.parametrize("damage", ["cut short", "a flipped byte", "no manifest", "a file is gone"])
def test_resume_passes_over_a_torn_checkpoint_and_says_why(
    inputs: Inputs, saved: dict[tuple[int, str], Path], tmp_path: Path, damage: str
) -> None:
    origin = saved[2, "zero2"]
    run = rewound(origin, tmp_path / "run", step=9)
    torn = last_checkpoint(run)
    file = torn / "fragments-00001.safetensors"
    content = file.read_bytes()
    if damage == "cut short":
        file.write_bytes(content[:-1])
        reason = f"{file.name} has {len(content) - 1} bytes and not {len(content)}"
    elif damage == "a flipped byte":
        file.write_bytes(content[:-9] + bytes([content[-9] ^ 1]) + content[-8:])
        reason = f"{file.name} has another sha256 than was written"
    elif damage == "no manifest":
        (torn / "manifest.json").unlink()
        reason = "no readable manifest.json"
    else:
        file.unlink()
        reason = f"{file.name} is missing"
    ranks = train(2, inputs.overrides(run, **topology_free("zero2")))
    assert f"{torn}: passed over, {reason}\n" in ranks[0].err
    assert f"{torn.with_name('step-00000006')}: resuming behind step 6\n" in ranks[0].err
    assert trajectory(run) == trajectory(origin)
    whole, resumed = (tensors(last_checkpoint(path)) for path in (origin, run))
    assert all(torch.equal(whole[key], resumed[key]) for key in whole)


def test_resume_of_a_finished_training_says_so_and_trains_nothing(
    inputs: Inputs, saved: dict[tuple[int, str], Path], tmp_path: Path
) -> None:
    run = rewound(saved[1, "zero0"], tmp_path / "run", step=12)
    before = snapshot(run / "checkpoints")
    recorded = (run / "metrics.jsonl").read_bytes()
    first, second = train(2, inputs.overrides(run, **topology_free("zero2")))
    assert first.out.splitlines()[0] == f"{run}: all 12 steps were trained before (step-00000012)"
    assert second.out == ""
    assert snapshot(run / "checkpoints") == before
    assert (run / "metrics.jsonl").read_bytes() == recorded


def test_resume_of_a_finished_training_with_more_epochs_goes_on(
    inputs: Inputs, saved: dict[tuple[int, str], Path], tmp_path: Path
) -> None:
    run = rewound(saved[1, "zero0"], tmp_path / "run", step=12)
    train(1, inputs.overrides(run, **topology_free("zero0") | {"train.epochs": 4}))
    assert [step for step, *_ in trajectory(run)] == list(range(1, 17))


def test_resume_of_another_training_is_refused(
    inputs: Inputs, saved: dict[tuple[int, str], Path], tmp_path: Path
) -> None:
    run = rewound(saved[1, "zero0"], tmp_path / "run", step=6)
    other = tmp_path / "other"
    pack(make_groups(90, 2, seed=5), other, {"name": "other.jsonl"}, groups_per_shard=40)
    checkpoint = run / "checkpoints" / "step-00000006"
    cursor = json.loads((checkpoint / "state.json").read_text("utf-8"))["cursor"]
    refused = {
        "train.seed": (7, f"7, but {checkpoint} was made with 42"),
        "data.shuffle_block": (1, f"1, but {checkpoint} was made with 64"),
        "batch.groups": (16, f"16, but {checkpoint} was made with 24"),
        "data.shards": (
            other,
            f"{load_manifest(other).fingerprint} (from name other.jsonl), but {checkpoint} "
            f"was made with {cursor['fingerprint']} (from name groups.jsonl)",
        ),
    }
    before = snapshot(run)
    for key, (value, found) in refused.items():
        ranks = run_ranks(2, ["train", *inputs.overrides(run, **topology_free("zero0") | {key: value})])
        assert [rank.code for rank in ranks] == [2, 2]
        line = (
            f"reranker: error: {key}: found {found}, expected the same value; restore it, choose another run_dir, or say "
            f"train.accept=[{key}]\n"
        )
        assert [line in rank.err for rank in ranks] == [True, False]
        assert "Traceback" not in ranks[0].err + ranks[1].err
    assert snapshot(run) == before


def test_resume_with_another_tokenizer_or_model_is_refused(inputs: Inputs, tmp_path: Path) -> None:
    run, model = tmp_path / "run", tmp_path / "model"
    shutil.copytree(inputs.model, model)
    values = topology_free("zero1") | {"model.name": model, "train.epochs": 1}
    train(1, inputs.overrides(run, **values))
    checkpoint = last_checkpoint(run)
    before = read_state(checkpoint)["identity"]
    pieces = read_state(checkpoint)["description"]["tokenizer"]["pieces"]
    shutil.rmtree(model)
    tiny_model(model, vocabulary=["문서"])  # one more piece, and a row of the embedding for it
    (rank,) = run_ranks(1, ["train", *inputs.overrides(run, **values | {"train.epochs": 2})])
    assert rank.code == 2
    line = rank.err.splitlines()[-1]
    assert line.startswith("reranker: error: tokenizer: found ")
    assert f", but {checkpoint} was made with {before['tokenizer']} (pieces {pieces}); model " in line
    assert re.search(rf"tokenizer: found [0-9a-f]{{16}} \(pieces {pieces + 1}\)", line)
    assert f"(vocab_size {pieces + 1})" in line
    assert f"but {before['model']} (vocab_size {pieces})" in line
    assert line.endswith("restore them, choose another run_dir, or say train.accept=[tokenizer,model]")


def test_resume_with_another_batch_that_is_accepted_misses_no_group(
    inputs: Inputs, saved: dict[tuple[int, str], Path], tmp_path: Path
) -> None:
    # Behind step 6 of 24 groups each, 4 an epoch: 48 of 90 groups of the second epoch are seen. Steps of 20 have
    # their last border at 40: eight groups are shown twice.
    run = rewound(saved[2, "zero2"], tmp_path / "run", step=6)
    values = topology_free("zero2") | {"batch.groups": 20, "batch.per_gpu": 5, "train.accept": "[batch.groups]"}
    ranks = train(2, inputs.overrides(run, **values))
    assert "train.accept: batch.groups is 20 from here on, and was 24\n" in ranks[0].err
    assert "train.accept: epoch 2 goes on at group 40 (was 48)\n" in ranks[0].err
    # 5 steps an epoch, of which 7 are behind.
    assert "resuming behind step 7\n" in ranks[0].err
    state = read_state(last_checkpoint(run))
    assert (state["step"], state["cursor"]["epoch"], state["cursor"]["position"]) == (15, 3, 0)
    assert state["updates"] == 6 + 8
    # The same command again has nothing more to accept, and nothing to do.
    again = train(2, inputs.overrides(run, **values))
    assert "train.accept" not in again[0].err
    assert "all 15 steps were trained before" in again[0].out


def test_resume_goes_on_in_the_same_tracking_run(inputs: Inputs, tmp_path: Path) -> None:
    run = tmp_path / "run"
    values = topology_free("zero1") | {"tracking": "offline", "train.epochs": 2}
    train(1, inputs.overrides(run, **values))
    run_id = (run / "wandb_run_id").read_text("utf-8").strip()
    shutil.rmtree(run / "checkpoints" / "step-00000008")
    moved = run.rename(tmp_path / "moved")
    train(1, inputs.overrides(moved, **values))
    assert (moved / "wandb_run_id").read_text("utf-8").strip() == run_id
    # One file for each of the two starts, both of this run.
    files = sorted(path.name for path in moved.glob("wandb/offline-run-*/run-*.wandb"))
    assert files == [f"run-{run_id}.wandb"] * 2
    assert json.loads((last_checkpoint(moved) / "state.json").read_text("utf-8"))["tracking_run_id"] == run_id


def test_another_origin_changes_the_model_card_and_nothing_else(inputs: Inputs, tmp_path: Path) -> None:
    silent, told = tmp_path / "silent", tmp_path / "told"

    def trained(run: Path, epochs: int, origin: str = "null") -> str:
        values = topology_free("zero1") | {"train.epochs": epochs, "data.origin": origin}
        (rank,) = train(1, inputs.overrides(run, **values))
        assert "data.origin" not in rank.err
        return rank.out

    def data_of(run: Path) -> str:
        return (run / "model" / "README.md").read_text("utf-8").split("## Data\n\n")[1].split("\n\n## ")[0]

    trained(silent, 1)
    trained(told, 1, '"Of the first kind."')
    known = "The training data are 90 groups: a query with its positive and negative passages. They come from `groups.jsonl`."
    assert data_of(silent).startswith(known)
    assert data_of(told).startswith(f"Of the first kind.\n\n{known}")
    before = snapshot(told / "checkpoints")
    assert "all 4 steps were trained before" in trained(told, 1, '"Of the second kind."')
    assert snapshot(told / "checkpoints") == before
    assert data_of(told).startswith(f"Of the second kind.\n\n{known}")
    for run, origin in ((silent, "null"), (told, '"Of the third kind."')):
        trained(run, 2, origin)
    assert data_of(told).startswith(f"Of the third kind.\n\n{known}")
    assert trajectory(told) == trajectory(silent)
    weights = [(run / "model" / "model.safetensors").read_bytes() for run in (silent, told)]
    assert weights[0] == weights[1]
    states = [read_state(last_checkpoint(run)) for run in (silent, told)]
    assert states[0]["step"] == 8
    for what in ("cursor", "identity", "description"):
        assert states[0][what] == states[1][what]

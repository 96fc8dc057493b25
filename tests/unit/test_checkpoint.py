"""A checkpoint is complete or passed over, and whole tensors come back out of any number of pieces."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from reranker.config import Device
from reranker.errors import UserError
from reranker.train.checkpoint import Pieces, damage, find, newest, prune, read_state, read_weights, save
from reranker.train.distributed import Ranks, join, leave
from reranker.train.fragments import KINDS, Fragment

LAUNCHER = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
TENSORS = {
    "layer.weight": torch.arange(12.0).view(3, 4),
    "layer.bias": torch.tensor([0.5, -0.0, 1e-30]),
    "scale": torch.tensor(7.0),
    "empty_rows": torch.randn(5, 1, 2, generator=torch.Generator().manual_seed(0)),
}


@pytest.fixture(scope="module")
def ranks() -> Iterator[Ranks]:
    """A real world of one rank."""
    with pytest.MonkeyPatch.context() as patch:
        for name in LAUNCHER:
            patch.setenv(name, "")  # so that it is put back afterwards
            os.environ.pop(name)
        try:
            yield join(Device.cpu, 60.0)
        finally:
            leave()


def fragments(cut: int = 4, tensors: dict[str, torch.Tensor] = TENSORS) -> Iterator[Fragment]:
    """Every tensor in pieces of `cut` elements, the last ones first."""
    for name, tensor in tensors.items():
        for number, kind in enumerate(KINDS):
            flat = (tensor + number).flatten()
            for offset in reversed(range(0, len(flat), cut)):
                yield Fragment(name, kind, tuple(tensor.shape), offset, flat[offset : offset + cut].clone())


def write(run_dir: Path, step: int, ranks: Ranks, **state: Any) -> Path:
    return save(run_dir, step, fragments(), {"cursor": {"epoch": 0}, **state}, ranks)


def flip(path: Path, where: int, bit: int = 1) -> None:
    content = bytearray(path.read_bytes())
    content[where] ^= bit
    path.write_bytes(content)


@pytest.mark.parametrize("cut", [1, 3, 4, 100])
def test_whole_tensors_come_back_from_fragments_of_any_size(cut: int, ranks: Ranks, tmp_path: Path) -> None:
    path = save(tmp_path, 3, fragments(cut), {}, ranks)
    assert path == tmp_path / "checkpoints" / "step-00000003"
    weights = read_weights(path)
    assert weights.keys() == TENSORS.keys()
    for name, tensor in TENSORS.items():
        assert weights[name].dtype == torch.float32
        assert weights[name].shape == tensor.shape
        assert torch.equal(weights[name], tensor)
        for number, kind in enumerate(KINDS):
            assert torch.equal(Pieces(path).full(name, kind), tensor + number)


def test_the_shares_of_several_ranks_are_joined(ranks: Ranks, tmp_path: Path) -> None:
    # Each rank writes one file: here the world of one writes twice, with half of the pieces each time.
    pieces = list(fragments())
    first = save(tmp_path / "a", 1, iter(pieces[::2]), {}, ranks)
    second = save(tmp_path / "b", 1, iter(pieces[1::2]), {}, ranks)
    shutil.copy(second / "fragments-00000.safetensors", first / "fragments-00001.safetensors")
    for name, values in read_weights(first).items():
        assert torch.equal(values, TENSORS[name])


def test_a_missing_piece_is_an_error_and_not_a_hole(ranks: Ranks, tmp_path: Path) -> None:
    path = save(tmp_path, 1, iter(list(fragments())[1:]), {}, ranks)
    with pytest.raises(UserError) as caught:
        read_weights(path)
    assert str(caught.value) == (
        f"{path}: found 8 of 12 elements of layer.weight, expected a complete checkpoint; use another checkpoint"
    )


def test_a_parameter_of_another_model_is_an_error(ranks: Ranks, tmp_path: Path) -> None:
    path = write(tmp_path, 1, ranks)
    with pytest.raises(UserError) as caught:
        Pieces(path).full("other.weight", "master")
    assert str(caught.value) == (
        f"{path}: found no parameter other.weight, expected the weights of this model; "
        "resume with the model that the run began with"
    )


def test_the_state_is_read_as_it_was_written(ranks: Ranks, tmp_path: Path) -> None:
    path = write(tmp_path, 12, ranks, best={"checkpoint": "step-00000012"}, scaler=None, name="한국어")
    assert read_state(path) == {
        "schema": 1, "step": 12, "cursor": {"epoch": 0}, "best": {"checkpoint": "step-00000012"}, "scaler": None,
        "name": "한국어",
    }  # fmt: skip


def test_saving_leaves_the_checkpoint_and_nothing_else(ranks: Ranks, tmp_path: Path) -> None:
    path = write(tmp_path, 12, ranks)
    assert [entry.name for entry in path.parent.iterdir()] == ["step-00000012"]
    files = sorted(entry.name for entry in path.iterdir())
    assert files == ["fragments-00000.safetensors", "manifest.json", "state.json"]
    listed = json.loads((path / "manifest.json").read_text("utf-8"))["files"]
    assert sorted([*listed, "manifest.json"]) == files
    assert damage(path) is None


def test_a_step_that_is_saved_again_replaces_what_was_there(ranks: Ranks, tmp_path: Path) -> None:
    write(tmp_path, 3, ranks)
    path = save(tmp_path, 3, fragments(tensors={"only": torch.ones(2)}), {}, ranks)
    assert list(read_weights(path)) == ["only"]
    assert newest(tmp_path) == (path, [])


def test_the_newest_complete_checkpoint_is_taken(ranks: Ranks, tmp_path: Path) -> None:
    assert newest(tmp_path) == (None, [])
    for step in (9, 100, 20):
        write(tmp_path, step, ranks)
    assert newest(tmp_path) == (tmp_path / "checkpoints" / "step-00000100", [])


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("fragments-00000.safetensors", "fragments-00000.safetensors is missing"),
        ("state.json", "state.json is missing"),
        ("manifest.json", "no readable manifest.json"),
    ],
)
def test_an_incomplete_checkpoint_is_passed_over_with_its_reason(
    name: str, reason: str, ranks: Ranks, tmp_path: Path
) -> None:
    older, newer = write(tmp_path, 5, ranks), write(tmp_path, 10, ranks)
    (newer / name).unlink()
    assert newest(tmp_path) == (older, [f"{newer}: passed over, {reason}"])


@pytest.mark.parametrize("name", ["fragments-00000.safetensors", "state.json"])
def test_a_flipped_byte_anywhere_is_passed_over(name: str, ranks: Ranks, tmp_path: Path) -> None:
    older, newer = write(tmp_path, 5, ranks), write(tmp_path, 10, ranks)
    whole = (newer / name).read_bytes()
    for where in (0, len(whole) // 2, len(whole) - 1):
        (newer / name).write_bytes(whole)
        flip(newer / name, where)
        expected = [f"{newer}: passed over, {name} has another sha256 than was written"]
        assert newest(tmp_path) == (older, expected)


def test_a_file_cut_short_is_passed_over_with_its_sizes(ranks: Ranks, tmp_path: Path) -> None:
    path = write(tmp_path, 10, ranks)
    file = path / "fragments-00000.safetensors"
    size = file.stat().st_size
    file.write_bytes(file.read_bytes()[:-1])
    assert newest(tmp_path) == (
        None, [f"{path}: passed over, fragments-00000.safetensors has {size - 1} bytes and not {size}"],
    )  # fmt: skip


def test_no_damage_of_the_manifest_is_a_crash(ranks: Ranks, tmp_path: Path) -> None:
    path = write(tmp_path, 10, ranks)
    whole = (path / "manifest.json").read_bytes()
    content = json.loads(whole)
    for where in range(len(whole)):
        for bit in (1, 32):
            changed = bytearray(whole)
            changed[where] ^= bit
            (path / "manifest.json").write_bytes(changed)
            if damage(path) is None:
                # Only what says nothing of the files may change unseen.
                assert json.loads((path / "manifest.json").read_text("utf-8"))["files"] == content["files"]
    for broken in (b"", b"[]", b'{"files": []}', b'{"files": {"a": 1}}', b'{"files": {"a": {}}}', whole[:-5]):
        (path / "manifest.json").write_bytes(broken)
        assert damage(path) == "no readable manifest.json"


def test_a_staging_directory_is_never_found(ranks: Ranks, tmp_path: Path) -> None:
    path = write(tmp_path, 10, ranks)
    staging = path.with_name(".step-00000020.staging")
    shutil.copytree(path, staging)
    assert damage(staging) is None
    assert newest(tmp_path) == (path, [])
    prune(tmp_path, 10, 1, None)
    assert path.is_dir()


def test_a_save_that_was_broken_off_does_not_hinder_the_next(ranks: Ranks, tmp_path: Path) -> None:
    def broken() -> Iterator[Fragment]:
        yield next(fragments())
        raise OSError("no space left on device")

    with pytest.raises(OSError, match="no space left"):
        save(tmp_path, 5, broken(), {}, ranks)
    assert newest(tmp_path) == (None, [])
    (tmp_path / "checkpoints" / ".step-00000005.staging" / "fragments-00007.safetensors").write_bytes(
        b"of a larger world"
    )
    path = write(tmp_path, 5, ranks)
    assert newest(tmp_path) == (path, [])
    assert sorted(entry.name for entry in path.iterdir()) == [
        "fragments-00000.safetensors", "manifest.json", "state.json",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("best", "left"),
    [
        (None, [4, 5]),
        (2, [2, 4, 5]),
        (5, [4, 5]),
    ],
)
def test_pruning_keeps_the_newest_and_the_best(best: int | None, left: list[int], ranks: Ranks, tmp_path: Path) -> None:
    for step in range(1, 6):
        write(tmp_path, step, ranks)
    prune(tmp_path, 5, 2, None if best is None else f"step-{best:08d}")
    names = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert names == [f"step-{step:08d}" for step in left]


def test_pruning_removes_what_was_passed_over_and_never_counts_it(ranks: Ranks, tmp_path: Path) -> None:
    for step in (1, 2, 3, 8, 9):
        write(tmp_path, step, ranks)
    # 8 and 9 were damaged: the run resumed behind 3 and has now saved 4.
    write(tmp_path, 4, ranks)
    prune(tmp_path, 4, 2, "step-00000001")
    names = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert names == ["step-00000001", "step-00000003", "step-00000004"]


def test_another_model_than_the_checkpoints_is_told_by_its_first_parameter(ranks: Ranks, tmp_path: Path) -> None:
    path = write(tmp_path, 1, ranks)
    shapes = {name: tuple(tensor.shape) for name, tensor in TENSORS.items()}
    Pieces(path).check(shapes)
    for changed, found, expected in (
        ({**shapes, "layer.bias": (4,)}, "layer.bias of shape (3,)", "(4,)"),
        ({**shapes, "another": (1,)}, "another of shape None", "(1,)"),
        ({"layer.weight": (3, 4)}, "empty_rows of shape (5, 1, 2)", "None"),
    ):
        with pytest.raises(UserError) as caught:
            Pieces(path).check(changed)
        assert str(caught.value) == (
            f"{path}: found {found}, expected {expected}, as the model has; "
            "resume with the model that the run began with, or choose another run_dir"
        )


def not_found(run_dir: Path, which: str) -> str:
    with pytest.raises(UserError) as caught:
        find(run_dir, which)
    return str(caught.value).replace(f"{run_dir}", "RUN")


def test_checkpoints_are_found_as_last_best_or_by_name(ranks: Ranks, tmp_path: Path) -> None:
    first = write(tmp_path, 1, ranks)
    assert find(tmp_path, "best") == find(tmp_path, "last") == first
    best = write(tmp_path, 2, ranks, best={"checkpoint": "step-00000002"})
    last = write(tmp_path, 3, ranks, best={"checkpoint": "step-00000002"})
    assert (find(tmp_path, "last"), find(tmp_path, "best")) == (last, best)
    assert find(tmp_path, "step-00000001") == first


def test_what_is_not_found_is_told_with_what_there_is(ranks: Ranks, tmp_path: Path) -> None:
    assert not_found(tmp_path / "none", "last") == (
        "run: found RUN, no such directory, expected a run directory of reranker train; check the path"
    )
    assert not_found(tmp_path, "last") == (
        "run: found no checkpoint in RUN/checkpoints, expected a complete checkpoint; train first, or check the path"
    )
    for step in (1, 2):
        write(tmp_path, step, ranks)
    assert not_found(tmp_path, "step-7") == (
        "checkpoint: found step-7, no such directory, expected best, last or one of step-00000002, step-00000001; "
        "change the name"
    )
    (tmp_path / "checkpoints" / "step-00000001" / "state.json").unlink()
    assert not_found(tmp_path, "step-00000001").startswith(
        "checkpoint: found step-00000001, state.json is missing, expected best, last or one of "
    )
    (tmp_path / "checkpoints" / "step-00000002" / "state.json").unlink()
    assert not_found(tmp_path, "best") == (
        "run: found RUN/checkpoints/step-00000002: passed over, state.json is missing, "
        "expected a complete checkpoint; train first, or check the path"
    )


def test_a_damaged_best_checkpoint_is_not_handed_out(ranks: Ranks, tmp_path: Path) -> None:
    best = write(tmp_path, 2, ranks)
    write(tmp_path, 3, ranks, best={"checkpoint": "step-00000002"})
    file = best / "fragments-00000.safetensors"
    flip(file, file.stat().st_size - 1)
    assert not_found(tmp_path, "best").startswith(
        "checkpoint: found step-00000002, fragments-00000.safetensors has another sha256 than was written, expected "
    )

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

from reranker.errors import UserError
from reranker.files import sha256
from reranker.train.checkpoint import Pieces, Retention, damage, find, newest, prune, read_state, read_weights, save
from reranker.train.distributed import Ranks
from reranker.train.fragments import KINDS, Fragment, read_parameter
from reranker.train.owner import Owner, TakenOver

KEEP_ALL = Retention(last=99)
TENSORS = {
    "layer.weight": torch.arange(12.0).view(3, 4),
    "layer.bias": torch.tensor([0.5, -0.0, 1e-30]),
    "scale": torch.tensor(7.0),
    "empty_rows": torch.randn(5, 1, 2, generator=torch.Generator().manual_seed(0)),
}


def fragments(cut: int = 4, tensors: dict[str, torch.Tensor] = TENSORS) -> Iterator[Fragment]:
    """Every tensor in pieces of `cut` elements, the last ones first."""
    for name, tensor in tensors.items():
        for number, kind in enumerate(KINDS):
            flat = (tensor + number).flatten()
            for offset in reversed(range(0, len(flat), cut)):
                yield Fragment(name, kind, tuple(tensor.shape), offset, flat[offset : offset + cut].clone())


def write(run_dir: Path, step: int, ranks: Ranks, **state: Any) -> Path:
    return save(run_dir, step, list(fragments()), {"cursor": {"epoch": 0}, **state}, ranks, KEEP_ALL)


def flip(path: Path, where: int, bit: int = 1) -> None:
    content = bytearray(path.read_bytes())
    content[where] ^= bit
    path.write_bytes(content)


@pytest.mark.parametrize("cut", [1, 3, 4, 100])
def test_whole_tensors_come_back_from_fragments_of_any_size(cut: int, ranks: Ranks, tmp_path: Path) -> None:
    path = save(tmp_path, 3, list(fragments(cut)), {}, ranks, KEEP_ALL)
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
    first = save(tmp_path / "a", 1, pieces[::2], {}, ranks, KEEP_ALL)
    second = save(tmp_path / "b", 1, pieces[1::2], {}, ranks, KEEP_ALL)
    shutil.copy(second / "fragments-00000.safetensors", first / "fragments-00001.safetensors")
    for name, values in read_weights(first).items():
        assert torch.equal(values, TENSORS[name])


def test_a_missing_piece_is_an_error_and_not_a_hole(ranks: Ranks, tmp_path: Path) -> None:
    path = save(tmp_path, 1, list(fragments())[1:], {}, ranks, KEEP_ALL)
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
    path = save(tmp_path, 3, list(fragments(tensors={"only": torch.ones(2)})), {}, ranks, KEEP_ALL)
    assert list(read_weights(path)) == ["only"]
    assert newest(tmp_path) == (path, [])


def test_the_newest_complete_checkpoint_is_taken(ranks: Ranks, tmp_path: Path) -> None:
    assert newest(tmp_path) == (None, [])
    for step in (9, 20, 100):
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
    prune(tmp_path, 10, Retention(1))
    assert path.is_dir()


def test_a_save_or_removal_that_was_killed_does_not_hinder_the_next(ranks: Ranks, tmp_path: Path) -> None:
    for left in (".step-00000005.staging", ".step-00000002.removed", ".step-00000003.old"):
        (tmp_path / "checkpoints" / left).mkdir(parents=True)
        (tmp_path / "checkpoints" / left / "fragments-00007.safetensors").write_bytes(b"of a larger world")
    path = write(tmp_path, 5, ranks)
    assert [entry.name for entry in path.parent.iterdir()] == ["step-00000005"]
    assert newest(tmp_path) == (path, [])
    assert sorted(entry.name for entry in path.iterdir()) == [
        "fragments-00000.safetensors", "manifest.json", "state.json",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("best", "every", "left"),
    [
        ((), None, [4, 5]),
        ((2,), None, [2, 4, 5]),
        ((5,), None, [4, 5]),
        ((1, 3), None, [1, 3, 4, 5]),
        ((), 2, [2, 4, 5]),
        ((1,), 3, [1, 3, 4, 5]),
    ],
)
def test_pruning_keeps_the_newest_the_best_and_every_kth(
    best: tuple[int, ...], every: int | None, left: list[int], ranks: Ranks, tmp_path: Path
) -> None:
    for step in range(1, 6):
        write(tmp_path, step, ranks)
    prune(tmp_path, 5, Retention(2, every, tuple(f"step-{step:08d}" for step in best)))
    names = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert names == [f"step-{step:08d}" for step in left]


def test_pruning_removes_what_was_passed_over_and_never_counts_it(ranks: Ranks, tmp_path: Path) -> None:
    for step in (1, 2, 3, 8, 9):
        write(tmp_path, step, ranks)
    # 8 and 9 were damaged: the run resumed behind 3 and has now saved 4.
    write(tmp_path, 4, ranks)
    prune(tmp_path, 4, Retention(2, None, ("step-00000001",)))
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


def test_any_slice_is_joined_from_any_pieces(ranks: Ranks, tmp_path: Path) -> None:
    tensor = torch.arange(20.0)
    pieces = Pieces(save(tmp_path, 1, list(fragments(3, {"x": tensor})), {}, ranks, KEEP_ALL))
    for offset in range(20):
        for count in range(21 - offset):
            assert torch.equal(pieces.read("x", "exp_avg", offset, count), tensor[offset : offset + count] + 1)


def test_the_files_are_plain_safetensors(ranks: Ranks, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    path = write(tmp_path, 1, ranks)
    loaded = load_file(path / "fragments-00000.safetensors")
    expected = [fragment.values for fragment in fragments()]
    assert sorted(loaded) == [f"{number:06d}" for number in range(len(expected))]
    assert all(torch.equal(loaded[f"{number:06d}"], values) for number, values in enumerate(expected))


def test_a_save_that_cannot_be_written_is_one_line_and_leaves_the_older_ones(ranks: Ranks, tmp_path: Path) -> None:
    older = write(tmp_path, 5, ranks)
    (older.parent / ".step-00000006.staging").write_bytes(b"a file where a directory is wanted")
    with pytest.raises(UserError) as caught:
        write(tmp_path, 6, ranks)
    assert str(caught.value).startswith(f"{older.parent / 'step-00000006'}: found a path that cannot be written (")
    assert newest(tmp_path) == (older, [])


def test_what_does_not_read_back_is_never_a_checkpoint_and_removes_no_older_one(
    ranks: Ranks, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    older = write(tmp_path, 5, ranks)
    rename = os.replace

    def on_a_bad_disk(source: Path, target: Path) -> None:
        rename(source, target)
        if Path(target).name == "step-00000006":
            flip(Path(target) / "fragments-00000.safetensors", -1)

    monkeypatch.setattr("reranker.train.checkpoint.os.replace", on_a_bad_disk)
    with pytest.raises(UserError) as caught:
        save(tmp_path, 6, list(fragments()), {}, ranks, Retention(1))
    assert str(caught.value) == (
        f"{older.parent / 'step-00000006'}: found fragments-00000.safetensors has another sha256 than was written, "
        "expected the checkpoint as it was written; check the disk"
    )
    assert [path.name for path in older.parent.iterdir()] == ["step-00000005"]
    assert damage(older) is None


def test_every_file_and_name_is_on_the_disk_before_the_checkpoint_has_its_name(
    ranks: Ranks, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[tuple[str, str]] = []
    replace = os.replace

    def flushed(descriptor: int) -> None:
        events.append(("flushed", os.readlink(f"/proc/self/fd/{descriptor}")))

    def renamed(source: Any, target: Any) -> None:
        events.append(("renamed", str(target)))
        replace(source, target)

    monkeypatch.setattr(os, "fsync", flushed)
    monkeypatch.setattr(os, "replace", renamed)
    path = write(tmp_path, 3, ranks)
    named = events.index(("renamed", str(path)))
    before, after = events[:named], events[named + 1 :]
    staging = path.with_name(f".{path.name}.staging")
    for name in ("fragments-00000.safetensors", "state.json", "manifest.json"):
        # state and manifest are flushed under a temporary name, and then take their own.
        assert ("flushed", str(staging / name)) in before or ("renamed", str(staging / name)) in before
    flushed_files = [Path(name).name for what, name in before if what == "flushed"]
    assert any(name.startswith(".state.json.") for name in flushed_files)
    assert any(name.startswith(".manifest.json.") for name in flushed_files)
    manifest = before.index(("renamed", str(staging / "manifest.json")))
    assert before.index(("flushed", str(staging / "fragments-00000.safetensors"))) < manifest
    assert ("flushed", str(staging)) in before[manifest:]
    assert ("flushed", str(tmp_path)) in before  # which names the directory of checkpoints
    assert ("flushed", str(path.parent)) in after


def test_what_another_training_saved_meanwhile_is_not_pruned(ranks: Ranks, tmp_path: Path) -> None:
    older = write(tmp_path, 5, ranks)
    owner, times = Owner.new(), []
    owner.take(tmp_path)

    def owned() -> None:
        times.append("asked")
        if len(times) == 3:  # between the name and the end of reading it back
            Owner("another", "elsewhere", None, 0).take(tmp_path)
            write(tmp_path, 9, ranks)
        owner.check(tmp_path)

    with pytest.raises(TakenOver):
        save(tmp_path, 6, list(fragments()), {}, ranks, Retention(1), owned)
    left = sorted(path.name for path in older.parent.iterdir())
    assert left == ["step-00000005", "step-00000006", "step-00000009"]
    assert [damage(path) for path in older.parent.iterdir()] == [None] * 3


@pytest.mark.parametrize("world", [1, 2, 3])
def test_fragments_are_copies_and_each_rank_has_an_equal_slice_at_stage_0(world: int) -> None:
    parameter = torch.nn.Parameter(torch.arange(10.0).view(2, 5))
    state = {"exp_avg": torch.ones(2, 5), "exp_avg_sq": torch.full((2, 5), 2.0)}
    found = [piece for rank in range(world) for piece in read_parameter("w", parameter, state, rank, world)]
    with torch.no_grad():
        parameter += 100  # the training goes on
    for kind, expected in (("master", torch.arange(10.0)), ("exp_avg", torch.ones(10))):
        pieces = sorted((piece for piece in found if piece.kind == kind), key=lambda piece: piece.offset)
        assert torch.equal(torch.cat([piece.values for piece in pieces]), expected)
        assert len(pieces) == world
        assert max(len(piece.values) for piece in pieces) == -(-10 // world)


def test_a_file_that_cannot_be_read_is_passed_over(
    ranks: Ranks, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    older, newer = write(tmp_path, 5, ranks), write(tmp_path, 6, ranks)
    (newer / "manifest.json").unlink()
    (newer / "manifest.json").mkdir()
    assert newest(tmp_path) == (older, [f"{newer}: passed over, no readable manifest.json"])
    newer = write(tmp_path, 6, ranks)

    def failing(path: Path) -> str:
        if path.parent == newer and path.name == "state.json":
            raise OSError(5, "Input/output error")
        return sha256(path)

    monkeypatch.setattr("reranker.train.checkpoint.sha256", failing)
    assert newest(tmp_path) == (older, [f"{newer}: passed over, state.json cannot be read (Input/output error)"])


def test_what_cannot_be_removed_fails_no_save_and_leaves_no_half_with_a_name(
    ranks: Ranks, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for step in (1, 2):
        write(tmp_path, step, ranks)
    unlink, replace = os.unlink, os.replace

    def in_use(path: Any, **more: Any) -> None:
        if "fragments" in str(path):
            raise OSError(16, "Device or resource busy")
        unlink(path, **more)

    monkeypatch.setattr(os, "unlink", in_use)
    save(tmp_path, 3, list(fragments()), {}, ranks, Retention(1))
    assert [(path.name, damage(path)) for path in sorted((tmp_path / "checkpoints").glob("step-*"))] == [
        ("step-00000003", None)
    ]
    monkeypatch.setattr(os, "unlink", unlink)

    def held(source: Any, target: Any) -> None:
        if str(target).endswith(".removed"):
            raise OSError(16, "Device or resource busy")
        replace(source, target)

    monkeypatch.setattr(os, "replace", held)
    path = save(tmp_path, 4, list(fragments()), {}, ranks, Retention(1))
    assert newest(tmp_path) == (path, [])
    older = path.with_name("step-00000003")
    assert damage(older) is None
    assert capsys.readouterr().err == f"{older}: not removed (Device or resource busy)\n"

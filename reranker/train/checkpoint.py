"""Checkpoints that are complete or do not exist, readable at any ZeRO stage and number of ranks.

    checkpoints/step-00000047/
      fragments-00000.safetensors   each rank's share of every parameter: fp32 master and both moments
      state.json                    step, cursor, loss scaler, best checkpoint, tracking id, config, versions
      manifest.json                 size and sha256 of the files above, written last

A checkpoint is written to a staging directory whose name starts with a dot, flushed, and renamed. Nothing
is pickled. Loading takes the newest complete one and says which it passed over and why. Raises `UserError`.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from reranker.errors import UserError
from reranker.files import fsync_directory, read_json, sha256, write_json
from reranker.train.distributed import Ranks
from reranker.train.fragments import MASTER, Fragment

MANIFEST, STATE, DIRECTORY = "manifest.json", "state.json", "checkpoints"
SCHEMA = 1


def name_of(step: int) -> str:
    return f"step-{step:08d}"


def save(run_dir: Path, step: int, fragments: Iterator[Fragment], state: dict[str, Any], ranks: Ranks) -> Path:
    """Write a checkpoint; every rank calls this. Returns its directory."""
    final = run_dir / DIRECTORY / name_of(step)
    staging = final.with_name(f".{final.name}.staging")
    if ranks.first:
        for left in final.parent.glob(".step-*"):  # by a save that was killed
            shutil.rmtree(left)
        staging.mkdir(parents=True)
    ranks.barrier()
    entry = _write_fragments(staging / f"fragments-{ranks.rank:05d}.safetensors", fragments)
    entries = ranks.gather(entry)
    if ranks.first:
        write_json(staging / STATE, {"schema": SCHEMA, "step": step, **state})
        files = [*entries, _entry(staging / STATE)]
        write_json(staging / MANIFEST, {"schema": SCHEMA, "files": {entry.pop("name"): entry for entry in files}})
        fsync_directory(staging)
        if final.exists():
            os.replace(final, final.with_name(f".{final.name}.old"))
        os.replace(staging, final)
        fsync_directory(final.parent)
    ranks.together(lambda: verify(final) if ranks.first else None)
    return final


def verify(path: Path) -> None:
    """Raise UserError if a checkpoint does not read back as it was written."""
    if reason := damage(path):
        raise UserError(path, reason, "the checkpoint as it was written", "check the disk, then run the same command")


def prune(run_dir: Path, step: int, keep_last: int, keep: str | None) -> None:
    """Remove all but the `keep_last` newest checkpoints up to `step` and the one named `keep`.

    Those of later steps were passed over when this training resumed: they are damaged, and go as well.
    """
    names = [path for path in _candidates(run_dir) if path.name <= name_of(step)]
    kept = {keep, *(path.name for path in names[:keep_last])}
    for path in _candidates(run_dir):
        if path.name not in kept:
            shutil.rmtree(path)


def newest(run_dir: Path) -> tuple[Path | None, list[str]]:
    """(the newest complete checkpoint or None, a line for each that was passed over)."""
    passed: list[str] = []
    for path in _candidates(run_dir):
        reason = damage(path)
        if reason is None:
            return path, passed
        passed.append(f"{path}: passed over, {reason}")
    return None, passed


def damage(path: Path) -> str | None:
    """What is wrong with a checkpoint, or None if it is complete: every file of its size and sha256."""
    try:
        manifest = read_json(path / MANIFEST)
        schema = manifest["schema"]
        expected = {name: (entry["bytes"], entry["sha256"]) for name, entry in manifest["files"].items()}
    except (UserError, KeyError, TypeError, AttributeError):
        return f"no readable {MANIFEST}"
    if schema != SCHEMA:
        return f"its schema is {schema} and not {SCHEMA}"
    for name, (size, digest) in expected.items():
        file = path / name
        if not file.is_file():
            return f"{name} is missing"
        if file.stat().st_size != size:
            return f"{name} has {file.stat().st_size} bytes and not {size}"
        if sha256(file) != digest:
            return f"{name} has another sha256 than was written"
    return None


def find(run_dir: Path, which: str) -> Path:
    """The checkpoint `which` of a run: "best", "last" or the name of a directory. Raises UserError."""
    if not run_dir.is_dir():
        raise UserError("run", f"{run_dir}, no such directory", "a run directory of reranker train", "check the path")
    last, passed = newest(run_dir)
    if last is None:
        found = passed[0] if passed else f"no checkpoint in {run_dir / DIRECTORY}"
        raise UserError("run", found, "a complete checkpoint", "train first, or check the path")
    if which == "last":
        return last
    if which == "best":
        which = (read_state(last).get("best") or {}).get("checkpoint") or last.name
    path = run_dir / DIRECTORY / which
    reason = damage(path) if path.is_dir() else "no such directory"
    if reason is not None:
        names = ", ".join(candidate.name for candidate in _candidates(run_dir))
        raise UserError("checkpoint", f"{which}, {reason}", f"best, last or one of {names}", "change the name")
    return path


def read_state(path: Path) -> dict[str, Any]:
    return read_json(path / STATE)


def read_weights(path: Path) -> dict[str, torch.Tensor]:
    """{parameter: fp32 tensor} of a checkpoint."""
    pieces = Pieces(path)
    return {name: pieces.full(name, MASTER) for name in pieces.names}


class Pieces:
    """Whole tensors from the fragments of all ranks, one at a time; the files stay on the disk."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._where: dict[tuple[str, str], list[tuple[Any, str, int]]] = {}
        self._shapes: dict[str, tuple[int, ...]] = {}
        for file in sorted(path.glob("fragments-*.safetensors")):
            tensors = safe_open(file, framework="pt")
            for key, (name, kind, shape, offset) in json.loads(tensors.metadata()["fragments"]).items():
                self._where.setdefault((name, kind), []).append((tensors, key, offset))
                self._shapes[name] = tuple(shape)

    @property
    def names(self) -> list[str]:
        return list(self._shapes)

    def check(self, shapes: dict[str, tuple[int, ...]]) -> None:
        """Raise UserError unless these are the parameters of a model with these shapes."""
        for name in sorted(shapes.keys() | self._shapes.keys()):
            if shapes.get(name) != self._shapes.get(name):
                raise UserError(
                    self._path, f"{name} of shape {self._shapes.get(name)}", f"{shapes.get(name)}, as the model has",
                    "resume with the model that the run began with, or choose another run_dir",
                )  # fmt: skip

    def full(self, name: str, kind: str) -> torch.Tensor:
        """A parameter's master or moment in fp32 and its own shape. Raises UserError if a part is missing."""
        if name not in self._shapes:
            raise UserError(self._path, f"no parameter {name}", "the weights of this model",
                            "resume with the model that the run began with")  # fmt: skip
        shape = self._shapes[name]
        flat = torch.empty(torch.Size(shape).numel())
        filled = 0
        for tensors, key, offset in self._where.get((name, kind), ()):
            values = tensors.get_tensor(key)
            flat[offset : offset + len(values)] = values
            filled += len(values)
        if filled != len(flat):
            raise UserError(self._path, f"{filled} of {len(flat)} elements of {name}", "a complete checkpoint",
                            "use another checkpoint")  # fmt: skip
        return flat.view(shape)


def _write_fragments(file: Path, fragments: Iterator[Fragment]) -> dict[str, Any]:
    tensors, places = {}, {}
    for number, fragment in enumerate(fragments):
        key = f"{number:06d}"
        tensors[key] = fragment.values
        places[key] = (fragment.name, fragment.kind, fragment.shape, fragment.offset)
    save_file(tensors, file, metadata={"fragments": json.dumps(places)})
    file.chmod(0o644)  # safetensors writes for the owner alone
    with open(file, "rb") as stream:
        os.fsync(stream.fileno())
    return _entry(file)


def _entry(file: Path) -> dict[str, Any]:
    return {"name": file.name, "bytes": file.stat().st_size, "sha256": sha256(file)}


def _candidates(run_dir: Path) -> list[Path]:
    """Checkpoint directories, the newest first; staging ones have other names."""
    directory = run_dir / DIRECTORY
    found = [path for path in directory.glob("step-*") if path.is_dir()] if directory.is_dir() else []
    return sorted(found, reverse=True)

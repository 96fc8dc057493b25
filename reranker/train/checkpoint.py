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
        shutil.rmtree(staging, ignore_errors=True)
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
            shutil.rmtree(final)
        os.replace(staging, final)
        fsync_directory(final.parent)
    ranks.barrier()
    return final


def prune(run_dir: Path, keep_last: int, keep: str | None) -> None:
    """Remove all but the newest `keep_last` checkpoints and the one named `keep`."""
    names = [path for path in _candidates(run_dir) if path.name != keep]
    for path in names[keep_last:]:
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
        files = read_json(path / MANIFEST)["files"]
    except (UserError, KeyError, TypeError):
        return f"no readable {MANIFEST}"
    for name, entry in files.items():
        file = path / name
        if not file.is_file():
            return f"{name} is missing"
        if file.stat().st_size != entry["bytes"]:
            return f"{name} has {file.stat().st_size} bytes and not {entry['bytes']}"
        if sha256(file) != entry["sha256"]:
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
        best = (read_state(last).get("best") or {}).get("checkpoint")
        return run_dir / DIRECTORY / best if best else last
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

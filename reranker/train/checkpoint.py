"""Checkpoints that are complete or do not exist, readable at any ZeRO stage and number of ranks.

    checkpoints/step-00000047/
      fragments-00000.safetensors   each rank's share of every parameter: fp32 master and both moments
      state.json                    step, cursor, loss scaler, best checkpoint, tracking id, config, versions
      manifest.json                 size and sha256 of the files above, written last

A checkpoint is written to a staging directory whose name starts with a dot, flushed, renamed and read back; only
then are older ones removed. A save that fails leaves the older ones as they were. Nothing is pickled. Loading takes
the newest complete one and says which it passed over and why. Raises `UserError`.
"""

from __future__ import annotations

import os
import re
import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from reranker.errors import UserError
from reranker.files import fsync_directory, read_json, refusals_told, sha256, write_json
from reranker.selection import best_of
from reranker.train.distributed import Ranks
from reranker.train.fragments import Fragment
from reranker.train.owner import TakenOver
from reranker.train.pieces import Pieces, fragments_file, read_weights, write_fragments

__all__ = ["DIRECTORY", "Pieces", "Retention", "damage", "find", "newest", "read_state", "read_weights", "save"]

T = TypeVar("T")

MANIFEST, STATE, DIRECTORY = "manifest.json", "state.json", "checkpoints"
SCHEMA = 1

Files = dict[str, tuple[int, str]]
"""{file of a checkpoint: (bytes, sha256)}."""


def name_of(step: int) -> str:
    return f"step-{step:08d}"


def step_of(path: Path) -> int:
    """The optimizer steps behind the checkpoint in this directory."""
    return int(path.name.removeprefix("step-"))


def save(
    run_dir: Path, step: int, fragments: Sequence[Fragment], state: dict[str, Any], ranks: Ranks, retention: Retention,
    owned: Callable[[], None] = lambda: None,
) -> Path:  # fmt: skip
    """Write, verify and name a checkpoint, then remove those that are no longer wanted; every rank calls this.

    `owned` raises where the run directory is another training's by now: then nothing there is touched, and the
    checkpoint gets no name. Returns its directory. Raises UserError, on every rank alike, if it cannot be written or
    does not read back: then nothing of it is left, and the checkpoints before it are as they were.
    """
    final = run_dir / DIRECTORY / name_of(step)
    staging = final.with_name(f".{final.name}.staging")

    def each(action: Callable[[], T]) -> T:
        """`action` on every rank; what the system refuses is told by all alike."""

        def told() -> T:
            with refusals_told(final):
                return action()

        return ranks.together(told)

    try:
        each(lambda: _make_staging(staging, owned) if ranks.first else None)
        entry = each(lambda: write_fragments(staging / fragments_file(ranks.rank), fragments))
        entries = ranks.gather(entry)
        each(lambda: _commit(staging, final, step, state, entries, owned) if ranks.first else None)
        each(lambda: _verify(final) if ranks.first else None)
        each(lambda: _prune_own(run_dir, step, retention, owned) if ranks.first else None)
    except UserError as error:
        if ranks.first and not isinstance(error, TakenOver):  # the other one's staging directory has the same name
            shutil.rmtree(staging, ignore_errors=True)
        raise
    return final


def _make_staging(staging: Path, owned: Callable[[], None]) -> None:
    owned()
    for left in staging.parent.glob(".step-*"):  # by a save or a removal that was killed
        shutil.rmtree(left, ignore_errors=True)
    if not staging.parent.is_dir():
        staging.parent.mkdir(parents=True)
        fsync_directory(staging.parent.parent)  # or the first checkpoint has a name in a directory that has none
    staging.mkdir()


def _commit(
    staging: Path, final: Path, step: int, state: dict[str, Any], entries: list[dict[str, Any]],
    owned: Callable[[], None],
) -> None:  # fmt: skip
    write_json(staging / STATE, {"schema": SCHEMA, "step": step, **state})
    described = {"name": STATE, "bytes": (staging / STATE).stat().st_size, "sha256": sha256(staging / STATE)}
    files = {entry["name"]: {key: entry[key] for key in ("bytes", "sha256")} for entry in [*entries, described]}
    write_json(staging / MANIFEST, {"schema": SCHEMA, "files": files})  # flushes the names in staging as well
    owned()
    if final.exists():  # damaged: a whole one of this step would have been resumed from
        os.replace(final, final.with_name(f".{final.name}.old"))
    os.replace(staging, final)
    fsync_directory(final.parent)


def _prune_own(run_dir: Path, step: int, retention: Retention, owned: Callable[[], None]) -> None:
    owned()  # reading back takes long: what is behind `step` by now may be another training's
    prune(run_dir, step, retention)


def _verify(path: Path) -> None:
    """Raise UserError, and remove the checkpoint, if it does not read back as it was written."""
    if reason := damage(path):
        _remove(path)
        raise UserError(path, reason, "the checkpoint as it was written", "check the disk")


@dataclass(frozen=True)
class Retention:
    """Which checkpoints are kept: the `last` newest, those of every `every`-th step, and the `best` ones by name."""

    last: int
    every: int | None = None
    best: tuple[str, ...] = ()


def prune(run_dir: Path, step: int, retention: Retention) -> None:
    """Remove the checkpoints that are not kept, and those of steps behind `step`.

    The latter were passed over when this training resumed, as damaged, or are numbered as before a change that was
    accepted: the next start would take them for newer ones.
    """
    names = [path for path in checkpoint_directories(run_dir) if path.name <= name_of(step)]
    kept = {*retention.best, *(path.name for path in names[: retention.last])}
    if retention.every:
        kept |= {path.name for path in names if step_of(path) % retention.every == 0}
    for path in checkpoint_directories(run_dir):
        if path.name not in kept:
            try:
                _remove(path)
            except OSError as error:  # somebody has it open, say: the new checkpoint is whole all the same
                print(f"{path}: not removed ({error.strerror})", file=sys.stderr, flush=True)


def _remove(path: Path) -> None:
    """Remove a checkpoint: it loses its name first, so that none with a name is ever half of one."""
    aside = path.with_name(f".{path.name}.removed")
    os.replace(path, aside)
    shutil.rmtree(aside, ignore_errors=True)  # what is left of it goes with the next save


def newest(run_dir: Path) -> tuple[Path | None, list[str]]:
    """(the newest complete checkpoint or None, a line for each that was passed over)."""
    passed: list[str] = []
    for path in checkpoint_directories(run_dir):
        reason = damage(path)
        if reason is None:
            return path, passed
        passed.append(f"{path}: passed over, {reason}")
    return None, passed


def damage(path: Path) -> str | None:
    """What is wrong with a checkpoint, or None if it is complete: every file of its size and sha256, and no other."""
    files, wrong = glance(path)
    if wrong:
        return next(iter(wrong.values()))
    for name, (_, digest) in files.items():
        try:
            if sha256(path / name) != digest:
                return f"{name} has another sha256 than was written"
        except OSError as error:
            return f"{name} cannot be read ({error.strerror})"
    return None


def glance(path: Path) -> tuple[Files, dict[str, str]]:
    """What a checkpoint's manifest promises, and {file: what is wrong} by names and sizes: no file is read."""
    try:
        manifest = read_json(path / MANIFEST)
        schema = manifest["schema"]
        files = {name: (entry["bytes"], entry["sha256"]) for name, entry in manifest["files"].items()}
    except (UserError, OSError, KeyError, TypeError, AttributeError):
        return {}, {MANIFEST: f"no readable {MANIFEST}"}
    if schema != SCHEMA:
        return {}, {MANIFEST: f"its schema is {schema} and not {SCHEMA}"}
    wrong = {}
    for name, (size, _) in files.items():
        if not (path / name).is_file():
            wrong[name] = f"{name} is missing"
        elif (found := (path / name).stat().st_size) != size:
            wrong[name] = f"{name} has {found} bytes and not {size}"
    # Whatever is called so is read as part of the state.
    surplus = {file.name for file in path.glob("fragments-*.safetensors")} - files.keys()
    return files, wrong | {name: f"{name} is not named in {MANIFEST}" for name in sorted(surplus)}


def find(run_dir: Path, which: str) -> Path:
    """The checkpoint `which` of a run: "best", "last" or the name of a directory. Raises UserError.

    Where a gate has let none pass, "best" is the best of those that failed: whoever exports it looks at its verdict.
    """
    return find_beside_best(run_dir, which)[0]


def find_beside_best(run_dir: Path, which: str) -> tuple[Path, dict[str, Any] | None]:
    """(what `find` finds, the entry of the run's best checkpoint or None before the first evaluation)."""
    if not run_dir.is_dir():
        raise UserError("run", f"{run_dir}, no such directory", "a run directory of reranker train", "check the path")
    last, passed = newest(run_dir)
    if last is None:
        found = passed[0] if passed else f"no checkpoint in {run_dir / DIRECTORY}"
        raise UserError("run", found, "a complete checkpoint", "train first, or check the path")
    best = best_of(read_state(last))
    if which == "last":
        return last, best
    if which == "best":
        which = best["checkpoint"] if best else last.name
    path = run_dir / DIRECTORY / which
    reason = damage(path) if path.is_dir() else "no such directory"
    if reason is not None:
        names = ", ".join(candidate.name for candidate in checkpoint_directories(run_dir))
        raise UserError("checkpoint", f"{which}, {reason}", f"best, last or one of {names}", "change the name")
    return path, best


def read_state(path: Path) -> dict[str, Any]:
    return read_json(path / STATE)


def checkpoint_directories(run_dir: Path) -> list[Path]:
    """Checkpoint directories, the newest first; staging ones have other names."""
    directory = run_dir / DIRECTORY
    names = directory.glob("step-*") if directory.is_dir() else ()
    found = [path for path in names if path.is_dir() and re.fullmatch(r"step-\d{8,}", path.name)]
    return sorted(found, reverse=True)

"""`reranker checkpoint list` and `verify`: what the checkpoints of a run hold, and whether all is as it was written.

In: a run directory or one checkpoint. Out: a table, from names, sizes and states alone; or every byte compared with the
manifest's sha256. What is wrong is told in the words with which a resume passes a checkpoint over. Nothing is changed,
and a training may be under way: a checkpoint that it removes meanwhile is left out. Raises `UserError`.
"""

from __future__ import annotations

import contextlib
import datetime
import hashlib
import re
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from reranker.config.training import CheckpointListConfig, CheckpointVerifyConfig
from reranker.errors import UserError
from reranker.files import write_json
from reranker.progress import progress_bar
from reranker.selection import of_set
from reranker.train import checkpoint
from reranker.train.checkpoint import DIRECTORY, STATE
from reranker.train.tables import print_table

GIB = 2**30
_BLOCK = 1 << 22

Files = checkpoint.Files
"""{file: (bytes, sha256)} of a manifest."""


@dataclass(frozen=True)
class Listed:
    """A checkpoint as its names, sizes and state show it.

    Attributes:
        epoch: epochs behind it, with a fraction; groups_seen: positions behind it, over all epochs.
        metrics: those of the dev groups and sets, if it was evaluated; best: whether the run holds it for its best.
        world, stage, precision: ranks, ZeRO stage and precision that it was trained with.
        bytes: of its files, as they are; saved_at: when the last of them was written.
        damage: what is wrong with it by names and sizes, or None.
        lost: guard sets on which it loses more than its gate allows; None where it was not tried on any.
    """

    name: str
    step: int
    epoch: float | None
    groups_seen: int | None
    metrics: dict[str, float] | None
    best: bool
    world: int | None
    stage: int | None
    precision: str | None
    bytes: int
    saved_at: str
    damage: str | None
    lost: list[str] | None


def list_command(config: CheckpointListConfig) -> int:
    """`reranker checkpoint list`."""
    run_dir = Path(config.run)
    refuse_directory(config.output)
    expected = "a run directory of reranker train"
    refuse_no_directory("run", run_dir, expected)
    if is_checkpoint(run_dir):
        raise UserError("run", f"{run_dir}, a checkpoint", "its run directory", f"say run={run_dir.parent.parent}")
    states = {path: _state(path) for path in reversed(checkpoint.checkpoint_directories(run_dir))}
    unfinished = sorted(path.name for path in (run_dir / DIRECTORY).glob(".step-*"))
    if not states:
        found = f"no checkpoint in {run_dir / DIRECTORY}" + ", only one that was never finished" * bool(unfinished)
        raise UserError("run", found, expected, "train first, or check the path")
    newest = next((state for state in reversed(states.values()) if state), {})
    best = newest.get("best") or {}
    listed = [row for path, state in states.items() if (row := _listed(path, state, best.get("checkpoint")))]
    metric = best.get("metric") or (newest.get("config") or {}).get("train", {}).get("metric", "metric")
    _print(listed, metric)
    if unfinished:
        print(
            f"unfinished: {', '.join(unfinished)}, of a save that is under way or was killed: the next save removes it"
        )
    if config.output:
        rows = [asdict(row) for row in listed]
        write_json(config.output, {"run": str(run_dir), "checkpoints": rows, "unfinished": unfinished})
    return 0


def verify_command(config: CheckpointVerifyConfig) -> int:
    """`reranker checkpoint verify`."""
    path, expected = Path(config.path), "a run directory of reranker train or one of its checkpoints"
    refuse_no_directory("path", path, expected)
    found = [path] if is_checkpoint(path) else list(reversed(checkpoint.checkpoint_directories(path)))
    if not found:
        raise UserError("path", f"no checkpoint in {path}", expected, "train first, or check the path")
    glanced = [checkpoint.glance(one) for one in found]
    size = sum(size for files, _ in glanced for size, _ in files.values())
    told: list[tuple[Path, Files, list[str]]] = []
    with progress_bar(desc="verify", unit="B", unit_scale=True, total=size) as bar:
        for one, (files, wrong) in zip(found, glanced, strict=True):
            reasons = [*wrong.values(), *differing(one, {n: files[n] for n in files if n not in wrong}, bar.update)]
            if one.is_dir():
                told.append((one, files, reasons))
    for one, files, reasons in told:
        size = sum(size for size, _ in files.values())
        for reason in reasons or [f"ok, {len(files)} files, {size / GIB:.3f} GiB"]:
            print(f"{one.name}: {reason}")
    damaged = [(one, reasons[0]) for one, _, reasons in told if reasons]
    if damaged:
        where, reason = damaged[0]
        raise UserError(where, f"{reason} ({len(damaged)} of {len(told)} checkpoints damaged)",
                        "every byte as it was written", "copy it again: a resume passes it over")  # fmt: skip
    return 0


def is_checkpoint(path: Path) -> bool:
    """Whether a directory is one checkpoint, whole or not, and neither a run directory nor something else."""
    return bool(re.fullmatch(r"step-\d{8,}", path.resolve().name)) or (path / STATE).is_file()


def refuse_no_directory(key: str, path: Path, expected: str) -> None:
    if not path.is_dir():
        raise UserError(
            key, f"{path}, {'a file' if path.exists() else 'no such directory'}", expected, "check the path"
        )


def refuse_directory(output: str | None) -> None:
    """Said at once: the file is written when all else is done."""
    if output and Path(output).is_dir():
        raise UserError("output", f"{output}, a directory", "a file", "name a file in it")


def differing(path: Path, files: Files, read: Callable[[int], Any]) -> list[str]:
    """What is wrong with the content of a checkpoint's files; `read` is told of bytes as they are read."""
    reasons = []
    for name, (_, digest) in files.items():
        try:
            if _sha256(path / name, read) != digest:
                reasons.append(f"{name} has another sha256 than was written")
        except OSError as error:
            reasons.append(f"{name} cannot be read ({error.strerror})")
    return reasons


def _listed(path: Path, state: dict[str, Any] | None, best: str | None) -> Listed | None:
    """A row of the table; None for a checkpoint that a training has removed meanwhile."""
    wrong = checkpoint.glance(path)[1]
    try:
        files = [file.stat() for file in path.iterdir()]
        at = max((file.st_mtime for file in files), default=path.stat().st_mtime)
    except FileNotFoundError:
        return None
    damage = next(iter(wrong.values()), None if state is not None else f"no readable {STATE}")
    known = state or {}
    metrics, gate = known.get("metrics"), known.get("gate")
    return Listed(
        name=path.name, step=checkpoint.step_of(path), epoch=known.get("epoch"), groups_seen=known.get("groups_seen"),
        metrics={name.removeprefix("eval/"): value for name, value in metrics.items()} if metrics else None,
        best=path.name == best, world=known.get("world"), stage=known.get("stage"), precision=known.get("precision"),
        bytes=sum(file.st_size for file in files),
        saved_at=datetime.datetime.fromtimestamp(at).astimezone().isoformat(timespec="seconds"), damage=damage,
        lost=[one["name"] for one in gate["sets"] if not one["passed"]] if gate else None,
    )  # fmt: skip


def _state(path: Path) -> dict[str, Any] | None:
    """The state of a checkpoint, None where it cannot be read."""
    with contextlib.suppress(UserError):
        state = checkpoint.read_state(path)
        return state if isinstance(state, dict) else None
    return None


def _print(listed: list[Listed], metric: str) -> None:
    evaluated = f"dev\n{metric}" if of_set(metric)[0] is None else metric
    columns = ("name", "epoch", "groups\nseen", evaluated, "trained with", "GiB", "saved at", "whole")
    rows = []
    for row in listed:
        value = (row.metrics or {}).get(metric)
        ranks = f"{row.world} rank{'s' * (row.world != 1)}"
        cells = (
            row.name, None if row.epoch is None else f"{row.epoch:.2f}",
            None if row.groups_seen is None else f"{row.groups_seen:,}",
            None if value is None else f"{'* ' * row.best}{value:.4f}",
            None if row.world is None else f"{ranks} zero{row.stage} {row.precision}",
            f"{row.bytes / GIB:.3f}", row.saved_at[:16].replace("T", " "), "yes" if row.damage is None else "no",
        )  # fmt: skip
        rows.append(["-" if cell is None else cell for cell in cells])
    print_table(columns, rows, numbers=(*columns[1:4], "GiB"), wrapped=("trained with", "saved at"))
    if any(row.best for row in listed):
        print(f"*: the best by {metric}")
    for row in listed:
        if row.damage is not None:
            print(f"{row.name}: {row.damage}")
        if row.lost:
            print(f"{row.name}: fails its gate on {', '.join(row.lost)}")


def _sha256(file: Path, read: Callable[[int], Any]) -> str:
    digest = hashlib.sha256()
    with open(file, "rb") as stream:
        while block := stream.read(_BLOCK):
            digest.update(block)
            read(len(block))
    return digest.hexdigest()

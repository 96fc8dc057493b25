"""From a run directory to the checkpoint that a training goes on from.

In: the job as it was asked for. Out: the newest complete checkpoint, its state, and the cursor and step to go on from;
what was passed over is told. A checkpoint of another training is refused with everything in which it differs, and
nothing of it is touched, unless `train.accept` names the differences. Raises `UserError`.
"""

from __future__ import annotations

import dataclasses
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from reranker.checks import ACCEPTABLE, told_precision
from reranker.config.training import TrainConfig
from reranker.data.plan import SCHEMA, Cursor, steps_taken
from reranker.errors import UserError, shorten
from reranker.files import write_json
from reranker.train import checkpoint
from reranker.train.distributed import Ranks
from reranker.train.identity import description, identity, told_apart
from reranker.train.job import Job, plain
from reranker.train.run_directory import CONFIG

ORDER = ("data.shards", "train.seed", "data.shuffle_block")
"""Where one of these differs, other groups stand at the positions."""


@dataclass(frozen=True)
class Begun:
    """The checkpoint that a training goes on from.

    Attributes:
        path, state: its directory and what it holds beside weights.
        cursor, steps: where it goes on, and the optimizer steps behind that.
        accepted: what differs from the checkpoint's training, on request.
    """

    path: Path
    state: dict[str, Any]
    cursor: Cursor
    steps: int
    accepted: tuple[str, ...] = ()


def begin(job: Job) -> Begun | None:
    """Go to the newest complete checkpoint, on rank 0; None where there is none. Raises UserError."""
    path, passed = checkpoint.newest(job.run_dir)
    for line in passed:
        print(line, file=sys.stderr)
    if path is None:
        return None
    state = checkpoint.read_state(path)
    stored = Cursor(**state["cursor"])
    if stored.schema != SCHEMA:
        raise UserError(path, f"a cursor of schema {stored.schema}", f"schema {SCHEMA}",
                        "resume with the version that wrote it, or choose another run_dir")  # fmt: skip
    differences = compare(state, job)
    refuse(differences, job.config.train.accept, path)
    cursor = move(stored, job.start, differences)
    for key, (before, now) in differences.items():
        print(f"train.accept: {key} is {now} from here on, and was {before}", file=sys.stderr)
    if differences and cursor != dataclasses.replace(job.start, epoch=stored.epoch, position=stored.position):
        again = f"epoch {cursor.epoch + 1} goes on at group {cursor.position} (was {stored.position})"
        print(f"train.accept: {again}", file=sys.stderr)
    write_json(job.run_dir / CONFIG, plain(job.config))
    return Begun(path, state, cursor, steps_taken(cursor, job.data.positions), tuple(differences))


def compare(state: dict[str, Any], job: Job) -> dict[str, tuple[Any, Any]]:
    """{key: (value of the checkpoint, value now)} for everything that a resume must not change unasked."""
    cursor, start, wanted = state["cursor"], job.start, plain(job.config)
    values: dict[str, tuple[Any, Any]] = {
        "data.shards": (cursor["fingerprint"], start.fingerprint),
        "train.seed": (cursor["seed"], start.seed),
        "batch.groups": (cursor["groups"], start.groups),
    }
    # What the checkpoint's version did not keep, or did not know, counts as unchanged.
    now = identity(job)
    values |= {key: (state.get("identity", now)[key], now[key]) for key in now}
    described, described_now = state.get("description", {}), description(job)
    for key, said in described.items():
        if values[key][0] != values[key][1] and any(words := told_apart(said, described_now[key])):
            values[key] = (f"{values[key][0]} ({words[0]})", f"{values[key][1]} ({words[1]})")
    for key in ACCEPTABLE:
        section, _, name = key.partition(".")
        if name and key not in values:
            values[key] = (stored(state["config"], section, name), wanted[section][name])
    return {key: values[key] for key in ACCEPTABLE if values[key][0] != values[key][1]}


def stored(config: dict[str, Any], section: str, name: str) -> Any:
    """A setting as a checkpoint's config has it; what its version did not know, in a group of settings as well, has its
    default."""
    usual = plain(TrainConfig())[section][name]
    value = config.get(section, {}).get(name, usual)
    return {**usual, **value} if isinstance(usual, dict) else value


def refuse(differences: dict[str, tuple[Any, Any]], accepted: list[str], path: Path) -> None:
    """Raise UserError if anything differs that is not accepted; the line names everything that does."""
    refused = [key for key in differences if key not in accepted]
    if not refused:
        return
    first, *others = refused

    def shown(key: str) -> tuple[str, str]:
        return tuple(value if isinstance(value, str) else shorten(value).strip("'") for value in differences[key])  # type: ignore[return-value]

    found = f"{shown(first)[1]}, but {path} was made with {shown(first)[0]}"
    found += "".join(f"; {key} {shown(key)[1]}, but {shown(key)[0]}" for key in others)
    raise UserError(
        first, found, "the same value" + "s" * bool(others),
        f"restore {'them' if others else 'it'}, choose another run_dir, or say train.accept=[{','.join(refused)}]",
    )  # fmt: skip


def move(stored: Cursor, start: Cursor, differences: dict[str, Any]) -> Cursor:
    """Where the training goes on, after differences that were accepted.

    With other groups, or in another order, the epoch begins anew. With another batch it goes on at the last border of
    the new steps: less than one step of groups is seen twice, and none is missed.
    """
    position = stored.position
    if any(key in differences for key in ORDER):
        position = 0
    elif "batch.groups" in differences:
        position -= position % start.groups
    return dataclasses.replace(start, epoch=stored.epoch, position=position)


def load(begun: Begun, engine: Any, ranks: Ranks, packed: bool) -> None:
    """Load a checkpoint into the engine. Raises UserError if it is not of this model."""
    pieces = checkpoint.Pieces(begun.path)
    ranks.together(lambda: pieces.check(engine.shapes))
    if ranks.first and begun.state.get("packed", packed) != packed:
        print(f"batch.packing: {'packed' if packed else 'padded'} from here on, which {begun.path.name} was not: "
              "packed, attention dropout is 0", file=sys.stderr)  # fmt: skip
    if ranks.first and begun.state.get("stage", engine.stage) != engine.stage:
        print(f"deepspeed: ZeRO stage {engine.stage} from here on, and was {begun.state['stage']}", file=sys.stderr)
    if "precision" in begun.state and ranks.first:
        before = told_precision(begun.state["precision"], begun.state.get("autocast", False))
        if before != (now := engine.arithmetic.told):
            # precision=auto means another one on another machine; masters and moments are float32 in all of them.
            print(f"precision: {now} from here on, and was {before}", file=sys.stderr)
    engine.load(pieces.read, begun.state["updates"])
    engine.load_scaler(begun.state["scaler"])
    if ranks.first:
        print(f"{begun.path}: resuming behind step {begun.steps}", file=sys.stderr)

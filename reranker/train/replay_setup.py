"""From a checkpoint to a step that can be run once more: settings, data and plan as the run had them.

In: what `reranker replay` was asked for. Out: a `Replay`, with a note for everything in which it differs from the run.
Only places may have changed: the shards', and the model's, whose config and tokenizer lie in the run directory. Raises
`UserError`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from reranker.config.common import BatchPolicy, Packing, Precision
from reranker.config.training import ReplayConfig, TrainConfig
from reranker.data.dataset import parse_sources
from reranker.data.location import is_remote, local_path
from reranker.data.plan import SCHEMA, Cursor, Step, steps_per_epoch, steps_taken
from reranker.errors import UserError
from reranker.model.reranker import device_and_precision
from reranker.train import checkpoint
from reranker.train.checkpoint import DIRECTORY, STATE
from reranker.train.checkpoints import is_checkpoint, refuse_no_directory
from reranker.train.distributed import Ranks
from reranker.train.job import Job, count_lengths, make_step, prepare
from reranker.train.run_directory import INITIAL, METRICS

_NEEDED = ("config", "cursor", "world", "stage", "precision")
_ANOTHER_VERSION = "replay with the version that wrote it"
_WHERE_NOW = "say shards=DIR, where the shards of the training are"


@dataclass(frozen=True)
class Replay:
    """A step to run once more.

    Attributes:
        path, state: the checkpoint; behind: the optimizer steps behind it.
        number: the step, from 0 over the whole training (records count from 1); step: its plan.
        job: what the run trained, as this device and number of ranks can repeat it; notes: how that differs.
    """

    path: Path
    state: dict[str, Any]
    behind: int
    number: int
    step: Step
    job: Job
    device: torch.device
    notes: tuple[str, ...]


def open_replay(config: ReplayConfig) -> Replay:
    """Everything that a replay needs, checked. Raises UserError."""
    path = Path(config.checkpoint)
    state = whole_state(path)
    device, _ = device_and_precision(config.device.name, Precision.fp32.name)
    settings, notes = _adapted(stored_settings(state["config"], path / STATE), state, path, device)
    if config.shards is not None:
        settings.data.shards = config.shards
    world = config.world or state["world"]
    _check_world(settings, world, state["world"])
    with in_words_of_replay(path):
        _check_places(settings)
        job, told = prepare(settings, Ranks(0, world, device, None), _no_evaluator, _no_evaluator)
        cursor = _cursor(state["cursor"], job, path)
        count_lengths(job)
    if job.tokens is None and state.get("measured"):
        job = dataclasses.replace(job, tokens=state["measured"]["tokens"])
    behind = steps_taken(cursor, job.data.positions)
    number = behind if config.step is None else config.step - 1
    if number >= job.steps:
        found = f"none behind {path.name}, the last one" if config.step is None else str(config.step)
        raise UserError("step", found, f"1 to {job.steps}, the steps of the training", f"say step={job.steps}")
    notes += told
    if job.packed != state.get("packed", job.packed):
        notes.append("the run was packed and this is padded: attention dropout is not 0, and draws other numbers")
    if world != state["world"]:
        notes.append(f"ranks: {world} instead of the run's {state['world']}: the same groups in other micro-batches, "
                     "and dropout draws other numbers")  # fmt: skip
    epoch, step = divmod(number, steps_per_epoch(job.data.positions, settings.batch.groups))
    return Replay(path, state, behind, number, make_step(job, epoch, step), job, device, tuple(notes))


def whole_state(path: Path) -> dict[str, Any]:
    """The state of a checkpoint, of which every byte is as it was written. Raises UserError."""
    expected = "a checkpoint of a run"
    refuse_no_directory("checkpoint", path, expected)
    if not is_checkpoint(path):
        known = checkpoint.checkpoint_directories(path)
        found = f"{path}, a run directory" if known else f"{path}, which is no checkpoint"
        fix = f"say checkpoint={known[0]}" if known else f"name a directory under RUN/{DIRECTORY}"
        raise UserError("checkpoint", found, expected, fix)
    if reason := checkpoint.damage(path):
        raise UserError("checkpoint", f"{path}, {reason}", "a complete checkpoint", "choose another one")
    state = checkpoint.read_state(path)
    if missing := [key for key in _NEEDED if key not in state]:
        raise UserError(path / STATE, f"no {', '.join(missing)}", "the state of a training", _ANOTHER_VERSION)
    return state


def stored_settings(stored: Any, where: object) -> TrainConfig:
    """The settings of a training as its checkpoint holds them; what is not in it has its default. Raises UserError."""
    from omegaconf import OmegaConf
    from omegaconf.errors import ConfigAttributeError, ConfigKeyError, OmegaConfBaseException

    try:
        settings = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(TrainConfig), OmegaConf.create(stored)))
    except (OmegaConfBaseException, ValueError) as error:
        key = getattr(error, "full_key", None)
        unknown = isinstance(error, (ConfigKeyError, ConfigAttributeError))
        found = f"a setting {key} that this version does not know" if unknown else f"a value of {key} that does not fit"
        raise UserError(where, found, "settings of this version", _ANOTHER_VERSION) from None
    assert isinstance(settings, TrainConfig)
    return settings


def recorded(path: Path, number: int) -> dict[str, float | None] | None:
    """{loss, grad_norm} of the run's own record of a step, if it is of that step alone: it counts one more.

    `path` is a checkpoint in its run directory.
    """
    metrics, before = path.resolve().parent.parent / METRICS, 0
    with contextlib.suppress(OSError):
        for line in metrics.read_text("utf-8").splitlines():
            with contextlib.suppress(ValueError, KeyError, TypeError):  # torn, or not of a step
                record = json.loads(line)
                at, loss, norm = record["step"], record["train/loss"], record["train/grad_norm"]
                if at == number + 1:
                    return {"loss": loss, "grad_norm": norm} if before == number else None
                before = at
    return None


@contextlib.contextmanager
def in_words_of_replay(path: Path) -> Iterator[None]:
    """Mistakes about keys of train, which this command does not have, as what can be done about them here."""
    try:
        yield
    except UserError as error:
        if error.where.startswith("data.shards"):
            where = error.where.removeprefix("data.")
            raise UserError(where, error.found, error.expected, _WHERE_NOW) from None
        if error.where == "model.name":
            expected = f"{INITIAL}/ in the run directory, or the model's directory"
            raise UserError(path, f"the model {error.found}", expected,
                            "replay the checkpoint in its run directory") from None  # fmt: skip
        raise


def _adapted(
    settings: TrainConfig, state: dict[str, Any], path: Path, device: torch.device
) -> tuple[TrainConfig, list[str]]:
    """(the settings with what was resolved and measured when the run began, notes)."""
    notes, precision = [], Precision[state["precision"]]
    if precision is Precision.fp16 and device.type == "cpu" and not settings.precision.fp16_on_cpu:
        precision = Precision.fp32
        notes.append("precision: fp32 on a CPU instead of the run's fp16 on a GPU, and dropout draws other numbers")
    settings.precision.name, settings.deepspeed.stage = precision, state["stage"]
    # As the run had it, on another device as well; where its state does not say, autocast was not known yet.
    settings.precision.autocast = state.get("autocast", False)
    settings.batch.packing = Packing.auto if state.get("packed") else Packing.padded
    # What selects checkpoints has no part in a step.
    settings.data.dev = settings.data.dev_sets = settings.gate.sets = None
    initial = path.resolve().parent.parent / INITIAL
    if (initial / "config.json").is_file():
        settings.model.name, settings.model.revision = str(initial), None
    return settings, notes


def _check_world(settings: TrainConfig, world: int, own: int) -> None:
    batch = settings.batch
    if batch.policy is BatchPolicy.fixed and batch.groups % (batch.per_gpu * world):
        raise UserError("world", str(world), f"{batch.groups} groups to be a multiple of {batch.per_gpu} x {world}",
                        f"say world={own}, as in training")  # fmt: skip


def _check_places(settings: TrainConfig) -> None:
    for _, directory, _ in parse_sources(settings.data.shards):
        if not is_remote(directory) and not Path(local_path(directory)).is_dir():
            raise UserError("shards", f"{directory}, no such directory", "the shards of the training", _WHERE_NOW)


def _cursor(stored: dict[str, Any], job: Job, path: Path) -> Cursor:
    """The cursor of a checkpoint. Raises UserError where the shards are others than those of the run."""
    cursor = Cursor(**stored)
    if cursor.schema != SCHEMA:
        raise UserError(path / STATE, f"a cursor of schema {cursor.schema}", f"schema {SCHEMA}", _ANOTHER_VERSION)
    if cursor.fingerprint != job.start.fingerprint:
        raise UserError("shards", f"{job.start.fingerprint}, but {path} was made with {cursor.fingerprint}",
                        "the shards of the training", _WHERE_NOW)  # fmt: skip
    return cursor


def _no_evaluator(*_: Any) -> Any:
    raise AssertionError("a replay evaluates nothing")

"""The regression gate of a training: what its base has on the guard sets, and what each evaluation is held against.

In: the job, whose guard sets are read, and an engine that holds the base's weights still. Out: a `Gate`. The base is
measured once, before the first step, by the forward that evaluates the model later, and kept in the run directory with
what it depends on: a resume takes it from there, and measures anew where any of that is another by now. Which weights
pass is decided by what an evaluation hands in (`evaluate.regression_gate`).
"""

from __future__ import annotations

import gc
import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from reranker.config.common import Precision
from reranker.errors import UserError
from reranker.files import read_json, write_json
from reranker.model.cross_encoder import score_pairs
from reranker.train.distributed import Ranks
from reranker.train.job import Job
from reranker.train.run_directory import GATE_BASE


@dataclass(frozen=True)
class Gate:
    """Attributes:
    sets: the guard sets, with `judge` and `values`. scorers: for the model in training.
    base: values of each query of each set. name: of the base.
    measured: how model and base score, in words.
    fingerprint: of all that a verdict depends on but the model: verdicts of different ones do not compare.
    """

    sets: Any
    scorers: Any
    base: dict[str, list[float]]
    name: str
    measured: str
    fingerprint: str

    def judge(self, score: Callable[[Any], torch.Tensor], ranks: Ranks, packed: bool) -> Any:
        """The verdict on the model that `score` runs; a collective call."""
        values = self.sets.values(self.scorers, score, ranks, ranks.device, packed)
        return self.sets.judge(self.base, values, self.name, self.measured)


def no_ranking(where: str, name: str) -> UserError:
    """What to say of a base that never learnt to rank."""
    return UserError(where, f"{name}, whose score head is freshly drawn: it has no ranking to lose",
                     "a trained reranker as the gate's base",
                     "say gate.base=..., another reranker, or leave gate.sets out")  # fmt: skip


@dataclass(frozen=True)
class Guarded:
    """Guard sets whose candidates are found; base: what it has on them, None where the engine is to measure it."""

    depends: dict[str, Any]
    base: dict[str, list[float]] | None
    kept: bool


def find_guards(job: Job, fresh: bool, ranks: Ranks) -> Guarded | None:
    """Find the candidates of the guard sets, if there are any, and what is known of the base; a collective call.

    Another reranker as the base is measured here: its mistakes are told before anything is written, and its weights are
    gone when the engine takes the memory. Raises UserError, on every rank alike, also where the base is the model in
    training and has a `fresh` head.
    """
    if job.guards is None:
        return None
    config = job.config.gate
    if fresh and config.base is None:
        error = no_ranking("model.name", job.config.model.name)
        error.agreed = True
        raise error
    job.guards.find(ranks, str(ranks.device))
    depends = {
        "sets": job.guards.sha256, "base": config.base or job.config.model.name,
        "revision": None if config.base else job.config.model.revision, "measured": _measured(job),
        "cut": [job.data.tokenizer.fingerprint, asdict(job.data.tokenizer.contract)],
    }  # fmt: skip
    base = ranks.from_first(lambda: _kept(job.run_dir / GATE_BASE, depends))
    kept = base is not None
    if base is None and config.base is not None:
        # DeepSpeed has no fp16 on a CPU, and neither has anything else: only tests train so.
        forced = job.precision is Precision.fp16 and ranks.device.type == "cpu"
        precision = "auto" if forced else job.precision.value
        base = job.guards.values_of(
            config.base, "gate.base", ranks, str(ranks.device), precision, by_autocast=job.arithmetic.autocast
        )
        gc.collect()  # a model under autocast refers to itself
    return Guarded(depends, base, kept)


def measure_base(
    job: Job, guarded: Guarded | None, engine: Any, ranks: Ranks, beat: Callable[[], Any]
) -> Gate | None:  # fmt: skip
    """The gate of a job that has one, while the engine holds the weights that the training began with.

    A collective call. Raises UserError.
    """
    if guarded is None:
        return None

    def score(pairs: Any) -> torch.Tensor:
        beat()
        return score_pairs(engine.forward, pairs)

    scorers, base = job.guards.scorers(job.data.tokenizer), guarded.base
    if base is None:
        engine.eval()
        base = job.guards.values(scorers, score, ranks, ranks.device, job.packed)
    written = {"depends": guarded.depends, "values": base}
    ranks.together(lambda: write_json(job.run_dir / GATE_BASE, written) if ranks.first and not guarded.kept else None)
    text = json.dumps([guarded.depends, asdict(job.guards.rule)], sort_keys=True)
    fingerprint = hashlib.sha256(text.encode()).hexdigest()[:16]
    return Gate(job.guards, scorers, base, guarded.depends["base"], _measured(job), fingerprint)


def _measured(job: Job) -> str:
    return f"in training, {job.arithmetic.told}, {'packed' if job.packed else 'padded'}"


def _kept(path: Path, depends: dict[str, Any]) -> dict[str, list[float]] | None:
    """What an earlier start has measured, if all that it depends on is the same."""
    if not path.is_file():
        return None
    kept = read_json(path, f"remove {path.name}: the base is measured again")
    values: dict[str, list[float]] | None = kept["values"] if kept.get("depends") == depends else None
    return values

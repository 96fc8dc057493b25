"""What is to be trained: settings, data and model checked, and everything that follows from them.

In: a TrainConfig and the ranks. Out: a `Job`, the same on every rank, whose methods are pure functions of the
settings and of a cursor: the plan, the stream of micro-batches. Raises `UserError`. Nothing here costs more than
reading a manifest and a tokenizer.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from enum import Enum
from pathlib import Path
from typing import Any

from reranker.config import Precision, ShardCheck, TrainConfig, accumulation, resolve_precision
from reranker.data.choose import Choice
from reranker.data.collate import MicroBatch
from reranker.data.manifest import Manifest, check_shards, load_manifest
from reranker.data.plan import Cursor, Step, planned_steps, steps_per_epoch
from reranker.data.stream import DataSet, PlanSource, stream
from reranker.data.tokenize import Contract, PairTokenizer
from reranker.errors import UserError
from reranker.files import sha256
from reranker.model.cross_encoder import load_config, load_tokenizer, positions
from reranker.train.distributed import Ranks
from reranker.train.loop import Plan


@dataclasses.dataclass(frozen=True)
class Job:
    """What is to be trained, checked and derived on every rank alike before anything costs time."""

    config: TrainConfig
    manifest: Manifest
    tokenizer: PairTokenizer
    precision: Precision
    stage: int
    accumulation: int
    evaluator: Any
    world: int

    @property
    def run_dir(self) -> Path:
        return Path(self.config.run_dir)

    @property
    def steps(self) -> int:
        """Optimizer steps of the whole training."""
        steps = self.config.train.epochs * steps_per_epoch(self.manifest.groups, self.config.batch.groups)
        return min(steps, self.config.train.max_steps or steps)

    @property
    def dev_sha256(self) -> str | None:
        """Which groups select the checkpoint."""
        return sha256(self.config.data.dev) if self.config.data.dev else None

    @property
    def start(self) -> Cursor:
        return Cursor(self.config.train.seed, 0, 0, self.config.batch.groups, self.manifest.fingerprint)

    @property
    def evaluate_every(self) -> int:
        each_epoch = steps_per_epoch(self.manifest.groups, self.config.batch.groups)
        return self.config.train.eval_every or each_epoch


def prepare(config: TrainConfig, ranks: Ranks, evaluator: Callable[..., Any]) -> tuple[Job, list[str]]:
    """Check data and model; (the job, what to tell the user). Raises UserError."""
    micro_batches = accumulation(config.batch.groups, config.batch.per_gpu, ranks.world)
    precision, stage, told = resolve_precision(
        config.precision.name, ranks.device.type, config.deepspeed.stage, config.precision.fp16_on_cpu
    )
    manifest = load_manifest(config.data.shards)
    check_shards(config.data.shards, manifest, digest=config.data.check is ShardCheck.sha256)
    hugging_face = load_tokenizer(config.model.name, config.model.revision)
    limit = positions(load_config(config.model.name, config.model.revision))
    if limit is not None and config.data.max_length > limit:
        raise UserError("data.max_length", str(config.data.max_length), f"at most the model's {limit} positions",
                        "lower it")  # fmt: skip
    data = config.data
    tokenizer = PairTokenizer(hugging_face, Contract(data.max_length, data.query_max_length, data.truncation.value))
    dev = evaluator(data.dev, tokenizer) if data.dev else None
    job = Job(config, manifest, tokenizer, precision, stage, micro_batches, dev, ranks.world)
    if Path(config.run_dir).exists() and not Path(config.run_dir).is_dir():
        raise UserError("run_dir", f"{config.run_dir}, which is a file", "a directory", "choose another one")
    return job, told


def make_plan(job: Job, cursor: Cursor, done: int) -> Plan:
    """What the loop has to do, as pure functions of a step's number."""
    settings, steps = job.config.train, job.steps
    save_every = settings.save_every or job.evaluate_every

    def evaluate_after(step: int) -> bool:
        return job.evaluator is not None and (step % job.evaluate_every == 0 or step == steps)

    def save_after(step: int) -> bool:
        return step % save_every == 0 or step == steps or evaluate_after(step)

    return Plan(
        steps=list_steps(job, cursor),
        done=done,
        total=steps,
        seed=settings.seed,
        lr=job.config.optim.lr,
        warmup=job.config.optim.warmup,
        evaluate_after=evaluate_after,
        # A checkpoint that is evaluated is saved: the best one must exist.
        save_after=save_after,
        # What is saved is recorded first: the record stops a training whose loss is not finite.
        log_after=lambda step: step % settings.log_every == 0 or save_after(step),
    )


def list_steps(job: Job, cursor: Cursor) -> Iterator[Step]:
    batch, settings = job.config.batch, job.config.train
    return planned_steps(cursor, job.manifest.groups, batch.per_gpu, job.world, settings.epochs, settings.max_steps)


def batches(job: Job, cursor: Cursor, ranks: Ranks) -> Iterator[MicroBatch]:
    """This rank's micro-batches from the cursor on."""
    data, settings = job.config.data, job.config.train
    choice = Choice(
        data.group_size, data.short_groups.value, data.negatives.warmup, data.negatives.random, data.negatives.hardest
    )
    directory = Path(data.shards)
    groups = DataSet(directory, job.manifest, job.tokenizer, choice, settings.seed, data.shuffle_block)
    in_all = min(settings.epochs * job.manifest.groups, job.steps * job.config.batch.groups)
    source = PlanSource(lambda: list_steps(job, cursor), ranks.rank, in_all)
    # A step is taken as a whole before its first forward: the workers must be able to hold it.
    prefetch = max(data.prefetch, -(-job.accumulation // max(1, data.workers)))
    return stream(groups, source, workers=data.workers, prefetch=prefetch, pin_memory=ranks.device.type == "cuda")


def plain(config: Any) -> Any:
    """A config as JSON values: enums by name."""
    if dataclasses.is_dataclass(config):
        return {field.name: plain(getattr(config, field.name)) for field in dataclasses.fields(config)}
    if isinstance(config, Enum):
        return config.value
    if isinstance(config, (list, tuple)):
        return [plain(value) for value in config]
    return config

"""What is to be trained: settings, data and model checked, and everything that follows from them.

In: a TrainConfig and the ranks. Out: a `Job`, the same on every rank, whose methods are pure functions of the
settings and of a cursor: the plan, the stream of micro-batches. Raises `UserError`. Nothing here costs more than
reading manifests and a tokenizer, but `count_lengths`, where token lengths are wanted and not there.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from enum import Enum
from pathlib import Path
from typing import Any

from reranker.checks import Arithmetic, accumulation, cache_directory, loss_weights, resolve_precision
from reranker.config.common import BadData, BatchPolicy, Precision, ShardCheck
from reranker.config.training import LossConfig, TrainConfig
from reranker.data.cache import ShardCache
from reranker.data.choose import Choice
from reranker.data.dataset import DataSet, Source, fingerprint, make_mixture, parse_sources
from reranker.data.lengths import find_or_write_lengths
from reranker.data.manifest import check_shards, load_manifest
from reranker.data.plan import Cursor, Step, plan_fixed, plan_tokens, step_numbers, steps_per_epoch
from reranker.data.reader import ShardReader
from reranker.data.stream import PlanSource, StepBatches, stream
from reranker.data.tokenize import Contract, PairTokenizer
from reranker.errors import UserError
from reranker.files import sha256
from reranker.model.cross_encoder import load_config, load_tokenizer, positions
from reranker.model.losses import Objective
from reranker.model.reranker import DTYPES
from reranker.model.unpad import resolve_packing
from reranker.selection import of_set
from reranker.train.distributed import Ranks, multiplies_bf16
from reranker.train.flops import ModelFlops
from reranker.train.loop import Plan


@dataclasses.dataclass(frozen=True)
class Job:
    """What is to be trained, checked and derived on every rank alike before anything costs time."""

    config: TrainConfig
    data: DataSet
    arithmetic: Arithmetic
    packed: bool
    evaluator: Any
    """What evaluates the model in training; None without dev groups and sets."""
    guards: Any
    """The guard sets of the gate; None without one."""
    world: int
    tokens: int | None
    """Tokens of a micro-batch at most; None: yet to be measured."""

    @property
    def precision(self) -> Precision:
        return self.arithmetic.precision

    @property
    def stage(self) -> int:
        return self.arithmetic.stage

    @property
    def run_dir(self) -> Path:
        return Path(self.config.run_dir)

    @property
    def steps(self) -> int:
        """Optimizer steps of the whole training."""
        return _steps(self.config, self.data.positions)

    @property
    def dev_sha256(self) -> str | None:
        """Which dev groups there are."""
        return sha256(self.config.data.dev) if self.config.data.dev else None

    @property
    def set_names(self) -> list[str]:
        """The evaluation sets of data.dev_sets."""
        return list(self.evaluator.sets.names) if self.evaluator and self.evaluator.sets else []

    @property
    def selecting_sha256(self) -> str | None:
        """What train.metric is of: the dev groups, or a set, whose candidates are found by then."""
        name, _ = of_set(self.config.train.metric)
        return self.dev_sha256 if name is None else self.evaluator.sets.digests[name]

    @property
    def start(self) -> Cursor:
        return Cursor(self.config.train.seed, 0, 0, self.config.batch.groups, fingerprint(self.data.sources))

    @property
    def most_tokens(self) -> int:
        """Tokens of a micro-batch beyond which a rank's share of a step is whole."""
        batch, data = self.config.batch, self.config.data
        return -(-batch.groups // self.world) * data.group_size * data.max_length

    @property
    def evaluate_every(self) -> int:
        each_epoch = steps_per_epoch(self.data.positions, self.config.batch.groups)
        return self.config.train.eval_every or each_epoch


def prepare(
    config: TrainConfig, ranks: Ranks, evaluator: Callable[..., Any], guard_sets: Callable[..., Any]
) -> tuple[Job, list[str]]:
    """Check data and model; (the job, what to tell the user). Raises UserError."""
    if config.batch.policy is BatchPolicy.fixed:
        accumulation(config.batch.groups, config.batch.per_gpu, ranks.world)
    arithmetic, told = resolve_precision(
        config.precision, ranks.device.type, config.deepspeed.stage,
        config.precision.name is Precision.auto and ranks.device.type == "cpu" and all(ranks.gather(multiplies_bf16())),
        alone=ranks.world == 1 and not config.deepspeed.offload,
    )  # fmt: skip
    hugging_face = load_tokenizer(config.model.name, config.model.revision)
    model = load_config(config.model.name, config.model.revision)
    limit = positions(model)
    if limit is not None and config.data.max_length > limit:
        raise UserError("data.max_length", str(config.data.max_length), f"at most the model's {limit} positions",
                        "lower it")  # fmt: skip
    packed, why = resolve_packing(
        config.batch.packing.value, model, ranks.device, DTYPES[arithmetic.precision], dropout=config.model.dropout
    )
    data = config.data
    tokenizer = PairTokenizer(hugging_face, Contract.of_settings(plain(data)), "data.")
    dev = evaluator(config, tokenizer) if data.dev or data.dev_sets is not None else None
    guards = guard_sets(config.gate) if config.gate.sets is not None else None
    job = Job(config, open_data(config, tokenizer), arithmetic, packed, dev, guards, ranks.world,
              None if config.batch.tokens == "auto" else config.batch.tokens)  # fmt: skip
    if Path(config.run_dir).exists() and not Path(config.run_dir).is_dir():
        raise UserError("run_dir", f"{config.run_dir}, which is a file", "a directory", "choose another one")
    return job, [*told, *why, *(dev.sets.notes if dev and dev.sets else ())]


def open_data(config: TrainConfig, tokenizer: PairTokenizer) -> DataSet:
    """The groups to train on, their shards compared with their manifests. Raises UserError."""
    data = config.data
    cache = ShardCache(cache_directory(data.cache), int(data.cache.gib * 2**30), data.retries)
    sources = []
    for name, directory, weight in parse_sources(data.shards):
        manifest = load_manifest(directory, f"data.shards.{name}" if name else "data.shards")
        check_shards(directory, manifest, digest=data.check is ShardCheck.sha256)
        sources.append(Source(name, manifest, ShardReader(directory, manifest, cache, data.retries), weight))
    negatives = data.negatives
    choice = Choice(
        data.group_size, data.short_groups.value, positives=data.positives, warmup=negatives.warmup,
        decay=negatives.decay, random=negatives.random, hardest=negatives.hardest,
        score_temperature=negatives.score_temperature,
    )  # fmt: skip
    if negatives.score_temperature is not None:
        for source in sources:  # a training that cannot draw by scores ends here and not when it comes to that source
            source.reader.neg_scores(0, 0)
    positions = make_mixture(sources).positions
    in_all = min(config.train.epochs * positions, _steps(config, positions) * config.batch.groups)
    ghosts = data.bad is BadData["ghost"]
    teacher = loss_weights(config.loss)[1] > 0
    return DataSet(sources, tokenizer, choice, config.train.seed, data.shuffle_block, in_all, ghosts, teacher)


def count_lengths(job: Job) -> None:
    """Give every source its token lengths, where the plan needs them: read, or counted and written first.

    Raises UserError.
    """
    if job.config.batch.policy is not BatchPolicy.tokens:
        return
    data = job.config.data
    for source in job.data.sources:
        source.lengths = find_or_write_lengths(
            source.reader, job.data.tokenizer, cache_directory(data.cache), max(1, data.workers)
        )


def make_plan(job: Job, done: int, flops: ModelFlops | None) -> Plan:
    """What the loop has to do, as pure functions of a step's number."""
    settings, steps = job.config.train, job.steps
    save_every = settings.save_every or job.evaluate_every

    def evaluate_after(step: int) -> bool:
        return job.evaluator is not None and (step % job.evaluate_every == 0 or step == steps)

    def save_after(step: int) -> bool:
        return step % save_every == 0 or step == steps or evaluate_after(step)

    return Plan(
        done=done,
        total=steps,
        seed=settings.seed,
        lr=job.config.optim.lr,
        warmup=job.config.optim.warmup,
        bad_limit=job.config.data.bad_limit,
        skip_spikes=job.config.guards.skip_spikes,
        precision=job.precision.value,
        packed=job.packed,
        chunk_tokens=job.config.batch.chunk_tokens,
        flops=flops,
        objective=make_objective(job.config.loss),
        evaluate_after=evaluate_after,
        # A checkpoint that is evaluated is saved: the best one must exist.
        save_after=save_after,
        # What is saved is recorded first: the record stops a training whose loss is not finite.
        log_after=lambda step: step % settings.log_every == 0 or save_after(step),
    )


def make_step(job: Job, epoch: int, step: int) -> Step:
    """One step of the plan: a pure function of the settings, the data and the number of ranks."""
    batch, total = job.config.batch, job.data.positions
    if batch.policy is BatchPolicy.fixed:
        return plan_fixed(epoch, step, total, batch.groups, batch.per_gpu, job.world)
    # The groups of the step, whatever its slots: how many tokens they show may depend on the progress.
    whole = plan_fixed(epoch, step, total, batch.groups, batch.groups, 1)

    assert job.tokens is not None, "measured before the first step is planned"

    def lengths(position: int) -> list[int]:
        return job.data.pair_lengths(job.data.locate(epoch, position), whole)

    return plan_tokens(epoch, step, total, batch.groups, job.tokens, job.world, lengths, job.packed)


def batches(job: Job, cursor: Cursor, ranks: Ranks) -> Iterator[StepBatches]:
    """The steps from the cursor on, each with this rank's micro-batches."""
    settings, data = job.config.train, job.config.data
    source = PlanSource(
        lambda: step_numbers(cursor, job.data.positions, settings.epochs, settings.max_steps),
        lambda epoch, step: make_step(job, epoch, step),
        ranks.rank,
    )
    cuda = ranks.device.type == "cuda"
    return stream(job.data, source, workers=data.workers, prefetch=data.prefetch, pin_memory=cuda)


def make_objective(loss: LossConfig) -> Objective:
    """What is minimised."""
    return Objective(
        loss.labels, loss.distillation, loss.temperature, loss.by_label.value, loss.by_teacher.value,
        tuple(sorted((loss.more or {}).items())), loss.score_temperature,
    )  # fmt: skip


def _steps(config: TrainConfig, positions: int) -> int:
    """Optimizer steps of a training over epochs of `positions` groups."""
    steps = config.train.epochs * steps_per_epoch(positions, config.batch.groups)
    return min(steps, config.train.max_steps or steps)


def plain(config: Any) -> Any:
    """A config as JSON values: enums by name."""
    if dataclasses.is_dataclass(config):
        return {field.name: plain(getattr(config, field.name)) for field in dataclasses.fields(config)}
    if isinstance(config, Enum):
        return config.value
    if isinstance(config, (list, tuple)):
        return [plain(value) for value in config]
    return config

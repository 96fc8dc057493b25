"""`reranker train`: settings -> a run directory with checkpoints, metrics and the exported model.

The order of a start, the same on every rank: check the settings, meet the other ranks, check data and
model, stop here if it is a dry run, build the engine, go to the newest complete checkpoint, train, export.
Mistakes are found on all ranks together, so that none is left waiting.
"""

from __future__ import annotations

import dataclasses
import os
import sys
from collections.abc import Callable
from enum import Enum
from pathlib import Path
from typing import Any

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # our workers are the parallelism

import torch

from reranker.config import Precision, ShardCheck, TrainConfig, accumulation, check_train, resolve_precision
from reranker.data.choose import Choice
from reranker.data.manifest import Manifest, check_shards, load_manifest
from reranker.data.plan import Cursor, check_cursor, planned_steps, steps_per_epoch, steps_taken
from reranker.data.stream import DataSet, PlanSource, stream
from reranker.data.tokenize import Contract, PairTokenizer
from reranker.errors import UserError
from reranker.files import write_json, write_text
from reranker.model.cross_encoder import load_config, load_model, load_tokenizer
from reranker.train import checkpoint, estimate, loop
from reranker.train.distributed import Ranks, join, leave
from reranker.train.progress import Progress
from reranker.train.tracking import Tracker, run_id

CONFIG, INITIAL = "config.json", "initial"
"""In a run directory: the resolved settings, and config and tokenizer of the model that it began with."""


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
    def start(self) -> Cursor:
        return Cursor(self.config.train.seed, 0, 0, self.config.batch.groups, self.manifest.fingerprint)

    @property
    def evaluate_every(self) -> int:
        each_epoch = steps_per_epoch(self.manifest.groups, self.config.batch.groups)
        return self.config.train.eval_every or each_epoch


def train(config: TrainConfig, evaluator: Callable[..., Any], export: Callable[..., Path]) -> int:
    """Run or resume a training.

    Args:
        evaluator: makes an evaluator of dev groups from (path, tokenizer).
        export: writes the best checkpoint of a run directory as a model.

    Returns: the exit code. Raises: UserError.
    """
    check_train(config)
    ranks = join(config.train.device, config.train.timeout)
    # Read by deepspeed at import, which transformers may do first: it would search for itself, and say so.
    os.environ.setdefault("DS_ACCELERATOR", ranks.device.type)
    try:
        job, told = ranks.together(lambda: prepare(config, ranks, evaluator))
        if ranks.first:
            for line in told:
                print(line, file=sys.stderr)
        if config.train.dry_run:
            if ranks.first:
                print(estimate.report(job.config, job.manifest, job.precision, job.stage, ranks, job.steps))
            return 0
        done = ranks.together(lambda: finished(job))
        if done is None:
            train_job(job, ranks)
        elif ranks.first:
            print(f"{job.run_dir}: all {job.steps} steps were trained before ({done.name})")
        exported = ranks.together(lambda: export(job.run_dir) if ranks.first else None)
        if exported is not None:
            print(f"{exported}: the model, a Hugging Face directory")
        return 0
    finally:
        if "reranker.train.engine" in sys.modules:
            sys.modules["reranker.train.engine"].forget_groups()
        leave()


def prepare(config: TrainConfig, ranks: Ranks, evaluator: Callable[..., Any]) -> tuple[Job, list[str]]:
    """Check data and model; (the job, what to tell the user). Raises UserError."""
    micro_batches = accumulation(config.batch.groups, config.batch.per_gpu, ranks.world)
    precision, stage, told = resolve_precision(
        config.precision.name, ranks.device.type, config.deepspeed.stage, config.precision.fp16_on_cpu
    )
    manifest = load_manifest(config.data.shards)
    check_shards(config.data.shards, manifest, digest=config.data.check is ShardCheck.sha256)
    hugging_face = load_tokenizer(config.model.name, config.model.revision)
    limit = getattr(load_config(config.model.name, config.model.revision), "max_position_embeddings", None)
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


def finished(job: Job) -> Path | None:
    """The checkpoint of the last step, if the training was done before. Raises UserError for another training."""
    path, _ = checkpoint.newest(job.run_dir)
    if path is None:
        return None
    cursor = check_cursor(checkpoint.read_state(path)["cursor"], job.start, path)
    return path if steps_taken(cursor, job.manifest.groups) >= job.steps else None


def train_job(job: Job, ranks: Ranks) -> None:
    """Build the engine, resume, run the loop."""
    from reranker.train.engine import Engine  # deepspeed takes seconds to import: not for dry runs or mistakes

    config = job.config
    torch.use_deterministic_algorithms(config.train.deterministic)
    model, fresh = ranks.together(
        lambda: load_model(
            config.model.name,
            revision=config.model.revision,
            seed=config.train.seed,
            dropout=config.model.dropout,
            gradient_checkpointing=config.model.gradient_checkpointing,
        )
    )
    if ranks.first:
        if fresh:
            print(f"model.name: {config.model.name} has no trained score head, a fresh one is drawn", file=sys.stderr)
        write_start(job)
    engine = Engine(
        model,
        optim=config.optim,
        stage=job.stage,
        precision=job.precision,
        scaling=config.precision,
        reduce_bucket_size=config.deepspeed.reduce_bucket_size,
        device=ranks.device,
        timeout=config.train.timeout,
    )
    saved = resume(job, engine, ranks)
    cursor = check_cursor(saved["cursor"], job.start, job.run_dir) if saved else job.start
    done = steps_taken(cursor, job.manifest.groups)
    best: dict[str, Any] = dict(saved.get("best") or {})
    tracker = Tracker(job.run_dir, config.name, config.tracking, plain(config), done, enabled=ranks.first)
    progress = Progress(job.steps, done, enabled=ranks.first)

    def log(step: int, metrics: dict[str, Any]) -> None:
        tracker.log(step, metrics)
        progress.show(step, metrics)

    def evaluate() -> dict[str, Any]:
        engine.eval()
        with torch.no_grad():
            scores = job.evaluator.evaluate(
                lambda ids, types, mask: score_pairs_of(engine, ids, types, mask), ranks.rank, ranks.world,
                ranks.gather, ranks.device,
            )  # fmt: skip
        return {f"eval/{name}": value for name, value in scores.items()}

    def save(step: int, planned: Any, scores: dict[str, Any] | None) -> None:
        value = scores[f"eval/{config.train.metric}"] if scores else None
        if value is not None and value > best.get("value", float("-inf")):
            best.update(checkpoint=checkpoint.name_of(step), metric=config.train.metric, value=value, step=step)
        state = {
            "cursor": cursor.after(planned).to_dict(),
            "epoch": planned.epoch + (planned.positions[-1] + 1) / planned.groups_in_epoch,
            "groups_seen": planned.epoch * planned.groups_in_epoch + planned.positions[-1] + 1,
            "updates": step - skipped.count,
            "scaler": engine.scaler_state(),
            "best": best or None,
            "metrics": scores,
            "world": ranks.world,
            "stage": job.stage,
            "precision": job.precision.value,
            "tracking_run_id": tracker.run_id,
            "config": plain(config),
            "versions": versions(),
        }
        checkpoint.save(job.run_dir, step, engine.fragments(), state, ranks)
        if ranks.first:
            checkpoint.prune(job.run_dir, config.train.keep_last, best.get("checkpoint"))

    skipped = loop.Skipped(int(saved.get("step", 0)) - int(saved.get("updates", 0)))
    plan = make_plan(job, cursor, done)
    try:
        loop.run(
            engine, plan, batches(job, cursor, ranks), ranks, skipped=skipped, log=log, evaluate=evaluate, save=save
        )
    finally:
        progress.close()
        tracker.close()


def make_plan(job: Job, cursor: Cursor, done: int) -> loop.Plan:
    """What the loop has to do, as pure functions of a step's number."""
    settings, steps = job.config.train, job.steps
    save_every = settings.save_every or job.evaluate_every

    def evaluate_after(step: int) -> bool:
        return job.evaluator is not None and (step % job.evaluate_every == 0 or step == steps)

    return loop.Plan(
        steps=list_steps(job, cursor),
        done=done,
        total=steps,
        seed=settings.seed,
        lr=job.config.optim.lr,
        warmup=job.config.optim.warmup,
        evaluate_after=evaluate_after,
        # A checkpoint that is evaluated is saved: the best one must exist.
        save_after=lambda step: step % save_every == 0 or step == steps or evaluate_after(step),
        log_after=lambda step: step % settings.log_every == 0 or step == steps,
    )


def list_steps(job: Job, cursor: Cursor) -> Any:
    batch, settings = job.config.batch, job.config.train
    return planned_steps(cursor, job.manifest.groups, batch.per_gpu, job.world, settings.epochs, settings.max_steps)


def batches(job: Job, cursor: Cursor, ranks: Ranks) -> Any:
    """This rank's micro-batches from the cursor on."""
    data, settings = job.config.data, job.config.train
    choice = Choice(
        data.group_size, data.short_groups.value, data.negatives.warmup, data.negatives.random, data.negatives.hardest
    )
    directory = Path(data.shards)
    groups = DataSet(directory, job.manifest, job.tokenizer, choice, settings.seed, data.shuffle_block)
    in_all = min(settings.epochs * job.manifest.groups, job.steps * job.config.batch.groups)
    source = PlanSource(lambda: list_steps(job, cursor), ranks.rank, in_all)
    return stream(groups, source, workers=data.workers, prefetch=data.prefetch, pin_memory=ranks.device.type == "cuda")


def resume(job: Job, engine: Any, ranks: Ranks) -> dict[str, Any]:
    """Load the newest complete checkpoint into the engine; its state, or {} for a fresh start."""
    path, passed = ranks.together(lambda: checkpoint.newest(job.run_dir))
    if ranks.first:
        for line in passed:
            print(line, file=sys.stderr)
    if path is None:
        return {}
    state = checkpoint.read_state(path)
    engine.load(checkpoint.Pieces(path).full, state["updates"])
    engine.load_scaler(state["scaler"])
    if ranks.first:
        print(f"{path}: resuming behind step {state['step']}", file=sys.stderr)
    return state


def write_start(job: Job) -> None:
    """What export needs of the beginning, and the settings for whoever looks in."""
    model = job.config.model
    job.run_dir.mkdir(parents=True, exist_ok=True)
    write_text(job.run_dir / "wandb_run_id", run_id(job.run_dir, job.config.name) + "\n")
    write_json(job.run_dir / CONFIG, plain(job.config))
    load_config(model.name, model.revision).save_pretrained(job.run_dir / INITIAL)
    load_tokenizer(model.name, model.revision).save_pretrained(job.run_dir / INITIAL)


def score_pairs_of(engine: Any, ids: torch.Tensor, types: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    from reranker.model.cross_encoder import score_pairs

    return score_pairs(engine.forward, ids, types, mask)


def plain(config: Any) -> Any:
    """A config as JSON values: enums by name."""
    if dataclasses.is_dataclass(config):
        return {field.name: plain(getattr(config, field.name)) for field in dataclasses.fields(config)}
    if isinstance(config, Enum):
        return config.value
    if isinstance(config, (list, tuple)):
        return [plain(value) for value in config]
    return config


def versions() -> dict[str, str]:
    from importlib.metadata import version

    import reranker

    names = ("torch", "deepspeed", "transformers", "webdataset")
    return {"reranker": reranker.__version__, **{name: version(name) for name in names}}

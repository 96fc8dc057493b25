"""`reranker train`: settings -> a run directory with checkpoints, metrics and the exported model.

The order of a start, the same on every rank: check the settings, meet the other ranks, check data and
model, stop here if it is a dry run, build the engine, go to the newest complete checkpoint, train, export.
Mistakes are found on all ranks together, so that none is left waiting.
"""

from __future__ import annotations

import dataclasses
import os
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # our workers are the parallelism

import torch

from reranker.checks import check_train
from reranker.config import BatchPolicy, TrainConfig
from reranker.data.plan import Cursor, Step, check_cursor, steps_taken
from reranker.errors import UserError
from reranker.files import write_json
from reranker.model.cross_encoder import load_config, load_model, load_tokenizer, score_pairs
from reranker.model.unpad import pack
from reranker.train import checkpoint, estimate, loop
from reranker.train.capacity import find_tokens
from reranker.train.distributed import Ranks, device_name, join, leave
from reranker.train.flops import model_flops
from reranker.train.job import Job, batches, count_lengths, make_plan, plain, prepare
from reranker.train.progress import Progress
from reranker.train.tracking import Tracker

CONFIG, INITIAL = "config.json", "initial"
"""In a run directory: the resolved settings, and config and tokenizer of the model that it began with."""


def train(config: TrainConfig, evaluator: Callable[..., Any], export: Callable[..., Path]) -> int:
    """Run or resume a training.

    Args:
        evaluator: makes an evaluator of dev groups from (path, tokenizer).
        export: writes the best checkpoint of a run directory as a model.

    Returns: the exit code. Raises: UserError.
    """
    try:
        check_train(config)
    except UserError as error:
        error.agreed = True  # every rank reads the same settings
        raise
    ranks = join(config.train.device, config.train.timeout)
    # Read by deepspeed at import, which transformers may do first: it would search for itself, and say so.
    os.environ.setdefault("DS_ACCELERATOR", ranks.device.type)
    try:
        job, told = ranks.together(lambda: prepare(config, ranks, evaluator))
        if config.train.dry_run:
            if ranks.first:
                say(told)
                print(estimate.report(job, ranks))
            return 0
        begun = ranks.from_first(lambda: begin(job))
        if begun is not None and begun.steps >= job.steps:
            if ranks.first:
                print(f"{job.run_dir}: all {job.steps} steps were trained before ({begun.path.name})")
        else:
            # The first rank of all, then of each node: what one writes is there for the others.
            for turn in (ranks.first, ranks.first_of_node, True):
                ranks.together(lambda turn=turn: count_lengths(job) if turn else None)  # type: ignore[misc]
            train_job(job, ranks, begun, told if ranks.first else [])
        exported = ranks.together(lambda: export(job.run_dir) if ranks.first else None)
        if exported is not None:
            print(f"{exported}: the model, a Hugging Face directory")
        return 0
    finally:
        if "reranker.train.engine" in sys.modules:
            sys.modules["reranker.train.engine"].forget_groups()
        leave()


@dataclass(frozen=True)
class Begun:
    """The checkpoint that a training goes on from: its directory, state, cursor and optimizer steps."""

    path: Path
    state: dict[str, Any]
    cursor: Cursor
    steps: int


def begin(job: Job) -> Begun | None:
    """Go to the newest complete checkpoint, on rank 0; None where there is none.

    Raises UserError for a checkpoint of another training: nothing of it is touched.
    """
    path, passed = checkpoint.newest(job.run_dir)
    for line in passed:
        print(line, file=sys.stderr)
    if path is None:
        return None
    state = checkpoint.read_state(path)
    cursor = check_cursor(state["cursor"], job.start, path)
    check_settings(state["config"], plain(job.config), path)
    write_json(job.run_dir / CONFIG, plain(job.config))
    return Begun(path, state, cursor, steps_taken(cursor, job.data.positions))


def check_settings(stored: dict[str, Any], wanted: dict[str, Any], path: Path) -> None:
    """Raise UserError if a resumed training would see another model or other pairs than before."""
    keys = [("model", "name"), ("model", "revision")]
    keys += [("data", name) for name in ("group_size", "short_groups", "truncation", "max_length", "query_max_length")]
    keys += [
        ("data", "negatives"),
        ("data", "shuffle_block"),
        ("loss", "labels"),
        ("loss", "distillation"),
        ("loss", "temperature"),
    ]
    defaults = plain(TrainConfig())
    for section, name in keys:
        # A key that the checkpoint's version did not know has the value that stands for what it did.
        before = stored.get(section, {}).get(name, defaults[section][name])
        if before != wanted[section][name]:
            found = f"{wanted[section][name]}, but {path} was made with {before}"
            fix = "restore it or choose another run_dir"
            raise UserError(f"{section}.{name}", found, "the same value", fix)


def say(lines: Iterable[str]) -> None:
    for line in lines:
        print(line, file=sys.stderr)


def train_job(job: Job, ranks: Ranks, begun: Begun | None, told: Iterable[str]) -> None:
    """Build the engine, go to the checkpoint, run the loop. `told` is said once the model is known to load."""
    from reranker.train.engine import Engine  # deepspeed takes seconds to import: not for dry runs or mistakes

    config = job.config
    if config.train.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # without it cuBLAS refuses
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
    flops = model_flops(model)  # before ZeRO takes the weights apart
    if job.packed:
        pack(model)
    # Not before the model is known to load: a mistake is one line, and leaves no run directory.
    say(told)
    ranks.together(lambda: write_start(job) if ranks.first and begun is None else None)
    if ranks.first and begun is None and fresh:
        print(f"model.name: {config.model.name} has no trained score head, a fresh one is drawn", file=sys.stderr)
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
    saved = begun.state if begun else {}
    measured: dict[str, Any] | None = None
    if job.config.batch.policy is BatchPolicy.tokens and job.tokens is None:
        measured = measured_tokens(job, engine, ranks, saved.get("measured"))
        job = dataclasses.replace(job, tokens=measured["tokens"])
    if begun is not None:
        resume(begun, engine, ranks, job.packed)
    cursor, done = (begun.cursor, begun.steps) if begun else (job.start, 0)
    selection = {"metric": config.train.metric, "dev": job.dev_sha256}
    best: dict[str, Any] = dict(saved.get("best") or {})
    if best and {key: best[key] for key in selection} != selection:
        best = {}  # values of another metric or of other groups do not compare
    tracker = Tracker(job.run_dir, config.name, config.tracking, plain(config), done, enabled=ranks.first)
    progress = Progress(job.steps, done, enabled=ranks.first)

    def log(step: int, metrics: dict[str, Any]) -> None:
        tracker.log(step, metrics)
        progress.show(step, metrics)

    def evaluate() -> dict[str, Any]:
        engine.eval()
        with torch.no_grad():
            scores = job.evaluator.evaluate(
                lambda pairs: score_pairs(engine.forward, pairs), ranks.rank, ranks.world, ranks.gather, ranks.device,
                job.packed,
            )  # fmt: skip
        return {f"eval/{name}": value for name, value in scores.items()}

    def save(step: int, planned: Step, scores: dict[str, Any] | None) -> None:
        value = scores[f"eval/{config.train.metric}"] if scores else None
        if value is not None and value > best.get("value", float("-inf")):
            best.update(checkpoint=checkpoint.name_of(step), value=value, step=step, **selection)
        state = {
            "cursor": cursor.after(planned).to_dict(),
            "epoch": planned.epoch + (planned.last + 1) / planned.groups_in_epoch,
            "groups_seen": planned.epoch * planned.groups_in_epoch + planned.last + 1,
            "updates": step - tally.skipped,
            "bad_groups": tally.bad,
            "scaler": engine.scaler_state(),
            "best": best or None,
            "metrics": scores,
            "world": ranks.world,
            "stage": job.stage,
            "precision": job.precision.value,
            "packed": job.packed,
            "measured": measured,
            "tracking_run_id": tracker.run_id,
            "config": plain(config),
            "versions": versions(),
        }
        checkpoint.save(job.run_dir, step, engine.fragments(), state, ranks)
        if ranks.first:
            checkpoint.prune(job.run_dir, step, config.train.keep_last, best.get("checkpoint"))

    skipped = int(saved.get("step", 0)) - int(saved.get("updates", 0))
    tally = loop.Tally(skipped, int(saved.get("bad_groups", 0)))
    plan = make_plan(job, done, flops)
    try:
        loop.run(engine, plan, batches(job, cursor, ranks), ranks, tally=tally, log=log, evaluate=evaluate, save=save)
    finally:
        progress.close()
        tracker.close()


def measured_tokens(job: Job, engine: Any, ranks: Ranks, saved: dict[str, Any] | None) -> dict[str, Any]:
    """batch.tokens=auto: {"tokens", "under": what they depend on}; a collective call.

    A resume under the same conditions takes the number that its checkpoint has, so that it plans alike.
    """
    model, data = job.config.model, job.config.data
    under = {
        "devices": sorted(ranks.gather(device_name(ranks.device))), "stage": job.stage,
        "precision": job.precision.value, "packed": job.packed, "model": model.name, "dropout": model.dropout,
        "gradient_checkpointing": model.gradient_checkpointing, "group_size": data.group_size,
        "max_length": data.max_length, "groups": job.config.batch.groups,
    }  # fmt: skip
    if saved is not None and saved["under"] == under:
        measured, how = saved, "as measured before"
    else:
        tokens = find_tokens(engine, ranks, data.group_size, data.max_length, job.most_tokens, job.packed)
        measured, how = {"tokens": tokens, "under": under}, "measured"
    if ranks.first:
        print(f"batch.tokens=auto: {measured['tokens']:,} tokens, {how}", file=sys.stderr)
    return measured


def resume(begun: Begun, engine: Any, ranks: Ranks, packed: bool) -> None:
    """Load a checkpoint into the engine. Raises UserError if it is not of this model."""
    pieces = checkpoint.Pieces(begun.path)
    ranks.together(lambda: pieces.check(engine.shapes))
    if ranks.first and begun.state.get("packed", packed) != packed:
        print(f"batch.packing: {'packed' if packed else 'padded'} from here on, which {begun.path.name} was not: "
              "packed, attention dropout is 0", file=sys.stderr)  # fmt: skip
    engine.load(pieces.full, begun.state["updates"])
    engine.load_scaler(begun.state["scaler"])
    if ranks.first:
        print(f"{begun.path}: resuming behind step {begun.steps}", file=sys.stderr)


def write_start(job: Job) -> None:
    """What export needs of the beginning, and the settings for whoever looks in. Raises UserError."""
    model = job.config.model
    try:
        job.run_dir.mkdir(parents=True, exist_ok=True)
        write_json(job.run_dir / CONFIG, plain(job.config))
        load_config(model.name, model.revision).save_pretrained(job.run_dir / INITIAL)
        load_tokenizer(model.name, model.revision).save_pretrained(job.run_dir / INITIAL)
    except OSError as error:
        found = f"{job.run_dir}, which cannot be written ({error.strerror})"
        raise UserError("run_dir", found, "a directory to write to", "choose another one") from None


def versions() -> dict[str, str]:
    from importlib.metadata import version

    import reranker

    names = ("torch", "deepspeed", "transformers", "webdataset")
    return {"reranker": reranker.__version__, **{name: version(name) for name in names}}

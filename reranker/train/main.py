"""`reranker train`: settings -> a run directory with checkpoints, metrics and the exported model.

The order of a start, the same on every rank: check the settings, meet the other ranks, check data and
model, stop here if it is a dry run, build the engine, go to the newest complete checkpoint, train, export.
Mistakes are found on all ranks together, so that none is left waiting; whatever else ends one rank ends all.
"""

from __future__ import annotations

import contextlib
import dataclasses
import multiprocessing
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # our workers are the parallelism

from reranker.checks import check_train
from reranker.config.common import Artifacts, BatchPolicy, Precision
from reranker.config.training import TrainConfig
from reranker.errors import UserError
from reranker.files import write_json
from reranker.model.cross_encoder import load_config, load_model, load_tokenizer
from reranker.model.unpad import pack
from reranker.train import estimate, loop
from reranker.train.artifacts import artifacts
from reranker.train.capacity import measured_tokens
from reranker.train.checkpoint import checkpoint_directories
from reranker.train.distributed import Ranks, device_name, join, leave, multiplies_bf16, set_arithmetic
from reranker.train.flops import model_flops
from reranker.train.gate import find_guards, measure_base
from reranker.train.guards import Health
from reranker.train.identity import resolved
from reranker.train.job import Job, batches, count_lengths, make_objective, make_plan, plain, prepare
from reranker.train.memory import keep_freed_memory
from reranker.train.owner import Owner
from reranker.train.preemption import Stop, Stopped, clear_requeue, mark_requeue, stop_requests
from reranker.train.resume import Begun, begin, load
from reranker.train.run_directory import CONFIG, INITIAL
from reranker.train.tracking import Tracker
from reranker.train.watchdog import Watchdog


def train(
    config: TrainConfig, evaluator: Callable[..., Any], guard_sets: Callable[..., Any], export: Callable[..., Path]
) -> int:
    """Run or resume a training.

    Args:
        evaluator: reads dev groups and evaluation sets of (settings, tokenizer).
        guard_sets: reads the guard sets of a GateConfig.
        export: writes the best checkpoint of a run directory as a model.

    Returns: the exit code; `Stopped` if any rank was asked to stop. Raises: UserError.
    """
    try:
        check_train(config)
    except UserError as error:
        error.agreed = True  # every rank reads the same settings
        raise
    with stop_requests() as stop:
        ranks = join(config.train.device, config.train.timeout)
        # Read by deepspeed at import, which transformers may do first: it would search for itself, and say so.
        os.environ.setdefault("DS_ACCELERATOR", ranks.device.type)
        if ranks.device.type == "cpu":
            keep_freed_memory()
        try:
            job, told = ranks.together(lambda: prepare(config, ranks, evaluator, guard_sets))
            code = train_with(ranks, job, [*told, *slow(job, ranks)], stop, export)
            # Behind the last step a request stops nothing here, and is one all the same.
            return Stopped(code) if any(ranks.gather(stop.requested)) else code
        finally:
            if "reranker.train.engine" in sys.modules:
                sys.modules["reranker.train.engine"].forget_groups()
            leave()
            end_workers()


def slow(job: Job, ranks: Ranks) -> list[str]:
    """What to tell of a precision that the processors are slow in. A collective call."""
    if all(ranks.gather(ranks.device.type == "cuda" or job.precision is not Precision.bf16 or multiplies_bf16())):
        return []
    return ["precision=bf16: not every rank's processor has its products, so that fp32 is much faster"]


def end_workers() -> None:
    """End the workers that are left: they do not hear SIGTERM.

    An error that is on its way may still hold their loader, which takes the end of a worker for a failure of its own.
    """
    handler = signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    try:
        for worker in multiprocessing.active_children():
            worker.kill()
            worker.join()
    finally:
        signal.signal(signal.SIGCHLD, handler)


def train_with(ranks: Ranks, job: Job, told: Iterable[str], stop: Stop, export: Callable[..., Path]) -> int:
    """`train`, once the ranks have met and all is checked."""
    if job.config.train.dry_run:
        if ranks.first:
            say(told)
            print(estimate.report(job, ranks))
        return 0
    with contextlib.ExitStack() as behind:
        return train_and_export(job, ranks, told, stop, export, behind)


def train_and_export(
    job: Job, ranks: Ranks, told: Iterable[str], stop: Stop, export: Callable[..., Path], behind: contextlib.ExitStack
) -> int:
    """Go on where the run directory stands, to its exported model; tracking ends with `behind`."""
    owner = Owner.new()

    def start() -> Begun | None:
        if not job.run_dir.is_dir():
            return begin(job)
        seen = checkpoint_directories(job.run_dir)
        begun = begin(job)  # before it is taken: a start that is refused takes nothing from the training under way
        owner.take(job.run_dir)
        # From here on no other training adds one; until here one may have.
        return begun if checkpoint_directories(job.run_dir) == seen else begin(job)

    begun = ranks.from_first(start)
    if ranks.first:
        clear_requeue(job.run_dir)
    uploads = job.config.tracking.artifacts is not Artifacts.none
    tracker: Tracker | None = None
    if begun is not None and begun.steps >= job.steps:
        if ranks.first:
            print(f"{job.run_dir}: all {job.steps} steps were trained before ({begun.path.name})")
        if uploads:
            tracker = behind.enter_context(make_tracker(job, ranks, begun.steps))
    else:
        # The first rank of all, then of each node: what one writes is there for the others.
        for turn in (ranks.first, ranks.first_of_node, True):
            ranks.together(lambda turn=turn: count_lengths(job) if turn else None)  # type: ignore[misc]
        done, tracker = train_job(job, ranks, begun, told if ranks.first else [], stop, owner, behind)
        if done < job.steps:
            asked = next((name for name in ranks.gather(stop.signal and stop.signal.name) if name), None)
            if ranks.first:
                mark_requeue(job.run_dir, done, asked)
                line = f"{job.run_dir}: stopped by {asked} behind step {done} of {job.steps}; the same command goes on"
                print(line)
                tracker.alert("stopped as asked", line, "INFO")
            return 0
    exported = ranks.together(lambda: export(job.run_dir) if ranks.first else None)
    if exported is not None:
        print(f"{exported}: the model, a Hugging Face directory")
        if uploads and tracker is not None:
            for artifact in artifacts(job, exported):
                tracker.keep(artifact)
    return 0


def make_tracker(job: Job, ranks: Ranks, done: int) -> Tracker:
    """The records of this training, of which `done` steps are kept."""
    settings = {**plain(job.config), "resolved": resolved(job, device_name(ranks.device))}
    config = job.config.tracking
    return Tracker(job.run_dir, job.config.name, config, settings, done, enabled=ranks.first, sets=job.set_names)


def say(lines: Iterable[str]) -> None:
    for line in lines:
        print(line, file=sys.stderr)


def train_job(
    job: Job, ranks: Ranks, begun: Begun | None, told: Iterable[str], stop: Stop, owner: Owner,
    behind_all: contextlib.ExitStack,
) -> tuple[int, Tracker]:  # fmt: skip
    """Build the engine, go to the checkpoint, run the loop; (the steps that are done then, the records).

    `told` is said once the model is known to load; the records are closed with `behind_all`.
    """
    from reranker.train.engine import Engine  # deepspeed takes seconds to import: not for dry runs or mistakes
    from reranker.train.events import RunEvents

    config = job.config
    set_arithmetic(config.train.deterministic, config.precision.tf32)
    model, fresh = ranks.together(
        lambda: load_model(
            config.model.name,
            revision=config.model.revision,
            seed=config.train.seed,
            dropout=config.model.dropout,
            gradient_checkpointing=config.model.gradient_checkpointing,
        )
    )
    guarded = find_guards(job, fresh, ranks)
    if job.evaluator is not None:
        job.evaluator.find(ranks, str(ranks.device))
    flops = model_flops(model)  # before ZeRO takes the weights apart
    if job.packed:
        pack(model)
    # Not before the model is known to load: a mistake is one line, and leaves no run directory.
    say(told)
    ranks.together(lambda: write_start(job, owner) if ranks.first and begun is None else None)
    ranks.together(lambda: check_shared(job))
    if ranks.first and begun is None and fresh:
        print(f"model.name: {config.model.name} has no trained score head, a fresh one is drawn", file=sys.stderr)
    watchdog = Watchdog(ranks, job.run_dir, config.train.hang or float("inf"))
    events: RunEvents | None = None
    with contextlib.ExitStack() as behind:
        try:
            watchdog.beat("building the engine")
            engine = Engine(
                model,
                optim=config.optim,
                arithmetic=job.arithmetic,
                scaling=config.precision,
                offload=config.deepspeed.offload,
                reduce_bucket_size=config.deepspeed.reduce_bucket_size,
                device=ranks.device,
                timeout=config.train.timeout,
            )
            gate = measure_base(job, guarded, engine, ranks, lambda: watchdog.beat("evaluating the base"))
            measured: dict[str, Any] | None = None
            if config.batch.policy is BatchPolicy.tokens and job.tokens is None:
                measured = measured_tokens(job, engine, ranks, begun.state.get("measured") if begun else None)
                job = dataclasses.replace(job, tokens=measured["tokens"])
            if begun is not None:
                watchdog.beat("loading the checkpoint")
                load(begun, engine, ranks, job.packed)
            labels = config.loss.labels if make_objective(config.loss).softmax_of_labels else None
            # A short training is watched as well: a quarter of its records is enough to tell.
            window = min(config.guards.window, max(10, job.steps // config.train.log_every // 4))
            health = Health(max(2, window), config.guards.spike, labels)
            cursor, done = (begun.cursor, begun.steps) if begun else (job.start, 0)
            tracker = behind_all.enter_context(make_tracker(job, ranks, done))
            events = RunEvents(job, engine, ranks, begun, stop, watchdog, measured, health, owner, tracker, gate)
            behind.callback(events.close)
            plan = make_plan(job, done, flops)
            done = loop.run(engine, plan, batches(job, cursor, ranks), ranks, health, events.tally, events)
            events.finish()
        except UserError as error:
            if error.agreed and events is not None:
                events.drain()
            tell_others(watchdog, error)
            raise
        except BaseException as error:
            # First of all: what is closed behind it may wait for long, and the others would not know why.
            tell_others(watchdog, error)
            raise
        watchdog.close()
    return done, tracker


def tell_others(watchdog: Watchdog, error: BaseException) -> None:
    """This rank ends: let the others know why, unless they hold the same error."""
    if isinstance(error, UserError) and error.agreed:
        watchdog.close()
    elif watchdog.lost(error) is not None:
        # The error is that of a collective that another rank did not join: a traceback of it would hide the cause,
        # which the watchdog has told. It ends this process when all ranks have had the time to dump their stacks.
        time.sleep(60)
        os._exit(1)


def check_shared(job: Job) -> None:
    """Raise UserError if this rank does not see the run directory that rank 0 writes to."""
    if not (job.run_dir / CONFIG).is_file():
        raise UserError("run_dir", f"{job.run_dir}, which {socket.gethostname()} does not see", "a directory that all "
                        "machines of the training share", "choose one on a shared file system")  # fmt: skip


def write_start(job: Job, owner: Owner) -> None:
    """What export needs of the beginning, and the settings for whoever looks in. Raises UserError."""
    model = job.config.model
    try:
        job.run_dir.mkdir(parents=True, exist_ok=True)
        owner.take(job.run_dir)
        write_json(job.run_dir / CONFIG, plain(job.config))
        load_config(model.name, model.revision).save_pretrained(job.run_dir / INITIAL)
        load_tokenizer(model.name, model.revision).save_pretrained(job.run_dir / INITIAL)
    except OSError as error:
        found = f"{job.run_dir}, which cannot be written ({error.strerror})"
        raise UserError("run_dir", found, "a directory to write to", "choose another one") from None

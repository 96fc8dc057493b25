"""Planned steps -> micro-batches of this rank, through a WebDataset pipeline in DataLoader workers.

    plan     the micro-batches of the steps, one after another: worker w of W executes every W-th
    fetch    positions -> members of the shards, by ranged reads
    decode   webdataset's own decoding of .json members
    choose   the group's passages in this pass, positives first
    tokenize query and passages -> pairs
    collate  the groups of a slot -> one MicroBatch

and, in the training process, which neither reads nor tokenizes:

    gather   the micro-batches of a step -> one StepBatches

A worker executes whole micro-batches, so that neither their content nor their order depends on the number of
workers, and hands each out as soon as it is ready: all workers prepare the first step together. Planning is cheap
beside tokenizing, so each worker plans every step. A `UserError` in a worker travels as an item and is raised by the
reader: pickled as an exception it would lose its form.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import webdataset
from torch.utils.data import IterableDataset, get_worker_info

from reranker.data.collate import MicroBatch, collate, ghost
from reranker.data.dataset import DataSet
from reranker.data.plan import Step
from reranker.data.reader import BadMember
from reranker.errors import UserError
from reranker.groups import parse_group

Sample = dict[str, Any]


@dataclass(frozen=True)
class StepBatches:
    """A planned step with this rank's micro-batches of it, one for each row of the step's slots."""

    step: Step
    micro_batches: list[MicroBatch]


@dataclass(frozen=True)
class Task:
    """One slot to execute: its step and its positions."""

    step: Step
    positions: tuple[int, ...]


@dataclass(frozen=True)
class Executed:
    """What a task became."""

    task: Task
    batch: MicroBatch

    def pin_memory(self) -> Executed:
        return Executed(self.task, self.batch.pin_memory())


class PlanSource(IterableDataset):
    """The tasks of one rank, shared out to the workers of its loader.

    Args:
        numbers: makes an iterator of (epoch, step); plan: makes a step of them.
    """

    def __init__(
        self, numbers: Callable[[], Iterator[tuple[int, int]]], plan: Callable[[int, int], Step], rank: int
    ) -> None:
        self._numbers, self._plan, self._rank = numbers, plan, rank

    def __iter__(self) -> Iterator[Task]:
        worker = get_worker_info()
        first, stride = (worker.id, worker.num_workers) if worker else (0, 1)
        return itertools.islice(self._tasks(), first, None, stride)

    @property
    def accumulation(self) -> int:
        """Micro-batches of a step: the most of the first two, as one of them may be an epoch's short last one."""
        return max((len(self._plan(*numbers).slots) for numbers in itertools.islice(self._numbers(), 2)), default=1)

    def _tasks(self) -> Iterator[Task]:
        for numbers in self._numbers():
            step = self._plan(*numbers)
            for row in step.slots:
                yield Task(step, row[self._rank])


def stream(
    data: DataSet, source: PlanSource, *, workers: int, prefetch: int, pin_memory: bool
) -> Iterator[StepBatches]:
    """The steps of the plan in order, each with the micro-batches of this rank. Raises UserError for bad data.

    `prefetch`: as many micro-batches as so many steps have a worker prepares ahead.
    """
    ahead = prefetch * source.accumulation if workers else None
    yield from gather_steps(micro_batches(data, source, workers=workers, prefetch=ahead, pin_memory=pin_memory))


def micro_batches(
    data: DataSet, source: PlanSource, *, workers: int, prefetch: int | None, pin_memory: bool
) -> Iterator[Executed | UserError]:
    """The micro-batches of this rank in order, each as soon as its worker has it; a UserError ends them.

    Each of `workers` processes prepares `prefetch` ahead and no more; without workers there is nothing to say.
    """
    pipeline = webdataset.DataPipeline(
        source,
        _stage(fetch, data),
        webdataset.decode(),
        _stage(choose_passages, data),
        _stage(tokenize, data),
        _stage(collate_tasks, data),
    )
    loader = webdataset.WebLoader(
        _Guarded(pipeline),
        batch_size=None,
        num_workers=workers,
        prefetch_factor=prefetch,
        pin_memory=pin_memory,
        multiprocessing_context="fork" if workers else None,
        worker_init_fn=partial(_belong_to_the_rank, os.getpid()) if workers else None,
    )
    return iter(loader)


def _belong_to_the_rank(rank: int, _: int) -> None:
    """Let a worker live as long as its rank, the process of this number.

    Workers are forked with the rank's handlers. A signal to a whole process group, as systemd and `timeout` send it,
    must leave them alive: the rank needs its batches up to the step behind which all ranks stop, and ends them itself.

    Where it cannot, because it was killed, torch's own look at the parent is not enough: a worker that has prepared
    more than a pipe takes waits at its end for somebody to read, and holds the pipe's reading end itself. It would be
    left for good, with all that it has inherited: connections, memory, devices.
    """
    signal.set_wakeup_fd(-1)
    for number in (signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=_end_with, args=(rank,), name="parent", daemon=True).start()


def _end_with(rank: int) -> None:
    while os.getppid() == rank:
        time.sleep(1.0)
    os._exit(1)


def fetch(data: DataSet, tasks: Iterable[Task]) -> Iterator[Sample]:
    """The members that the positions name; a ghost is a sample without a member."""
    for task in tasks:
        if not task.positions:
            yield {"__key__": "ghost", "__task__": task}
        for position in task.positions:
            place = data.locate(task.step.epoch, position)
            sample = {"__key__": place.name, "__task__": task, "__place__": place, "__position__": position}
            with _unless_bad(data, sample):
                sample["json"] = place.read()
            yield sample


def choose_passages(data: DataSet, samples: Iterable[Sample]) -> Iterator[Sample]:
    for sample in samples:
        if "json" in sample:
            place, step = sample["__place__"], sample["__task__"].step
            group = parse_group(sample["json"], sample["__key__"])
            sample["__query__"] = group.prompted_query
            with _unless_bad(data, sample):
                sample["__passages__"] = data.passages(place, group, step)
        yield sample


def tokenize(data: DataSet, samples: Iterable[Sample]) -> Iterator[Sample]:
    for sample in samples:
        if "__passages__" in sample:
            sample["__pairs__"] = data.tokenizer.encode(sample["__query__"], sample["__passages__"].texts)
        yield sample


def collate_tasks(data: DataSet, samples: Iterable[Sample]) -> Iterator[Executed]:
    found: list[Sample] = []
    for sample in samples:
        found.append(sample)
        task = sample["__task__"]
        # Counted, not seen by the next task's first sample: that would have to be read before this one is passed on.
        if len(found) < len(task.positions):
            continue
        bad = [str(one["__bad__"]) for one in found if "__bad__" in one]
        whole = [one for one in found if "__pairs__" in one]
        found = []
        if whole:
            pairs = [one["__pairs__"] for one in whole]
            positions = [one["__position__"] for one in whole]
            shown = [one["__passages__"] for one in whole]
            batch = collate(
                pairs, positions, max(map(len, pairs)), data.tokenizer.pad_id, bad,
                [passages.teacher for passages in shown], [passages.positives for passages in shown],
            )  # fmt: skip
        else:
            batch = ghost(data.tokenizer.pad_id, bad)
        yield Executed(task, batch)


def gather_steps(items: Iterable[Executed | UserError]) -> Iterator[StepBatches]:
    """The steps, each as soon as its last micro-batch is there. Raises UserError where a worker met one."""
    found: list[MicroBatch] = []
    for item in items:
        if isinstance(item, UserError):
            raise item
        found.append(item.batch)
        if len(found) == len(item.task.step.slots):
            yield StepBatches(item.task.step, found)
            found = []


@contextlib.contextmanager
def _unless_bad(data: DataSet, sample: Sample) -> Iterator[None]:
    """Mark a sample whose group cannot be read, where data.bad=ghost; otherwise the mistake goes on its way."""
    try:
        yield
    except BadMember as error:
        if not data.ghosts:
            raise
        sample.pop("json", None)
        sample["__bad__"] = error


class _Guarded(IterableDataset):
    """Passes a pipeline's items on, and its UserError as the last one."""

    def __init__(self, pipeline: Any) -> None:
        self._pipeline = pipeline

    def __iter__(self) -> Iterator[Executed | UserError]:
        try:
            yield from self._pipeline
        except UserError as error:
            yield error


def _stage(function: Callable[[DataSet, Iterable[Any]], Iterator[Any]], data: DataSet) -> Callable[..., Iterator[Any]]:
    return lambda samples: function(data, samples)

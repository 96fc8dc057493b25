"""Planned steps -> micro-batches of this rank, through a WebDataset pipeline in DataLoader workers.

    plan     the slots of this rank, one after another; worker w of W takes every W-th
    fetch    positions -> members of the shards, by ranged reads
    decode   webdataset's own decoding of .json members
    choose   the group's passages in this epoch, positive first
    tokenize query and passages -> pairs
    collate  the groups of a slot -> one MicroBatch

A worker executes whole micro-batches, so that neither their content nor their order depends on the number
of workers. A `UserError` in a worker travels as an item and is raised by the reader: pickled as an
exception it would lose its form.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import webdataset
from torch.utils.data import IterableDataset, get_worker_info

from reranker.data.choose import Choice, choose
from reranker.data.collate import MicroBatch, collate, ghost
from reranker.data.manifest import Manifest
from reranker.data.order import Order
from reranker.data.plan import Step
from reranker.data.reader import ShardReader
from reranker.data.tokenize import PairTokenizer
from reranker.errors import UserError
from reranker.groups import parse_group

Sample = dict[str, Any]


@dataclass(frozen=True)
class Task:
    """One slot to execute: its number in the stream, its positions and what the choice is keyed by."""

    number: int
    epoch: int
    positions: tuple[int, ...]
    progress: float


@dataclass
class DataSet:
    """Everything that turns a position into pairs. Pickles into workers; opens files when first used."""

    directory: Path
    manifest: Manifest
    tokenizer: PairTokenizer
    choice: Choice
    seed: int
    block: int
    _orders: dict[int, Order] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.reader = ShardReader(self.directory, self.manifest)

    def order(self, epoch: int) -> Order:
        if epoch not in self._orders:
            # Only the epochs under way are of use: a prefetching worker may stand at a boundary.
            self._orders = {key: value for key, value in self._orders.items() if key == epoch - 1}
            self._orders[epoch] = Order(self.manifest.sizes, self.seed, epoch, self.block)
        return self._orders[epoch]


class PlanSource(IterableDataset):
    """The tasks of one rank, shared out to the workers of its loader."""

    def __init__(self, steps: Callable[[], Iterator[Step]], rank: int, groups_in_all: int) -> None:
        self._steps, self._rank, self._groups_in_all = steps, rank, groups_in_all

    def __iter__(self) -> Iterator[Task]:
        worker = get_worker_info()
        first, stride = (worker.id, worker.num_workers) if worker else (0, 1)
        return itertools.islice(self._tasks(), first, None, stride)

    def _tasks(self) -> Iterator[Task]:
        numbers = itertools.count()
        for step in self._steps():
            # All groups of a step share their progress: it must not depend on the micro-batch they are in.
            done = step.epoch * step.groups_in_epoch + step.positions[0]
            for row in step.slots:
                yield Task(next(numbers), step.epoch, row[self._rank], done / self._groups_in_all)


def stream(data: DataSet, source: PlanSource, *, workers: int, prefetch: int, pin_memory: bool) -> Iterator[MicroBatch]:
    """The micro-batches of this rank in the order of the plan. Raises UserError for bad data."""
    pipeline = webdataset.DataPipeline(
        source,
        _stage(fetch, data),
        webdataset.decode(),
        _stage(choose_passages, data),
        _stage(tokenize, data),
        _stage(collate_tasks, data),
    )
    guarded = _Guarded(pipeline)
    loader = webdataset.WebLoader(
        guarded,
        batch_size=None,
        num_workers=workers,
        prefetch_factor=prefetch if workers else None,
        pin_memory=pin_memory,
        multiprocessing_context="fork" if workers else None,
    )
    for item in loader:
        if isinstance(item, UserError):
            raise item
        yield item


def fetch(data: DataSet, tasks: Iterable[Task]) -> Iterator[Sample]:
    """The members that the positions name; a ghost is a sample without a member."""
    for task in tasks:
        if not task.positions:
            yield {"__key__": "ghost", "__task__": task}
        order = data.order(task.epoch)
        for position in task.positions:
            shard, index = order.locate(position)
            yield {
                "__key__": data.reader.name(shard, index),
                "__task__": task,
                "__number__": data.reader.number(shard, index),
                "json": data.reader.read(shard, index),
            }


def choose_passages(data: DataSet, samples: Iterable[Sample]) -> Iterator[Sample]:
    for sample in samples:
        if "json" in sample:
            group, task = parse_group(sample["json"], sample["__key__"]), sample["__task__"]
            sample["__query__"] = group.prompted_query
            sample["__passages__"] = choose(
                group, sample["__number__"], seed=data.seed, epoch=task.epoch, progress=task.progress,
                choice=data.choice, total=data.manifest.groups, fetch=data.reader.group,
            )  # fmt: skip
        yield sample


def tokenize(data: DataSet, samples: Iterable[Sample]) -> Iterator[Sample]:
    for sample in samples:
        if "json" in sample:
            sample["__pairs__"] = data.tokenizer.encode(sample["__query__"], sample["__passages__"])
        yield sample


def collate_tasks(data: DataSet, samples: Iterable[Sample]) -> Iterator[MicroBatch]:
    for task, members in itertools.groupby(samples, key=lambda sample: sample["__task__"]):
        if not task.positions:
            yield ghost(data.tokenizer.pad_id)
            continue
        pairs = [sample["__pairs__"] for sample in members]
        places = max(len(group) for group in pairs)
        yield collate(pairs, task.positions, places, data.tokenizer.pad_id)


class _Guarded(IterableDataset):
    """Passes a pipeline's items on, and its UserError as the last one."""

    def __init__(self, pipeline: Any) -> None:
        self._pipeline = pipeline

    def __iter__(self) -> Iterator[MicroBatch | UserError]:
        try:
            yield from self._pipeline
        except UserError as error:
            yield error


def _stage(function: Callable[[DataSet, Iterable[Any]], Iterator[Any]], data: DataSet) -> Callable[..., Iterator[Any]]:
    return lambda samples: function(data, samples)

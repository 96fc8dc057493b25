"""Micro-batches are a function of the plan: workers, ranks and resumes change nothing in them."""

from __future__ import annotations

import dataclasses
import json
import multiprocessing
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load, save

from reranker.data.choose import Choice
from reranker.data.collate import MicroBatch, collate, ghost
from reranker.data.dataset import DataSet, Source
from reranker.data.index import load_index
from reranker.data.lengths import find_or_write_lengths
from reranker.data.manifest import load_manifest
from reranker.data.plan import Cursor, Step, plan_fixed, plan_tokens, step_numbers
from reranker.data.reader import ShardReader
from reranker.data.stream import PlanSource, StepBatches, stream
from reranker.data.tokenize import Contract, Pair, PairTokenizer
from reranker.errors import UserError
from reranker.groups import Group
from reranker.prepare.pack import pack
from reranker.train.main import end_workers
from tests.distributed.ranks import until
from tests.pairs import pair_ids
from tests.tiny import tiny_model

COUNT, BATCH, EPOCHS = 23, 8, 2
GROUPS = [
    Group(
        f"질문 {n}",
        tuple(f"정답 {n} {i}" for i in range(n % 2 + 1)),
        tuple(f"오답 {n} {i} " + "글 " * (n % 5) for i in range(n % 4 + 1)),
    )
    for n in range(COUNT)
]
START = Cursor(42, 0, 0, BATCH, "f")
STEPS = 6
"""Steps of the training: 8, 8 and 7 groups in each of two epochs."""


LATER = 4
"""A group that the first step of the first epoch does not show."""

# Eight workers on a machine of two cores are meant here.
pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning")


@pytest.fixture(autouse=True)
def no_worker_is_left() -> Iterator[None]:
    yield
    end_workers()  # the traceback of a test that failed holds its loader, and workers do not hear the end of pytest


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(tiny_model(tmp_path_factory.mktemp("model")))


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("stream") / "shards"
    pack(GROUPS, directory, {"name": "groups.jsonl"}, groups_per_shard=6)
    return directory


def data_set(shards: Path, tokenizer: Any, **settings: Any) -> DataSet:
    manifest = load_manifest(shards)
    choice = Choice(**{"group_size": 3, "warmup": 0.4, "random": 0.5, **settings})
    source = Source("", manifest, ShardReader(shards, manifest, retries=1))
    pairs = PairTokenizer(tokenizer, Contract(24))
    return DataSet([source], pairs, choice, seed=42, block=2, positions_in_all=EPOCHS * manifest.groups)


def steps_of(
    data: DataSet, *, workers: int = 0, rank: int = 0, world: int = 1, per_gpu: int = 1, cursor: Cursor = START
) -> Iterable[StepBatches]:
    source = PlanSource(
        lambda: step_numbers(cursor, data.positions, EPOCHS),
        lambda epoch, step: plan_fixed(epoch, step, data.positions, cursor.groups, per_gpu, world),
        rank,
    )
    return stream(data, source, workers=workers, prefetch=2, pin_memory=False)


def batches(
    tokenizer: Any, shards: Path, *, workers: int = 0, rank: int = 0, world: int = 1, per_gpu: int = 1,
    cursor: Cursor = START, ghosts: bool = False, **choice: Any,
) -> Iterable[MicroBatch]:  # fmt: skip
    """The micro-batches of a rank, one after another."""
    data = data_set(shards, tokenizer, **choice)
    data.ghosts = ghosts
    for taken in steps_of(data, workers=workers, rank=rank, world=world, per_gpu=per_gpu, cursor=cursor):
        yield from taken.micro_batches


def plan(world: int = 1, per_gpu: int = 1, cursor: Cursor = START) -> Iterator[Step]:
    for epoch, step in step_numbers(cursor, COUNT, EPOCHS):
        yield plan_fixed(epoch, step, COUNT, cursor.groups, per_gpu, world)


def fields(batch: MicroBatch) -> dict[str, Any]:
    every = {
        field.name: getattr(part, field.name) for part in (batch, batch.packed) for field in dataclasses.fields(part)
    }
    del every["packed"]
    return {
        name: json.loads(re.sub("NaN", '"nan"', json.dumps(value.tolist()))) if torch.is_tensor(value) else value
        for name, value in every.items()
    }


def shown(batch: MicroBatch) -> list[tuple[int, list[list[int]]]]:
    """(position, ids of each pair without padding) of each real group."""
    rows = pair_ids(batch.packed)
    places = batch.present_GP.shape[1]
    groups = [rows[place * places : (place + 1) * places] for place in range(len(batch.positions))]
    return list(zip(batch.positions, groups, strict=True))


@pytest.mark.parametrize("workers", [1, 2, 3, 8])
@pytest.mark.parametrize("per_gpu", [1, 2])
def test_any_number_of_workers_gives_the_same_micro_batches_in_the_same_order(
    workers: int, per_gpu: int, tokenizer: Any, shards: Path
) -> None:
    alone = [fields(batch) for batch in batches(tokenizer, shards, per_gpu=per_gpu)]
    together = [fields(batch) for batch in batches(tokenizer, shards, per_gpu=per_gpu, workers=workers)]
    assert together == alone
    assert len(alone) == sum(len(step.slots) for step in plan(per_gpu=per_gpu))


def test_micro_batches_follow_the_plan_and_fill_the_rest_with_ghosts(tokenizer: Any, shards: Path) -> None:
    for rank in range(4):
        mine = list(batches(tokenizer, shards, rank=rank, world=4))
        slots = [row[rank] for step in plan(4) for row in step.slots]
        assert [batch.positions for batch in mine] == slots
        for batch, slot in zip(mine, slots, strict=True):
            assert batch.weight_G.tolist() == [1.0] * len(slot) if slot else [0.0]
    # The last of four ranks has a ghost in the last micro-batch of both epochs: 7 groups on 8 places.
    ghosts = [batch for batch in batches(tokenizer, shards, rank=3, world=4) if not batch.positions]
    assert len(ghosts) == 2
    assert fields(ghosts[0]) == fields(ghost(tokenizer.pad_token_id))


def ignored(pid: int) -> int:
    """The signals that a process ignores, as bits."""
    return int(re.search(r"SigIgn:\s+([0-9a-f]+)", Path(f"/proc/{pid}/status").read_text())[1], 16)  # type: ignore[index]


def test_workers_outlive_the_signals_that_end_a_training(tokenizer: Any, shards: Path) -> None:
    whole = [fields(batch) for batch in batches(tokenizer, shards)]
    left = iter(batches(tokenizer, shards, workers=2))
    found = [fields(next(left))]
    workers = multiprocessing.active_children()
    assert len(workers) == 2
    numbers = (signal.SIGTERM, signal.SIGUSR1)
    for pid in (int(worker.pid or 0) for worker in workers):
        # Before, it has the handlers of its rank.
        until(
            lambda pid=pid: all(ignored(pid) >> (number - 1) & 1 for number in numbers),
            lambda: "it takes signals",
            30.0,
        )
        for number in numbers:
            os.kill(pid, number)
    assert found + [fields(batch) for batch in left] == whole


def by_step(steps: Iterable[Step], ranks: list[Iterable[MicroBatch]]) -> list[list[tuple[int, list[list[int]]]]]:
    streams = [iter(rank) for rank in ranks]
    taken = []
    for step in steps:
        groups = [group for rank in streams for _ in step.slots for group in shown(next(rank))]
        taken.append(sorted(groups))
    assert all(next(rank, None) is None for rank in streams)
    return taken


@pytest.mark.parametrize(("world", "per_gpu"), [(2, 1), (4, 1), (2, 4), (1, 8), (8, 1)])
def test_any_number_of_ranks_shows_the_same_groups_in_every_step(
    world: int, per_gpu: int, tokenizer: Any, shards: Path
) -> None:
    alone = by_step(plan(), [batches(tokenizer, shards)])
    ranks = [batches(tokenizer, shards, rank=rank, world=world, per_gpu=per_gpu) for rank in range(world)]
    assert by_step(plan(world, per_gpu), ranks) == alone
    assert [len(step) for step in alone] == [8, 8, 7] * EPOCHS


def test_every_group_is_streamed_once_in_each_epoch(tokenizer: Any, shards: Path) -> None:
    by_query = {tuple(tokenizer(group.query)["input_ids"]): number for number, group in enumerate(GROUPS)}
    pairs = [first for batch in batches(tokenizer, shards) for _, (first, *_) in shown(batch)]
    numbers = [by_query[tuple(ids[: ids.index(2) + 1])] for ids in pairs]
    assert sorted(numbers[:COUNT]) == sorted(numbers[COUNT:]) == list(range(COUNT))
    assert numbers[:COUNT] != numbers[COUNT:]


@pytest.mark.parametrize("done", range(STEPS + 1))
def test_a_resumed_stream_goes_on_with_the_same_micro_batches(done: int, tokenizer: Any, shards: Path) -> None:
    cursor = START
    steps = list(plan(2))
    for step in steps[:done]:
        cursor = cursor.after(step)
    skipped = sum(len(step.slots) for step in steps[:done])
    whole = [fields(batch) for batch in batches(tokenizer, shards, rank=1, world=2)]
    rest = [fields(batch) for batch in batches(tokenizer, shards, rank=1, world=2, cursor=cursor)]
    assert rest == whole[skipped:]


def damaged_copy(shards: Path, tmp_path: Path, number: int) -> tuple[Path, str]:
    """(shards in which one byte of a group is flipped, the member's name)."""
    directory = tmp_path / "damaged"
    directory.mkdir()
    for path in shards.iterdir():
        (directory / path.name).write_bytes(path.read_bytes())
    tar = directory / f"shard-{number // 6:05d}.tar"
    content = bytearray(tar.read_bytes())
    content[content.index(f"질문 {number}".encode())] ^= 1
    tar.write_bytes(content)
    return directory, f"{tar}:{number:09d}.json"


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_a_damaged_member_is_a_users_error_that_names_it(
    workers: int, tokenizer: Any, shards: Path, tmp_path: Path
) -> None:
    directory, member = damaged_copy(shards, tmp_path, LATER)
    taken = []
    with pytest.raises(UserError) as caught:
        for batch in batches(tokenizer, directory, workers=workers, random=0.0, warmup=0.0):
            taken.append(fields(batch))
    assert str(caught.value) == (
        f"{member}: found bytes that differ from those packed (CRC-32), expected an undamaged shard; "
        "copy the shard again or delete the directory and run reranker pack (or index) again"
    )
    # The steps before its own are delivered, with any number of workers.
    whole = [fields(batch) for batch in batches(tokenizer, shards, random=0.0, warmup=0.0)]
    assert len(taken) in (8, 16)
    assert taken == whole[: len(taken)]


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("per_gpu", [1, 4])
def test_a_damaged_group_becomes_a_ghost_where_that_is_asked_for(
    per_gpu: int, workers: int, tokenizer: Any, shards: Path, tmp_path: Path
) -> None:
    directory, member = damaged_copy(shards, tmp_path, LATER)
    settings: dict[str, Any] = {"per_gpu": per_gpu, "random": 0.0, "warmup": 0.0}
    whole = list(batches(tokenizer, shards, **settings))
    kept = list(batches(tokenizer, directory, workers=workers, ghosts=True, **settings))
    assert len(kept) == len(whole)
    lost = [(ours, theirs) for ours, theirs in zip(kept, whole, strict=True) if ours.bad]
    # Once in each epoch, named; nothing else of the micro-batch changes.
    assert len(lost) == EPOCHS
    for ours, theirs in lost:
        assert [line.partition(": found ")[0] for line in ours.bad] == [member]
        gone = set(theirs.positions) - set(ours.positions)
        assert len(gone) == 1
        assert shown(ours) == [row for row in shown(theirs) if row[0] not in gone]
        assert ours.weight_G.tolist() == [1.0] * len(ours.positions) + [0.0]
        assert ours.pairs == theirs.pairs - 3
    assert all(fields(a) == fields(b) for a, b in zip(kept, whole, strict=True) if not a.bad)


@pytest.mark.parametrize("warmup", [0.0, 1.0], ids=["own negatives", "random negatives"])
def test_a_missing_shard_makes_ghosts_of_its_groups_where_that_is_asked_for(
    warmup: float, tokenizer: Any, shards: Path, tmp_path: Path
) -> None:
    directory = Path(shutil.copytree(shards, tmp_path / "shards"))
    (directory / "shard-00001.tar").unlink()
    kept = list(batches(tokenizer, directory, ghosts=True, random=0.0, warmup=warmup))
    lost = [line for batch in kept for line in batch.bad]
    assert sum(len(batch.positions) + len(batch.bad) for batch in kept) == COUNT * EPOCHS
    # Its own groups, and those that show a passage of it.
    assert len(lost) == 6 * EPOCHS if not warmup else len(lost) > 6 * EPOCHS
    assert all("shard-00001.tar: found a file that cannot be opened" in line for line in lost)
    with pytest.raises(UserError, match=r"shard-00001\.tar: found a file that cannot be opened"):
        list(batches(tokenizer, directory, random=0.0, warmup=warmup))


def test_a_missing_shard_does_not_keep_a_plan_by_tokens_from_being_made(
    tokenizer: Any, shards: Path, tmp_path: Path
) -> None:
    complete = Path(shutil.copytree(shards, tmp_path / "complete"))
    whole = data_set(complete, tokenizer)
    whole.sources[0].lengths = find_or_write_lengths(whole.sources[0].reader, whole.tokenizer, tmp_path, 1)
    directory = Path(shutil.copytree(complete, tmp_path / "shards"))
    (directory / "shard-00001.tar").unlink()
    data = data_set(directory, tokenizer)
    data.sources[0].lengths = find_or_write_lengths(data.sources[0].reader, data.tokenizer, tmp_path, 1)
    step = plan_fixed(0, 0, COUNT, COUNT, COUNT, 1)
    for position in range(COUNT):
        assert data.pair_lengths(data.locate(0, position), step) == whole.pair_lengths(whole.locate(0, position), step)


def stream_with_few_descriptors(argv: list[str]) -> None:
    """In a process of its own: 64 micro-batches a step by two workers, where 100 files may be open."""
    from transformers import AutoTokenizer

    resource.setrlimit(resource.RLIMIT_NOFILE, (100, 100))
    data = data_set(Path(argv[0]), AutoTokenizer.from_pretrained(argv[1]))
    source = PlanSource(
        lambda: ((epoch, 0) for epoch in range(8)), lambda epoch, step: plan_fixed(epoch, step, COUNT, 64, 1, 1), 0
    )
    taken = list(stream(data, source, workers=2, prefetch=4, pin_memory=False))
    assert [len(step.micro_batches) for step in taken] == [COUNT] * 8
    print("done")


def test_a_step_of_many_micro_batches_needs_few_descriptors(shards: Path, tmp_path: Path) -> None:
    model = tiny_model(tmp_path / "model")
    code = "import sys; from tests.unit.test_stream import stream_with_few_descriptors as f; f(sys.argv[1:])"
    ran = subprocess.run(
        [sys.executable, "-c", code, str(shards), str(model)], capture_output=True, text=True, check=False,
        cwd=Path(__file__).resolve().parents[2],
    )  # fmt: skip
    assert ran.stdout == "done\n", ran.stderr


def test_a_neighbour_that_cannot_be_read_makes_a_ghost_of_the_group_that_shows_it(
    tokenizer: Any, shards: Path, tmp_path: Path
) -> None:
    directory, _ = damaged_copy(shards, tmp_path, LATER)
    kept = list(batches(tokenizer, directory, ghosts=True, warmup=1.0))
    bad = [line for batch in kept for line in batch.bad]
    assert len(bad) > EPOCHS
    assert all(f"{LATER:09d}.json: found bytes that differ" in line for line in bad)


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize(
    "contract",
    [Contract(24), Contract(24, 5, passage_max_length=7), Contract(24, query_prefix="글 ", passage_prefix="답:"),
     Contract(24, 6, "only_second", 9, "글 ", "답:")],
    ids=["plain", "caps", "prefixes", "both"],
)  # fmt: skip
def test_the_lengths_that_a_plan_counts_are_those_of_the_pairs_that_are_shown(
    contract: Contract, workers: int, packed: bool, tokenizer: Any, shards: Path, tmp_path: Path
) -> None:
    data = data_set(Path(shutil.copytree(shards, tmp_path / "shards")), tokenizer)
    data.tokenizer = PairTokenizer(tokenizer, contract)
    source = data.sources[0]
    source.lengths = find_or_write_lengths(source.reader, data.tokenizer, tmp_path)
    counted: dict[tuple[int, int], list[int]] = {}

    def plan(epoch: int, step: int) -> Step:
        whole = plan_fixed(epoch, step, COUNT, BATCH, BATCH, 1)

        def lengths(position: int) -> list[int]:
            found = data.pair_lengths(data.locate(epoch, position), whole)
            counted[epoch, position] = found
            return found

        return plan_tokens(epoch, step, COUNT, BATCH, 3 * 24 * 2, 2, lengths, packed)

    planned = {(epoch, step): plan(epoch, step) for epoch in range(EPOCHS) for step in range(3)}
    for rank in range(2):
        source = PlanSource(lambda: step_numbers(START, COUNT, EPOCHS), plan, rank)
        for taken in stream(data, source, workers=workers, prefetch=2, pin_memory=False):
            assert taken.step == planned[taken.step.epoch, taken.step.step]
            slots = [row[rank] for row in taken.step.slots]
            assert [batch.positions for batch in taken.micro_batches] == slots
            for batch in taken.micro_batches:
                for position, pairs in shown(batch):
                    assert [len(pair) for pair in pairs] == counted[taken.step.epoch, position]
    assert len(counted) == EPOCHS * COUNT


class Watched:
    """A tokenizer that calls a function before each group."""

    def __init__(self, tokenizer: PairTokenizer, before: Callable[[], Any]) -> None:
        self._tokenizer, self._before = tokenizer, before

    def __getattr__(self, name: str) -> Any:
        return getattr(self._tokenizer, name)

    def encode(self, query: str, passages: list[str]) -> list[Pair]:
        self._before()
        return self._tokenizer.encode(query, passages)


def test_all_workers_prepare_the_first_step_together(tokenizer: Any, shards: Path) -> None:
    data = data_set(shards, tokenizer)
    groups = 8
    at_work = multiprocessing.get_context("fork").Array("l", groups)

    def note() -> None:
        with at_work.get_lock():
            at_work[list(at_work).index(0)] = os.getpid()

    data.tokenizer = Watched(data.tokenizer, note)  # type: ignore[assignment]
    source = PlanSource(lambda: iter([(0, 0)]), lambda epoch, step: plan_fixed(epoch, step, groups, groups, 1, 1), 0)
    (taken,) = stream(data, source, workers=4, prefetch=1, pin_memory=False)
    assert [len(batch.positions) for batch in taken.micro_batches] == [1] * groups
    assert sorted(list(at_work).count(worker) for worker in set(at_work)) == [2] * 4


def test_no_worker_prepares_more_than_it_is_allowed(tokenizer: Any, shards: Path) -> None:
    data = data_set(shards, tokenizer)
    prepared = multiprocessing.get_context("fork").Value("i", 0)

    def count() -> None:
        with prepared.get_lock():
            prepared.value += 1

    data.tokenizer = Watched(data.tokenizer, count)  # type: ignore[assignment]
    source = PlanSource(
        lambda: step_numbers(Cursor(42, 0, 0, 2, "f"), COUNT, 4),
        lambda epoch, step: plan_fixed(epoch, step, COUNT, 2, 1, 1),
        0,
    )
    steps = iter(stream(data, source, workers=2, prefetch=3, pin_memory=False))
    for _ in range(5):
        next(steps)
    # Five steps taken and three ahead in each of two workers, of two micro-batches each.
    until(lambda: prepared.value >= (5 + 2 * 3) * 2, lambda: f"{prepared.value} were prepared", 60.0)
    before = 0
    while before < prepared.value:  # until they rest
        before = prepared.value
        time.sleep(0.5)
    assert prepared.value == (5 + 2 * 3) * 2


def test_a_prompt_goes_before_the_query(tokenizer: Any, tmp_path: Path) -> None:
    groups = [Group("수도는?", ("서울",), ("부산",), prompt="찾기:"), Group("수도는?", ("서울",), ("부산",))]
    pack(groups, tmp_path / "shards", {"name": "g"}, groups_per_shard=2)
    data = data_set(tmp_path / "shards", tokenizer, group_size=2)
    first = next(iter(steps_of(data, per_gpu=2, cursor=Cursor(42, 0, 0, 2, "f"))))
    (batch,) = first.micro_batches
    firsts = [pairs[0] for _, pairs in shown(batch)]
    assert sorted(firsts) == sorted(tokenizer(query, "서울")["input_ids"] for query in ("찾기: 수도는?", "수도는?"))


def test_a_group_of_fewer_passages_leaves_places_empty(tokenizer: Any, shards: Path) -> None:
    for batch in batches(tokenizer, shards, per_gpu=8, group_size=4, short_groups="shrink", random=0.0, warmup=0.0):
        counts = batch.present_GP.sum(1).tolist()
        assert set(counts) <= {2, 3, 4}
        assert batch.present_GP[:, :2].all()
        assert batch.pairs == sum(counts)
        present_N = batch.present_GP.flatten()
        assert batch.tokens == int(batch.packed.cu_seqlens.diff()[present_N].sum())
        assert len(batch.packed) == batch.present_GP.numel()


@pytest.mark.parametrize("workers", [0, 2])
def test_several_positives_of_a_group_come_first_and_are_marked(workers: int, tokenizer: Any, tmp_path: Path) -> None:
    groups = [
        Group(f"q{n}", tuple(f"p{n} {i}" for i in range(1 + n % 3)), tuple(f"n{n} {i}" for i in range(4)))
        for n in range(12)
    ]
    pack(groups, tmp_path / "shards", {"name": "groups.jsonl"}, groups_per_shard=5)
    data = data_set(tmp_path / "shards", tokenizer, group_size=4, positives=2, random=0.25, warmup=0.0)
    for taken in steps_of(data, workers=workers, per_gpu=4):
        for batch in taken.micro_batches:
            for row, position in enumerate(batch.positions):
                place = data.locate(taken.step.epoch, position)
                group = place.reader.group(place.shard, place.index)
                count = min(2, len(group.pos))
                assert batch.positive_GP[row].tolist() == [n < count for n in range(4)]
                texts = data.passages(place, group, taken.step).texts
                assert set(texts[:count]) <= set(group.pos)
                assert not set(texts[count:]) & set(group.pos)


def test_scores_of_negatives_are_in_the_index_and_draw_them(tokenizer: Any, tmp_path: Path) -> None:
    scores = (0.5, 8.0, -1.0, 0.25)
    groups = [Group(f"q{n}", ("p",), tuple(f"n{n} {i}" for i in range(4)), (1.0,), scores) for n in range(12)]
    pack(groups, tmp_path / "shards", {"name": "groups.jsonl"}, groups_per_shard=5)
    data = data_set(tmp_path / "shards", tokenizer, random=0.0, warmup=0.0, score_temperature=0.25)
    for taken in steps_of(data, per_gpu=4):
        for position in taken.step.positions:
            place = data.locate(taken.step.epoch, position)
            assert place.reader.neg_scores(place.shard, place.index) == list(scores)
            texts = data.passages(place, place.reader.group(place.shard, place.index), taken.step).texts
            assert texts[1].endswith(" 1")  # exp(7.5 / 0.25) times as likely as the next one


def test_a_draw_by_scores_names_what_has_none(tokenizer: Any, shards: Path, tmp_path: Path) -> None:
    expected = "expected scores of its negatives, by which they are drawn"
    data = data_set(shards, tokenizer, random=0.0, warmup=0.0, score_temperature=0.25)
    with pytest.raises(UserError, match=rf"shard-0000\d\.tar: found an index without neg_scores, {expected}; give"):
        list(steps_of(data))
    groups = [Group(f"q{n}", ("p",), ("n0", "n1"), (1.0,), (0.5, 0.25) if n else None) for n in range(3)]
    pack(groups, tmp_path / "shards", {"name": "groups.jsonl"}, groups_per_shard=5)
    some = data_set(tmp_path / "shards", tokenizer, random=0.0, warmup=0.0, score_temperature=0.25)
    with pytest.raises(
        UserError, match=rf"tar:000000000\.json: found a group without neg_scores, {expected}; add them"
    ):
        list(steps_of(some))
    assert load_index((tmp_path / "shards" / "shard-00000.index.safetensors").read_bytes()).neg_scores(2) == [0.5, 0.25]


def test_a_column_of_an_index_that_is_not_known_is_left_alone(shards: Path) -> None:
    content = (shards / "shard-00000.index.safetensors").read_bytes()
    more = load_index(save({**load(content), "later": np.zeros(3)}))
    assert more.group(1) == load_index(content).group(1)
    assert more.score is None


def test_pairs_are_in_one_row_and_padded_on_the_right_to_the_longest() -> None:
    groups = [[Pair([5, 6, 7], [0, 0, 1]), Pair([8], [0])], [Pair([9, 10], [0, 1])]]
    batch = collate(groups, [4, 9], passages=2, pad_id=1)
    assert fields(batch) == {
        "ids_T": [5, 6, 7, 8, 9, 10, 1],
        "types_T": [0, 0, 1, 0, 0, 1, 0],
        "cu_seqlens": [0, 3, 4, 6, 7],
        "longest": 3,
        "pad_id": 1,
        "present_GP": [[True, True], [True, False]],
        "positive_GP": [[True, False], [True, False]],
        "weight_G": [1.0, 1.0],
        "teacher_GP": [["nan", "nan"], ["nan", "nan"]],
        "positions": (4, 9),
        "tokens": 6,
        "bad": (),
    }
    assert batch.pairs == 3
    ids_NL, types_NL, mask_NL = batch.packed.padded()
    assert ids_NL.tolist() == [[5, 6, 7], [8, 1, 1], [9, 10, 1], [1, 1, 1]]
    assert types_NL.tolist() == [[0, 0, 1], [0, 0, 0], [0, 1, 0], [0, 0, 0]]
    assert mask_NL.tolist() == [[1, 1, 1], [1, 0, 0], [1, 1, 0], [1, 0, 0]]


def test_a_ghost_counts_for_nothing() -> None:
    batch = ghost(pad_id=1)
    assert (batch.pairs, batch.tokens, batch.positions, batch.weight_G.tolist()) == (0, 0, (), [0.0])
    assert pair_ids(batch.packed) == [[1], [1]]

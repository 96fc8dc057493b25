"""Micro-batches are a function of the plan: workers, ranks and resumes change nothing in them."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch

from reranker.data.choose import Choice
from reranker.data.collate import MicroBatch, collate, ghost
from reranker.data.manifest import load_manifest
from reranker.data.plan import Cursor, Step, planned_steps
from reranker.data.stream import DataSet, PlanSource, stream
from reranker.data.tokenize import Contract, Pair, PairTokenizer
from reranker.errors import UserError
from reranker.groups import Group
from reranker.prepare.pack import pack
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


# Three workers on a machine of two cores are meant here.
pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning")


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(tiny_model(tmp_path_factory.mktemp("model")))


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("stream") / "shards"
    pack(GROUPS, directory, {"name": "groups.jsonl"}, groups_per_shard=6)
    return directory


def batches(
    tokenizer: Any, shards: Path, *, workers: int = 0, rank: int = 0, world: int = 1, per_gpu: int = 1,
    cursor: Cursor = START, **choice: Any,
) -> Iterable[MicroBatch]:  # fmt: skip
    settings = Choice(**{"group_size": 3, "warmup": 0.4, "random": 0.5, **choice})
    manifest = load_manifest(shards)
    data = DataSet(shards, manifest, PairTokenizer(tokenizer, Contract(24)), settings, seed=42, block=2)
    source = PlanSource(lambda: plan(world, per_gpu, cursor), rank, EPOCHS * COUNT)
    return stream(data, source, workers=workers, prefetch=2, pin_memory=False)


def plan(world: int = 1, per_gpu: int = 1, cursor: Cursor = START) -> Any:
    return planned_steps(cursor, COUNT, per_gpu, world, EPOCHS)


def fields(batch: MicroBatch) -> dict[str, Any]:
    return {
        field.name: value.tolist() if torch.is_tensor(value := getattr(batch, field.name)) else value
        for field in dataclasses.fields(batch)
    }


def shown(batch: MicroBatch) -> list[tuple[int, list[list[int]]]]:
    """(position, ids of each pair without padding) of each real group."""
    ids, mask = batch.ids_NL.tolist(), batch.mask_NL.tolist()
    rows = [[token for token, real in zip(*row, strict=True) if real] for row in zip(ids, mask, strict=True)]
    places = batch.present_GP.shape[1]
    groups = [rows[place * places : (place + 1) * places] for place in range(len(batch.positions))]
    return list(zip(batch.positions, groups, strict=True))


@pytest.mark.parametrize("workers", [1, 2, 3])
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
    directory, member = damaged_copy(shards, tmp_path, 13)
    taken = []
    with pytest.raises(UserError) as caught:
        for batch in batches(tokenizer, directory, workers=workers, random=0.0, warmup=0.0):
            taken.append(fields(batch))
    assert type(caught.value) is UserError
    assert str(caught.value) == (
        f"{member}: found bytes that differ from those packed (CRC-32), expected an undamaged shard; "
        "copy the shard again or delete the directory and run reranker pack again"
    )
    # All that comes before it is delivered, with any number of workers.
    whole = [fields(batch) for batch in batches(tokenizer, shards, random=0.0, warmup=0.0)]
    assert 0 < len(taken) < COUNT
    assert taken == whole[: len(taken)]


def test_a_prompt_goes_before_the_query(tokenizer: Any, tmp_path: Path) -> None:
    groups = [Group("수도는?", ("서울",), ("부산",), prompt="찾기:"), Group("수도는?", ("서울",), ("부산",))]
    pack(groups, tmp_path / "shards", {"name": "g"}, groups_per_shard=2)
    data = DataSet(
        tmp_path / "shards", load_manifest(tmp_path / "shards"), PairTokenizer(tokenizer, Contract()), Choice(2), 42, 1
    )
    source = PlanSource(lambda: planned_steps(Cursor(42, 0, 0, 2, "f"), 2, 2, 1, 1), 0, 2)
    (batch,) = stream(data, source, workers=0, prefetch=1, pin_memory=False)
    firsts = [pairs[0] for _, pairs in shown(batch)]
    assert sorted(firsts) == sorted(tokenizer(query, "서울")["input_ids"] for query in ("찾기: 수도는?", "수도는?"))


def test_a_group_of_fewer_passages_leaves_places_empty(tokenizer: Any, shards: Path) -> None:
    for batch in batches(tokenizer, shards, per_gpu=8, group_size=4, short_groups="shrink", random=0.0, warmup=0.0):
        counts = batch.present_GP.sum(1).tolist()
        assert set(counts) <= {2, 3, 4}
        assert batch.present_GP[:, :2].all()
        assert batch.pairs == sum(counts)
        present_N = batch.present_GP.flatten()
        assert batch.tokens == int(batch.mask_NL.sum(1)[present_N].sum())
        assert batch.ids_NL.shape[0] == batch.present_GP.numel()


def test_pairs_are_padded_on_the_right_to_the_longest(tokenizer: Any) -> None:
    groups = [[Pair([5, 6, 7], [0, 0, 1]), Pair([8], [0])], [Pair([9, 10], [0, 1])]]
    batch = collate(groups, [4, 9], passages=2, pad_id=1)
    assert fields(batch) == {
        "ids_NL": [[5, 6, 7], [8, 1, 1], [9, 10, 1], [9, 10, 1]],
        "types_NL": [[0, 0, 1], [0, 0, 0], [0, 1, 0], [0, 1, 0]],
        "mask_NL": [[1, 1, 1], [1, 0, 0], [1, 1, 0], [1, 1, 0]],
        "present_GP": [[True, True], [True, False]],
        "weight_G": [1.0, 1.0],
        "positions": (4, 9),
        "tokens": 6,
    }
    assert batch.pairs == 3


def test_a_ghost_counts_for_nothing() -> None:
    batch = ghost(pad_id=1)
    assert (batch.pairs, batch.tokens, batch.positions, batch.weight_G.tolist()) == (0, 0, (), [0.0])
    assert batch.mask_NL.all()

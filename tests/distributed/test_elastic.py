"""What the real loader shows to real ranks: the same groups in every step, however often ranks and workers change."""

from __future__ import annotations

import json
import os
import random
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from reranker.config.common import BatchPolicy, Precision
from reranker.config.training import TrainConfig
from reranker.data.plan import Cursor
from tests.distributed.conftest import Inputs
from tests.distributed.ranks import Job, start, until
from tests.pairs import pair_ids

GROUPS, EPOCHS, STEPS = 14, 2, 14
"""90 groups, 14 a step: seven steps an epoch, the last of six groups."""


def read_loader(argv: list[str]) -> int:
    """The life of a rank: join the others, take steps from the loader as the training loop does, write down what
    they show. Rank 0 saves the cursor after each step."""
    from reranker.data.plan import Cursor
    from reranker.train.distributed import join, leave
    from reranker.train.job import batches, count_lengths, prepare

    given = json.loads(argv[0])
    directory = Path(given["directory"])
    config = TrainConfig()
    config.model.name, config.data.shards = given["model"], given["shards"]
    config.data.max_length, config.data.workers = 48, given["workers"]
    config.data.negatives.warmup, config.data.negatives.random = 0.3, 0.5
    config.batch.groups, config.train.epochs = GROUPS, EPOCHS
    config.batch.policy = BatchPolicy(given["policy"])
    config.batch.tokens, config.precision.name = 300, Precision.fp32
    ranks = join(config.train.device, 120)
    job, _ = prepare(config, ranks, lambda *_: None, lambda *_: None)
    ranks.together(lambda: count_lengths(job) if ranks.first else None)
    ranks.together(lambda: count_lengths(job))
    saved = directory / "cursor.json"
    cursor = Cursor(**json.loads(saved.read_text("utf-8"))) if saved.exists() else job.start
    stream = batches(job, cursor, ranks)
    for _ in range(given["steps"]):
        taken = ranks.together(lambda: next(stream, None))
        if taken is None:
            break
        shown = []
        for batch in taken.micro_batches:
            places, ids = batch.present_GP.shape[1], pair_ids(batch.packed)
            for row, position in enumerate(batch.positions):
                name = job.data.locate(taken.step.epoch, position).name.rpartition(":")[2]
                shown.append([name, ids[row * places : (row + 1) * places]])
        lines = ranks.gather((len(taken.micro_batches), shown))
        cursor = cursor.after(taken.step)
        if ranks.first:
            record = {"step": [taken.step.epoch, taken.step.step], "micro_batches": [count for count, _ in lines],
                      "shown": sorted(group for _, groups in lines for group in groups)}  # fmt: skip
            with open(directory / "shown.jsonl", "a", encoding="utf-8") as stream_:
                stream_.write(json.dumps(record) + "\n")
            partial = saved.with_suffix(".partial")
            partial.write_text(json.dumps(cursor.to_dict()), encoding="utf-8")
            os.replace(partial, saved)
    leave()
    sys.stdout.flush()
    return 0


def ranks_reading(inputs: Inputs, directory: Path, world: int, workers: int, steps: int, policy: str) -> Job:
    given = {"directory": str(directory), "model": str(inputs.model), "shards": str(inputs.shards),
             "workers": workers, "steps": steps, "policy": policy}  # fmt: skip
    return start(world, [json.dumps(given)], function=read_loader)


def read(inputs: Inputs, directory: Path, world: int, workers: int, steps: int, policy: str = "tokens") -> None:
    directory.mkdir(exist_ok=True)
    ranks = ranks_reading(inputs, directory, world, workers, steps, policy).wait()
    assert [rank.code for rank in ranks] == [0] * world, "\n".join(rank.err for rank in ranks)


def written(directory: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (directory / "shown.jsonl").read_text("utf-8").splitlines()]


def sequence(directory: Path) -> Iterator[tuple[list[int], list[Any]]]:
    """(epoch and step, every group with the token ids of its pairs) of each step in order."""
    return ((record["step"], record["shown"]) for record in written(directory))


@pytest.fixture(scope="module")
def uninterrupted(inputs: Inputs, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("elastic") / "whole"
    read(inputs, directory, world=1, workers=0, steps=STEPS)
    return directory


def test_an_uninterrupted_stream_shows_every_group_once_in_each_epoch(inputs: Inputs, uninterrupted: Path) -> None:
    for epoch in range(EPOCHS):
        names = [name for (at, _), shown in sequence(uninterrupted) for name, _ in shown if at == epoch]
        assert sorted(names) == [f"{number:09d}.json" for number in range(len(inputs.groups))]


@pytest.mark.parametrize("seed", range(3))
def test_stopped_after_any_step_and_resumed_on_any_ranks_and_workers_the_groups_are_the_same(
    inputs: Inputs, uninterrupted: Path, tmp_path: Path, seed: int
) -> None:
    draw = random.Random(seed)
    left, last = STEPS, 0
    while left:
        steps = draw.randint(1, min(5, left))
        world = draw.choice([world for world in (1, 2, 3, 4) if world != last])
        read(inputs, tmp_path / "run", world, draw.randint(0, 3), steps)
        left, last = left - steps, world
    assert list(sequence(tmp_path / "run")) == list(sequence(uninterrupted))
    for record in written(tmp_path / "run"):
        assert len(set(record["micro_batches"])) == 1, "ranks of different accumulation would hang"


def test_fixed_and_tokens_show_the_same_groups(inputs: Inputs, uninterrupted: Path, tmp_path: Path) -> None:
    read(inputs, tmp_path / "run", world=2, workers=1, steps=STEPS, policy="fixed")
    assert list(sequence(tmp_path / "run")) == list(sequence(uninterrupted))


def test_killed_in_the_middle_and_resumed_on_other_ranks_the_groups_are_the_same(
    inputs: Inputs, uninterrupted: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    run.mkdir()
    job = ranks_reading(inputs, run, world=3, workers=2, steps=STEPS, policy="tokens")
    try:
        until(lambda: (run / "cursor.json").exists() or not job.running, lambda: "no step was taken")
        job.kill()
        job.wait()
    finally:
        job.end()
    # What was written after the last cursor is shown again; the record keeps the first of both.
    cursor = Cursor(**json.loads((run / "cursor.json").read_text("utf-8")))
    done = cursor.epoch * 7 + -(-cursor.position // GROUPS)
    # Nor is a line that the kill has torn: the cursor is saved behind its record.
    kept = (run / "shown.jsonl").read_text("utf-8").splitlines()[:done]
    (run / "shown.jsonl").write_text("".join(line + "\n" for line in kept), encoding="utf-8")
    assert 0 < done <= STEPS
    read(inputs, run, world=2, workers=1, steps=STEPS)
    assert list(sequence(run)) == list(sequence(uninterrupted))

"""Random faults over a tiny training, one after another, and what is left of it.

    bash tests/chaos/soak.sh 200 [seed]

A training of two ranks is started again and again with the same command. Each time something happens to it at a random
place, drawn from the seed: a kill of one rank or of both, a request to stop, a stall, a defect, a full disk, a worker
that dies; or its newest checkpoint is damaged before it starts. When a training has come to its end it is compared with one
that nothing happened to, and another one begins, until as many faults have happened as were asked for. Counted, and all to
be zero: groups lost or shown twice in what was learned, steps that showed other tokens, damaged checkpoints that were loaded,
jobs that did not end, processes left behind, losses and final weights that differ.
"""

from __future__ import annotations

import contextlib
import filecmp
import json
import random
import re
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from reranker.train.checkpoint import checkpoint_directories, newest
from tests.benchmarks.record import context
from tests.chaos.faults import Fault, start_hurt
from tests.distributed.conftest import Inputs, make_inputs, records
from tests.distributed.ranks import Finished, until

EPOCHS, STEPS_OF_EPOCH, SAVE_EVERY = 8, 3, 2
BOUND = 300.0
"""Seconds in which a job must end, its start and training included."""
PROMISED = 30.0
"""Seconds behind its end in which all that it has started must be gone."""
PLACES = (
    "data", "worker", "forward", "backward", "step", "stepped", "writing", "written", "naming", "named", "pruning", "pruned"
)  # fmt: skip
ON_RANK_0 = ("naming", "named", "pruning", "pruned")


def settings(hang: float) -> dict[str, Any]:
    return {
        "batch.per_gpu": 8, "train.epochs": EPOCHS, "train.save_every": SAVE_EVERY, "precision": "fp32",
        "deepspeed": "zero2", "model.dropout": 0.1, "data.workers": 1, "train.hang": hang,
    }  # fmt: skip


Learned = dict[tuple[int, int, int], tuple[list[int], str]]
"""{(rank, epoch, step): (positions, digest of the tokens)} of every step that the newest weights have learned from."""


@dataclass
class Tally:
    """What happened, and what must not have."""

    faults: Counter[str] = field(default_factory=Counter)
    starts: int = 0
    trainings: int = 0
    groups_lost_or_repeated: int = 0
    steps_of_other_tokens: int = 0
    corrupt_loads: int = 0
    jobs_that_did_not_end: int = 0
    processes_left: int = 0
    trainings_that_differ: int = 0

    @property
    def failures(self) -> int:
        return (
            self.groups_lost_or_repeated + self.steps_of_other_tokens + self.corrupt_loads + self.jobs_that_did_not_end
            + self.processes_left + self.trainings_that_differ
        )  # fmt: skip

    def to_dict(self) -> dict[str, Any]:
        return {**vars(self), "faults": dict(sorted(self.faults.items())), "faults_in_all": self.faults.total()}


def soak(inputs: Inputs, directory: Path, count: int, seed: int) -> Tally:
    """Let `count` faults happen, and finish the training under way."""
    draw, tally = random.Random(seed), Tally()
    whole, run = directory / "whole", directory / "run"
    expected: Learned = {}
    _run(inputs, whole, [], expected, tally)
    learned: Learned = {}
    while tally.faults.total() < count or run.exists():
        damaged = _damage(run, draw, tally) if draw.random() < 0.15 else None
        faults = _draw(draw) if tally.faults.total() < count else []
        ranks = _run(inputs, run, faults, learned, tally)
        tally.starts += 1
        if ranks is None:
            tally.jobs_that_did_not_end += 1
            break
        happened = any(rank.code != 0 for rank in ranks) or (run / "requeue").exists() or "not saved" in ranks[0].err
        if faults and happened:
            tally.faults[f"{faults[0].what} in {faults[0].place}"] += 1
        if damaged is not None and f"{damaged}: passed over, " not in ranks[0].err:
            # The checkpoint went unnoticed; but where the job ended before it looked.
            tally.corrupt_loads += "resuming behind" in ranks[0].err
        if all(rank.code == 0 for rank in ranks) and not (run / "requeue").exists():
            tally.trainings += 1
            _compare(run, learned, whole, expected, tally)
            shutil.rmtree(run)
            learned = {}
    return tally


def _draw(draw: random.Random) -> list[Fault]:
    what = draw.choices(
        ["kill", "kill both", "SIGTERM", "SIGUSR1", "raise", "stall", "full"], [8, 3, 3, 3, 3, 1, 3]
    )[0]  # fmt: skip
    place = "writing" if what == "full" else draw.choice(PLACES)
    if place == "worker" and what not in ("kill", "raise"):
        place = "data"  # signals do not reach workers, and their stalls are the data's
    rank = 0 if place in ON_RANK_0 else draw.randrange(2)
    most = 3 if place in ("writing", "written", *ON_RANK_0) else 14
    nth = draw.randint(1, most)
    if what == "kill both":
        return [Fault(place, "kill", nth, rank), Fault("data", "kill", draw.randint(1, 8), 1 - rank)]
    return [Fault(place, what, nth, rank)]


def _damage(run: Path, draw: random.Random, tally: Tally) -> Path | None:
    """Damage one file of the newest checkpoint, where there is an older one to go back to."""
    found = checkpoint_directories(run)
    if len(found) < 2 or newest(run)[0] != found[0]:
        return None
    file = draw.choice(sorted(found[0].iterdir()))
    content = bytearray(file.read_bytes())
    kind = draw.choice(["flipped", "cut short", "emptied", "deleted"])
    if kind == "deleted":
        file.unlink()
    else:
        if kind == "flipped":
            content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
        file.write_bytes(content if kind == "flipped" else content[: len(content) // 2 if kind == "cut short" else 0])
    if newest(run)[0] == found[0]:
        return None  # a bit of the manifest that says nothing of the files
    tally.faults[f"checkpoint {kind}"] += 1
    return found[0]


def _run(inputs: Inputs, run: Path, faults: list[Fault], learned: Learned, tally: Tally) -> list[Finished] | None:
    """One start. What its steps showed is added to what was learned, in place of what its checkpoint did not know."""
    shown = run.with_name("shown.jsonl")
    shown.unlink(missing_ok=True)
    # Short where it is what ends the job: elsewhere a slow machine is no fault.
    hang = 6 if any(fault.what == "stall" for fault in faults) else 600
    job = start_hurt(2, ["train", *inputs.overrides(run, **settings(hang))], faults, shown)
    try:
        until(lambda: not job.running, lambda: "a job goes on", BOUND)
        with contextlib.suppress(AssertionError):  # it is counted
            until(lambda: not job.left, lambda: "", PROMISED)
        tally.processes_left += len(job.left)
        ranks = job.wait()
    except AssertionError:
        return None
    finally:
        job.end()
    behind = re.search(r"step-(\d+): resuming behind step ", ranks[0].err)  # the checkpoint's own word
    first = int(behind[1]) if behind else 0
    steps = list(_steps(shown)) if shown.exists() else []
    if steps:
        for key in [key for key in learned if key[1] * STEPS_OF_EPOCH + key[2] >= first]:
            del learned[key]  # it was lost with its ranks: no checkpoint knew of it
    for key, value in steps:
        tally.groups_lost_or_repeated += len(value[0]) if key in learned else 0
        learned[key] = value
    return ranks


def _compare(run: Path, learned: Learned, whole: Path, expected: Learned, tally: Tally) -> None:
    tally.groups_lost_or_repeated += sum(len(expected[key][0]) for key in expected.keys() - learned.keys())
    tally.steps_of_other_tokens += sum(learned[key] != expected.get(key) for key in learned)
    same_losses = [(one["step"], one["train/loss"]) for one in records(run)] == [
        (one["step"], one["train/loss"]) for one in records(whole)
    ]
    model = "model/model.safetensors"
    tally.trainings_that_differ += not (same_losses and filecmp.cmp(run / model, whole / model, shallow=False))


def _steps(path: Path) -> Iterator[tuple[tuple[int, int, int], tuple[list[int], str]]]:
    for line in path.read_text("utf-8").splitlines():
        try:
            rank, epoch, step, positions, digest = json.loads(line)
        except ValueError:
            continue  # the last line of a rank that was killed
        yield (rank, epoch, step), (positions, digest)


def main() -> int:
    count, seed = int(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 0
    with tempfile.TemporaryDirectory(prefix="soak-") as directory:
        tally = soak(make_inputs(Path(directory) / "inputs"), Path(directory), count, seed)
    told = context(f"bash tests/chaos/soak.sh {count} {seed}", ("torch", "deepspeed", "webdataset"), "cpu", 1)
    print(json.dumps({**told, "seed": seed, **tally.to_dict()}, indent=1))
    return int(tally.failures > 0)


if __name__ == "__main__":
    sys.exit(main())

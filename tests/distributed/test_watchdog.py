"""A rank that stalls, raises, is killed or stopped: the job ends at once and says which rank it was and why.

Collectives have a timeout of half an hour here, far beyond the deadline of a test: only the watchdog ends them.
"""

from __future__ import annotations

import faulthandler
import math
import multiprocessing
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from reranker.config.common import Device
from reranker.train.distributed import Ranks, join, leave
from reranker.train.signs import Sign, hanging
from reranker.train.watchdog import DIRECTORY, Watchdog, follows
from tests.distributed.ranks import Finished, Job, start, until

HALF_AN_HOUR = 1800.0
HANG, SILENCE = 4.0, 6.0
"""Seconds, where one of them is what a test is about. Elsewhere they are AMPLE: a slow machine is no mishap."""
AMPLE = 60.0
STEPS, MISHAP = 6, 3
VERDICT = re.compile(r"^reranker: error: (.*); stacks and batches of every rank: (.*)$", re.MULTILINE)
Mishap = Callable[[Watchdog], None]


def asleep(watchdog: Watchdog) -> None:
    time.sleep(HALF_AN_HOUR)


def raises(watchdog: Watchdog) -> None:
    raise ValueError("a bad batch\nand more about it")


def killed(watchdog: Watchdog) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def stopped(watchdog: Watchdog) -> None:
    os.kill(os.getpid(), signal.SIGSTOP)


def holds_the_interpreter(watchdog: Watchdog) -> None:
    re.match(r"(a+)+$", "a" * 60 + "b")


def slow(watchdog: Watchdog) -> None:
    """The others wait longer than a hang takes, while this rank gets on."""
    for _ in range(6):
        time.sleep(HANG / 4)
        watchdog.beat("backward")


def breaks_the_watchdog(watchdog: Watchdog) -> None:
    """A defect of its thread, and all the time that the others need to take it for a rank that is lost."""
    watchdog._hang = watchdog._silence = None  # type: ignore[assignment]
    time.sleep(1.5 * SILENCE)


def forks(watchdog: Watchdog) -> None:
    """Into a process that ends as the interpreter does, which cancels faulthandler's timer."""
    if (child := os.fork()) == 0:
        faulthandler.cancel_dump_traceback_later()
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0


def well(watchdog: Watchdog) -> None:
    """Nothing."""


def without_limit(watchdog: Watchdog) -> None:
    """Longer than a hang takes elsewhere."""
    time.sleep(1.5 * HANG)


LIMITS: dict[Mishap, tuple[float, float]] = {
    # mishap: (seconds of a hang, of silence)
    asleep: (HANG, AMPLE),
    stopped: (AMPLE, SILENCE),
    holds_the_interpreter: (AMPLE, SILENCE),
    slow: (HANG, AMPLE),
    breaks_the_watchdog: (HANG, SILENCE),
    forks: (HANG, SILENCE),
    well: (HANG, SILENCE),
    without_limit: (math.inf, SILENCE),
}


def training(argv: list[str]) -> int:
    """What a training is to a watchdog: steps of collectives; in one of them a rank has a mishap.

    Each rank has a worker, like a DataLoader's, that would live on.
    """
    directory, mishap, victim = Path(argv[0]), getattr(sys.modules[__name__], argv[1]), int(argv[2])
    ranks = join(Device.cpu, HALF_AN_HOUR)
    watchdog = Watchdog(ranks, directory, *LIMITS.get(mishap, (AMPLE, AMPLE)))
    worker = multiprocessing.get_context("fork").Process(target=time.sleep, args=(HALF_AN_HOUR,), daemon=True)
    worker.start()
    (directory / f"pids-{ranks.rank}").write_text(f"{os.getpid()} {worker.pid}")
    try:
        steps(ranks, watchdog, mishap if ranks.rank == victim else well)
        watchdog.close()
        if mishap is well and ranks.rank == 1:
            time.sleep(2 * SILENCE)  # longer than all others live, and than any limit
        return int(watched())
    except Exception as error:
        if watchdog.lost(error) is None:
            print("watched:", watched(), flush=True)
            raise
        return 1
    finally:
        watchdog.close()
        leave()


def watched() -> bool:
    return any(thread.name == "watchdog" for thread in threading.enumerate())


def steps(ranks: Ranks, watchdog: Watchdog, mishap: Mishap) -> None:
    for step in range(STEPS):
        watchdog.beat("data", step, lambda step=step: {"positions": [100 * ranks.rank + step]})  # type: ignore[misc]
        dist.all_reduce(torch.ones(3))
        watchdog.beat("backward")
        if step == MISHAP:
            mishap(watchdog)
        dist.all_reduce(torch.ones(3))
        watchdog.beat("step")
        ranks.barrier()


def begin(directory: Path, mishap: Mishap, victim: int = 1, world: int = 3) -> Job:
    return start(world, [str(directory), mishap.__name__, str(victim)], function=training)


def run(directory: Path, mishap: Mishap, victim: int = 1, world: int = 3) -> list[Finished]:
    """The ranks at the end. None of them, and no worker of a rank that the watchdog has ended, may be left."""
    job = begin(directory, mishap, victim, world)
    try:
        until(lambda: not job.running, lambda: f"a rank goes on: {job._texts()}")
        for rank in set(range(world)) - {victim}:
            _, worker = map(int, (directory / f"pids-{rank}").read_text().split())
            until(lambda worker=worker: not lives(worker), lambda rank=rank: f"the worker of rank {rank} lives")  # type: ignore[misc]
        return job.wait()
    finally:
        job.end()


def lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def verdict(ranks: list[Finished], directory: Path, speaker: int) -> str:
    """The line that the speaker has printed, and nobody else."""
    found = [VERDICT.findall(rank.err) for rank in ranks]
    assert [len(lines) for lines in found] == [number == speaker for number in range(len(ranks))], ranks
    line, where = found[speaker][0]
    assert where == str(directory / DIRECTORY)
    return str(line)


def dump(directory: Path, rank: int) -> str:
    return (directory / DIRECTORY / f"rank-{rank:05d}.txt").read_text("utf-8")


def test_a_rank_that_stalls_is_named_and_every_rank_dumps_its_stacks_and_its_batch(tmp_path: Path) -> None:
    ranks = run(tmp_path, asleep)
    assert [rank.code for rank in ranks] == [1, 1, 1]
    line = verdict(ranks, tmp_path, speaker=0)
    assert re.fullmatch(r"rank 1 hangs in step 3, while in backward, for \d+ seconds \(others wait for it\)", line)
    for rank, function in enumerate(("all_reduce", "asleep", "all_reduce")):
        text = dump(tmp_path, rank)
        assert line in text
        assert re.search(rf'File ".*", line \d+ in {function}\n', text)
        assert text.endswith(f'last batch: {{"positions": [{100 * rank + 3}]}}\n\n')


@pytest.mark.parametrize("victim", [0, 1])
def test_a_rank_that_raises_is_named_with_its_error(tmp_path: Path, victim: int) -> None:
    ranks = run(tmp_path, raises, victim)
    assert [rank.code for rank in ranks] == [1, 1, 1]
    line = verdict(ranks, tmp_path, speaker=0)
    assert line == f"rank {victim} failed in step 3, while in backward: ValueError: a bad batch"
    # The error itself, where it was raised, and none of those that it causes elsewhere.
    assert ["Traceback" in rank.err for rank in ranks] == [number == victim for number in range(3)]
    assert "and more about it" in ranks[victim].err
    assert "in raises\n" in dump(tmp_path, victim)


@pytest.mark.parametrize(("victim", "speaker"), [(0, 1), (1, 0)])
def test_a_rank_that_is_killed_is_named_though_its_worker_lives_on(tmp_path: Path, victim: int, speaker: int) -> None:
    # The worker has inherited the sockets of its rank: no other rank's collective fails while it lives.
    ranks = run(tmp_path, killed, victim)
    assert [rank.code for rank in ranks] == [-9 if number == victim else 1 for number in range(3)]
    line = verdict(ranks, tmp_path, speaker)
    assert re.fullmatch(rf"rank {victim} was lost (in step \d, )?while in \w+: its process has ended", line)
    assert sorted(path.name for path in (tmp_path / DIRECTORY).iterdir()) == [
        f"rank-{number:05d}.txt" for number in range(3) if number != victim
    ]


@pytest.mark.parametrize("victim", [0, 1])
def test_a_rank_that_is_stopped_is_lost_and_ends_when_it_is_continued(tmp_path: Path, victim: int) -> None:
    job = begin(tmp_path, stopped, victim)
    try:
        others = [number for number in range(3) if number != victim]
        started = [tmp_path / f"pids-{number}" for number in range(3)]
        until(lambda: all(path.exists() and path.read_text() for path in started), lambda: f"{job._texts()}")
        pids = [int(path.read_text().split()[0]) for path in started]
        until(lambda: not any(lives(pids[number]) for number in others), lambda: f"others go on: {job._texts()}")
        os.kill(pids[victim], signal.SIGCONT)
        ranks = job.wait()
    finally:
        job.end()
    assert [rank.code for rank in ranks] == [1, 1, 1]
    silent = r"rank (\d) was lost (in step \d, )?while in \w+: no sign of life for \d+ seconds"
    told = VERDICT.findall(ranks[min(others)].err)
    assert [re.fullmatch(silent, line)[1] for line, _ in told] == [str(victim)]  # type: ignore[index]


def test_a_rank_that_holds_the_interpreter_ends_by_itself_and_is_named(tmp_path: Path) -> None:
    ranks = run(tmp_path, holds_the_interpreter)
    assert [rank.code for rank in ranks] == [1, 1, 1]
    line = verdict(ranks, tmp_path, speaker=0)
    assert re.fullmatch(r"rank 1 was lost (in step \d, )?while in \w+: no sign of life for \d+ seconds", line)
    # No Python of it could run: its stacks are on standard error.
    assert re.search(r"^Timeout .*in holds_the_interpreter$", ranks[1].err, re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("mishap", [well, slow, forks])
def test_a_training_that_gets_on_ends_well_and_leaves_nothing_behind(tmp_path: Path, mishap: Mishap) -> None:
    ranks = run(tmp_path, mishap)
    assert [(rank.code, rank.err) for rank in ranks] == [(0, "")] * 3
    assert not (tmp_path / DIRECTORY).exists()


def test_a_lone_rank_that_stalls_is_ended_with_its_stacks(tmp_path: Path) -> None:
    ranks = run(tmp_path, asleep, victim=0, world=1)
    assert [rank.code for rank in ranks] == [1]
    assert re.fullmatch(r"rank 0 hangs in step 3, while in backward, for \d+ seconds", verdict(ranks, tmp_path, 0))
    assert " in asleep\n" in dump(tmp_path, 0)


@pytest.mark.parametrize("victim", [0, 1])
def test_a_defect_of_the_watchdog_is_told_and_ends_no_training(tmp_path: Path, victim: int) -> None:
    ranks = run(tmp_path, breaks_the_watchdog, victim)
    assert [rank.code for rank in ranks] == [0, 0, 0], ranks
    assert ["the training goes on without" in rank.err for rank in ranks] == [number == victim for number in range(3)]


def test_without_a_limit_nothing_is_a_hang() -> None:
    still = signs(("forward", 1, False), ("forward", 1, False), idle=1e9)
    assert hanging(still, 1e9) is not None
    assert hanging(still, math.inf) is None


def test_a_lone_rank_without_a_limit_ends_well(tmp_path: Path) -> None:
    ranks = run(tmp_path, without_limit, victim=0, world=1)
    assert [(rank.code, rank.err) for rank in ranks] == [(0, "")]


def test_a_lone_rank_that_raises_is_watched_no_more(tmp_path: Path) -> None:
    # As in a sweep, whose next job runs in the same process.
    ranks = run(tmp_path, raises, victim=0, world=1)
    assert [rank.code for rank in ranks] == [1]
    assert ranks[0].out == "watched: False\n"
    assert not (tmp_path / DIRECTORY).exists()


def signs(*told: tuple[str, int, bool], idle: float = 10.0) -> list[Sign]:
    return [
        Sign(rank, doing, step=7, beats=beats, idle=idle, waits=waits)
        for rank, (doing, beats, waits) in enumerate(told)
    ]


@pytest.mark.parametrize(
    ("ranks", "line"),
    [
        # Of one phase: who stands in no collective.
        ([("backward", 2, True), ("backward", 2, False)], "rank 1 hangs in step 7, while in backward, for 10 seconds (others wait for it)"),
        # None stands in one, as with NCCL: who is behind.
        ([("step", 3, False), ("forward", 1, False)], "rank 1 hangs in step 7, while in forward, for 10 seconds (others wait for it)"),
        # All stand in one, in different ones.
        ([("step", 3, True), ("forward", 1, True)], "rank 1 hangs in step 7, while in forward, for 10 seconds (others wait for it)"),
        # One that waits is not stuck because it has come less far.
        ([("step", 3, False), ("forward", 1, True)], "rank 0 hangs in step 7, while in step, for 10 seconds (others wait for it)"),
        ([("step", 3, True), ("data", 1, False), ("data", 1, False)], "ranks 1, 2 hang in step 7, while in data, for 10 seconds (others wait for it)"),
        ([("step", 3, True), ("step", 3, True)], "all ranks hang in step 7, while in step, for 10 seconds"),
    ],
)  # fmt: skip
def test_a_hang_is_blamed_on_the_rank_that_the_others_wait_for(ranks: list[tuple[str, int, bool]], line: str) -> None:
    assert hanging(signs(*ranks), 10.0) == line
    moving = [*signs(*ranks), Sign(len(ranks), "step", 7, 3, idle=9.0)]
    assert hanging(moving, 10.0) is None


@pytest.mark.parametrize(
    ("error", "another"),
    [
        (RuntimeError("[../third_party/gloo/gloo/transport/tcp/pair.cc:538] Connection closed by peer [127.0.0.1]:4"), True),
        (RuntimeError("Timed out waiting 1800000ms for recv operation to complete"), True),
        (dist.DistBackendError("NCCL error in: ProcessGroupNCCL.cpp:3356, remote process exited"), True),
        (RuntimeError("The size of tensor a (3) must match the size of tensor b (4)"), False),
        (ConnectionResetError("Connection reset by peer"), False),  # a bucket's server, not a rank
        (ValueError("nccl"), False),
    ],
)  # fmt: skip
def test_the_error_of_a_failed_collective_is_told_from_a_ranks_own(error: BaseException, another: bool) -> None:
    assert follows(error) is another

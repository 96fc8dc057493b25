"""What is tried on the ranks of a job, all of them at a time: shared files, clocks, a reduction.

Collective calls. What is written is gone afterwards.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from reranker.files import fsync_directory
from reranker.train.distributed import Ranks


@dataclass(frozen=True)
class Reduction:
    """An all-reduce of all ranks: seconds of one number, bytes a second of a large one as nccl-tests count them."""

    latency: float
    bandwidth: float


def try_files(ranks: Ranks, place: Path, wait: float) -> tuple[float | None, float | None, str]:
    """(seconds until rank 0's file was seen, seconds of an fsync, why writing failed); a collective call.

    Files are made as checkpoints are: written under another name, synced, renamed; then replaced by a second one. What
    is not seen within `wait` seconds counts as not seen.
    """
    failed, seen, fsync = "", None, None

    def put(name: str, text: str) -> float:
        begun = time.perf_counter()
        staging = place / f".{name}"
        with open(staging, "w", encoding="utf-8") as stream:
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(staging, place / name)
        fsync_directory(place)
        return time.perf_counter() - begun

    def attempt(work: Callable[[], Any]) -> Any:
        nonlocal failed
        try:
            return work()
        except OSError as error:
            failed = failed or f"{error.strerror} ({error.filename})"

    if ranks.first:
        attempt(place.mkdir)
        attempt(lambda: put("first", place.name))
    ranks.barrier()
    begun = time.perf_counter()
    while time.perf_counter() - begun < wait:
        if _read(place / "first") == place.name:
            seen = time.perf_counter() - begun
            break
        time.sleep(0.01)
    if seen is not None:
        fsync = attempt(lambda: put(f"rank-{ranks.rank}", "old"))
        attempt(lambda: put(f"rank-{ranks.rank}", "new"))
    ranks.barrier()
    if ranks.first:
        missing = [rank for rank in range(ranks.world) if _read(place / f"rank-{rank}") != "new"]
        unseen = [rank for rank, wrote in enumerate(ranks.gather(fsync is not None)) if wrote and rank in missing]
        if unseen:
            failed = failed or f"rank 0 does not see what rank {unseen[0]} wrote"
        shutil.rmtree(place, ignore_errors=True)
    else:
        ranks.gather(fsync is not None)
    ranks.barrier()
    return seen, fsync, failed


def _read(path: Path) -> str | None:
    with contextlib.suppress(OSError):  # not there, or not yet
        return path.read_text("utf-8")
    return None


def clock(ranks: Ranks) -> float:
    """Seconds that this rank's clock is ahead of rank 0's, by the quickest of some exchanges; a collective call."""
    found = 0.0
    for rank in range(1, ranks.world):
        best: tuple[float, float] | None = None
        for _ in range(5):
            if ranks.first:
                answer = torch.zeros(1, dtype=torch.float64)
                sent = time.time()
                dist.send(answer, rank, group=ranks.control)
                dist.recv(answer, rank, group=ranks.control)
                back = time.time()
                if best is None or back - sent < best[0]:
                    best = back - sent, float(answer) - (sent + back) / 2
            elif ranks.rank == rank:
                dist.recv(torch.zeros(1, dtype=torch.float64), 0, group=ranks.control)
                dist.send(torch.tensor([time.time()], dtype=torch.float64), 0, group=ranks.control)
        offset = ranks.gather(best[1] if best else 0.0)[0]
        found = offset if ranks.rank == rank else found
    return found


def reduce(ranks: Ranks, mib: int) -> Reduction:
    """The slowest rank's medians; the large all-reduce has `mib` MiB. A collective call.

    Bandwidth is 2 (n - 1) / n x bytes / seconds for n ranks, what each link carries whatever n is (nccl-tests).
    """

    def seconds(elements: int, rounds: int) -> float:
        values = torch.zeros(elements, device=ranks.device)
        taken = []
        for number in range(rounds + 3):
            dist.all_reduce(values)  # also the barrier before the clock starts
            _synchronize(ranks.device)
            begun = time.perf_counter()
            dist.all_reduce(values)
            _synchronize(ranks.device)
            if number >= 3:
                taken.append(time.perf_counter() - begun)
        return max(ranks.gather(statistics.median(taken)))

    size = mib * 2**20
    share = 2 * (ranks.world - 1) / ranks.world
    return Reduction(seconds(1, 20), share * size / seconds(size // 4, 5))


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)

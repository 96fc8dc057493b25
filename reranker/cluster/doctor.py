"""`reranker doctor cluster`: what a training would meet on the nodes of a job, found before it costs hours.

    srun --nodes=2 --ntasks-per-node=8 --gpus-per-node=8 python -m reranker doctor cluster directory=/shared/runs

Or under torchrun or deepspeed. Every rank tells its versions, its device and its limits; the rest is tried
(`probes.py`): a reduction of all ranks, their clocks, and files in `directory`, written as checkpoints are. Out: a row
for each node, red where it hurts, and a line for each thing that is wrong, with what to do. Code 1 if there is any.
Raises `UserError`.
"""

from __future__ import annotations

import os
import platform
import resource
import socket
import uuid
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path

import torch

from reranker.checks import check_at_least
from reranker.cluster.environment import take_from_slurm
from reranker.cluster.probes import Reduction, clock, reduce, try_files
from reranker.config.cluster import DoctorConfig
from reranker.errors import UserError
from reranker.files import write_json
from reranker.train.distributed import Ranks, device_name, join, leave
from reranker.train.tables import Alarm, print_table

SKEW = 1.0
"""Seconds that a clock may be off: logs and file times are compared across nodes."""
OPEN_FILES = 4096
"""Files that a rank with its workers may want open: shards, pipes, sockets to every other rank."""


@dataclass(frozen=True)
class Facts:
    """What one rank is and found.

    Attributes:
        clock: seconds that its clock is ahead of rank 0's. seen: seconds until it saw what rank 0 had written; None if
            it did not. fsync: seconds of a write with fsync. failed: why it could not write in the directory, or "".
    """

    rank: int
    host: str
    device: str
    cores: int
    versions: str
    open_files: int
    clock: float
    seen: float | None
    fsync: float | None
    failed: str


def doctor_command(config: DoctorConfig) -> int:
    """`reranker doctor cluster`. Returns the exit code, the same on every rank."""
    check_at_least([("mib", config.mib, 1), ("wait", config.wait, 0), ("timeout", config.timeout, 1)])
    take_from_slurm()
    ranks = join(config.device, config.timeout)
    try:
        facts, reduction = examine(ranks, Path(config.directory).absolute(), config.mib, config.wait)
        problems = diagnose(facts, config.wait)
        if ranks.first:
            show(facts, reduction, problems, ranks.device.type)
            if config.output:
                found = {"ranks": [asdict(one) for one in facts], "all_reduce": asdict(reduction), "problems": problems}
                write_json(Path(config.output), found)
        ranks.barrier()
        return 1 if problems else 0
    finally:
        leave()


def examine(ranks: Ranks, directory: Path, mib: int, wait: float) -> tuple[list[Facts], Reduction]:
    """The facts of every rank, on every rank; a collective call. Raises UserError."""
    if ranks.first and not directory.is_dir():
        mistake: UserError | None = UserError("directory", f"{directory}, no directory", "one on the file system for "
                                              "run directories", "make it, or name another one")  # fmt: skip
    else:
        mistake = None
    ranks.together(lambda: _raise(mistake))
    name = ranks.gather(uuid.uuid4().hex if ranks.first else "")[0]
    seen, fsync, failed = try_files(ranks, directory / f".reranker-doctor-{name}", wait)
    mine = Facts(
        rank=ranks.rank, host=socket.gethostname(), device=device_name(ranks.device),
        cores=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        versions=versions(), open_files=resource.getrlimit(resource.RLIMIT_NOFILE)[0], clock=clock(ranks), seen=seen,
        fsync=fsync, failed=failed,
    )  # fmt: skip
    return ranks.gather(mine), reduce(ranks, mib)


def versions() -> str:
    names = ("torch", "deepspeed", "transformers", "webdataset")
    found = [f"python {platform.python_version()}", *(f"{name} {version(name)}" for name in names)]
    if torch.cuda.is_available():
        found += [f"cuda {torch.version.cuda}", "nccl " + ".".join(map(str, torch.cuda.nccl.version()))]
    return ", ".join(found)


def diagnose(facts: Sequence[Facts], wait: float) -> list[str]:
    """A line for each thing that is wrong: what, where, what to do."""
    problems, first = [], facts[0]

    def told(wrong: Sequence[Facts], what: str, fix: str) -> None:
        if wrong:
            where = ", ".join(dict.fromkeys(one.host for one in wrong))
            problems.append(f"{where}: {what}; {fix}")

    for one in dict.fromkeys(one.versions for one in facts if one.versions != first.versions):
        told([other for other in facts if other.versions == one], f"{one}, where {first.host} has {first.versions}",
             "give all nodes the same environment")  # fmt: skip
    told([one for one in facts if one.device != first.device], f"another device than {first.device} of {first.host}",
         "the slowest sets the pace: choose nodes of one kind")  # fmt: skip
    told([one for one in facts if abs(one.clock) > SKEW], f"a clock more than {SKEW:g} s off that of {first.host}",
         "synchronize it (chrony, ntp)")  # fmt: skip
    told([one for one in facts if one.open_files < OPEN_FILES], f"fewer than {OPEN_FILES} open files allowed",
         f"ulimit -n {OPEN_FILES}, or LimitNOFILE of slurmd")  # fmt: skip
    told([one for one in facts if one.seen is None], f"does not see within {wait:g} s what {first.host} writes there",
         "choose a directory on a file system that all nodes share")  # fmt: skip
    for reason in dict.fromkeys(one.failed for one in facts if one.failed):
        told([one for one in facts if one.failed == reason], f"cannot write there as checkpoints are written: {reason}",
             "choose another file system, or mend its permissions")  # fmt: skip
    return problems


def show(facts: Sequence[Facts], reduction: Reduction, problems: Sequence[str], device: str) -> None:
    first, rows = facts[0], []
    for host in dict.fromkeys(one.host for one in facts):
        here = [one for one in facts if one.host == host]
        slowest, unseen = max((one.fsync or 0.0 for one in here), default=0.0), any(one.seen is None for one in here)
        clock_ = max((one.clock for one in here), key=abs)
        cells = [
            (host, False), (str(len(here)), False),
            (" / ".join(dict.fromkeys(one.device for one in here)), any(one.device != first.device for one in here)),
            (str(min(one.cores for one in here)), False),
            (str(min(one.open_files for one in here)), any(one.open_files < OPEN_FILES for one in here)),
            (f"{clock_ * 1e3:+.1f} ms", abs(clock_) > SKEW),
            ("no" if unseen else f"{max(one.seen or 0.0 for one in here) * 1e3:.0f} ms", unseen),
            (f"{slowest * 1e3:.1f} ms", any(one.failed for one in here)),
            ("other" if any(one.versions != first.versions for one in here) else "same",
             any(one.versions != first.versions for one in here)),
        ]  # fmt: skip
        rows.append([Alarm(text) if wrong else text for text, wrong in cells])
    columns = ("node", "ranks", "device", "cores", "open files", "clock", "sees files after", "fsync", "versions")
    print_table(columns, rows, numbers=("ranks", "cores", "open files", "clock", "sees files after", "fsync"))
    backend = "NCCL" if device == "cuda" else "gloo"
    if len(facts) > 1:
        print(f"all-reduce of {len(facts)} ranks ({backend}): {reduction.latency * 1e6:,.0f} us for one number, "
              f"{reduction.bandwidth / 1e9:.2f} GB/s for a large one")  # fmt: skip
    print(first.versions)
    for line in problems:
        print(f"problem: {line}")
    if not problems:
        print("nothing is wrong")


def _raise(mistake: UserError | None) -> None:
    if mistake is not None:
        raise mistake

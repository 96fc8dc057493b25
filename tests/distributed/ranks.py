"""Start real ranks: one process each, joined by gloo over loopback, every one of them ended in the end."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Finished:
    """What a rank left: its exit code and everything that it printed."""

    code: int
    out: str
    err: str


def environment(**extra: str) -> dict[str, str]:
    """The environment of a rank: one thread each, no hub, no tracking service."""
    inherited = {name: value for name, value in os.environ.items() if name not in _LAUNCHER}
    return {**inherited, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT), **extra}


def run_ranks(world: int, command: Sequence[str], timeout: float = 300) -> list[Finished]:
    """Run `python <command>` as `world` ranks. If they outlast `timeout` seconds all are killed and it fails."""
    port = free_port()
    ranks = []
    for rank in range(world):
        place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        ranks.append(
            subprocess.Popen(
                [sys.executable, *command],
                env=environment(**{key: str(value) for key, value in place.items()}),
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                start_new_session=True,
                cwd=ROOT,
            )  # fmt: skip
        )
    try:
        return [_finish(rank, timeout) for rank in ranks]
    finally:
        for rank in ranks:
            if rank.poll() is None:
                os.killpg(rank.pid, signal.SIGKILL)
                rank.communicate()


def _finish(rank: subprocess.Popen[str], timeout: float) -> Finished:
    out, err = rank.communicate(timeout=timeout)
    return Finished(rank.returncode, out, err)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


_LAUNCHER = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "LOCAL_WORLD_SIZE")

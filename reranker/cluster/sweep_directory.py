"""The directory of a sweep, `hydra.sweep.dir`: the names of its files, and who may write to it.

In: the directory. Out: `take`, its lock, which whoever runs or submits a sweep holds; what is there already that must
not be lost; whether the process of a local sweep is there. Raises `UserError`.
"""

from __future__ import annotations

import socket
from contextlib import AbstractContextManager
from pathlib import Path

from filelock import FileLock, Timeout

from reranker.errors import UserError
from reranker.files import read_json, refusals_told

FILE = "sweep.json"
"""The trainings of the sweep."""
LOCK = "sweep.lock"
"""Locked by the process that runs the sweep, or submits it."""
WAIT = 5.0
"""Seconds in which whoever has looked whether the lock is held lets go of it."""


def take(directory: Path) -> AbstractContextManager[object]:
    """The lock of a sweep's directory, let go of behind the block. Raises UserError if another sweep has it."""
    with refusals_told(directory / LOCK):
        try:
            return FileLock(directory / LOCK).acquire(timeout=WAIT)
        except Timeout:
            raise UserError("hydra.sweep.dir", f"{directory}, whose sweep is under way", "a directory for each "
                            "sweep", "say hydra.sweep.dir=runs/NAME, or wait for its end") from None  # fmt: skip


def refuse_submitted(directory: Path) -> None:
    """Raise UserError where `directory` is that of a job array, whose trainings would be lost sight of."""
    if (directory / FILE).is_file() and read_json(directory / FILE)["job"] is not None:
        raise UserError("hydra.sweep.dir", f"{directory}, which holds a sweep that was submitted", "a directory "
                        "for each sweep", "say hydra.sweep.dir=runs/NAME")  # fmt: skip


def under_way(directory: Path, host: str) -> bool | None:
    """Whether the process of a local sweep is there; None where that cannot be told: on another machine of its own."""
    if host != socket.gethostname():
        return None
    if not (directory / LOCK).is_file():
        return False
    try:
        with FileLock(directory / LOCK).acquire(blocking=False):
            return False
    except Timeout:
        return True
    except OSError:  # another user's file
        return None

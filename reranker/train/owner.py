"""Which training owns a run directory: the last one that was begun in it, and no other writes checkpoints there.

A node that lost its link, or a second start of the same command, leaves two trainings with one run directory. In: the
file `owner` in it, which each start writes anew. Out: `TakenOver` on the older one, before a checkpoint of its gets a
name. Restarts of one SLURM job are ordered by their number, so that one that was long in coming does not take the
directory back.
"""

from __future__ import annotations

import os
import secrets
import socket
from dataclasses import asdict, dataclass
from pathlib import Path

from reranker.errors import UserError
from reranker.files import read_json, write_json

OWNER = "owner"


class TakenOver(UserError):
    """Another training was begun in this run directory."""


@dataclass(frozen=True)
class Owner:
    """One start of a training.

    Attributes:
        start: drawn for this start.
        host: the machine of its rank 0.
        job, restart: SLURM's number of the job, and how often that was started again; None and 0 elsewhere.
    """

    start: str
    host: str
    job: str | None
    restart: int

    @staticmethod
    def new() -> Owner:
        """This process, as SLURM_JOB_ID and SLURM_RESTART_COUNT describe it."""
        restart = os.environ.get("SLURM_RESTART_COUNT", "0")
        job = os.environ.get("SLURM_JOB_ID") or None
        return Owner(secrets.token_hex(8), socket.gethostname(), job, int(restart) if restart.isdigit() else 0)

    def take(self, run_dir: Path) -> None:
        """Own `run_dir` from here on. Raises TakenOver if a later restart of this job owns it."""
        other = current(run_dir)
        if other is not None and self.job is not None and other.job == self.job and other.restart > self.restart:
            raise self._taken_over(run_dir, other)
        write_json(run_dir / OWNER, asdict(self))

    def check(self, run_dir: Path) -> None:
        """Raise TakenOver if another training was begun in `run_dir` since `take`."""
        other = current(run_dir)
        if other != self:
            raise self._taken_over(run_dir, other)

    def _taken_over(self, run_dir: Path, other: Owner | None) -> TakenOver:
        found = "no owner" if other is None else f"a training that was begun later on {other.host}"
        if other is not None and other.job is not None:
            found += f" (SLURM job {other.job}, restart {other.restart})"
        return TakenOver(run_dir / OWNER, found, "this training to be the only one of its run directory",
                         "this one ends, and writes nothing more there")  # fmt: skip


def current(run_dir: Path) -> Owner | None:
    """The owner of `run_dir`; None where nothing was begun yet."""
    path = run_dir / OWNER
    return Owner(**read_json(path)) if path.is_file() else None

"""`hydra/launcher=local`, the default: the trainings of a sweep one after another, in this process, and a list of them.

    SWEEP/                        hydra.sweep.dir
      sweep.json                  of each training what it varies and where it runs, whether it was begun, its exit code
      sweep.lock                  locked while the sweep is under way

The list is there before the first training begins; rank 0 writes it, and `reranker sweep show` reads it at any time. A
further sweep in the same directory takes its place, and the same command again goes on with each training where it
stands. Behind a training that was asked to stop no further one begins. A dry run leaves no list. Raises `UserError`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import socket
from collections.abc import Iterator, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from hydra._internal.core_plugins.basic_launcher import BasicLauncher
from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import JobReturn, setup_globals
from omegaconf import OmegaConf, open_dict, read_write

from reranker.cluster.launcher import Member, members_of, refuse_shared, written_words
from reranker.cluster.sweep_directory import FILE, refuse_submitted, take
from reranker.errors import UserError
from reranker.files import make_directory, write_json
from reranker.train.owner import current
from reranker.train.preemption import Stopped


class LocalLauncher(BasicLauncher):
    """Hydra's own launcher of jobs one after another, with the list of them."""

    def setup(self, *, hydra_context: Any, task_function: Any, config: Any) -> None:
        super().setup(hydra_context=hydra_context, task_function=self._noted(task_function), config=config)
        self._directory = Path(config.hydra.sweep.dir).absolute()
        self._words: list[list[str]] = []
        self._run_dirs: list[str] = []
        self._timed: list[bool] = []
        self._facts: list[dict[str, Any]] = []
        self._writes = False
        self._stopped = self._told = False
        self._refused: UserError | None = None

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        dry = self._compose(job_overrides, initial_job_idx)
        refuse_shared([one for one, timed in zip(self._members(), self._timed, strict=True) if not timed])
        if not dry:
            # On every rank, so that none waits for others that have ended. Whose the lock is only rank 0 can tell: the
            # launcher of the ranks ends the others where it is another sweep's.
            refuse_submitted(self._directory)
        self._writes = not dry and _is_rank_0()
        with contextlib.ExitStack() as behind:
            if self._writes:
                make_directory(self._directory)
                behind.enter_context(take(self._directory))
                refuse_submitted(self._directory)
                self._write()
            returns = super().launch(job_overrides, initial_job_idx)
        if self._refused is not None:
            raise self._refused
        return returns

    def _compose(self, job_overrides: Sequence[Sequence[str]], first: int) -> bool:
        """Add trainings to those that are known; whether all of these are dry runs."""
        assert self.hydra_context is not None
        assert self.config is not None
        before, dry = HydraConfig.instance().cfg, True
        for number, overrides in enumerate(job_overrides, first):
            composed = self.hydra_context.config_loader.load_sweep_config(self.config, list(overrides))
            with _noted_times() as times:
                with read_write(composed), open_dict(composed):
                    composed.hydra.job.id = composed.hydra.job.num = number
                HydraConfig.instance().set_config(composed)  # run_dir=runs/${hydra:job.num}
                output = os.path.abspath(os.path.join(composed.hydra.sweep.dir, composed.hydra.sweep.subdir))
                with read_write(composed.hydra.runtime), open_dict(composed.hydra.runtime):
                    composed.hydra.runtime.output_dir = output  # as Hydra does before it begins a job
                HydraConfig.instance().set_config(composed)
                self._run_dirs.append(str(Path(composed.run_dir).absolute()))
            self._timed.append(bool(times))
            self._words.append(written_words(overrides))
            self._facts.append({"begun": False, "code": None, "start": None})
            dry = dry and composed.train.dry_run
        HydraConfig.instance().cfg = before
        return dry

    def _members(self) -> list[Member]:
        return members_of(self._words, self._run_dirs)

    def _noted(self, task: Any) -> Any:
        """`task`, with a note of each training when it begins and when it has ended; nothing once the sweep ends."""

        def run(config: Any) -> Any:
            if self._stopped or self._refused is not None:
                self._tell_stopped()
                return None
            number = HydraConfig.get().job.num
            facts, run_dir = self._facts[number], Path(config.run_dir).absolute()
            try:
                if not config.train.dry_run:
                    self._refuse_begun(number, str(run_dir))
            except UserError as error:  # Hydra would print it in its own form
                self._refused = error
                return None
            self._run_dirs[number] = str(run_dir)  # of ${now:...} it is another one by now
            facts["begun"] = True
            self._write()
            facts["code"] = code = task(config)
            self._stopped = isinstance(code, Stopped)
            owner = current(run_dir)
            facts["start"] = owner and owner.start
            self._write()
            return code

        return run

    def _refuse_begun(self, number: int, run_dir: str) -> None:
        """Raise UserError where a training would begin in the run directory of another one of the sweep."""
        members = self._members()
        begun = [one for one, facts in zip(members, self._facts, strict=True) if facts["begun"]]
        refuse_shared([*begun, dataclasses.replace(members[number], run_dir=run_dir)])

    def _tell_stopped(self) -> None:
        if self._stopped and not self._told and _is_rank_0():
            left = sum(not facts["begun"] for facts in self._facts)
            print(f"{self._directory}: asked to stop, {left} of {len(self._facts)} trainings not begun; "
                  "the same command goes on")  # fmt: skip
        self._told = True

    def _write(self) -> None:
        if self._writes:
            trainings = [vars(one) | facts for one, facts in zip(self._members(), self._facts, strict=True)]
            write_json(self._directory / FILE, {"job": None, "host": socket.gethostname(), "trainings": trainings})


@contextlib.contextmanager
def _noted_times() -> Iterator[list[str]]:
    """The ${now:...} that the block resolves anew. Each training has its own, so that it is another when it begins."""
    found: list[str] = []

    def now(pattern: str) -> str:
        found.append(pattern)
        return datetime.now().strftime(pattern)

    OmegaConf.register_new_resolver("now", now, use_cache=True, replace=True)
    try:
        yield found
    finally:
        setup_globals()  # Hydra's own resolvers


def _is_rank_0() -> bool:
    return os.environ.get("RANK", "0") == "0"

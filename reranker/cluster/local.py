"""`hydra/launcher=local`, the default: the trainings of a sweep one after another, in this process, and a list of them.

    SWEEP/                        hydra.sweep.dir
      sweep.json                  of each training what it varies and where it runs, whether it was begun, its exit code
      sweep.lock                  locked while the sweep is under way

The list is there before the first training begins; rank 0 writes it, and `reranker sweep show` reads it at any time. A
further sweep in the same directory takes its place, and the same command again goes on with each training where it
stands. A dry run leaves no list. Raises `UserError`.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra._internal.core_plugins.basic_launcher import BasicLauncher
from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import JobReturn
from omegaconf import open_dict, read_write

from reranker.cluster.launcher import Member, members_of, refuse_shared, written_words
from reranker.cluster.sweep_directory import FILE, refuse_submitted, take
from reranker.files import make_directory, write_json
from reranker.train.owner import current


class LocalLauncher(BasicLauncher):
    """Hydra's own launcher of jobs one after another, with the list of them."""

    def setup(self, *, hydra_context: Any, task_function: Any, config: Any) -> None:
        super().setup(hydra_context=hydra_context, task_function=self._noted(task_function), config=config)
        self._directory = Path(config.hydra.sweep.dir).absolute()
        self._words: list[list[str]] = []
        self._run_dirs: list[str] = []
        self._facts: list[dict[str, Any]] = []
        self._writes = False

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        dry = self._compose(job_overrides, initial_job_idx)
        refuse_shared(self._members())
        self._writes = not dry and os.environ.get("RANK", "0") == "0"
        if not self._writes:
            return super().launch(job_overrides, initial_job_idx)
        refuse_submitted(self._directory)
        make_directory(self._directory)
        with take(self._directory):
            self._write()
            return super().launch(job_overrides, initial_job_idx)

    def _compose(self, job_overrides: Sequence[Sequence[str]], first: int) -> bool:
        """Add trainings to those that are known; whether all of these are dry runs."""
        assert self.hydra_context is not None
        assert self.config is not None
        before, dry = HydraConfig.instance().cfg, True
        for number, overrides in enumerate(job_overrides, first):
            composed = self.hydra_context.config_loader.load_sweep_config(self.config, list(overrides))
            with read_write(composed), open_dict(composed):
                composed.hydra.job.id = composed.hydra.job.num = number
            HydraConfig.instance().set_config(composed)  # run_dir=runs/${hydra:job.num}
            self._words.append(written_words(overrides))
            self._run_dirs.append(str(Path(composed.run_dir).absolute()))
            self._facts.append({"begun": False, "code": None, "start": None})
            dry = dry and composed.train.dry_run
        HydraConfig.instance().cfg = before
        return dry

    def _members(self) -> list[Member]:
        return members_of(self._words, self._run_dirs)

    def _noted(self, task: Any) -> Any:
        """`task`, with a note of each training when it begins and when it has ended."""

        def run(config: Any) -> Any:
            number = HydraConfig.get().job.num
            facts, run_dir = self._facts[number], Path(config.run_dir).absolute()
            self._run_dirs[number] = str(run_dir)  # of ${now:...} it is another one by now
            facts["begun"] = True
            self._write()
            facts["code"] = code = task(config)
            owner = current(run_dir)
            facts["start"] = owner and owner.start
            self._write()
            return code

        return run

    def _write(self) -> None:
        if self._writes:
            trainings = [vars(one) | facts for one, facts in zip(self._members(), self._facts, strict=True)]
            write_json(self._directory / FILE, {"job": None, "host": socket.gethostname(), "trainings": trainings})

"""`hydra/launcher=slurm`: the jobs of a sweep as one SLURM job array, each a training of launch/train.sbatch.

    SWEEP/                        hydra.sweep.dir
      sweep.json                  the array's job, and of each of its trainings what it varies and where it runs
      sweep.lock                  locked while the sweep is submitted
      code/                       reranker/, conf/ and launch/ as they were when the sweep was submitted
      <n>/command, <n>/job.out    the key=value words of the n-th training, a line each, and what its job says

All trainings are composed and checked before anything is submitted, and the command returns at once. The same command
again submits the same trainings: each goes on where it stands. Raises `UserError`.
"""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.launcher import Launcher
from omegaconf import OmegaConf, open_dict, read_write
from omegaconf.errors import OmegaConfBaseException

from reranker.cluster.snapshot import copy_code
from reranker.cluster.submit import arithmetic, check_submit, options_of, slurm_says
from reranker.cluster.sweep_directory import FILE, take
from reranker.config.cluster import SlurmConfig, SubmitConfig
from reranker.config.grammar import quoted
from reranker.describe import carried_directory
from reranker.errors import UserError, shorten
from reranker.files import make_directory, read_json, write_json, write_text


@dataclasses.dataclass(frozen=True)
class Member:
    """One training of a sweep: its words, those of them that not all of the sweep have, and its run directory."""

    words: tuple[str, ...]
    varied: tuple[str, ...]
    run_dir: str


class SlurmLauncher(Launcher):
    """Args: settings: fields of SlurmConfig; parallel: jobs that run at a time at most; dry_run: print and stop."""

    def __init__(self, parallel: int | None = None, dry_run: bool = False, **settings: Any) -> None:
        self._settings, self._parallel, self._dry_run = settings, parallel, dry_run

    def setup(self, *, hydra_context: Any, task_function: Any, config: Any) -> None:
        self._context, self._config = hydra_context, config
        try:
            self._slurm: Any = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(SlurmConfig), self._settings))
        except OmegaConfBaseException as error:
            key = error.full_key
            expected = f"what `reranker submit --help` says of slurm.{key}"
            raise UserError(f"hydra.launcher.{key}", shorten(error.value), expected, "change the value") from None

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        directory = Path(self._config.hydra.sweep.dir).absolute()
        configs = []
        for overrides in job_overrides:
            configs.append(self._submitted(list(overrides)))
            check_submit(configs[-1])
        words = [own_words(overrides, directory.name) for overrides in job_overrides]
        members = members_of(words, [str(Path(config.run_dir).absolute()) for config in configs])
        refuse_shared(members)
        command = self._command(directory, configs[0], len(members))
        for name, value in [*arithmetic(configs[0])[:-1], ("sweep", f"{len(members)} trainings in {directory}")]:
            print(f"{name:8s} {value}")
        if self._dry_run:
            print(f"{'sbatch':8s} {shlex.join(command[1:])}")
            print("dry run: nothing is submitted")
        else:
            job = submit_array(directory, members, command)
            print(f"submitted {job}; reranker sweep show {directory} tells how it goes")
        return [_submitted_return() for _ in members]

    def _submitted(self, overrides: list[str]) -> SubmitConfig:
        composed = self._context.config_loader.load_sweep_config(self._config, overrides)
        with read_write(composed), open_dict(composed):
            del composed["hydra"]
        train: Any = OmegaConf.to_object(composed)
        return SubmitConfig(**vars(train), slurm=self._slurm)

    def _command(self, directory: Path, config: SubmitConfig, count: int) -> list[str]:
        at_a_time = f"%{self._parallel}" if self._parallel else ""
        return [
            "sbatch", "--parsable", f"--job-name={directory.name}", f"--output={directory}/%a/job.out",
            f"--array=0-{count - 1}{at_a_time}", f"--export=ALL,RERANKER_SWEEP={directory}", *options_of(config.slurm),
            str(carried_directory("launch") / "train.sbatch"),
        ]  # fmt: skip


def written_words(overrides: Sequence[str]) -> list[str]:
    """The words of a training without those for Hydra."""
    return [word for word in overrides if not word.startswith(("hydra.", "hydra/"))]


def members_of(words: Sequence[Sequence[str]], run_dirs: Sequence[str]) -> list[Member]:
    """The trainings of a sweep from the words and the run directory of each."""
    common = set(words[0]).intersection(*words)
    return [
        Member(tuple(mine), tuple(word for word in mine if word not in common), run_dir)
        for mine, run_dir in zip(words, run_dirs, strict=True)
    ]


def own_words(overrides: Sequence[str], group: str) -> list[str]:
    """The words of a training, with the sweep as its group in tracking where none is given."""
    words = written_words(overrides)
    if not any(word.startswith("tracking.group=") for word in words):
        words.append(f"tracking.group={quoted(group)}")
    return words


def refuse_shared(members: Sequence[Member]) -> None:
    """Raise UserError where two trainings have one run directory: the second would resume the first."""
    seen: dict[str, Member] = {}
    for member in members:
        if member.run_dir in seen:
            found = f"{member.run_dir} for {' '.join(seen[member.run_dir].varied)} and {' '.join(member.varied)}"
            raise UserError(
                "run_dir", found, "one for each training", "name what varies in it: run_dir=runs/${optim.lr}"
            )
        seen[member.run_dir] = member


def submit_array(directory: Path, members: Sequence[Member], command: Sequence[str]) -> str:
    """Write the sweep's files and submit it; the number of its job. Raises UserError."""
    if "," in str(directory):
        raise UserError(
            "hydra.sweep.dir", str(directory), "a path without a comma, as sbatch --export wants it", "rename it"
        )
    file = directory / FILE
    trainings = [dataclasses.asdict(member) for member in members]
    make_directory(directory)
    with take(directory):
        before = read_json(file) if file.is_file() else None
        if before is not None and [one["run_dir"] for one in before["trainings"]] != [one.run_dir for one in members]:
            raise UserError("hydra.sweep.dir", f"{directory}, which holds another sweep", "a directory for each sweep",
                            "say hydra.sweep.dir=runs/NAME")  # fmt: skip
        copy_code(directory / "code")
        for number, member in enumerate(members):
            make_directory(directory / str(number))
            write_text(directory / str(number) / "command", "".join(f"{word}\n" for word in member.words))
        job = slurm_says(*command).strip().split(";")[0]
        write_json(file, {"job": job, "trainings": trainings})
    return job


def _submitted_return() -> JobReturn:
    done = JobReturn(status=JobStatus.COMPLETED)
    done.return_value = 0
    return done

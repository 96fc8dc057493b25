"""The code and the settings of a job, kept in its run directory.

    RUN_DIR/jobs/<job>/
      code/         reranker/, conf/ and launch/ as they were when the job began: its restarts run them
      config.yaml   the composed settings
      command       the arguments that they were composed from, one a line

A queue may hold a job for days, and a checkout does not stand still: what a restart runs is what the job began with.
"""

from __future__ import annotations

import dataclasses
import os
import shutil
from pathlib import Path

from reranker.config.training import TrainConfig
from reranker.describe import carried_directory
from reranker.errors import UserError
from reranker.files import make_directory, write_text

JOBS = "jobs"


def take(config: TrainConfig, job: str, arguments: list[str]) -> tuple[Path, Path]:
    """(the run directory, the directory of the code) of a job; what is there already stays. Raises UserError."""
    run_dir = Path(config.run_dir).absolute()
    directory = run_dir / JOBS / job
    code = directory / "code"
    if code.is_dir():
        return run_dir, code
    make_directory(directory)
    try:
        write_text(directory / "config.yaml", _yaml(config))
        write_text(directory / "command", "".join(f"{argument}\n" for argument in arguments))
    except OSError as error:
        raise _no_room(directory, error) from None
    copy_code(code)
    return run_dir, code


def copy_code(code: Path) -> None:
    """Copy reranker/, conf/ and launch/ to a directory, whole or not at all; one that is there is replaced.

    Raises UserError.
    """
    staging, before = code.with_name(f".{code.name}.staging"), code.with_name(f".{code.name}.before")
    ignored = shutil.ignore_patterns("__pycache__", "*.pyc", "conf", "launch")
    try:
        shutil.rmtree(staging, ignore_errors=True)
        shutil.copytree(Path(__file__).resolve().parents[1], staging / "reranker", ignore=ignored)
        for name in ("conf", "launch"):
            shutil.copytree(carried_directory(name), staging / name, ignore=ignored)
        if code.is_dir():
            os.replace(code, before)
        os.replace(staging, code)
        shutil.rmtree(before, ignore_errors=True)
    except OSError as error:
        raise _no_room(code.parent, error) from None


def _no_room(directory: Path, error: OSError) -> UserError:
    return UserError(directory, f"no way to write it ({error.strerror})", "room for a copy of the code",
                     "make room, or choose another run_dir")  # fmt: skip


def _yaml(config: TrainConfig) -> str:
    from omegaconf import OmegaConf

    return OmegaConf.to_yaml(OmegaConf.create(dataclasses.asdict(config)))

"""SLURM's names of a rank's place -> those that torch takes, for commands that `srun` runs by themselves."""

from __future__ import annotations

import os
import subprocess

from reranker.errors import UserError


def take_from_slurm() -> None:
    """Set RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT of a task of srun, where no launcher has.

    A training's are set by launch/train.sbatch and task.sh. Raises UserError.
    """
    if "RANK" in os.environ or int(os.environ.get("SLURM_NTASKS", "1")) < 2 or "SLURM_PROCID" not in os.environ:
        return
    nodes = os.environ.get("SLURM_STEP_NODELIST") or os.environ["SLURM_JOB_NODELIST"]
    try:
        command = ["scontrol", "show", "hostnames", nodes]
        hosts = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
    except (OSError, subprocess.CalledProcessError) as error:
        raise UserError("scontrol", str(error), "the names of the job's nodes", "set RANK, WORLD_SIZE, LOCAL_RANK, "
                        "MASTER_ADDR and MASTER_PORT yourself") from None  # fmt: skip
    # A step of its own has a port of its own: the last one's may not be free yet.
    place = int(os.environ["SLURM_JOB_ID"]) * 11 + int(os.environ.get("SLURM_STEP_ID", "0")) + 1
    os.environ.update(
        RANK=os.environ["SLURM_PROCID"], WORLD_SIZE=os.environ["SLURM_NTASKS"],
        LOCAL_RANK=os.environ["SLURM_LOCALID"], MASTER_ADDR=hosts[0], MASTER_PORT=str(32000 + place % 17000),
    )  # fmt: skip

"""`python -m reranker.cluster key=value ...`: what a SLURM job does before its ranks start, on its first node.

Composes and checks the settings of `reranker train`, takes the job's snapshot, and prints the run directory and the
directory of the code, a line each, for launch/train.sbatch. A mistake is one line and code 2: no rank has started.
"""

import os
import sys

from reranker.checks import check_train
from reranker.cli import run_command
from reranker.cluster.snapshot import take
from reranker.config.training import TrainConfig
from reranker.errors import EXIT_CODE, UserError


def begin(config: TrainConfig) -> int:
    check_train(config)
    job = os.environ.get("SLURM_JOB_ID")
    if not job:
        raise UserError("environment", "no SLURM_JOB_ID", "to be run by SLURM", "say sbatch launch/train.sbatch ...")
    run_dir, code = take(config, job, sys.argv[1:])
    print(run_dir, code, sep="\n")
    return 0


if __name__ == "__main__":
    try:
        sys.exit(run_command("train", sys.argv[1:], begin))
    except UserError as error:
        print(f"reranker: error: {error}", file=sys.stderr)
        sys.exit(EXIT_CODE)

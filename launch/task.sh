#!/usr/bin/env bash
# One rank of launch/train.sbatch, run by srun: SLURM's names of its place -> those that torch takes.
# Defaults never override what the user set. Replaced by Python, so that signals arrive there.

set -euo pipefail
export RANK=$SLURM_PROCID WORLD_SIZE=$SLURM_NTASKS LOCAL_RANK=$SLURM_LOCALID
export LOCAL_WORLD_SIZE=${SLURM_TASKS_PER_NODE%%[(,]*}
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-${SLURM_CPUS_PER_TASK:-1}}
export NCCL_DEBUG=${NCCL_DEBUG:-WARN}
export TOKENIZERS_PARALLELISM=${TOKENIZERS_PARALLELISM:-false}
exec python "$(dirname "${BASH_SOURCE[0]}")/run.py" reranker.train "$@"

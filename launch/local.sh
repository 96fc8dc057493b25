#!/usr/bin/env bash
# Train on every GPU of this machine (one process on a machine without), with the environment that is active.
#
#   bash launch/local.sh recipe=ko_reranker data.shards=DIR
#
# RANKS=2 chooses the number of processes.

set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/env.sh"
gpus=$(gpu_count)
port=$(free_port)
# Without --no_local_rank Hydra meets --local_rank=0 and refuses it.
exec deepspeed --quiet --no_local_rank --num_gpus "${RANKS:-$((gpus > 0 ? gpus : 1))}" --master_port "$port" --module reranker.train "$@"

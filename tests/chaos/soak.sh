#!/usr/bin/env bash
# Random faults over a tiny training: bash tests/chaos/soak.sh COUNT [SEED]. Prints what happened as JSON, and ends with 1 if
# anything was lost. In the environment of launch/test.sh, or whichever Python is active.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
if [ -x .venv/bin/python ]; then PATH=$PWD/.venv/bin:$PATH; fi
exec python -m tests.chaos.soak "${1:?say how many faults}" "${2:-0}"

#!/usr/bin/env bash
# The checks of this repository, in an environment of its own (.venv, made at the first call).
#
#   bash launch/test.sh                  style, types and layers, then the tests of tests/unit, distributed, chaos, gpu
#   bash launch/test.sh --all            the same and tests/end_to_end: the wheel, and the quick demo from the
#                                        first document to the exported model; tests/slurm, which installs a cluster of
#                                        Debian's packages and wants root; and
#                                        tests/mutations.py: that the tests fail for code that is broken. Of those that
#                                        start ranks a third, on a slow machine a twelfth, chosen by the commit's hash: all are
#                                        `bash launch/test.sh -n 6 --maxschedchunk 1 tests/mutations.py`
#   bash launch/test.sh tests/unit -k x  pytest alone, with these arguments

set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/env.sh"
setup dev
cd "$root"

export HF_HUB_OFFLINE=${HF_HUB_OFFLINE:-1}
# A process killed while it compiles an extension leaves a lock there that stops every later one.
TORCH_EXTENSIONS_DIR=$(mktemp -d)
export TORCH_EXTENSIONS_DIR
trap 'rm -rf "$TORCH_EXTENSIONS_DIR"' EXIT

all=false
if [ "${1:-}" = --all ]; then
    all=true
    shift
fi

if [ $# -gt 0 ]; then
    say "tests: pytest $*"
    python -m pytest "$@"
    exit
fi

# Several processes share the cores: with several threads each they would wait for one another more than they compute.
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}

check() {
    say "check: $*"
    "$@" || fail "$1 found something to mend, above"
}
check ruff check --quiet .
check ruff format --check --quiet .
check mypy --no-error-summary
check lint-imports --no-logo

# Those of tests/unit share the cores. The others start ranks by themselves, and wait for much: two at
# a time keep two cores busy.
say "tests: pytest tests/unit"
failed=0
python -m pytest -n auto --maxprocesses 4 tests/unit || failed=$?

directories=()
add() {
    if [ -n "$(find "tests/$1" -name 'test_*.py' -print -quit 2>/dev/null)" ]; then
        directories+=("tests/$1")
    else
        say "tests: there are none in tests/$1"
    fi
}
# In this order, as the longest should not come last: one file is one worker's, and all of tests/slurm.
if $all; then for name in slurm end_to_end; do add "$name"; done; fi
for name in distributed chaos gpu; do add "$name"; done
[ ${#directories[@]} -gt 0 ] || fail "tests: found none, expected some under tests/; run in a whole checkout"
say "tests: pytest ${directories[*]}"
python -m pytest -n 2 --dist loadfile --no-loadscope-reorder "${directories[@]}" || failed=$?
if $all; then
    # By the commit, so that a run of the same one does the same. Much of it waits for ranks that hang: more processes
    # than cores keep the cores busy.
    commit=$(git rev-parse --short=7 HEAD 2>/dev/null || echo 0)
    shares=3
    if [ $SECONDS -gt 2400 ]; then
        shares=12
        say "tests: this machine took $((SECONDS / 60)) minutes so far, so of the mutations that start ranks a twelfth is run"
    fi
    export MUTATIONS_SHARE=${MUTATIONS_SHARE:-$((16#$commit % shares))/$shares}
    say "tests: pytest tests/mutations.py (MUTATIONS_SHARE=$MUTATIONS_SHARE)"
    python -m pytest -n 4 --maxschedchunk 1 tests/mutations.py || failed=$?
fi
exit $failed

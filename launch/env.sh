# shellcheck shell=bash
# Sourced by the scripts beside it: functions, and nothing done until one is called.
#
#   setup <extra>    makes .venv, a virtual environment with this package and its dependencies, where it is
#                    missing or out of date, and puts it first on PATH. Wants a checkout.
#   gpu_count        prints how many GPUs answer, 0 on a machine without
#   torch_build      prints the build of torch for this machine: cuda or cpu
#   free_port        prints a TCP port of this machine that nobody listens on; wants python
#
# A stamp in .venv holds a hash of pyproject.toml, the Python version, and the version and build of torch;
# while it matches, setup only reads it. PYTHON=... chooses the interpreter. Needs no root.
# pip -qq prints errors only.

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
torch=torch==2.13.0
cpu_index=https://download.pytorch.org/whl/cpu

say() { printf '%s\n' "$*"; }

told=false # whether the reason of a failure was printed
fail() {
    # shellcheck disable=SC2034  # demo.sh reads it
    told=true
    printf 'error: %s\n' "$*" >&2
    exit 2
}

gpu_count() {
    local gpus
    # Not in a pipe: a reader that ends early would end nvidia-smi with SIGPIPE.
    gpus=$(nvidia-smi -L 2>/dev/null || true)
    grep -c '^GPU' <<<"$gpus" || true # which prints 0 and fails where there is none
}

torch_build() { if [ "$(gpu_count)" -gt 0 ]; then echo cuda; else echo cpu; fi; }

free_port() { python -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'; }

# PyPI's wheels are the CUDA build. For pip 2.13.0+cpu is 2.13.0: what was installed for a machine without a GPU
# would stay.
install_torch_for_cuda() {
    if python -c 'import sys, torch; sys.exit(torch.version.cuda is not None)' 2>/dev/null; then
        python -m pip uninstall -qq --yes torch
    fi
    python -m pip install -qq "$torch"
}

# Where torch comes from on a machine without a GPU. A configured index or --find-links that holds a CPU
# build is used as it is; PyPI's Linux wheels want gigabytes of CUDA libraries, so there PyTorch's own
# CPU index is asked instead.
install_torch_for_cpu() {
    local wants_cuda
    wants_cuda=$(python -m pip install -qq --dry-run --no-deps --ignore-installed --report - "$torch" 2>/dev/null |
        python -c '
import json, sys
needs = json.load(sys.stdin)["install"][0]["metadata"].get("requires_dist") or []
print(any(need.startswith(("nvidia-", "cuda-")) for need in needs))') || wants_cuda=True
    if [ "$wants_cuda" = True ]; then
        python -m pip install -qq --index-url "$cpu_index" "$torch"
    else
        python -m pip install -qq "$torch"
    fi
}

setup() {
    local extra=$1 interpreter=${PYTHON:-} build version stamp started=$SECONDS
    [ -f "$root/pyproject.toml" ] ||
        fail "$root: found no pyproject.toml beside launch/, expected a checkout of the repository; run this script in one (an installed package has the reranker command and launch/local.sh)"
    # The Python that made .venv stays, whichever one is on PATH today.
    if [ -z "$interpreter" ]; then
        if "$root/.venv/bin/python" -c '' 2>/dev/null; then interpreter=$root/.venv/bin/python; else interpreter=python3; fi
    fi
    interpreter=$(command -v "$interpreter") || fail "${PYTHON:-python3}: found no such program, expected Python 3.10 or newer; install it or say PYTHON=..."
    version=$("$interpreter" -c 'import sys; print("%d.%d.%d" % sys.version_info[:3]); sys.exit(sys.version_info < (3, 10))') ||
        fail "$interpreter: found Python $version, expected 3.10 or newer; say PYTHON=python3.11, for example"
    build=$(torch_build)
    stamp=$( (cat "$root/pyproject.toml" && echo "$version $build $torch") | sha256sum | cut -d' ' -f1)
    export PATH="$root/.venv/bin:$PATH" VIRTUAL_ENV="$root/.venv"
    # What `dev` installs holds all of `demo`.
    if [ "$(cat "$root/.venv/stamp-$extra" 2>/dev/null)" = "$stamp" ] || [ "$(cat "$root/.venv/stamp-dev" 2>/dev/null)" = "$stamp" ]; then
        say "environment: .venv is up to date (Python $version, torch for $build)"
        return
    fi
    if [ "$build" = cuda ]; then
        say "environment: nvidia-smi answers, so .venv gets the CUDA build of torch (Python $version); this may take minutes"
    else
        say "environment: no GPU answers nvidia-smi, so .venv gets the CPU build of torch (Python $version); this may take minutes"
    fi
    if [ "$("$root/.venv/bin/python" -c 'import sys; print("%d.%d.%d" % sys.version_info[:3])' 2>/dev/null)" != "$version" ]; then
        "$interpreter" -m venv --clear "$root/.venv" >/dev/null ||
            fail ".venv: found no way to make it, expected python3 -m venv to work; on Debian and Ubuntu install python3-venv"
    fi
    rm -f "$root"/.venv/stamp-*
    python -m pip install -qq --upgrade pip
    if [ "$build" = cuda ]; then
        install_torch_for_cuda
    else
        install_torch_for_cpu
    fi
    python -m pip install -qq --editable "${root}[$extra]"
    echo "$stamp" >"$root/.venv/stamp-$extra"
    say "environment: ready after $((SECONDS - started)) s, torch $(python -c 'from importlib.metadata import version; print(version("torch"))')"
}

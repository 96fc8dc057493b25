"""A training of two ranks on a file system of its own, which is full for a while: run by test_full_disk.py under
`unshare`, where it may mount one."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from pathlib import Path

from reranker.train.checkpoint import checkpoint_directories, damage
from tests.chaos.faults import Fault, release, start_hurt
from tests.distributed.conftest import make_inputs, records
from tests.distributed.ranks import until

STEPS = 90


def main() -> int:
    place = Path(sys.argv[1])
    inputs = make_inputs(place / "inputs")
    disk, run = place / "disk", place / "disk" / "run"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(disk)], check=True)
    values = {"batch.per_gpu": 8, "train.epochs": STEPS // 3, "train.save_every": 6, "train.keep_last": 1,
              "precision": "fp32", "deepspeed": "zero2"}  # fmt: skip
    # Held behind the first checkpoint until the disk is full, and behind the one that fails until there is room again.
    marks = [place / "mark-0", place / "mark-1"]
    faults = [Fault("data", "hold", nth, 0, str(mark)) for nth, mark in zip((8, 14), marks, strict=True)]
    job = start_hurt(2, ["train", *inputs.overrides(run, **values)], faults)
    ballast = disk / "ballast"
    try:
        until(lambda: (marks[0].exists() and checkpoint_directories(run)) or not job.running, job.errors)
        with open(ballast, "wb", buffering=0) as stream, contextlib.suppress(OSError):  # full
            while stream.write(b"0" * 4096):
                continue
        release(marks[0])
        until(lambda: (marks[1].exists() and "not saved" in job.said(0)) or not job.running, job.errors)
        whole_meanwhile = [path.name for path in checkpoint_directories(run) if damage(path) is None]
        ballast.unlink()
        release(marks[1])
        ranks = job.wait()
    finally:
        job.end()
    left = checkpoint_directories(run)
    print(json.dumps({
        "codes": [rank.code for rank in ranks], "err": ranks[0].err, "whole_meanwhile": whole_meanwhile,
        "steps": [record["step"] for record in records(run)], "left": [path.name for path in left],
        "damage": [damage(path) for path in left], "model": (run / "model/model.safetensors").is_file(),
    }))  # fmt: skip
    return 0


if __name__ == "__main__":
    sys.exit(main())

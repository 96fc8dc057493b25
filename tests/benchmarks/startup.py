"""How long a start takes: help, composed settings, and the first micro-batch of the demo's training.

    python tests/benchmarks/startup.py demo=runs/demo work=DIR [rounds=5] [ranks=2] [precision=auto]

`demo` is a run directory in which `reranker demo` and `reranker prepare` have been: the base model and the shards. Measured,
each in a process of its own, `rounds` times, the median counts:

    help                  `reranker train --help`
    config                `reranker train recipe=ko_reranker --cfg job`
    first_micro_batch     from the launch of `deepspeed --module reranker.train recipe=demo` on `ranks` ranks to the record
                          of its first optimizer step, which here is one micro-batch of the recipe's size: so the figure
                          has the first update in it as well

Bounds that the project holds itself to: 1 s for the first two, 15 s for the last.
"""

from __future__ import annotations

import os
import shutil
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.benchmarks.record import ROOT, command_line, context, environment_of, markdown, write

BOUNDS = {"help": 1.0, "config": 1.0, "first_micro_batch": 15.0}
PER_RANK = 4
"""Groups of a micro-batch of the demo's recipe."""


def main() -> None:
    settings = {"rounds": "5", "ranks": "2", "precision": "auto", **command_line(sys.argv[1:])}
    demo, work, ranks = Path(settings["demo"]).resolve(), Path(settings["work"]).resolve(), int(settings["ranks"])
    work.mkdir(parents=True, exist_ok=True)
    measures: dict[str, Callable[[], float]] = {
        "help": lambda: seconds_of("train", "--help"),
        "config": lambda: seconds_of("train", "recipe=ko_reranker", "--cfg", "job"),
        "first_micro_batch": lambda: first_micro_batch(demo, work, ranks, settings["precision"]),
    }
    found: dict[str, list[float]] = {name: [] for name in measures}
    for _ in range(int(settings["rounds"])):
        for name, measure in measures.items():
            found[name].append(measure())
            print(f"{name}: {found[name][-1]:.2f} s", flush=True)
    common = context(" ".join(["python", "tests/benchmarks/startup.py", "demo=... work=...", f"ranks={ranks}",
                               f"precision={settings['precision']}"]),
                     ("torch", "deepspeed", "transformers", "hydra-core"), "cpu", threads(ranks))  # fmt: skip
    entries = [
        {
            "benchmark": "startup", "setting": name, "ours": round(statistics.median(seconds), 2), "unit": "s",
            "least": round(min(seconds), 2), "largest": round(max(seconds), 2), "bound": BOUNDS[name], **common,
        }
        for name, seconds in found.items()
    ]  # fmt: skip
    table = markdown(
        [[entry["setting"], entry["ours"], entry["least"], entry["largest"], entry["bound"]] for entry in entries],
        ["start", "s, median", "least", "largest", "bound"],
    )
    print(write("startup", entries, table, {"seconds": {e["setting"]: e["ours"] for e in entries}}), table, sep="\n")


def seconds_of(*arguments: str) -> float:
    begun = time.perf_counter()
    subprocess.run([sys.executable, "-m", "reranker", *arguments], check=True, stdout=subprocess.DEVNULL, cwd=ROOT)
    return time.perf_counter() - begun


def threads(ranks: int) -> int:
    return max(1, (os.cpu_count() or 1) // ranks)


def first_micro_batch(demo: Path, work: Path, ranks: int, precision: str) -> float:
    """Seconds from the launch to the first record; the training is ended then."""
    run_dir = work / "run"
    shutil.rmtree(run_dir, ignore_errors=True)
    command = [
        str(Path(sys.executable).with_name("deepspeed")), "--quiet", "--no_local_rank", f"--num_gpus={ranks}",
        "--module", "reranker.train", "recipe=demo", f"run_dir={run_dir}", f"model.name={demo / 'base'}",
        f"data.shards={demo / 'shards'}", f"data.dev={demo / 'data' / 'dev.jsonl'}", f"precision={precision}",
        f"batch.groups={PER_RANK * ranks}", f"batch.per_gpu={PER_RANK}", "train.log_every=1", "tracking=none",
    ]  # fmt: skip
    metrics = run_dir / "metrics.jsonl"
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    with open(work / "log", "wb") as log:
        begun = time.perf_counter()
        process = subprocess.Popen(
            command, stdout=log, stderr=log, cwd=ROOT, start_new_session=True,
            env={**environment_of("cpu", threads(ranks)), "PATH": path},
        )  # fmt: skip
        try:
            while not (metrics.exists() and metrics.stat().st_size):
                if process.poll() is not None:
                    raise SystemExit(f"the training ended with code {process.returncode}: see {work / 'log'}")
                time.sleep(0.01)
            return time.perf_counter() - begun
        finally:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


if __name__ == "__main__":
    main()

"""What the benchmarks have in common: processes that are watched while they run, and the record that is left.

A record is a JSON list beside a Markdown table and a bar plot of the same name. Each comparison in it has `benchmark`,
`peer`, `setting`, `ours`, `theirs`, `ratio`, `unit` and who, where, when and how: `versions`, `machine`, `date`,
`command`, `seed`, `commit`.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import re
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).resolve().parents[2]
RECORDS = Path(__file__).parent / "records"
SEED = 42


@dataclass(frozen=True)
class Finished:
    """A process that has ended.

    Attributes:
        out: its standard output.
        peak_mb: the most memory that it and its children had at a time. Pages that they share count once.
        failed: why it is of no use; "" if it ended well.
    """

    out: str
    peak_mb: float
    failed: str


def run_watched(
    command: Sequence[str], log: Path, environment: Mapping[str, str], enough: Callable[[], bool] = lambda: False
) -> Finished:
    """Run a command to its end, or until `enough()`: then it is ended. Everything that it prints stays in `log`."""
    log.parent.mkdir(parents=True, exist_ok=True)
    peak, ended = 0.0, False
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that whoever ends us ends the process as well
    with open(log.with_suffix(".out"), "w+b") as out, open(log, "w+b") as err:
        process = subprocess.Popen(
            list(command), stdout=out, stderr=err, env=dict(environment), cwd=ROOT, start_new_session=True
        )
        try:
            while process.poll() is None:
                peak = max(peak, tree_mb(process.pid))
                if enough():
                    ended = True
                    break
                time.sleep(1)  # looking costs the machine something too
        finally:
            _end(process)
        out.seek(0)
        printed = out.read().decode("utf-8", "replace")
        err.seek(0)
        said = err.read().decode("utf-8", "replace").strip().splitlines()
    failed = "" if ended or process.returncode == 0 else f"exit {process.returncode}: {' | '.join(said[-2:])[-600:]}"
    return Finished(printed, peak, failed)


def tree_mb(pid: int) -> float:
    """Proportional set size of a process and its children, in MB."""
    total = 0
    with contextlib.suppress(psutil.Error):
        process = psutil.Process(pid)
        for member in (process, *process.children(recursive=True)):
            with contextlib.suppress(psutil.Error):
                total += member.memory_full_info().pss
    return total / 1e6


def _end(process: subprocess.Popen[bytes]) -> None:
    """End the session that we started: a launcher ends its ranks when it is told to."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        if process.poll() is None:
            os.killpg(process.pid, number)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(30)


def environment_of(device: str, threads: int) -> dict[str, str]:
    """The environment of a measurement: one device, so many threads, no network, no tracking."""
    hidden = ("DS_ACCELERATOR", "RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
    common = {name: value for name, value in os.environ.items() if name not in hidden}
    place = {"DS_ACCELERATOR": "cpu", "CUDA_VISIBLE_DEVICES": ""} if device == "cpu" else {"DS_ACCELERATOR": "cuda"}
    return {
        **common, **place, "OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false", "PYTHONPATH": str(ROOT), "WANDB_MODE": "disabled",
    }  # fmt: skip


class Measured:
    """Measurements that are done, in a file: a benchmark that is started again goes on behind those that succeeded."""

    def __init__(self, path: Path) -> None:
        self._path = path
        lines = path.read_text("utf-8").splitlines() if path.exists() else []
        entries = [entry for entry in map(json.loads, lines) if "failed" not in entry["found"]]
        self.all: dict[str, dict[str, Any]] = {entry["key"]: entry["found"] for entry in entries}

    def get(self, key: str, measure: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        if key not in self.all:
            found = self.all[key] = measure()
            with open(self._path, "a", encoding="utf-8") as stream:
                stream.write(json.dumps({"key": key, "found": found}) + "\n")
            print(f"{key}: {found.get('failed') or found.get('seconds') or found}", flush=True)
        return self.all[key]


def compared(ours: Sequence[float], theirs: Sequence[float]) -> dict[str, Any]:
    """Medians of the rounds' figures, their ratio ours / theirs, and the least and largest ratio of one round."""
    ratios = sorted(own / other for own, other in zip(ours, theirs, strict=True))
    own, other = statistics.median(ours), statistics.median(theirs)
    return {
        "ours": round(own, 4), "theirs": round(other, 4), "ratio": round(own / other, 3), "rounds": len(ratios),
        "ratio_least": round(ratios[0], 3), "ratio_largest": round(ratios[-1], 3),
    }  # fmt: skip


def context(command: str, packages: Sequence[str], device: str, threads: int) -> dict[str, Any]:
    """Who, where, when and how, for every object of a record."""
    return {
        "versions": {"python": platform.python_version(), **versions(packages)},
        "machine": machine(device, threads), "date": time.strftime("%Y-%m-%d"), "command": command, "seed": SEED,
        "commit": commit(),
    }  # fmt: skip


def versions(packages: Sequence[str]) -> dict[str, str]:
    found = {}
    for name in packages:
        with contextlib.suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def machine(device: str, threads: int) -> dict[str, Any]:
    found: dict[str, Any] = {"cpu": cpu(), "cores": os.cpu_count(), "threads": threads,
                             "system": platform.platform(terse=True)}  # fmt: skip
    if device == "cuda":
        import torch

        found |= {"gpu": torch.cuda.get_device_name(0), "cuda": torch.version.cuda}
    return found


def cpu() -> str:
    for line in Path("/proc/cpuinfo").read_text("utf-8").splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor()


def commit() -> str:
    """The commit that was measured, with a + if files differ from it."""

    def git(*words: str) -> str:
        return subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=False).stdout.strip()

    measured = ("reranker", "conf", "tests/benchmarks", ":(exclude)tests/benchmarks/records")
    return git("rev-parse", "--short", "HEAD") + ("+" if git("status", "--porcelain", "--", *measured) else "")


def write(name: str, entries: Sequence[Mapping[str, Any]], table: str, bars: Mapping[str, Mapping[str, float]]) -> Path:
    """Leave NAME-DATE.json, .md and, where there are bars, .png among the records; the path of the first."""
    RECORDS.mkdir(exist_ok=True)
    path = RECORDS / f"{name}-{time.strftime('%Y-%m-%d')}.json"
    path.write_text(json.dumps(entries, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    path.with_suffix(".md").write_text(table, encoding="utf-8")
    if bars:
        plot(bars, path.with_suffix(".png"))
    return path


def markdown(rows: Sequence[Sequence[object]], head: Sequence[str]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "".join("| " + " | ".join(str(cell) for cell in line) + " |\n" for line in lines)


def plot(panels: Mapping[str, Mapping[str, float]], path: Path) -> None:
    """A panel of horizontal bars for each title, the longest bar on top; ours (names that start with it) in colour."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    height = sum(0.32 * len(bars) + 0.9 for bars in panels.values())
    shares = [len(bars) + 2 for bars in panels.values()]
    figure, axes = pyplot.subplots(len(panels), 1, figsize=(9, height), height_ratios=shares, squeeze=False)
    for axis, (title, bars) in zip(axes[:, 0], panels.items(), strict=True):
        names = sorted(bars, key=lambda name: bars[name])
        values = [bars[name] for name in names]
        colours = ["#1f6f8b" if re.match("ours", name) else "#b9bec4" for name in names]
        drawn = axis.barh(names, values, color=colours)
        axis.bar_label(
            drawn,
            labels=[f"{value:,.0f}" if value >= 1000 else f"{value:.3g}" for value in values],
            padding=3,
            fontsize=8,
        )
        axis.set_title(title, fontsize=10, loc="left")
        axis.tick_params(labelsize=8)
        axis.spines[["top", "right"]].set_visible(False)
        axis.margins(x=0.08)
    figure.tight_layout()
    figure.savefig(path, dpi=130)
    pyplot.close(figure)


def command_line(arguments: Sequence[str]) -> dict[str, str]:
    """key=value words as a dict."""
    return dict(argument.split("=", 1) for argument in arguments)

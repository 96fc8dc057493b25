"""What the demo's model learns on the demo's groups: ours, FlagEmbedding, and ours with one lever more or less.

    python tests/benchmarks/learning.py demo=runs/demo work=DIR [recipe=demo] [steps=50] [precision=fp32] [sample=600]
        [threads=2] [arms=PATTERN,...] [record=learning]

`demo` is the directory that `launch/demo.sh` leaves. All arms take the same number of steps of 32 groups from the same
weights with the same seed, learning rates, weight decay and clipping, without dropout, in the same precision (bf16 wants
a processor that has its products), and their last weights count: no dev set chooses. FlagEmbedding and "reference" see
exactly the same passages in the same order (`learning_inputs.py`), both with the listwise cross-entropy of the labels;
the first few steps in float32, taken once more where the precision is another, must have the same losses. The other
arms are the recipe (demo, or ko_docs with its longer groups) on the demo's shards, but for what their name says; groups
and pairs of all arms have the sizes that the recipe gives them. Each is judged on the same held-out queries by
`reranker evaluate`. What is measured is kept in `work`: the same command goes on where it was stopped, `arms` (patterns
of names) adds some at a time. Out: records/RECORD-DATE.json, .md and .png
of all that `work` has, so that another record wants another `work`.
"""

from __future__ import annotations

import fnmatch
import json
import shutil
import sys
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.benchmarks import learning_report
from tests.benchmarks.learning_arms import ARMS, BASE, PEER, REFERENCE, Arm, report_of, slug
from tests.benchmarks.learning_inputs import GROUPS, prepare, shape_of
from tests.benchmarks.record import SEED, Measured, command_line, environment_of, run_watched

HERE = Path(__file__).resolve().parent


def main() -> None:
    settings = {
        "recipe": "demo", "steps": "50", "precision": "fp32", "sample": "600", "threads": "2", "arms": "*",
        "record": "learning", **command_line(sys.argv[1:]),
    }  # fmt: skip
    work, demo = Path(settings["work"]).resolve(), Path(settings["demo"]).resolve()
    prepare(demo, work, int(settings["steps"]), settings["precision"], settings["recipe"])
    measured = Measured(work / "measured.jsonl")
    patterns = settings["arms"].split(",")
    chosen = [arm for arm in ARMS if any(fnmatch.fnmatch(arm.name, pattern) for pattern in patterns)]
    run = Run(settings, demo, work)
    for arm in chosen:
        if arm.name != BASE:
            measured.get(f"train:{arm.name}", partial(run.train, arm, settings["precision"], int(settings["steps"])))
        if arm.name == BASE or "failed" not in measured.all[f"train:{arm.name}"]:
            measured.get(f"evaluate:{arm.name}", partial(run.evaluate, arm))
        if arm.name == PEER and settings["precision"] != "fp32":
            for name in (PEER, REFERENCE):
                checked = next(one for one in ARMS if one.name == name)
                measured.get(f"fp32:{name}", partial(run.train, checked, "fp32", learning_report.CHECKED_STEPS))
    judged = [arm for arm in ARMS if "rows" in measured.all.get(f"evaluate:{arm.name}", {})]
    learning_report.report(judged, measured.all, settings, work)


@dataclass(frozen=True)
class Run:
    """Processes of one benchmark, one at a time."""

    settings: dict[str, str]
    demo: Path
    work: Path

    def model(self, arm: Arm) -> Path:
        if arm.name == BASE:
            return self.work / "model"
        directory = self.work / "runs" / slug(arm.name)
        return directory if arm.name == PEER else directory / "model"

    def train(self, arm: Arm, precision: str, steps: int) -> dict[str, Any]:
        """{"losses", "seconds" of the steps but the first, "minutes" of the process}, or why it failed."""
        run_dir = (
            self.work
            / "runs"
            / slug(arm.name if precision == self.settings["precision"] else f"{precision} {arm.name}")
        )
        shutil.rmtree(run_dir, ignore_errors=True)
        train = self._flagembedding if arm.name == PEER else partial(self._ours, arm)
        start = time.monotonic()
        found = train(run_dir, precision, steps)
        if precision != self.settings["precision"]:
            shutil.rmtree(run_dir, ignore_errors=True)
        return {**found, "minutes": (time.monotonic() - start) / 60}

    def _flagembedding(self, run_dir: Path, precision: str, steps: int) -> dict[str, Any]:
        command = [
            sys.executable, str(HERE / "learning_peer.py"), f"work={self.work}", f"output={run_dir}", f"steps={steps}",
            f"precision={precision}", f"recipe={self.settings['recipe']}", "micro=4",
        ]  # fmt: skip
        finished = self._run(command, f"train-{run_dir.name}")
        return {"failed": finished.failed} if finished.failed else json.loads(finished.out.splitlines()[-1])

    def _ours(self, arm: Arm, run_dir: Path, precision: str, steps: int) -> dict[str, Any]:
        shards = self.work / "ordered" if arm.data == "ordered" else self.demo / "shards"
        shape = shape_of(self.settings["recipe"])
        command = [
            sys.executable, "-m", "reranker", "train", f"recipe={self.settings['recipe']}", f"run_dir={run_dir}",
            "train.device=cpu",
            f"model.name={self.work / 'model'}", f"data.shards={shards}", "data.dev=null", f"train.seed={SEED}",
            f"data.group_size={shape.passages}", f"data.max_length={shape.length}", f"batch.groups={GROUPS}",
            f"data.negatives.warmup={shape.random_warmup}", f"train.max_steps={steps}", "train.epochs=100",
            "tracking=none",
            f"precision={precision}", "batch.policy=tokens", "batch.tokens=4096", *arm.options,
        ]  # fmt: skip
        finished = self._run(command, f"train-{run_dir.name}")
        if finished.failed:
            return {"failed": finished.failed}
        records = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text("utf-8").splitlines()]
        records = [record for record in records if "train/loss" in record]
        shutil.rmtree(run_dir / "checkpoints")
        return {"losses": [record["train/loss"] for record in records],
                "seconds": [record["system/step_seconds"] for record in records[1:]]}  # fmt: skip

    def evaluate(self, arm: Arm) -> dict[str, Any]:
        """The rows of its table; its report stays in `work` for the paired comparisons."""
        report = report_of(self.work, arm.name)
        command = [
            sys.executable, "-m", "reranker", "evaluate", f"model={self.model(arm)}", f"output={report}",
            f"corpus={self.demo / 'data' / 'corpus.jsonl'}", f"queries={self.demo / 'data' / 'queries.jsonl'}",
            f"sample={self.settings['sample']}", f"max_length={shape_of(self.settings['recipe']).length}",
            f"precision={self.settings['precision']}", "device=cpu",
        ]  # fmt: skip
        finished = self._run(command, f"evaluate-{slug(arm.name)}")
        if finished.failed:
            return {"failed": finished.failed}
        return {"rows": json.loads((report / "table.json").read_text("utf-8"))}

    def _run(self, command: list[str], name: str) -> Any:
        environment = environment_of("cpu", int(self.settings["threads"]))
        return run_watched(command, self.work / "logs" / f"{name}.log", environment)


if __name__ == "__main__":
    main()

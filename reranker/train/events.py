"""What a training does besides its steps: records, evaluations, checkpoints, dumps, signs of life.

In: the job, its engine and what it goes on from. Out: the `loop.Events` of this rank. Rank 0 writes records and says
things; checkpoints and evaluations are collective.
"""

from __future__ import annotations

import contextlib
import math
import sys
from collections.abc import Callable
from typing import Any

import torch

from reranker.data.plan import Step
from reranker.data.stream import StepBatches
from reranker.errors import UserError
from reranker.files import make_directory, write_json
from reranker.model.cross_encoder import score_pairs
from reranker.train.checkpoint import Retention
from reranker.train.distributed import Ranks, device_name
from reranker.train.engine import Engine
from reranker.train.examples import rows
from reranker.train.gate import Gate
from reranker.train.guards import Health
from reranker.train.identity import description, identity, versions
from reranker.train.job import Job, plain
from reranker.train.loop import Tally, describe
from reranker.train.owner import Owner
from reranker.train.preemption import Stop
from reranker.train.progress import Progress
from reranker.train.resume import Begun
from reranker.train.saving import Ranking, Saver
from reranker.train.tracking import Tracker
from reranker.train.watchdog import Watchdog

LOST = "a guard set lost"
"""What the warning of a gate is called."""
FAILED = "failed"
"""In a run directory: batches of steps that could not be taken."""


class RunEvents:
    """The events of one training.

    Attributes:
        tally: what was lost so far, kept in every checkpoint.
    """

    def __init__(
        self, job: Job, engine: Engine, ranks: Ranks, begun: Begun | None, stop: Stop, watchdog: Watchdog,
        measured: dict[str, Any] | None, health: Health, owner: Owner, tracker: Tracker, gate: Gate | None,
    ) -> None:  # fmt: skip
        config, saved = job.config, begun.state if begun else {}
        self._job, self._engine, self._ranks, self._stop, self._watchdog = job, engine, ranks, stop, watchdog
        self._measured, self._health, self._gate = measured, health, gate
        if begun is not None and "health" in saved and not begun.accepted:
            health.restore(saved["health"])
        self._cursor, done = (begun.cursor, begun.steps) if begun else (job.start, 0)
        self.tally = Tally(done - int(saved.get("updates", done)), int(saved.get("bad_groups", 0)))
        of_gate = gate.fingerprint if gate else None
        self._ranking = Ranking.of(saved, config.train.metric, job.selecting_sha256, done, of_gate)
        self._verdicts: dict[int, Any] = {}
        first, self._dev = saved.get("first_ranks", {"dev": None, "ranks": {}}), job.dev_sha256
        self._first_ranks: dict[str, int] = first["ranks"] if first["dev"] == self._dev else {}
        self._identity, self._description = identity(job), description(job)
        self._saver = Saver(job.run_dir, ranks.apart(config.train.timeout), lambda: owner.check(job.run_dir))
        self._tracker = tracker
        self._progress = Progress(job.steps, done, enabled=ranks.first)

    def beat(self, doing: str, step: int | None = None, batch: Callable[[], Any] | None = None) -> None:
        self._watchdog.beat(doing, step, batch)
        self._saver.check()

    def stop_requested(self) -> bool:
        return self._stop.requested

    def log(self, step: int, metrics: dict[str, Any]) -> None:
        self._tracker.log(step, metrics)
        self._progress.show(step, metrics)

    def warn(self, cause: str, line: str) -> None:
        self._tracker.alert(cause, line)
        if self._ranks.first:
            self._progress.say(f"warning: {line}")

    def evaluate(self, step: int) -> dict[str, Any]:
        """A collective call."""
        self._engine.eval()

        def scores(pairs: Any) -> torch.Tensor:
            self.beat("evaluate")
            return score_pairs(self._engine.forward, pairs)

        with torch.no_grad():
            found, examples = self._job.evaluator.evaluate(scores, self._ranks, self._ranks.device, self._job.packed)
            verdict = self._gate.judge(scores, self._ranks, self._job.packed) if self._gate else None
        self._first_ranks = self._first_ranks or {str(one.number): one.right_at for one in examples}
        self._tracker.show(step, rows(examples, self._first_ranks))
        metrics = {f"eval/{name}": value for name, value in found.items()}
        if verdict is None:
            return metrics
        self._verdicts = {step: verdict}
        if not verdict.passed:
            self.warn(LOST, f"behind step {step} the model {verdict.losses()}: it does not pass its gate")
        return metrics | verdict.metrics()

    def save(self, step: int, planned: Step, scores: dict[str, Any] | None) -> None:
        """A collective call. Returns when the copies are taken; the files are written beside the training."""
        self.beat("save")
        self._saver.wait()  # what it saved is part of what is saved now
        if self._saver.step == step:
            return
        self._tracker.flush()
        config, ranking = self._job.config, self._ranking
        value = scores[f"eval/{config.train.metric}"] if scores else None
        verdict = self._verdicts.get(step)
        if value is not None and not math.isnan(value):
            ranking = ranking.with_(step, value, config.train.keep_best, verdict is None or verdict.passed)
        state = {
            "cursor": self._cursor.after(planned).to_dict(),
            "epoch": planned.epoch + (planned.last + 1) / planned.groups_in_epoch,
            "groups_seen": planned.epoch * planned.groups_in_epoch + planned.last + 1,
            "updates": step - self.tally.skipped,
            "bad_groups": self.tally.bad,
            "scaler": self._engine.scaler_state(),
            "best": ranking.best,
            "ranking": list(ranking.entries),
            "metrics": scores,
            "gate": verdict and verdict.to_dict(),
            "first_ranks": {"dev": self._dev, "ranks": self._first_ranks},
            "world": self._ranks.world,
            "device": device_name(self._ranks.device),
            "stage": self._job.stage,
            "precision": self._job.precision.value,
            "autocast": self._job.arithmetic.autocast,
            "packed": self._job.packed,
            "measured": self._measured,
            "identity": self._identity,
            "description": self._description,
            "health": self._health.to_dict(),
            "tracking_run_id": self._tracker.run_id,
            "config": plain(config),
            "versions": versions(),
        }
        retention = Retention(config.train.keep_last, config.train.keep_every, ranking.names)

        def saved() -> None:
            self._ranking = ranking

        self._saver.save(step, self._engine.fragments(), state, retention, saved)

    def finish(self) -> None:
        """Wait until the last checkpoint is whole; a collective call. Raises UserError if it cannot be written."""
        self.beat("save")
        self._saver.finish()

    def drain(self) -> None:
        """Wait for a checkpoint that is being written, where the training ends by an error that all ranks hold."""
        with contextlib.suppress(UserError):
            self._saver.wait()

    def dump(self, step: int, taken: StepBatches, losses: list[torch.Tensor]) -> str:
        """Write this rank's groups of a step that failed, with the loss of each micro-batch; where, for all ranks."""
        directory = self._job.run_dir / FAILED / f"step-{step:08d}"
        described = describe(taken)
        locate, epoch = self._job.data.locate, taken.step.epoch
        described["groups"] = [[locate(epoch, position).name for position in row] for row in described["micro_batches"]]
        described["losses"] = [float(loss) for loss in losses]
        rank = self._ranks.rank
        try:
            make_directory(directory)
            write_json(directory / f"rank-{rank:05d}.json", {"step": step, "rank": rank, **described})
        except UserError as error:
            print(f"warning: {error}", file=sys.stderr)  # what ends the training is the batch, not the disk
        self._ranks.barrier()  # no rank ends the job before all have written
        return str(directory)

    def close(self) -> None:
        self._progress.close()

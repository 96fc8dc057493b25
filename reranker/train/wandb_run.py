"""A training's run in Weights & Biases, online or offline, written from a thread of its own.

In: records, as the tracker gives them. Out: a run whose metrics are defined (`logged`): drawn over optimizer steps,
with the value that stands for the run in its summary. Whatever the service does or fails to do is told once; the
training neither stops nor waits for it. Locations in settings, alerts, artifacts and the command line are told without
their credentials (`location.public`).
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from reranker.config.common import Artifacts, TrackingMode
from reranker.config.tracking import TrackingConfig
from reranker.data.location import public
from reranker.train.artifacts import Artifact
from reranker.train.aside import Aside
from reranker.train.examples import COLUMNS
from reranker.train.logged import EXAMPLES, METRICS, OF_GUARDS, STEP, of_sets
from reranker.train.run_directory import METRICS as METRICS_FILE


class WandbRun:
    """A run under way; `start` makes it."""

    def __init__(self, run: Any, config: TrackingConfig, sets: Sequence[str]) -> None:
        self._run, self._config, self._uploading = run, config, False
        self._metrics = (*METRICS, *of_sets(sets))
        self._aside = Aside("wandb", told_of, lambda: say(f"does not keep up: records are left out; {METRICS_FILE} has"
                                                          " them all"))  # fmt: skip
        self._aside.do(self._define)

    def log(self, step: int, metrics: dict[str, Any]) -> None:
        """One record behind `step` optimizer steps."""
        known = {key: value for key, value in metrics.items() if value is not None}
        self._aside.do(lambda: self._run.log({STEP: step, **known}, step=step))

    def show(self, step: int, rows: Sequence[tuple[object, ...]]) -> None:
        """A table of ranked examples beside the record of the same step."""

        def table() -> None:
            import wandb

            self._run.log({STEP: step, EXAMPLES: wandb.Table(list(COLUMNS), [list(row) for row in rows])}, step=step)

        self._aside.do(table)

    def alert(self, title: str, text: str, level: str) -> None:
        """Tell those who are not looking: level is INFO, WARN or ERROR."""
        if not self._run.offline if self._config.alerts is None else self._config.alerts:
            told = public(text)
            self._aside.do(lambda: self._run.alert(title, told, level, self._config.alert_wait))

    def keep(self, artifact: Artifact) -> None:
        """Upload an artifact that the run has made, or record one that it was made with."""
        self._uploading = True

        def send() -> None:
            try:
                self._send(artifact)
            except Exception as error:  # the others, and the records, are none the worse for it
                say(f"does not take the artifact {artifact.name} ({' '.join(str(error).split())})")

        self._aside.do(send)

    def close(self, failed: bool) -> None:
        """Hand over what is left, and end the run, within the timeout."""
        seconds = self._config.upload_timeout if self._uploading else self._config.timeout

        def finish() -> None:
            try:
                self._run.finish(exit_code=int(failed))
            except Exception:
                self._abandon()
                raise

        if not self._aside.close(finish, seconds + 5):
            say(f"has not finished after {seconds:g} s; {METRICS_FILE} has all records")
            self._abandon()

    def _define(self) -> None:
        self._run.define_metric(STEP, summary="max")
        for metric in self._metrics:
            # A summary of its own takes the place of the last value, unless that is asked for as well.
            summary = f"{metric.summary},last" if metric.summary else None
            # A set's name may have a dot, which W&B takes for a key in a mapping where it is not escaped.
            self._run.define_metric(metric.name.replace(".", "\\."), step_metric=STEP, summary=summary)
        self._run.define_metric(OF_GUARDS, step_metric=STEP)

    def _send(self, artifact: Artifact) -> None:
        import wandb

        made = wandb.Artifact(artifact.name, artifact.kind, metadata=public(artifact.metadata))
        for name, uri in artifact.references:
            # What lies elsewhere is not asked for: the metadata has the fingerprint.
            local = uri.startswith("file://")  # has no password, and may have # or ? in its name
            made.add_reference(uri if local else public(uri), name=name, checksum=local)
        if artifact.directory is not None:
            for path in sorted(path for path in artifact.directory.rglob("*") if path.is_file()):
                # Nothing of it changes any more: no copy is made of it.
                name = path.relative_to(artifact.directory).as_posix()
                made.add_file(str(path), name=name, policy="immutable", skip_cache=True)
        if artifact.used:
            # What use_artifact does with one that is new, but it waits for the upload, and refuses when offline.
            self._run._log_artifact(made, is_user_created=True, use_after_commit=True)
        else:
            self._run.log_artifact(made, aliases=["latest", *artifact.aliases])

    def _abandon(self) -> None:
        """End W&B's own process, which does not answer: the end of this one would wait for it, for ever."""
        try:
            self._run._wl.assert_service()._proc._process.kill()
        except Exception as error:  # these are names that W&B may change: then the end waits, and says why
            say(f"cannot be ended ({error!r}): the end of this process waits for it")


def start(
    run_dir: Path, name: str, run_id: str | None, config: TrackingConfig, settings: dict[str, Any],
    sets: Sequence[str] = (),
) -> WandbRun | None:  # fmt: skip
    """Begin a run, or go on in the one of this id; None where tracking is disabled or cannot be had."""
    try:
        mode = wandb_mode(config.mode)
        if mode == "disabled":
            return None
        # Else it advertises its tracing of language models where a library for such is loaded.
        os.environ.setdefault("WANDB_DISABLE_WEAVE", "true")
        import wandb

        # W&B's own words would run into the progress bar.
        finish = config.timeout if config.artifacts is Artifacts.none else config.upload_timeout
        quiet = wandb.Settings(silent=True, console="off", init_timeout=config.timeout, finish_timeout=finish)
        common: dict[str, Any] = {
            "id": run_id, "name": name, "project": config.project, "entity": config.entity,
            "group": config.group, "job_type": config.job_type, "tags": list(config.tags), "notes": config.notes,
            "config": public(settings), "dir": str(run_dir),
            "resume": "allow", "settings": quiet,
        }  # fmt: skip
        with _public_arguments():
            try:
                run = wandb.init(mode=mode, **common)
            except wandb.errors.Error:
                if mode == "offline":
                    raise
                print("tracking: Weights & Biases cannot be reached, recording offline", file=sys.stderr)
                run = wandb.init(mode="offline", **common)
        return WandbRun(run, config, sets)
    except Exception as error:  # whatever a tracking service does, training goes on
        told_of(error)
        return None


@contextlib.contextmanager
def _public_arguments() -> Iterator[None]:
    """Within it the command line has no credentials: W&B records it, and has no setting for what it is."""
    whole = sys.argv
    sys.argv = public(whole)
    try:
        yield
    finally:
        sys.argv = whole


def wandb_mode(mode: TrackingMode) -> Any:
    """online, offline or disabled; WANDB_MODE decides for auto, then the presence of a key."""
    if mode is not TrackingMode.auto:
        return mode.value
    if asked := os.environ.get("WANDB_MODE"):
        return asked
    if os.environ.get("WANDB_API_KEY"):
        return "online"
    netrc = Path(os.environ.get("NETRC", Path.home() / ".netrc"))
    return "online" if netrc.is_file() and "wandb" in netrc.read_text(errors="replace") else "offline"


def told_of(error: Exception) -> None:
    reason = " ".join(str(error).split())
    say(f"failed ({reason}); {METRICS_FILE} goes on")


def say(words: str) -> None:
    print(f"tracking: Weights & Biases {words}", file=sys.stderr, flush=True)

"""What a training was made of and what it made, as artifacts: names, metadata, files, references. Nothing is sent here.

In: a job whose model is exported. Out: `Artifact`s. Shards and dev groups are inputs, named by their fingerprint, so
that all trainings on the same data point to the same one, and are referred to, not uploaded; the model, and on request
its checkpoints, are outputs that are uploaded. Raises `UserError` where a checkpoint is not there.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from reranker.config.common import Artifacts
from reranker.data.dataset import parse_sources
from reranker.data.location import is_remote, join, local_path
from reranker.data.manifest import NAME
from reranker.train.checkpoint import find, read_state
from reranker.train.identity import description
from reranker.train.job import Job


@dataclass(frozen=True)
class Artifact:
    """A thing with a name and versions.

    Attributes:
        kind: dataset, model or checkpoint.
        used: whether the run was made with it; otherwise the run has made it.
        aliases: names of this version.
        directory: all of its files are uploaded; None: there are none.
        references: (name in the artifact, URI); only what they are is kept.
    """

    name: str
    kind: str
    used: bool
    metadata: dict[str, Any]
    aliases: tuple[str, ...] = ()
    directory: Path | None = None
    references: tuple[tuple[str, str], ...] = ()


def artifacts(job: Job, exported: Path) -> list[Artifact]:
    """The inputs of a training, its exported model and, where they are asked for, the best and the last checkpoint."""
    config, fingerprint = job.config, job.start.fingerprint
    sources = parse_sources(config.data.shards)
    data: dict[str, Any] = {"fingerprint": fingerprint, "sources": description(job)["data.shards"]}
    manifests = tuple((f"{name}/{NAME}" if name else NAME, _uri(join(place, NAME))) for name, place, _ in sources)
    found = [Artifact(f"shards-{fingerprint[:16]}", "dataset", True, data, references=manifests)]
    if config.data.dev and job.dev_sha256:
        dev = {"sha256": job.dev_sha256, "groups": job.evaluator.dev.queries}
        references = ((Path(config.data.dev).name, _uri(config.data.dev)),)
        found.append(Artifact(f"dev-{job.dev_sha256[:16]}", "dataset", True, dev, references=references))
    best, last = find(job.run_dir, "best"), find(job.run_dir, "last")
    made = {"base": config.model.name, "data": fingerprint, "dev": job.dev_sha256, "recipe": config.recipe}
    name = re.sub(r"[^\w.-]", "-", config.name, flags=re.ASCII)
    told = {**made, **_of(best)}
    found.append(Artifact(name, "model", False, told, (best.name,), exported))
    if config.tracking.artifacts is Artifacts.checkpoints:
        for path in dict.fromkeys((best, last)):
            aliases = (path.name, *(["best"] if path == best else []), *(["last"] if path == last else []))
            found.append(Artifact(f"{name}-checkpoint", "checkpoint", False, {**made, **_of(path)}, aliases, path))
    return found


def _of(checkpoint: Path) -> dict[str, Any]:
    state = read_state(checkpoint)
    evaluated = {name.removeprefix("eval/"): value for name, value in (state["metrics"] or {}).items()}
    return {"step": state["step"], "epoch": state["epoch"], "checkpoint": checkpoint.name, **evaluated}


def _uri(location: str) -> str:
    return location if is_remote(location) else Path(local_path(location)).resolve().as_uri()

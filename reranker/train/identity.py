"""What a training is of: fingerprints of its data, tokenizer and model, and what there is to say of each.

In: a job. Out: plain values that a checkpoint keeps. Fingerprints tell whether a resume is of the same training, and
what is said of them in what it is another one.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from typing import Any

from reranker.errors import shorten
from reranker.model.cross_encoder import load_config
from reranker.train.job import Job

_SHOWN = 4
"""Differences of one thing that a line names at most."""
_PARTS = ("normalizer", "pre_tokenizer", "post_processor")
_UNRELATED = ("_name_or_path", "transformers_version", "dtype", "torch_dtype")


def identity(job: Job) -> dict[str, str]:
    """Fingerprints of the tokenizer and of the model's architecture."""
    text = json.dumps(_architecture(job), sort_keys=True, default=str)
    return {"tokenizer": job.data.tokenizer.fingerprint, "model": hashlib.sha256(text.encode()).hexdigest()[:16]}


def description(job: Job) -> dict[str, dict[str, Any]]:
    """What there is to say of the data, the tokenizer and the model, as JSON holds it."""
    sources = {
        source.name: {
            "groups": source.manifest.groups, "shards": len(source.manifest.shards), "weight": source.weight,
            "from": source.manifest.source,
        }
        for source in job.data.sources
    }  # fmt: skip
    tokenizer = json.loads(job.data.tokenizer.fingerprint_text)
    parts = {
        name: (tokenizer.get(name) or {}).get("type") for name in ("normalizer", "pre_tokenizer", "post_processor")
    }
    pieces = len(tokenizer["model"].get("vocab") or ())
    added = [token["content"] for token in tokenizer.get("added_tokens") or ()]
    told = {
        "data.shards": sources if len(sources) > 1 else next(iter(sources.values())),
        "tokenizer": {"kind": tokenizer["model"].get("type"), "pieces": pieces, "added tokens": added, **parts},
        "model": _architecture(job),
    }
    made: dict[str, dict[str, Any]] = json.loads(json.dumps(told, default=str))
    return made


def resolved(job: Job, device: str) -> dict[str, Any]:
    """What the settings come to here: for whoever compares trainings whose settings say `auto`, or nothing."""
    sets = job.evaluator.sets.digests if job.set_names else {}
    return {
        "precision": job.precision.value, "autocast": job.arithmetic.autocast, "zero_stage": job.stage,
        "packed": job.packed, "ranks": job.world,
        "device": device, "steps": job.steps, "groups_an_epoch": job.data.positions, "batch_tokens": job.tokens,
        "data": job.start.fingerprint, "dev": job.dev_sha256, **identity(job), "versions": versions(),
        **({"dev_sets": sets} if sets else {}),
    }  # fmt: skip


def versions() -> dict[str, str]:
    from importlib.metadata import version

    import reranker

    names = ("torch", "deepspeed", "transformers", "webdataset")
    return {"reranker": reranker.__version__, **{name: version(name) for name in names}}


def told_apart(before: Mapping[str, Any], now: Mapping[str, Any]) -> tuple[str, str]:
    """What two descriptions of a thing say differently, each as words; "" where they say the same."""
    ours, theirs = dict(_flat(before)), dict(_flat(now))
    differing = [key for key in {**ours, **theirs} if ours.get(key) != theirs.get(key)]
    more = f", and {len(differing) - _SHOWN} more" if len(differing) > _SHOWN else ""

    def words(values: Mapping[str, Any]) -> str:
        shown = (
            f"{key} {shorten(values[key])}".replace("'", "") if key in values else f"no {key}"
            for key in differing[:_SHOWN]
        )
        return ", ".join(shown) + more

    return words(ours), words(theirs)


def _architecture(job: Job) -> dict[str, Any]:
    config = load_config(job.config.model.name, job.config.model.revision).to_diff_dict()
    return {key: value for key, value in config.items() if key not in _UNRELATED}


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key} ")
        else:
            yield f"{prefix}{key}", value

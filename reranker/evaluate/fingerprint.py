"""What an evaluation depends on, as digests, and the scores that an interrupted one had already found.

In: an `EvaluateConfig`. Out: for each input file or model its sha256; equal digests mean an equal table.
Raises UserError for inputs that do not exist.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from reranker import __version__
from reranker.config.common import LongPassages
from reranker.config.evaluating import Stage
from reranker.config.models import EvaluateConfig
from reranker.errors import UserError, shorten
from reranker.evaluate.sets import EvaluationSet
from reranker.files import sha256, write_json

WEIGHTS = ("*.safetensors", "pytorch_model*.bin", "*.json", "*.model", "*.txt")
"""Files of a model directory that its scores depend on."""


def digest(value: Any) -> str:
    """sha256 of a JSON value."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode("utf-8")).hexdigest()


def settings_of(config: EvaluateConfig) -> dict[str, Any]:
    """The settings that change the table. Batches do not, nor where it is written."""
    return {
        "depth": config.depth,
        "depths": list(config.depths),
        "contexts": config.contexts,
        "metrics": list(config.metrics),
        "sample": config.sample,
        "first_stage": dataclasses.asdict(config.first_stage),
        "max_length": config.max_length,
        **long_of(config),
        "resamples": config.resamples,
        "permutations": config.permutations,
        "baseline": config.baseline,
        "latency": config.latency,
        "seed": config.seed,
    }


def scored_by(config: EvaluateConfig) -> list[Any]:
    """The settings that change a reranker's scores."""
    return [config.max_length, *long_of(config).values()]


def long_of(config: EvaluateConfig) -> dict[str, Any]:
    """What becomes of long passages; nothing of windows where there are none, as it changes nothing then."""
    if config.long is LongPassages.truncate:
        return {}
    return {"long": config.long.value, "window_overlap": config.window_overlap, "window_best": config.window_best}


def environment_of(config: EvaluateConfig) -> dict[str, str]:
    """What else scores depend on: device (its type), precision (never auto), packing (as asked for), versions.

    Raises UserError for a device or precision that this machine does not have.
    """
    from reranker.model.reranker import device_and_precision

    device, precision = device_and_precision(config.device.value, config.precision.value)
    versions = {"reranker": __version__, **{name: version(name) for name in ("torch", "transformers")}}
    return {"device": device.type, "precision": precision.value, "packing": config.packing.value, **versions}


def inputs_of(
    config: EvaluateConfig, sets: Sequence[EvaluationSet], known: Mapping[str, Any]
) -> dict[str, dict[str, Any]]:
    """{"corpus", "queries", or those of sets, "model", "base"?: {"name", "sha256", ...}}.

    `known` is an earlier result: a file whose size and modification time are still the same is not read
    again, as hashing gigabytes of weights takes longer than showing a table may.
    """
    files = known_files(known)
    inputs = {}
    for one in sets:
        for role, path in one.files.items():
            entry = _file(path, files)
            inputs[one.key(role)] = {
                "name": str(path), "sha256": entry["sha256"], "files": {str(path.resolve()): entry}
            }  # fmt: skip
        if one.stage is Stage.dense:
            inputs[one.key("dense.model")] = _model(str(one.config.dense.model), one.key("dense.model"), files)
    for key in ("model", "base"):
        if (name := getattr(config, key)) is not None:
            inputs[key] = _model(name, key, files)
    return inputs


def known_files(known: Mapping[str, Any]) -> dict[str, Any]:
    """{path: its entry} of all files of an earlier result."""
    return {path: entry for item in known.values() for path, entry in (item.get("files") or {}).items()}


def _model(name: str, key: str, files: Mapping[str, Any]) -> dict[str, Any]:
    if Path(name).is_dir():
        return digest_directory(name, key, WEIGHTS, files)
    from reranker.model.cross_encoder import load_config

    commit = getattr(load_config(name, key=key), "_commit_hash", None)
    return {"name": name, "sha256": digest([name, commit])}


def digest_directory(name: str, key: str, patterns: Sequence[str], files: Mapping[str, Any]) -> dict[str, Any]:
    """{"name", "sha256", "files"} of a model directory, by its files of these patterns. Raises UserError.

    With the subdirectories that sentence-transformers' modules.json names, and no others: a report may lie in one.
    """
    directory = Path(name)
    places = [directory]
    with contextlib.suppress(OSError, ValueError, TypeError, KeyError):
        modules = json.loads((directory / "modules.json").read_text("utf-8"))
        places += [directory / module["path"] for module in modules if module["path"]]
    paths = sorted({path for place in places for pattern in patterns for path in place.glob(pattern)})
    if not any(path.name == "config.json" for path in paths):
        kind = "a directory without config.json" if directory.is_dir() else "a file"
        raise UserError(key, f"{name}, {kind}", "a Hugging Face model directory", "check the path")
    return digest_files(name, paths, files, directory)


def digest_files(
    name: str, paths: Sequence[Path], files: Mapping[str, Any], directory: Path | None = None
) -> dict[str, Any]:
    """{"name", "sha256", "files"} of some files, which count by their names within `directory`, or by these alone."""
    entries = {str(path.resolve()): _file(path, files) for path in paths}
    # By name within the directory: a copy of a model is the same model.
    content = [
        [path.relative_to(directory).as_posix() if directory else path.name, entries[str(path.resolve())]["sha256"]]
        for path in sorted(paths)
    ]
    return {"name": name, "sha256": digest(content), "files": entries}


def digest_hub(name: str, key: str) -> dict[str, Any]:
    """{"name", "sha256"} of a model on the hub, by its commit; none of its code is run. Raises UserError."""
    from transformers.utils.hub import cached_file, extract_commit_hash

    expected = "a Hugging Face model directory or hub name"
    if name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise UserError(key, f"{name}, which does not exist", expected, "check the path")
    try:
        commit = extract_commit_hash(cached_file(name, "config.json"), None)
    except (OSError, ValueError) as error:
        raise UserError(key, f"{name}, which cannot be found ({shorten(error, 160)})", expected,
                        "check the name and the network") from error  # fmt: skip
    return {"name": name, "sha256": digest([name, commit])}


def _file(path: Path, files: Mapping[str, Any]) -> dict[str, Any]:
    entry = files.get(str(path.resolve())) or {}
    try:
        status = path.stat()
        if entry.get("size") == status.st_size and entry.get("mtime_ns") == status.st_mtime_ns:
            return dict(entry)
        return {"size": status.st_size, "mtime_ns": status.st_mtime_ns, "sha256": sha256(path)}
    except OSError as error:
        raise UserError(path, f"a file that cannot be read ({error.strerror or error})", "one that can be",
                        "check its owner and the disk") from None  # fmt: skip


class Scores:
    """Scores of finished systems in `<output>/scores/`, one file a system; without an output, none are kept."""

    def __init__(self, output: Path | None, read: bool) -> None:
        self._directory = output / "scores" if output else None
        self._read = read

    def get(self, system: str, asked: str) -> list[list[float]] | None:
        """The scores kept for a system, if they are those of the digest `asked`."""
        if self._directory and self._read:
            with contextlib.suppress(OSError, ValueError, KeyError):
                kept = json.loads((self._directory / f"{system}.json").read_text("utf-8"))
                if kept["of"] == asked:
                    return list(kept["scores"])
        return None

    def put(self, system: str, asked: str, scores: list[list[float]]) -> None:
        if self._directory:
            write_json(self._directory / f"{system}.json", {"of": asked, "scores": scores})

"""`systems=`: other rerankers beside base and fine-tuned, each a row of the table.

In: a mapping {name: {kind, model, ...}} or a yaml file of one, where a lone string is the model of a reranker of this
framework. Out: their settings, the digests of what they are loaded from, and `System`s. Nothing is loaded here: what
cannot be (a package that is missing, a directory that is none) is told before any system scores. Raises `UserError`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Iterator, Mapping
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from reranker import __version__
from reranker.config.common import Device, Precision
from reranker.config.models import EvaluateConfig
from reranker.config.systems import (
    Activation,
    CohereConfig,
    CrossEncoderConfig,
    FlagConfig,
    ForwardConfig,
    OnnxConfig,
    SystemConfig,
    SystemKind,
)
from reranker.errors import UserError, closest
from reranker.evaluate.answers import Answers
from reranker.evaluate.cohere import CohereSystem
from reranker.evaluate.fingerprint import digest_directory, digest_files, digest_hub, known_files, long_of
from reranker.evaluate.named import Named, read_named
from reranker.evaluate.outcome import FUSED, WITHOUT
from reranker.evaluate.systems import BASE, TUNED, ModelSystem, Scorer, System

KEY = "systems"
_NAMED = Named(KEY, "a system", "model", "a model, or {kind: ..., model: ...}")
_SCHEMAS: dict[str, type[SystemConfig]] = {
    "reranker": ForwardConfig, "sentence_transformers": CrossEncoderConfig, "flagembedding": FlagConfig,
    "cohere": CohereConfig, "onnx": OnnxConfig,
}  # fmt: skip
_PACKAGES = {
    SystemKind.reranker: (("torch", "transformers"), ""),
    SystemKind.sentence_transformers: (("sentence-transformers", "torch", "transformers"), "systems"),
    SystemKind.flagembedding: (("FlagEmbedding", "torch", "transformers"), "flagembedding"),
    SystemKind.cohere: (("cohere",), "systems"),
    SystemKind.onnx: (("onnxruntime", "tokenizers"), "systems"),
}
"""What each kind needs, all of which its scores depend on but for a service's client, and the extra that brings it."""
_LEAST: Mapping[str, float] = {
    "max_length": 8, "query_max_length": 1, "batch_size": 1, "batch_tokens": 1, "threads": 1, "max_tokens_per_doc": 1,
    "documents_per_call": 1, "concurrency": 1, "retries": 0,
}  # fmt: skip
_TOKENIZER = ("*.json", "*.model", "*.txt")
_LIBRARY = ("*.safetensors", "*.bin", "*.json", "*.model", "*.txt", "*.py")


def read_systems(config: EvaluateConfig) -> dict[str, Any]:
    """{name: settings} of `systems=`, the packages that they need being there."""
    if config.systems is None:
        return {}
    found = read_named(config.systems, _NAMED, _schema)
    for name, of in found.items():
        key = f"{KEY}.{name}"
        if name in (WITHOUT, BASE, TUNED, FUSED):
            raise UserError(KEY, f"a system called {name}", f"another name than {WITHOUT}, {BASE}, {TUNED}, {FUSED}",
                            "call it otherwise")  # fmt: skip
        _check(of, key)
        _versions(of, key)
    return found


def inputs_of_systems(named: Mapping[str, Any], known: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """{"systems.NAME.model": {"name", "sha256", ...}} of all that is loaded; a service has no such entry.

    `known` is an earlier result, as `fingerprint.inputs_of` takes it.
    """
    files, found = known_files(known), {}
    for name, of in named.items():
        key = f"{KEY}.{name}.model"
        if of.kind is SystemKind.onnx:
            file, tokenizer = _onnx_files(of, f"{KEY}.{name}")
            weights = [path for path in file.parent.iterdir() if path.is_file() and path.suffix != ".onnx"]
            found[key] = digest_files(str(file), [file, *weights], files)
            where = f"{KEY}.{name}.tokenizer"
            found[where] = _model(tokenizer, where, _TOKENIZER, files)
        elif of.kind is not SystemKind.cohere:
            found[key] = _model(of.model, key, _LIBRARY, files)
    return found


def other_systems(
    named: Mapping[str, Any], config: EvaluateConfig, device: str, inputs: Mapping[str, Mapping[str, Any]]
) -> list[System]:
    """The systems, in the order in which they are named. `device` is this rank's, by torch's name."""
    return [_system(name, of, config, device, inputs) for name, of in named.items()]


def _system(
    name: str, of: Any, config: EvaluateConfig, device: str, inputs: Mapping[str, Mapping[str, Any]]
) -> System:  # fmt: skip
    key = f"{KEY}.{name}"
    if isinstance(of, CohereConfig):
        answers = Answers(Path(config.output) if config.output else None, name, read=not config.force)
        return CohereSystem(name, of, answers, key)
    length = of.max_length or config.max_length
    settings = {
        item.name: getattr(value, "value", value)
        for item in dataclasses.fields(of)
        if (value := getattr(of, item.name)) is not None and item.name not in ("model", "tokenizer", "device")
    }
    identity: dict[str, Any] = settings | {"max_length": length, "versions": _versions(of, key)}
    identity["files"] = [inputs[role]["sha256"] for role in (f"{key}.model", f"{key}.tokenizer") if role in inputs]
    cut = f", at most {length} tokens a pair" if length else ""
    if isinstance(of, OnnxConfig):
        file, tokenizer = _onnx_files(of, key)
        tokens = of.batch_tokens or config.batch_tokens
        load: Any = partial(_load_onnx, of, file, tokenizer, length, tokens, key)
        versions = identity["versions"]
        told = f"{file}, onnxruntime {versions['onnxruntime']} (cpu){cut}"
        return ModelSystem(name, load, identity | {"batch_tokens": tokens, "reranker": __version__}, told)
    where, precision = _place(of, config, device, key)
    identity |= {"device": where.partition(":")[0], "precision": precision.value}
    how = f"{precision.value} ({where.partition(':')[0]}){cut}"
    if isinstance(of, ForwardConfig):
        packing, tokens = of.packing or config.packing, of.batch_tokens or config.batch_tokens
        identity |= {"packing": packing.value, "reranker": __version__, **long_of(config)}
        identity.pop("batch_tokens", None)  # as of base and fine-tuned: they change rounding alone
        load = partial(_load_forward, of, config, where, precision, length, tokens, packing.value, key)
        return ModelSystem(name, load, identity, f"{of.model}, {how}")
    load = partial(_load_library, of, where, precision, length, key)
    identity["prefixes"] = "the model's own"  # scores of before, which lacked them, are not taken over
    if isinstance(of, FlagConfig):
        told = f"{of.model} by FlagEmbedding {identity['versions']['FlagEmbedding']}, {how}"
        return ModelSystem(name, load, identity, told + (", through a sigmoid" if of.normalize else ""))
    told = f"{of.model} by sentence-transformers {identity['versions']['sentence-transformers']}, {how}"
    return ModelSystem(name, load, identity, told + (", its own activation" * (of.activation is Activation.own)))


def _load_forward(of: ForwardConfig, config: EvaluateConfig, device: str, precision: Precision, length: int | None,
                  tokens: int, packing: str, key: str) -> Scorer:  # fmt: skip
    from reranker.model.reranker import Reranker

    with _told_of(key):
        return Reranker(of.model, device=device, precision=precision.value, max_length=length, batch_tokens=tokens,
                        packing=packing, long=config.long.value, window_overlap=config.window_overlap,
                        window_best=config.window_best)  # fmt: skip


def _load_onnx(of: OnnxConfig, file: Path, tokenizer: str, length: int | None, tokens: int, key: str) -> Scorer:
    import torch

    from reranker.model.onnx import OnnxReranker

    threads = of.threads or torch.get_num_threads()  # ONNX Runtime knows nothing of OMP_NUM_THREADS, nor of other ranks
    return OnnxReranker(file, tokenizer, max_length=length, batch_tokens=tokens, threads=threads, key=key)


def _load_library(of: Any, device: str, precision: Precision, length: int | None, key: str) -> Scorer:
    from reranker.evaluate.libraries import CrossEncoderScorer, FlagScorer

    made = FlagScorer if isinstance(of, FlagConfig) else CrossEncoderScorer
    return made(of, device, precision, length, key)


def _place(of: Any, config: EvaluateConfig, device: str, key: str) -> tuple[str, Precision]:
    """(torch's name of the device, the precision, never auto). Raises UserError."""
    import torch

    from reranker.model.reranker import device_and_precision

    if of.device is Device.cpu:
        device = "cpu"
    elif of.device is Device.cuda and not device.startswith("cuda:") and (count := torch.cuda.device_count()):
        device = f"cuda:{int(os.environ.get('LOCAL_RANK', 0)) % count}"
    elif of.device is Device.cuda and not device.startswith("cuda:"):
        device = "cuda"
    with _told_of(key):
        where, precision = device_and_precision(device, (of.precision or config.precision).value)
    if isinstance(of, FlagConfig) and precision is Precision.bf16:
        raise UserError(f"{key}.precision", "bf16", "fp32 or fp16, which FlagReranker has", "say one of them")
    return str(where), precision


@contextlib.contextmanager
def _told_of(key: str) -> Iterator[None]:
    """Errors about a setting are about that of a system."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{key}.{error.where}", error.found, error.expected, error.fix) from None


def _schema(where: str, given: Mapping[str, Any]) -> type:
    kind = given.get("kind", "reranker")
    kind = kind.value if isinstance(kind, SystemKind) else kind
    if kind not in _SCHEMAS:
        near = closest(str(kind), _SCHEMAS)
        raise UserError(f"{where}.kind", repr(kind), "one of " + ", ".join(_SCHEMAS),
                        f"did you mean {near}?" if near else "change the value")  # fmt: skip
    if not given.get("model"):
        raise UserError(f"{where}.model", "no value", "a model", f"say {where}.model=...")
    return _SCHEMAS[kind]


def _check(of: Any, key: str) -> None:
    for name, least in _LEAST.items():
        if (value := getattr(of, name, None)) is not None and value < least:
            raise UserError(f"{key}.{name}", str(value), f"{least:g} or more", "change the value")
    if isinstance(of, CohereConfig):
        if not of.timeout > 0:
            raise UserError(f"{key}.timeout", str(of.timeout), "seconds above 0", "change the value")
        url = urlsplit(of.base_url)
        if url.scheme not in ("http", "https") or not url.hostname or url.username or url.query or url.fragment:
            # Not told: it may hold a password.
            raise UserError(f"{key}.base_url", "another form", "https://HOST, without user, password and query",
                            "change the value")  # fmt: skip


def _versions(of: SystemConfig, key: str) -> dict[str, str]:
    packages, extra = _PACKAGES[of.kind]
    found = {}
    for package in packages:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            raise UserError(f"{key}.kind", f"no {package}", f"the package that kind={of.kind.value} needs",
                            f"pip install 'ko-reranker[{extra}]'") from None  # fmt: skip
    return found


def _onnx_files(of: OnnxConfig, key: str) -> tuple[Path, str]:
    """(the file, the directory or hub name of its tokenizer)."""
    path = Path(of.model)
    file = path / "onnx" / "model.onnx" if path.is_dir() else path
    if not file.is_file():
        raise UserError(f"{key}.model", f"{file}, which does not exist", "an ONNX file, or a directory with "
                        "onnx/model.onnx", "check the path, or export with onnx=true")  # fmt: skip
    if of.tokenizer:
        return file, of.tokenizer
    for directory in (file.parent, file.parent.parent):
        if (directory / "config.json").is_file():
            return file, str(directory)
    raise UserError(f"{key}.tokenizer", f"no value, and no config.json beside {file}", "a tokenizer with its config",
                    f"say {key}.tokenizer=DIR")  # fmt: skip


def _model(name: str, key: str, patterns: tuple[str, ...], files: Mapping[str, Any]) -> dict[str, Any]:
    return digest_directory(name, key, patterns, files) if Path(name).exists() else digest_hub(name, key)

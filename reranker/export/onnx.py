"""The exported model as an ONNX file, for servers without PyTorch.

In: the model whose weights were just written, in float32, and the directory that they were written to. Out:
onnx/model.onnx in it, where sentence-transformers, optimum and text-embeddings-inference look for one; model.onnx_data
beside it where the weights are too many for one file. Its inputs are input_ids, attention_mask and, where the model
tells segments apart, token_type_ids: int64 of (batch, sequence), each of any size. Its output is logits: float32 of
(batch, 1). Each attention is one operator of ONNX Runtime's (`onnx_fusion`), which other programs need not know. Where
that cannot be done, the graph is as torch exports it, of ONNX's operators alone, and it is said why. ONNX Runtime
scores pairs with the file before this returns: one whose scores are not the model's to 1e-4 is a UserError.
"""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch

from reranker.errors import UserError, shorten
from reranker.export.onnx_fusion import fuse_attention
from reranker.model.cross_encoder import has_segments

FILE = "onnx/model.onnx"
"""Where the file lies in a model directory."""
PACKAGES = ("onnx", "onnxscript", "onnxruntime")
TOLERANCE = 1e-4
"""Of a score, absolute."""
WEIGHTS_IN_THE_FILE = 3 << 29
"""Bytes at most: a protobuf ends at 2 GiB. torch draws the line here as well."""
WITHOUT = "say onnx=false"


def check_packages() -> None:
    """Raise UserError if a package is missing that writes or runs ONNX."""
    missing = [name for name in PACKAGES if find_spec(name) is None]
    if missing:
        raise UserError("onnx", f"no {', '.join(missing)}", "the packages that write and run ONNX",
                        "pip install 'ko-reranker[export]'")  # fmt: skip


@dataclass(frozen=True)
class Fusion:
    """What became of the attentions.

    Attributes:
        attentions: how many are one operator each; 0: none is, and the graph is as torch exported it.
        reason: why none is, for a reader.
    """

    attentions: int
    reason: str = ""


def write_onnx(model: Any, directory: Path, longest: int) -> Fusion:
    """Write the file, and score pairs with it and with the model.

    Args:
        model: an AutoModelForSequenceClassification with one label, in float32, on the CPU and in eval mode.
        directory: the model directory; it has no onnx/ yet.
        longest: tokens of the longest pair that is scored.

    Raises UserError for a model that torch cannot write, a file that ONNX Runtime cannot run and scores that differ.
    """
    path = directory / FILE
    path.parent.mkdir()
    program = _exported(model)
    try:
        fused = program.clone()
        with quietly():
            attentions = fuse_attention(fused, [_arrays(_inputs(model, lengths)) for lengths in _shapes(longest)])
        _save(fused, path)
        _check_scores(model, path, longest)
    except Exception as error:  # onnxscript's have no class in common; the graph as it was does as well
        fusion = Fusion(0, shorten(error, 160))
        for written in path.parent.iterdir():
            written.unlink()
        _save(program, path)
        _check_scores(model, path, longest)
    else:
        fusion = Fusion(attentions)
    return fusion


def _save(program: Any, path: Path) -> None:
    import onnx_ir
    from onnx_ir.passes.common import ClearMetadataAndDocStringPass

    # Each node says by which lines of which files it was made: paths of this machine, and half the size of a graph.
    ClearMetadataAndDocStringPass()(program)
    weights = sum(value.const_value.nbytes for value in program.graph.initializers.values())
    # torch would call the second file model.onnx.data. Servers that fetch from a hub ask for optimum's name.
    onnx_ir.save(program, path, external_data=f"{path.name}_data" if weights > WEIGHTS_IN_THE_FILE else None)


def _exported(model: Any) -> Any:
    """The model as an onnx_ir.Model. Raises UserError."""
    # Two pairs or more of two tokens or more: of a size of 1 torch.export would assume that it stays 1.
    inputs = _inputs(model, [7, 4, 6])
    axes = {name: {0: "batch", 1: "sequence"} for name in inputs}
    try:
        with quietly(), torch.no_grad():
            program = torch.onnx.export(model, kwargs=inputs, dynamic_shapes=axes, input_names=list(inputs),
                                        output_names=["logits"], verbose=False)  # fmt: skip
    except torch.onnx.OnnxExporterError as error:
        found = f"a model that torch {version('torch')} cannot export ({shorten(error.__cause__ or error, 160)})"
        raise UserError("onnx", found, "an encoder that torch.onnx.export knows", WITHOUT) from error
    assert program is not None
    return program.model


def _check_scores(model: Any, path: Path, longest: int) -> None:
    """Raise UserError if the file's scores of pairs, alone and in batches, padded or not, are not the model's."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors
    with _refusals_told():
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    for lengths in _shapes(longest):
        inputs = _inputs(model, lengths)
        with torch.inference_mode():
            expected = model(**inputs).logits
        with _refusals_told():
            (found,) = session.run(["logits"], _arrays(inputs))
        difference = (torch.from_numpy(found) - expected).abs().max().item()
        if not difference <= TOLERANCE:  # written so that NaN is refused
            tokens = ", ".join(map(str, lengths))
            raise UserError(
                "onnx", f"scores up to {difference:.2g} from the model's (pairs of {tokens} tokens)",
                f"at most {TOLERANCE:g} in float32", f"{WITHOUT}, or try other versions of {', '.join(PACKAGES)}",
            )  # fmt: skip


def _shapes(longest: int) -> list[list[int]]:
    """Tokens of each pair of the batches that are scored: alone and together, padded or not."""
    return [[longest], [1], [2], [1, 1], [5, 5, 5], [3, min(longest, 128), 1, min(longest, 40)]]


@contextlib.contextmanager
def _refusals_told() -> Iterator[None]:
    """Raise a UserError where ONNX Runtime refuses something in the block: its errors have no class in common."""
    try:
        yield
    except Exception as error:
        found = f"a file that onnxruntime {version('onnxruntime')} cannot run ({shorten(error, 160)})"
        raise UserError("onnx", found, "one that it scores pairs with", WITHOUT) from error


def _inputs(model: Any, lengths: Sequence[int]) -> dict[str, torch.Tensor]:
    """Pairs of so many tokens, padded to the longest: {name: int64 of (batch, sequence)}, always the same."""
    config, sequence = model.config, torch.arange(max(lengths))
    ends = torch.tensor(lengths)[:, None]
    ids = torch.randint(config.vocab_size, (len(lengths), len(sequence)), generator=torch.Generator().manual_seed(0))
    padding = config.pad_token_id or 0
    # A padding token within a text would take the position of none.
    ids[ids == padding] = (padding + 1) % config.vocab_size
    mask = sequence < ends
    inputs = {"input_ids": ids.where(mask, padding), "attention_mask": mask.long()}
    if has_segments(config):
        inputs["token_type_ids"] = ((sequence >= ends // 2) & mask).long()
    return inputs


def _arrays(inputs: dict[str, torch.Tensor]) -> dict[str, np.ndarray]:
    return {name: tensor.numpy() for name, tensor in inputs.items()}


@contextlib.contextmanager
def quietly() -> Iterator[None]:
    """What the exporter says of itself stays away: logs, warnings, counts of its rewrites, its graph where it fails."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        nowhere = io.StringIO()
        with warnings.catch_warnings(), contextlib.redirect_stdout(nowhere), contextlib.redirect_stderr(nowhere):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)

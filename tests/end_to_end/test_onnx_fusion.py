"""The attentions of an exported ONNX file are one operator each, or it is told that and why they are not."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir
import pytest
import torch
import transformers
from onnxscript.rewriter import ort_fusions

from reranker import cli
from reranker.export import onnx as onnx_export
from reranker.export.onnx import FILE, Fusion, write_onnx
from tests.end_to_end.test_onnx import close, drawn, model_of, run_of, scores_of, session_of

LAYERS, HIDDEN, POSITIONS = 3, 96, 130  # HIDDEN ** 2: beyond the 8,192 numbers that onnxscript joins by itself
SHAPES = ([1], [POSITIONS - 2], [7] * 5, [1, 1], [POSITIONS - 2, 1, 2, 60, 17])
"""Tokens of each pair of a batch; it is padded to the longest."""
FUSED = ("bert", "electra", "roberta", "xlm-roberta")


def model_like(kind: str, **changed: Any) -> Any:
    """A small model with random weights; it has segments where its kind does."""
    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(
        kind, vocab_size=300, hidden_size=HIDDEN, num_hidden_layers=LAYERS, num_attention_heads=4, intermediate_size=64,
        max_position_embeddings=POSITIONS, num_labels=1, pad_token_id=1, bos_token_id=0, eos_token_id=2, cls_token_id=0,
        sep_token_id=2, initializer_range=0.1, embedding_size=16, **changed,
    )  # fmt: skip
    model = transformers.AutoModelForSequenceClassification.from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():  # none stays 0 or 1
            parameter += 0.05 * torch.randn_like(parameter)
    return model


def distilbert() -> Any:
    torch.manual_seed(0)
    config = transformers.DistilBertConfig(
        vocab_size=300, dim=HIDDEN, n_layers=LAYERS, n_heads=4, hidden_dim=64, max_position_embeddings=POSITIONS,
        num_labels=1, pad_token_id=1, initializer_range=0.1,
    )  # fmt: skip
    return transformers.AutoModelForSequenceClassification.from_config(config).eval()


def operators(directory: Path) -> Counter[tuple[str, str]]:
    return Counter((node.domain, node.op_type) for node in onnx.load(directory / FILE).graph.node)


def check_scores(model: Any, directory: Path) -> None:
    """Of pairs alone and padded."""
    session = session_of(directory)
    names = {one.name for one in session.get_inputs()}
    for seed, lengths in enumerate(SHAPES):
        inputs = {name: value for name, value in drawn(lengths, 1, seed).items() if name in names}
        with torch.no_grad():
            close(scores_of(session, inputs), model(**inputs).logits)


@pytest.mark.parametrize("kind", [*FUSED, "distilbert"])
def test_every_attention_is_one_operator_that_knows_padding_and_holds_its_weights(kind: str, tmp_path: Path) -> None:
    model = distilbert() if kind == "distilbert" else model_like(kind)
    assert write_onnx(model, tmp_path, POSITIONS - 2) == Fusion(LAYERS)
    graph = onnx.load(tmp_path / FILE).graph
    weights = {weight.name: tuple(weight.dims) for weight in graph.initializer}
    attentions = [node for node in graph.node if (node.domain, node.op_type) == ("com.microsoft", "Attention")]
    shapes = [(weights[node.input[1]], weights[node.input[2]]) for node in attentions]
    assert shapes == [((HIDDEN, 3 * HIDDEN), (3 * HIDDEN,))] * LAYERS
    assert {node.input[3] for node in attentions} == {"attention_mask_int32"}
    assert all(len(node.input) < 6 or not node.input[5] for node in attentions), "a bias beside the mask"
    stored = sum(onnx.numpy_helper.to_array(weight).nbytes for weight in graph.initializer
                 if weight.data_type == onnx.TensorProto.FLOAT)  # fmt: skip
    assert stored <= sum(4 * parameter.numel() for parameter in model.parameters()) + 64, "weights of two copies"
    onnx.checker.check_model(tmp_path / FILE, full_check=True)
    check_scores(model, tmp_path)


def test_attentions_that_pytorch_computes_step_by_step_are_fused_too(tmp_path: Path) -> None:
    model = model_like("bert", attn_implementation="eager")
    assert model.config._attn_implementation == "eager"
    assert write_onnx(model, tmp_path, 64) == Fusion(LAYERS)
    check_scores(model, tmp_path)


@pytest.mark.parametrize("kind", ["modernbert", "mpnet"])
def test_attentions_of_another_form_stay_as_they_are(kind: str, tmp_path: Path) -> None:
    model = model_like(kind)
    fusion = write_onnx(model, tmp_path, 64)
    assert fusion == Fusion(0, f"'onnxscript knows 0 of {LAYERS} attentions'")
    assert {domain for domain, _ in operators(tmp_path)} == {""}
    check_scores(model, tmp_path)


def test_a_mask_that_hides_more_than_padding_is_not_taken_for_one_of_padding(tmp_path: Path) -> None:
    """Each token of a decoder sees those before it alone."""
    model = model_like("bert", is_decoder=True)
    assert write_onnx(model, tmp_path, 64) == Fusion(0, "'an attention whose bias is more than a mask'")
    assert {domain for domain, _ in operators(tmp_path)} == {""}
    check_scores(model, tmp_path)


@pytest.mark.parametrize("fault", ["raises", "scores"])
def test_what_fusing_breaks_is_exported_without_and_told(
    fault: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """onnxscript is made to fail, or to change a weight."""
    whole = ort_fusions.optimize_for_ort

    def faulty(program: Any) -> Any:
        found = whole(program)
        if fault == "raises":
            raise IndexError("of its own")
        bias = program.graph.initializers["classifier.out_proj.bias"]
        bias.const_value = onnx_ir.tensor(bias.const_value.numpy() + np.float32(2e-4), name=bias.name)
        return found

    monkeypatch.setattr(ort_fusions, "optimize_for_ort", faulty)
    monkeypatch.setattr(onnx_export, "WEIGHTS_IN_THE_FILE", 1000)
    run, output = run_of("xlm-roberta", tmp_path), tmp_path / "model"
    assert cli.main(["export", f"run={run}", f"output={output}", "onnx=true"]) == 0
    told = capsys.readouterr()
    assert told.out.endswith("with onnx/model.onnx in fp32\n")
    why = "'of its own'" if fault == "raises" else "'onnx: found scores up to 0.0002 from the model"
    assert told.err.replace('"', "'").startswith(f"note: onnx/model.onnx: its attentions are not fused: {why}")
    assert told.err.count("\n") == 1
    assert {path.name for path in (output / "onnx").iterdir()} == {"model.onnx", "model.onnx_data"}
    assert (output / "onnx" / "model.onnx_data").stat().st_size < 1.01 * (output / "model.safetensors").stat().st_size
    assert operators(output)["com.microsoft", "Attention"] == 0
    assert "its attentions are not fused" in (output / "README.md").read_text("utf-8")
    check_scores(model_of(output), output)


def test_the_card_says_what_runs_a_fused_file(tmp_path: Path) -> None:
    run = run_of("bert", tmp_path)
    assert cli.main(["export", f"run={run}", "onnx=true"]) == 0
    assert "Each of its 2 attentions is one operator of ONNX Runtime's own" in (run / "model" / "README.md").read_text()

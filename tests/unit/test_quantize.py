"""What the 8-bit file needs is asked for before anything is exported, and what onnxruntime refuses is one line."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from reranker.data.tokenize import Contract
from reranker.errors import UserError
from reranker.export.card_words import Words
from reranker.export.huggingface import export_run
from reranker.export.onnx import FILE, write_onnx
from reranker.export.quantize import INT8_FILE, read_judges, write_int8
from reranker.export.usage import usage
from reranker.groups import Group, write_groups
from tests.tiny import tiny_model

pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")
GROUP = Group("a", ("b",), ("c",))


def test_groups_that_cannot_be_read_are_told_of_before_the_run_is(tmp_path: Path) -> None:
    judges = tmp_path / "judges.jsonl"
    judges.write_text('{"query": "a", "pos": ["b"], "neg": ["c"]}\n{"query": 1}\n')
    with pytest.raises(UserError, match=r"judges\.jsonl:2: found"):
        export_run(tmp_path / "no run at all", output=tmp_path / "model", onnx=True, int8=str(judges))


def test_the_first_64_groups_judge_and_what_is_behind_them_does_not_matter(tmp_path: Path) -> None:
    judges = tmp_path / "judges.jsonl"
    write_groups(judges, [GROUP] * 64)
    with open(judges, "a") as file:
        file.write("behind\n")
    assert read_judges(str(judges)) == [GROUP] * 64


@pytest.mark.parametrize("refused", ["cannot quantise", "cannot run"])
def test_what_onnxruntime_refuses_is_one_line(refused: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = tiny_model(tmp_path / "whole")
    model, tokenizer = AutoModelForSequenceClassification.from_pretrained(whole), AutoTokenizer.from_pretrained(whole)
    (tmp_path / FILE).parent.mkdir()
    (tmp_path / FILE).write_bytes(b"no model")
    if refused == "cannot run":
        import onnxruntime.quantization

        def spoilt(source: Path, target: Path, **_: object) -> None:
            target.write_bytes(source.read_bytes())

        monkeypatch.setattr(onnxruntime.quantization, "quantize_dynamic", spoilt)
    with pytest.raises(UserError, match=rf"int8: found .* onnxruntime \S+ {refused} \(") as caught:
        write_int8(model.eval(), tokenizer, Contract(), tmp_path, [GROUP], 0.9)
    assert "say int8=null" in str(caught.value)
    assert (tmp_path / INT8_FILE).exists() == (refused == "cannot run")


@pytest.mark.parametrize(("least", "whole"), [(0.0, 0), (0.65, 2)])
def test_products_whose_inputs_lie_too_far_apart_stay_in_float32_where_the_order_asks_for_it(
    least: float, whole: int, tmp_path: Path
) -> None:
    """One neuron of each feed-forward layer is far above the others and nothing comes of it: 8 bits hold it alone."""
    directory = tiny_model(tmp_path / "model", seed=3)
    model = AutoModelForSequenceClassification.from_pretrained(directory).eval()
    with torch.no_grad():
        for layer in model.roberta.encoder.layer:
            layer.intermediate.dense.bias[0] = 500.0
            layer.output.dense.weight *= 20.0  # what the layer adds is what counts
            layer.output.dense.weight[:, 0] = 0.0
    fusion = write_onnx(model, directory, 64)
    words = [chr(0xAC00 + 588 * first + 28 * vowel) for first in range(19) for vowel in range(21)]
    draw = random.Random(0)
    texts = [" ".join(draw.choices(words, k=9)) for _ in range(90)]
    judges = [Group(texts[n], (texts[n + 1],), tuple(texts[n + 2 : n + 9])) for n in range(0, 80, 8)]
    found = write_int8(model, AutoTokenizer.from_pretrained(directory), Contract(64), directory, judges, least)
    assert found.whole == whole
    assert found.order >= least
    assert (found.order < 0.65) == (whole == 0), found
    card = usage("m", Contract(64), Words("en"), fusion, found)
    assert ("The second product of its 2 feed-forward layers is in float32" in card) == bool(whole)

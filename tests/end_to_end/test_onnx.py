"""An exported ONNX file scores as the directory that it lies in, for any number of pairs of any length."""

from __future__ import annotations

import ast
import json
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from safetensors.torch import load_file
from tokenizers import processors
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertConfig,
    BertForSequenceClassification,
    LongformerConfig,
    LongformerForSequenceClassification,
)

from reranker import Reranker, cli
from reranker.errors import UserError
from reranker.export import onnx as onnx_export
from reranker.export.huggingface import export_run
from reranker.export.quantize import agreement, onnx_scores
from reranker.groups import Group, read_groups, write_groups
from tests.tiny import tiny_model
from tests.unit.test_export import make_run

POSITIONS = 512
SHAPES = ([1], [2], [POSITIONS], [1, 1], [2, 2], [7] * 33, [POSITIONS, 1, 2, 300, 17], [3, POSITIONS - 1])
"""Tokens of each pair of a batch; it is padded to the longest."""
PAIRS = [
    ("정렬", "가"),
    ("파이썬에서 리스트를 정렬하는 방법은?", "list.sort()는 리스트를 제자리에서 정렬한다."),
    ("리스트를 정렬하는 방법은 무엇인가? " * 3, "sort() 함수가 있다. " * 40),
]
KINDS = {"xlm-roberta": {"input_ids", "attention_mask"}, "bert": {"input_ids", "attention_mask", "token_type_ids"}}
"""Models, and what they take."""


def tiny_bert(directory: Path) -> Path:
    """A BERT of the tiny model's size, with segments."""
    tokenizer = AutoTokenizer.from_pretrained(tiny_model(directory))
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> $B:1 </s>:1", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    taken = ["input_ids", "token_type_ids", "attention_mask"]
    tokenizer.model_input_names = tokenizer.init_kwargs["model_input_names"] = taken
    tokenizer.save_pretrained(directory)
    config = BertConfig(
        vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64,
        max_position_embeddings=POSITIONS, num_labels=1, initializer_range=0.1, pad_token_id=1,
    )  # fmt: skip
    torch.manual_seed(2)
    BertForSequenceClassification(config).save_pretrained(directory)
    return directory


def run_of(kind: str, directory: Path) -> Path:
    """A run directory whose model is of this kind. No weight of it is 0 or 1: the exporter folds such away."""
    make = tiny_bert if kind == "bert" else tiny_model
    base, generator = make(directory / "base"), torch.Generator().manual_seed(3)
    weights = load_file(base / "model.safetensors")
    trained = {name: tensor + 0.02 * torch.randn(tensor.shape, generator=generator) for name, tensor in weights.items()}
    return make_run(directory / "run", base, trained)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {kind: run_of(kind, tmp_path_factory.mktemp(kind)) for kind in KINDS}


@pytest.fixture(scope="module")
def exported(runs: dict[str, Path]) -> dict[str, Path]:
    """{kind: model directory}, made as a user makes it."""
    for run in runs.values():
        assert cli.main(["export", f"run={run}", "onnx=true"]) == 0
    return {kind: run / "model" for kind, run in runs.items()}


def session_of(directory: Path) -> Any:
    return onnxruntime.InferenceSession(directory / "onnx" / "model.onnx", providers=["CPUExecutionProvider"])


def scores_of(session: Any, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    """As optimum feeds a file: what it takes of what the tokenizer gives."""
    taken = {one.name: inputs[one.name].numpy() for one in session.get_inputs()}
    (logits,) = session.run(["logits"], taken)
    assert (logits.shape, logits.dtype) == ((len(inputs["input_ids"]), 1), np.float32)
    return torch.from_numpy(logits)


def model_of(directory: Path) -> Any:
    return AutoModelForSequenceClassification.from_pretrained(directory, dtype=torch.float32).eval()


def drawn(lengths: Sequence[int], padding: int, seed: int) -> dict[str, torch.Tensor]:
    """A batch of pairs of so many random tokens."""
    places, ends = torch.arange(max(lengths)), torch.tensor(lengths)[:, None]
    ids = torch.randint(5, 200, (len(lengths), max(lengths)), generator=torch.Generator().manual_seed(seed))
    mask = places < ends
    types = (places >= ends // 3) & mask
    return {
        "input_ids": ids.where(mask, padding), "attention_mask": mask.long(), "token_type_ids": types.long(),
    }  # fmt: skip


def close(found: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_batches_of_any_shape_score_as_in_transformers(kind: str, exported: dict[str, Path]) -> None:
    session, model = session_of(exported[kind]), model_of(exported[kind])
    assert {one.name for one in session.get_inputs()} == KINDS[kind]
    assert {tuple(one.shape) for one in session.get_inputs()} == {("batch", "sequence")}
    seen = []
    for seed, lengths in enumerate(SHAPES):
        inputs = drawn(lengths, model.config.pad_token_id, seed)
        with torch.no_grad():
            expected = model(**{name: inputs[name] for name in KINDS[kind]}).logits
        close(scores_of(session, inputs), expected)
        seen.append(expected.flatten())
    assert torch.cat(seen).std() > 1e-2, "a model that scores everything alike proves nothing"


@pytest.mark.parametrize("kind", KINDS)
def test_texts_score_as_in_transformers_alone_and_padded(kind: str, exported: dict[str, Path]) -> None:
    session, model = session_of(exported[kind]), model_of(exported[kind])
    tokenizer = AutoTokenizer.from_pretrained(exported[kind])
    for pairs in (PAIRS, *([pair] for pair in PAIRS)):
        inputs = tokenizer(*map(list, zip(*pairs, strict=True)), padding=True, truncation=True, return_tensors="pt")
        with torch.no_grad():
            close(scores_of(session, inputs), model(**inputs).logits)


@pytest.mark.parametrize("kind", KINDS)
def test_the_directory_with_the_file_loads_as_one_without(kind: str, exported: dict[str, Path]) -> None:
    from sentence_transformers import CrossEncoder

    inputs = AutoTokenizer.from_pretrained(exported[kind])(
        *map(list, zip(*PAIRS, strict=True)), padding=True, truncation=True, return_tensors="pt"
    )
    scores = CrossEncoder(str(exported[kind]), device="cpu").predict(PAIRS, convert_to_tensor=True)
    close(scores_of(session_of(exported[kind]), inputs)[:, 0], scores.cpu())
    file = exported[kind] / "onnx" / "model.onnx"
    assert file.stat().st_mode == (exported[kind] / "model.safetensors").stat().st_mode
    onnx.checker.check_model(file, full_check=True)


def test_the_file_says_nothing_of_the_machine_that_wrote_it(exported: dict[str, Path]) -> None:
    content = (exported["bert"] / "onnx" / "model.onnx").read_bytes()
    assert b"site-packages" not in content
    assert str(exported["bert"]).encode() not in content


def test_the_card_tells_of_the_file_and_its_python_runs(
    exported: dict[str, Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    card = (exported["xlm-roberta"] / "README.md").read_text("utf-8")
    blocks = [part.split("```")[0] for part in card.split("```python")[1:]]
    here = [blocks[0], next(block for block in blocks if "import onnxruntime" in block)]
    monkeypatch.chdir(exported["xlm-roberta"])
    names: dict[str, Any] = {}
    for block in here:
        exec(compile(re.sub(r'^path = ".*?"', 'path = "."', block, flags=re.MULTILINE), "README.md", "exec"), names)
    first, second = ([float(number) for number in re.findall(r"-?\d\.\d+", line)[:2]]
                     for line in capsys.readouterr().out.splitlines() if "[" in line)  # fmt: skip
    assert first == pytest.approx(second, abs=1e-4)


def test_the_file_of_a_model_with_prefixes_scores_what_the_framework_shows_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = run_of("xlm-roberta", tmp_path)
    settings = json.loads((run / "config.json").read_text("utf-8"))
    settings["data"] |= {"query_prefix": "물음: ", "passage_prefix": "글: ", "passage_max_length": 60}
    (run / "config.json").write_text(json.dumps(settings))
    output = export_run(run, onnx=True)
    reranker = Reranker(output, device="cpu")
    shown = onnx_scores(session_of(output), reranker.encode(PAIRS), 1)
    close(torch.from_numpy(shown), torch.from_numpy(reranker.score_pairs(PAIRS)))
    # Whoever follows the card has these scores as well.
    capsys.readouterr()
    blocks = [part.split("```")[0] for part in (output / "README.md").read_text("utf-8").split("```python")[1:]]
    monkeypatch.chdir(output)
    names: dict[str, Any] = {}
    for block in (blocks[0], next(block for block in blocks if "import onnxruntime" in block)):
        exec(compile(re.sub(r'^path = ".*?"', 'path = "."', block, flags=re.MULTILINE), "README.md", "exec"), names)
    expected = reranker.score(names["query"], names["passages"])
    lines = [line for line in capsys.readouterr().out.splitlines() if "[" in line]
    assert len(lines) == 2
    for line in lines:
        assert [float(number) for number in re.findall(r"-?\d\.\d+", line)[:2]] == pytest.approx(expected, abs=1e-4)
    assert expected != pytest.approx(Reranker(without_contract(output, tmp_path)).score(
        names["query"], names["passages"]), abs=1e-3)  # fmt: skip


def without_contract(output: Path, directory: Path) -> Path:
    """The same model, its contract gone."""
    bare = Path(shutil.copytree(output, directory / "bare"))
    config = json.loads((bare / "config.json").read_text("utf-8"))
    del config["reranker"]
    (bare / "config.json").write_text(json.dumps(config))
    return bare


def test_a_line_says_what_was_written_and_an_export_without_leaves_no_old_file(
    runs: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "model"
    command = ["export", f"run={runs['xlm-roberta']}", f"output={output}"]
    told = f"exported best of {runs['xlm-roberta']} to {output} in fp32"
    assert cli.main([*command, "onnx=true"]) == 0
    assert capsys.readouterr() == (f"{told}, with onnx/model.onnx in fp32\n", "")
    assert cli.main(command) == 0
    assert capsys.readouterr() == (f"{told}\n", "")
    assert not (output / "onnx").exists()
    assert "onnx" not in (output / "README.md").read_text("utf-8").lower()


def test_the_file_has_the_rounded_weights_of_the_directory_in_float32(
    runs: dict[str, Path], exported: dict[str, Path], tmp_path: Path
) -> None:
    command = ["export", f"run={runs['xlm-roberta']}", f"output={tmp_path / 'model'}", "onnx=true", "dtype=bf16"]
    assert cli.main(command) == 0
    model, inputs = model_of(tmp_path / "model"), drawn([9, 200], 1, seed=0)
    with torch.no_grad():
        rounded = model(inputs["input_ids"], inputs["attention_mask"]).logits
        whole = model_of(exported["xlm-roberta"])(inputs["input_ids"], inputs["attention_mask"]).logits
    found = scores_of(session_of(tmp_path / "model"), inputs)
    close(found, rounded)
    assert (found - whole).abs().max() > 1e-4


def test_weights_beyond_one_file_lie_beside_it(
    runs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnx_export, "WEIGHTS_IN_THE_FILE", 1000)
    output = export_run(runs["xlm-roberta"], output=tmp_path / "model", onnx=True)
    sizes = {path.name: path.stat().st_size for path in (output / "onnx").iterdir()}
    assert set(sizes) == {"model.onnx", "model.onnx_data"}
    assert sizes["model.onnx_data"] > sizes["model.onnx"] / 2
    assert len({path.stat().st_mode for path in (output / "onnx").iterdir()}) == 1
    inputs = drawn([9, 200], 1, seed=0)
    with torch.no_grad():
        expected = model_of(output)(inputs["input_ids"], inputs["attention_mask"]).logits
    close(scores_of(session_of(output), inputs), expected)


@pytest.mark.parametrize(("off", "refused"), [(5e-5, False), (2e-4, True), (float("nan"), True)])
def test_scores_that_are_not_the_models_leave_nothing_behind(
    off: float, refused: bool, runs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """The exporter is made to write another bias than the model has."""
    whole, name = torch.onnx.export, "classifier.out_proj.bias"

    def faulty(model: Any, **settings: Any) -> Any:
        program = whole(model, **settings)
        assert name in program.model.graph.initializers
        program.apply_weights({name: model.state_dict()[name] + off})
        return program

    monkeypatch.setattr(torch.onnx, "export", faulty)
    output = tmp_path / "model"
    assert cli.main(["export", f"run={runs['xlm-roberta']}", f"output={output}", "onnx=true"]) == (2 if refused else 0)
    assert [path.name for path in tmp_path.iterdir()] == ([] if refused else ["model"])
    said = capsys.readouterr().err
    if refused:
        assert re.fullmatch(
            r"reranker: error: onnx: found scores up to (0\.0002|nan) from the model's \(pairs of 512 tokens\), expected at "
            r"most 0\.0001 in float32; say onnx=false, or try other versions of onnx, onnxscript, onnxruntime\n", said,
        )  # fmt: skip
    else:
        assert said == ""


@pytest.fixture(scope="module")
def judges(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Groups of many passages, some of them alike: none is kept in its order by chance."""
    path = tmp_path_factory.mktemp("judges") / "groups.jsonl"
    words = [*"이다는의을에고하가를", "정렬", "list", "sort()", "tuple", "함수", "반복자"]
    generator = np.random.default_rng(0)
    write_groups(path, [
        Group(" ".join(generator.choice(words, 4)), (" ".join(generator.choice(words, 9)),),
              tuple(" ".join(generator.choice(words, 9)) for _ in range(7))) for _ in range(20)
    ])  # fmt: skip
    return path


@pytest.mark.parametrize("kind", KINDS)
def test_the_8_bit_file_agrees_as_far_as_is_told(
    kind: str, runs: dict[str, Path], judges: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from sentence_transformers.backend.utils import backend_should_export

    output = tmp_path / "model"
    command = ["export", f"run={runs[kind]}", f"output={output}", "onnx=true", f"int8={judges}", "int8_agreement=0.8"]
    assert cli.main(command) == 0
    told = capsys.readouterr()
    assert told.out.splitlines()[0].endswith("with onnx/model.onnx in fp32 and onnx/model_quantized.onnx")
    assert told.err == ""
    files = {name: output / "onnx" / name for name in ("model.onnx", "model_quantized.onnx")}
    graph = onnx.load(files["model_quantized.onnx"]).graph
    assert onnx.TensorProto.INT8 in {weight.data_type for weight in graph.initializer if weight.dims}
    assert [node.input[5] for node in graph.node if node.op_type == "QAttention"] == ["attention_mask_int32"] * 2
    assert "Attention" not in {node.op_type for node in graph.node}
    model, tokenizer = model_of(output), AutoTokenizer.from_pretrained(output)
    session = onnxruntime.InferenceSession(files["model_quantized.onnx"], providers=["CPUExecutionProvider"])
    expected, found = [], []
    for group in read_groups(judges):
        passages = [*group.pos, *group.neg]
        inputs = tokenizer([group.query] * len(passages), passages, padding=True, return_tensors="pt")
        with torch.no_grad():
            expected.append(model(**inputs).logits[:, 0].numpy())
        found.append(scores_of(session, inputs)[:, 0].numpy())
    own = agreement(expected, found)
    assert own.largest > 0
    assert own.order > 0.8
    card = " ".join((output / "README.md").read_text("utf-8").split())
    assert f"{own.order:.1%} of the passages of a query, two by two, in the same order" in card
    assert f"standard deviation is {own.deviation:.2g} ({own.pairs:,} pairs)" in card
    # Where CrossEncoder(path, backend="onnx") looks for both, called as the card says; to load them it wants optimum.
    (told,) = re.findall(r"`model_kwargs=(.+?)`", card)
    for keywords, name in (({}, "model.onnx"), (ast.literal_eval(told), "model_quantized.onnx")):
        exports, place = backend_should_export(output, True, keywords, "model.onnx", "*.onnx", "ONNX")
        assert not exports
        assert output / place["subfolder"] / place["file_name"] == files[name]


def test_an_8_bit_file_that_changes_the_order_more_than_allowed_leaves_nothing_behind(
    runs: dict[str, Path], judges: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["export", f"run={runs['xlm-roberta']}", f"output={tmp_path / 'model'}", "onnx=true", f"int8={judges}"]
    assert cli.main([*command, "int8_agreement=1"]) == 2
    said = capsys.readouterr().err
    assert said.startswith("reranker: error: int8: found a quantised file with ")
    assert said.endswith("expected 100.0% in the same order; say int8=null, or a lower int8_agreement\n")
    assert cli.main([word for word in command if word != "onnx=true"]) == 2
    assert "expected onnx=true beside it" in capsys.readouterr().err
    assert cli.main([*command, "int8=nowhere.jsonl"]) == 2
    assert "nowhere.jsonl: found no such file" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_agreement_counts_order_best_and_distance() -> None:
    one = [np.array([3.0, 1.0, 2.0], np.float32), np.array([0.0, 1.0], np.float32)]
    same = agreement(one, one)
    assert (same.pairs, same.largest, same.order, same.best) == (5, 0.0, 1.0, 1.0)
    turned = agreement(one, [-one[0], one[1]])
    assert (turned.order, turned.best, turned.largest) == (0.25, 0.5, 6.0)
    nothing = agreement(one, [np.full(3, np.nan, np.float32), np.zeros(2, np.float32)])
    assert (nothing.order, nothing.best) == (0.0, 0.0)


def test_a_model_that_cannot_be_exported_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Longformer chooses its way by the values in a mask."""
    config = LongformerConfig(
        vocab_size=300, hidden_size=32, num_hidden_layers=1, num_attention_heads=4, intermediate_size=64, num_labels=1,
        attention_window=16, max_position_embeddings=530,
    )  # fmt: skip
    with pytest.raises(
        UserError, match=r"^onnx: found a model that torch \S+ cannot export \(.+\), expected an encoder"
    ):
        onnx_export.write_onnx(LongformerForSequenceClassification(config).eval(), tmp_path, 48)
    assert capsys.readouterr() == ("", "")

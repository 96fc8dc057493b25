"""Other systems as rows: each scores as its library does when it is called directly, and stands wherever the others do."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from reranker import Reranker
from reranker.config.evaluating import CompareConfig
from reranker.config.models import EvaluateConfig
from reranker.errors import UserError
from reranker.evaluate import others, table
from reranker.evaluate.compare import compare_command
from reranker.evaluate.others import inputs_of_systems, other_systems, read_systems
from reranker.evaluate.report import evaluate_command
from tests.tiny import tiny_model

Inputs = Callable[..., EvaluateConfig]
Score = Callable[[list[tuple[str, str]]], Any]


@pytest.fixture(scope="module")
def third(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A third reranker, as a file in ONNX as well: in float32 and in 8 bits. Pairs are cut to 40 tokens.

    Its decoder is XLM-R's: FlagEmbedding decodes and encodes a text again.
    """
    from onnxruntime.quantization import QuantType, quantize_dynamic
    from tokenizers import decoders
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    from reranker.export.onnx import FILE, quietly, write_onnx
    from reranker.export.quantize import INT8_FILE

    directory = tiny_model(tmp_path_factory.mktemp("systems") / "third", seed=7)
    tokenizer = AutoTokenizer.from_pretrained(directory)
    tokenizer.backend_tokenizer.decoder = decoders.Metaspace(prepend_scheme="always")
    tokenizer.save_pretrained(directory)
    config = json.loads((directory / "config.json").read_text())
    config["reranker"] = {"max_length": 40, "query_max_length": None, "truncation": "longest_first"}
    (directory / "config.json").write_text(json.dumps(config))
    write_onnx(AutoModelForSequenceClassification.from_pretrained(directory).eval(), directory, 40)
    with quietly():
        quantize_dynamic(directory / FILE, directory / INT8_FILE, weight_type=QuantType.QInt8)
    return directory


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An encoder that has no score head."""
    from transformers import AutoModel, AutoTokenizer

    base = tiny_model(tmp_path_factory.mktemp("encoder") / "base")
    AutoModel.from_pretrained(base).save_pretrained(base.parent / "encoder")
    AutoTokenizer.from_pretrained(base).save_pretrained(base.parent / "encoder")
    return base.parent / "encoder"


@pytest.fixture
def evaluate(inputs: Inputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., dict[str, Any]]:
    """Evaluate with these systems: {"rows", "details", "lines", "texts"} of the report."""
    monkeypatch.setattr(table, "draw", lambda rows, details, stream: None)  # takes as long as the scores

    def run(systems: Any, **changes: Any) -> dict[str, Any]:
        evaluate_command(inputs(**{"base": None, "sample": 10, "systems": systems, **changes}))
        report = tmp_path / "report"
        rows, details = (json.loads((report / name).read_text("utf-8")) for name in ("table.json", "details.json"))
        lines, texts = ([json.loads(line) for line in (report / name).read_text("utf-8").splitlines()]
                        for name in ("queries.jsonl", "passages.jsonl"))  # fmt: skip
        return {"rows": rows, "details": details, "lines": lines, "texts": {one["id"]: one["text"] for one in texts}}

    return run


def cross_encoder(third: Path, **settings: Any) -> Score:
    from sentence_transformers import CrossEncoder

    encoder = CrossEncoder(str(third), device="cpu", **settings)
    return lambda pairs: encoder.predict(pairs, show_progress_bar=False)


def flag_reranker(third: Path, **settings: Any) -> Score:
    from FlagEmbedding import FlagReranker

    reranker = FlagReranker(str(third), use_fp16=False, devices="cpu", **settings)
    return reranker.compute_score


def onnx_runtime(third: Path, file: str, length: int) -> Score:
    """Pair by pair, by transformers' tokenizer."""
    import onnxruntime
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(third)
    session = onnxruntime.InferenceSession(third / "onnx" / file, providers=["CPUExecutionProvider"])

    def one(pair: tuple[str, str]) -> float:
        tokens = tokenizer(*pair, truncation="longest_first", max_length=length, return_tensors="np")
        taken = {of.name: tokens[of.name] for of in session.get_inputs()}
        return float(session.run(["logits"], taken)[0][0, 0])

    return lambda pairs: [one(pair) for pair in pairs]


KINDS: dict[str, tuple[dict[str, Any], Callable[[Path], Score]]] = {
    "reranker": ({"kind": "reranker"}, lambda third: Reranker(third, device="cpu").score_pairs),
    "reranker-cut": ({"max_length": 16, "packing": "padded", "batch_tokens": 64},
                     lambda third: Reranker(third, device="cpu", max_length=16, packing="padded").score_pairs),
    "reranker-bf16": ({"precision": "bf16"}, lambda third: Reranker(third, device="cpu", precision="bf16").score_pairs),
    "st": ({"kind": "sentence_transformers"}, lambda third: cross_encoder(third, activation_fn=torch.nn.Identity())),
    "st-own": ({"kind": "sentence_transformers", "activation": "own", "batch_size": 7}, cross_encoder),
    "st-cut": ({"kind": "sentence_transformers", "max_length": 16},
               lambda third: cross_encoder(third, activation_fn=torch.nn.Identity(), max_length=16)),
    "st-bf16": ({"kind": "sentence_transformers", "precision": "bf16"},
                lambda third: cross_encoder(third, activation_fn=torch.nn.Identity(), model_kwargs={"dtype": torch.bfloat16})),
    "flag": ({"kind": "flagembedding"}, flag_reranker),
    "flag-cut": ({"kind": "flagembedding", "max_length": 24, "batch_size": 3}, lambda third: flag_reranker(third, max_length=24)),
    "flag-query": ({"kind": "flagembedding", "max_length": 24, "query_max_length": 4},
                   lambda third: flag_reranker(third, max_length=24, query_max_length=4)),
    "flag-sigmoid": ({"kind": "flagembedding", "normalize": True}, lambda third: flag_reranker(third, normalize=True)),
    "onnx": ({"kind": "onnx"}, lambda third: onnx_runtime(third, "model.onnx", 40)),
    "onnx-cut": ({"kind": "onnx", "max_length": 16, "threads": 1}, lambda third: onnx_runtime(third, "model.onnx", 16)),
    # One pair a batch: what a layer is given is quantised by the whole batch.
    "int8": ({"kind": "onnx", "batch_tokens": 1, "model": "onnx/model_quantized.onnx"},
             lambda third: onnx_runtime(third, "model_quantized.onnx", 40)),
}  # fmt: skip
"""{row: (settings, what scores directly)}."""


def rows_of(third: Path) -> dict[str, Any]:
    return {name: {**given, "model": str(third / given.get("model", ""))} for name, (given, _) in KINDS.items()}


def test_each_kind_scores_as_its_library_does(
    evaluate: Callable[..., dict[str, Any]], third: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = evaluate(rows_of(third))
    pairs = [(line["query"], found["texts"][name]) for line in found["lines"] for name in line["candidates"]]
    scores = {name: np.concatenate([line["scores"][name] for line in found["lines"]]) for name in KINDS}
    assert len(pairs) == 80
    for name, (_, made) in KINDS.items():
        expected = np.asarray(made(third)(pairs), dtype=np.float64)
        # A processor without products in bf16 sums other batches in another order: a step of bf16 at these scores.
        of_rounding = 2**-10 if name.endswith("bf16") else 1e-5
        np.testing.assert_allclose(scores[name], expected, rtol=0, atol=of_rounding, err_msg=name)
        assert expected.std() > 5e-4, "a model that scores everything alike proves nothing"
    # Each setting is one that matters: rows that differ in it differ.
    for one, other in [("reranker", "reranker-cut"), ("reranker", "reranker-bf16"), ("st", "st-own"), ("st", "st-cut"),
                       ("st", "st-bf16"), ("flag", "flag-cut"), ("flag-cut", "flag-query"), ("flag", "flag-sigmoid"),
                       ("onnx", "onnx-cut"), ("onnx", "int8")]:  # fmt: skip
        assert np.abs(scores[one] - scores[other]).max() > 1e-4, (one, other)
    shown = capsys.readouterr()
    assert "accelerator" not in shown.out
    assert "pre tokenize" not in shown.err
    assert "Compute Scores" not in shown.err


def test_libraries_are_given_the_prefixes_that_the_model_was_trained_with(
    evaluate: Callable[..., dict[str, Any]], third: Path, tmp_path: Path
) -> None:
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    from reranker.export.directory import save

    prefixed = tmp_path / "prefixed"
    prefixed.mkdir()
    model = AutoModelForSequenceClassification.from_pretrained(third)
    model.config.reranker |= {"max_length": 120, "query_prefix": "물음: ", "passage_prefix": "글: "}
    save(model, AutoTokenizer.from_pretrained(third), prefixed)
    kinds = {"own": "reranker", "st": "sentence_transformers", "flag": "flagembedding"}
    found = evaluate({name: {"kind": kind, "model": str(prefixed), "max_length": 120} for name, kind in kinds.items()})
    pairs = [
        (f"물음: {line['query']}", f"글: {found['texts'][name]}")
        for line in found["lines"]
        for name in line["candidates"]
    ]
    expected = {"own": Reranker(third, device="cpu", max_length=120).score_pairs(pairs),
                "st": cross_encoder(third, activation_fn=torch.nn.Identity(), max_length=120)(pairs),
                "flag": flag_reranker(third, max_length=120)(pairs)}  # fmt: skip
    for name in kinds:
        scores = np.concatenate([line["scores"][name] for line in found["lines"]])
        np.testing.assert_allclose(
            scores, np.asarray(expected[name], dtype=np.float64), rtol=0, atol=1e-5, err_msg=name
        )


def test_other_systems_stand_wherever_the_own_ones_do(
    evaluate: Callable[..., dict[str, Any]],
    third: Path,
    models: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    systems = {"same": str(models / "base"),
               "st-third": {"kind": "sentence_transformers", "model": str(third), "max_length": 40},
               "onnx-third": {"kind": "onnx", "model": str(third)}}  # fmt: skip
    found = evaluate(systems, base=str(models / "base"), latency=2)
    names = ["without-reranker", "base", "fine-tuned", "fused", *systems]
    rows = {row["system"]: row for row in found["rows"]}
    assert list(rows) == names
    assert {name: value for name, value in rows["same"].items() if name not in ("system", "latency")} == {
        name: value for name, value in rows["base"].items() if name not in ("system", "latency")
    }
    assert [name for name in rows if "latency" in rows[name]] == ["base", "fine-tuned", *systems]
    for line in found["lines"]:
        assert list(line["order"]) == list(line["metrics"]) == names
        assert line["scores"]["same"] == line["scores"]["base"]
    differences = [(row["system"], row["minus"]) for row in found["details"]["differences"]]
    assert differences[3:] == [("fine-tuned", name) for name in systems]
    report = tmp_path / "report"
    told = f"st-third: {third} by sentence-transformers {version('sentence-transformers')}, fp32 (cpu), at most 40 tokens a pair."
    for file in ("table.md", "report.html"):
        text = (report / file).read_text("utf-8")
        assert told in text
        assert f"onnx-third: {third}/onnx/model.onnx, onnxruntime" in text
    capsys.readouterr()
    assert (
        compare_command(CompareConfig(f"{report}:st-third", f"{report}:onnx-third", permutations=100, resamples=100))
        == 0
    )
    assert "10 queries: 0 won by A, 10 tied, 0 lost" in capsys.readouterr().out
    found = evaluate(systems, base=str(models / "base"), baseline="same")
    assert {row["minus"] for row in found["details"]["differences"]} == {"same"}
    assert "same:" not in capsys.readouterr().err  # not scored once more


def test_the_real_table_fits_a_terminal_and_its_figure_has_every_row(
    inputs: Inputs, models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name = "a-reranker-with-a-name-that-is-longer-than-a-column"
    evaluate_command(inputs(sample=4, systems={name: str(models / "base")}))
    shown = capsys.readouterr().out
    assert "…" not in shown
    assert max(map(len, shown.splitlines()[:-1])) <= 80
    assert name[:15] in shown
    assert (tmp_path / "report/table.png").read_bytes().startswith(b"\x89PNG")


def identities(inputs: Inputs, systems: dict[str, Any], **changes: Any) -> dict[str, Any]:
    config = inputs(systems=systems, **changes)
    named = read_systems(config)
    return {one.name: one.identity for one in other_systems(named, config, "cpu", inputs_of_systems(named, {}))}


CHANGES: list[tuple[str, dict[str, Any]]] = [
    ("reranker", {"max_length": 30}), ("reranker", {"packing": "padded"}), ("reranker", {"precision": "bf16"}),
    ("st", {"max_length": 30}), ("st", {"batch_size": 4}), ("st", {"activation": "own"}), ("st", {"precision": "bf16"}),
    ("st", {"trust_remote_code": True}), ("flag", {"max_length": 30}), ("flag", {"query_max_length": 9}),
    ("flag", {"batch_size": 4}), ("flag", {"normalize": True}), ("onnx", {"max_length": 30}),
    ("onnx", {"batch_tokens": 64}), ("onnx", {"threads": 1}),
]  # fmt: skip


def test_scores_are_kept_for_the_same_settings_files_and_versions_alone(
    inputs: Inputs, third: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tmp_path / "model"
    shutil.copytree(third, model)
    base = {name: rows_of(model)[name] for name in ("reranker", "st", "flag", "onnx")}
    before = identities(inputs, base)
    assert identities(inputs, base, depth=5, metrics=["map"], base=None) == before
    for name, change in CHANGES:
        after = identities(inputs, base | {name: base[name] | change})
        assert [one for one in before if after[one] != before[one]] == [name], (name, change)
    assert all(after != before[name] for name, after in identities(inputs, base, max_length=30).items())
    for package, wanted in [("sentence-transformers", {"st"}), ("FlagEmbedding", {"flag"}), ("onnxruntime", {"onnx"}),
                            ("transformers", {"reranker", "st", "flag"})]:  # fmt: skip
        with monkeypatch.context() as elsewhere:
            elsewhere.setattr(
                others, "version", lambda name, other=package: "other" if name == other else version(name)
            )
            after = identities(inputs, base)
        assert {name for name in before if after[name] != before[name]} == wanted, package
    shutil.copytree(model, tmp_path / "copy")
    assert [
        one["files"] for one in identities(inputs, {"st": base["st"] | {"model": str(tmp_path / "copy")}}).values()
    ] == [before["st"]["files"]]
    (model / "onnx" / "model.onnx_data").write_bytes(b"weights beside the file")
    after = identities(inputs, base)
    assert {name for name in before if after[name] != before[name]} == {"onnx"}
    tiny_model(model, seed=8)
    after = identities(inputs, base)
    assert {name for name in before if after[name] != before[name]} == {"reranker", "st", "flag", "onnx"}


def test_a_changed_setting_scores_that_system_again_and_no_other(
    evaluate: Callable[..., dict[str, Any]], third: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    systems = {"third": str(third), "st": {"kind": "sentence_transformers", "model": str(third)}}

    def scored(**changes: Any) -> list[str]:
        capsys.readouterr()
        evaluate(systems, **changes)
        shown = capsys.readouterr()
        return ["saved"] if "inputs unchanged" in shown.out else [
            name for name in ("fine-tuned", "third", "st", "again") if f"{name}: " in shown.err
        ]  # fmt: skip

    assert scored() == ["fine-tuned", "third", "st"]
    assert scored() == ["saved"]
    assert scored(metrics=["map"]) == []
    systems["st"]["max_length"] = 24  # type: ignore[index]
    assert scored() == ["st"]
    assert scored() == ["saved"]
    del systems["third"]
    assert scored() == []
    systems["again"] = str(third)
    assert scored() == ["again"]


def test_systems_can_be_a_yaml_file(inputs: Inputs, third: Path, tmp_path: Path) -> None:
    path = tmp_path / "systems.yaml"
    path.write_text(yaml.safe_dump({"a": str(third), "b": {"kind": "onnx", "model": str(third)}}))
    assert list(identities(inputs, str(path))) == ["a", "b"]  # type: ignore[arg-type]


MISTAKES: dict[str, tuple[Any, str]] = {
    "reserved": ({"base": "third"}, "systems: found a system called base, expected another name than without-reranker, base, fine-tuned, fused; call it otherwise"),
    "name": ({"a/b": "third"}, "systems: found a system called 'a/b', expected a name of letters, digits, -, _ and .; call it otherwise"),
    "none": ({}, "systems: found {}, expected {name: {model: ...}, ...}; name each system"),
    "kind": ({"a": {"kind": "coher", "model": "m"}}, "systems.a.kind: found 'coher', expected one of reranker, sentence_transformers, flagembedding, cohere, onnx; did you mean cohere?"),
    "model": ({"a": {"kind": "onnx"}}, "systems.a.model: found no value, expected a model; say systems.a.model=..."),
    "entry": ({"a": 3}, "systems.a: found 3, expected a model, or {kind: ..., model: ...}; write one"),
    "key": ({"a": {"model": "third", "batch_size": 3}}, "systems.a.batch_size: found Key 'batch_size' not in 'ForwardConfig', expected one of the keys kind, model, max_length, batch_tokens, packing, precision, device; did you mean batch_tokens?"),
    "value": ({"a": {"kind": "flagembedding", "model": "third", "batch_size": 0}}, "systems.a.batch_size: found 0, expected 1 or more; change the value"),
    "file": ("nowhere.yaml", "systems: found nowhere.yaml, which cannot be read ([Errno 2] No such file or directory: 'nowhere.yaml'), expected a yaml file of systems; check the path"),
    "path": ({"a": "./nowhere"}, "systems.a.model: found ./nowhere, which does not exist, expected a Hugging Face model directory or hub name; check the path"),
    "hub": ({"a": {"kind": "sentence_transformers", "model": "nobody/nothing"}}, "systems.a.model: found nobody/nothing, which cannot be found (REASON), expected a Hugging Face model directory or hub name; check the name and the network"),
    "directory": ({"a": {"kind": "flagembedding", "model": "."}}, "systems.a.model: found ., a directory without config.json, expected a Hugging Face model directory; check the path"),
    "onnx": ({"a": {"kind": "onnx", "model": "encoder"}}, "systems.a.model: found encoder/onnx/model.onnx, which does not exist, expected an ONNX file, or a directory with onnx/model.onnx; check the path, or export with onnx=true"),
    "onnx alone": ({"a": {"kind": "onnx", "model": "alone/bad.onnx"}}, "systems.a.tokenizer: found no value, and no config.json beside alone/bad.onnx, expected a tokenizer with its config; say systems.a.tokenizer=DIR"),
    "onnx torn": ({"a": {"kind": "onnx", "model": "alone/bad.onnx", "tokenizer": "third"}}, "systems.a.model: found alone/bad.onnx, which onnxruntime VERSION cannot run (REASON), expected an ONNX file; export it again"),
    "head": ({"a": "encoder"}, "systems.a.model: found encoder, an encoder without a score head, expected a trained reranker; train it first, or name an exported model"),
    "st head": ({"a": {"kind": "sentence_transformers", "model": "encoder"}}, "systems.a.model: found encoder, an encoder without a score head (XLMRobertaModel), expected a trained reranker; name another model"),
    "flag head": ({"a": {"kind": "flagembedding", "model": "two"}}, "systems.a.model: found two, which gives 2 numbers a pair, expected a reranker, which gives one; name another model"),
    "labels": ({"a": {"kind": "sentence_transformers", "model": "two"}}, "systems.a.model: found two, which gives 2 numbers a pair, expected a reranker, which gives one; name another model"),
    "flag bf16": ({"a": {"kind": "flagembedding", "model": "third", "precision": "bf16"}}, "systems.a.precision: found bf16, expected fp32 or fp16, which FlagReranker has; say one of them"),
    "fp16": ({"a": {"kind": "sentence_transformers", "model": "third", "precision": "fp16"}}, "systems.a.precision: found fp16 on a CPU, expected fp32, bf16 or auto; say precision=fp32"),
    "gpu": ({"a": {"model": "third", "device": "cuda"}}, "systems.a.device: found cuda, but no GPU that torch can use, expected cpu or auto; say device=auto"),
    "length": ({"a": {"model": "third", "max_length": 900}}, "systems.a.max_length: found 900, expected 8 or more and at most 512, the model's positions; change the value"),
    "onnx length": ({"a": {"kind": "onnx", "model": "third", "max_length": 900}}, "systems.a.max_length: found 900, expected 8 or more and at most 512, the model's positions; change the value"),
    "url": ({"a": {"kind": "cohere", "model": "m", "base_url": "https://me:secret@host"}}, "systems.a.base_url: found another form, expected https://HOST, without user, password and query; change the value"),
    "timeout": ({"a": {"kind": "cohere", "model": "m", "timeout": 0}}, "systems.a.timeout: found 0.0, expected seconds above 0; change the value"),
    "pieces": ({"a": {"kind": "flagembedding", "model": "bare"}}, "systems.a.model: found bare without the files of its tokenizer, expected a tokenizer.json beside the weights; save the tokenizer there as well"),
    "st pieces": ({"a": {"kind": "sentence_transformers", "model": "bare"}}, "systems.a.model: found bare without the files of its tokenizer, expected a tokenizer.json beside the weights; save the tokenizer there as well"),
    "flag short": ({"a": {"kind": "flagembedding", "model": "third", "max_length": 8}}, "third: found pairs that FlagEmbedding does not score (REASON), expected scores; change max_length or batch_size"),
    "baseline": ({"b": "third"}, "baseline: found a, expected one of without-reranker, fine-tuned, fused, b; choose one, or leave it out"),
}  # fmt: skip


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_wrong_system_is_one_line_that_says_what_to_do(
    evaluate: Callable[..., dict[str, Any]], third: Path, encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    mistake: str,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    (tmp_path / "third").symlink_to(third)
    (tmp_path / "encoder").symlink_to(encoder)
    if "two" in str(MISTAKES[mistake]):
        tiny_model(tmp_path / "two", labels=2)
    if "bare" in str(MISTAKES[mistake]):
        shutil.copytree(third, tmp_path / "bare", ignore=shutil.ignore_patterns("tokenizer*"))
    (tmp_path / "alone").mkdir()
    (tmp_path / "alone" / "bad.onnx").write_bytes(b"no ONNX")
    given, message = MISTAKES[mistake]
    with pytest.raises(UserError) as caught:
        evaluate(given, baseline="a" if mistake == "baseline" else None)
    start, _, end = message.replace("VERSION", version("onnxruntime")).partition("(REASON)")
    assert str(caught.value).startswith(start)
    assert str(caught.value).endswith(end)
    assert "REASON" in message or str(caught.value) == message
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("kind", "package", "extra"),
    [("sentence_transformers", "sentence-transformers", "systems"), ("flagembedding", "FlagEmbedding", "flagembedding"),
     ("cohere", "cohere", "systems"), ("onnx", "onnxruntime", "systems")],
)  # fmt: skip
def test_a_package_that_is_missing_is_told_with_its_extra_before_anything_is_scored(
    evaluate: Callable[..., dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, package: str,
    extra: str,
) -> None:  # fmt: skip
    def without(name: str) -> str:
        if name == package:
            raise PackageNotFoundError(name)
        return version(name)

    monkeypatch.setattr(others, "version", without)
    with pytest.raises(UserError) as caught:
        evaluate({"a": {"kind": kind, "model": "some/model"}})
    assert str(caught.value) == (
        f"systems.a.kind: found no {package}, expected the package that kind={kind} needs; pip install 'ko-reranker[{extra}]'"
    )
    assert not (tmp_path / "report").exists()


def test_the_python_of_a_model_is_run_only_where_that_is_said(
    evaluate: Callable[..., dict[str, Any]], third: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import dynamic_module_utils

    monkeypatch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    foreign, marker = tmp_path / "foreign", tmp_path / "was-run"
    shutil.copytree(third, foreign)
    (foreign / "own.py").write_text(
        f"open({str(marker)!r}, 'w').close()\n"
        "from transformers import XLMRobertaConfig, XLMRobertaForSequenceClassification\n"
        "class OwnConfig(XLMRobertaConfig):\n    model_type = 'own-thing'\n"
        "class OwnForSequenceClassification(XLMRobertaForSequenceClassification):\n    config_class = OwnConfig\n"
    )
    config = json.loads((foreign / "config.json").read_text())
    config |= {"model_type": "own-thing", "architectures": ["OwnForSequenceClassification"],
               "auto_map": {"AutoConfig": "own.OwnConfig",
                            "AutoModelForSequenceClassification": "own.OwnForSequenceClassification"}}  # fmt: skip
    (foreign / "config.json").write_text(json.dumps(config))
    for kind in ("sentence_transformers", "flagembedding"):
        with pytest.raises(
            UserError,
            match=r"^systems\.a\.model: found .+, which .+ does not load \(.+custom code.+by trust_remote_code=true$",
        ):
            evaluate({"a": {"kind": kind, "model": str(foreign)}})
        assert not marker.exists()
    with pytest.raises(UserError, match=r"^systems\.a\.model: found .+, which cannot be loaded \(.+custom code"):
        evaluate({"a": str(foreign)})
    assert not marker.exists()
    found = evaluate({
        "a": {"kind": "sentence_transformers", "model": str(foreign), "trust_remote_code": True},
        "b": {"kind": "sentence_transformers", "model": str(third)},
    })  # fmt: skip
    assert marker.exists()
    assert all(line["scores"]["a"] == line["scores"]["b"] for line in found["lines"])


def test_a_hub_name_is_another_model_with_another_commit(
    inputs: Inputs, third: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    repository = tmp_path / "hub" / "models--some--reranker"
    (repository / "refs").mkdir(parents=True)
    found = []
    for commit in ("a" * 40, "b" * 40):
        shutil.copytree(third, repository / "snapshots" / commit)
        (repository / "refs" / "main").write_text(commit)
        found.append(
            identities(inputs, {"a": {"kind": "sentence_transformers", "model": "some/reranker"}})["a"]["files"]
        )
        assert identities(inputs, {"a": "some/reranker"})["a"]["files"] == found[-1]
    assert found[0] != found[1]

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from reranker import __version__
from reranker.config.common import Device, LongPassages, Precision
from reranker.config.models import EvaluateConfig
from reranker.errors import UserError
from reranker.evaluate import report, table
from reranker.evaluate.report import FILES, evaluate_command
from tests.tiny import tiny_model


def test_the_table_holds_the_systems_with_their_metrics_and_intervals(
    inputs: Callable[..., EvaluateConfig], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert evaluate_command(inputs()) == 0
    rows = json.loads((tmp_path / "report/table.json").read_text())
    assert [row["system"] for row in rows] == ["without-reranker", "base", "fine-tuned", "fused"]
    for row in rows:
        assert row["queries"] == 32
        for metric in ("has_right_in_contexts", "mrr", "ndcg@10"):
            assert 0 <= row[metric]["low"] <= row[metric]["value"] <= row[metric]["high"] <= 1
    # Every query shares all its words with the right passage alone.
    assert rows[0]["mrr"]["value"] == 1
    assert rows[2]["mrr"]["value"] < 1  # random weights

    details = json.loads((tmp_path / "report/details.json").read_text())
    assert [(row["system"], row["minus"]) for row in details["differences"]] == [
        ("fine-tuned", "base"), ("fine-tuned", "without-reranker"), ("fused", "without-reranker"),
    ]  # fmt: skip
    difference = details["differences"][0]["mrr"]
    assert difference["value"] == pytest.approx(rows[2]["mrr"]["value"] - rows[1]["mrr"]["value"])
    assert difference["low"] <= difference["value"] <= difference["high"]
    assert (details["clusters"], details["passages"], details["right_within_depth"]) == (8, 32, 1)

    lines = [json.loads(line) for line in (tmp_path / "report/queries.jsonl").read_text().splitlines()]
    assert len(lines) == 32
    ranks = [line["ranks"]["fine-tuned"] for line in lines]
    assert sum(1 / rank for rank in ranks) / 32 == pytest.approx(rows[2]["mrr"]["value"])

    markdown = (tmp_path / "report/table.md").read_text()
    assert f"| fine-tuned | {rows[2]['has_right_in_contexts']['value']:.3f} [" in markdown
    assert "32 queries, 32 passages; first stage BM25 (words, k1=0.9, b=0.4), depth 8, 3 contexts" in markdown
    assert "Scored in fp32 (cpu)." in markdown
    assert (tmp_path / "report/table.png").read_bytes().startswith(b"\x89PNG")
    printed = capsys.readouterr().out
    assert "…" not in printed, "a cell that did not fit into the 80 columns of the terminal"
    assert "has-right-in-contexts" in printed
    for row in rows:
        cells = [f"{row[metric]['value']:.3f}" for metric in ("has_right_in_contexts", "mrr", "ndcg@10")]
        assert [row["system"], *cells] in [line.split() for line in printed.splitlines()]
    assert "Scored in fp32 (cpu)." in " ".join(printed.split())


def test_unchanged_inputs_show_the_saved_table_and_changed_ones_do_not(
    inputs: Callable[..., EvaluateConfig], models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    shutil.copytree(models / "tuned", tmp_path / "model")
    config = inputs(model=str(tmp_path / "model"))

    def again(**changes: Any) -> bool:
        evaluate_command(inputs(model=str(tmp_path / "model"), **changes))
        return "inputs unchanged" not in capsys.readouterr().out

    evaluate_command(config)
    first = {name: (tmp_path / "report" / name).read_bytes() for name in FILES[:-1]}
    capsys.readouterr()
    assert not again()
    assert again(force=True)
    assert {name: (tmp_path / "report" / name).read_bytes() for name in FILES[:-1]} == first
    monkeypatch.setattr(table, "draw", lambda rows, details, stream: None)  # takes as long as the scores
    assert not again(batch_tokens=64)  # changes nothing but the speed
    assert again(depth=5)
    assert again(depth=5, long=LongPassages.windows)
    assert again(depth=5, long=LongPassages.windows, window_overlap=5)
    assert again(depth=5, long=LongPassages.windows, window_overlap=5, window_best=2)
    assert again(depth=5)
    assert not again(depth=5, window_overlap=7)  # without windows it means nothing
    assert again()
    (tmp_path / "report/table.md").unlink()
    assert again()
    tiny_model(tmp_path / "model", seed=5)
    assert again()
    assert json.loads((tmp_path / "report/table.json").read_text())[2] != json.loads(first["table.json"])[2]
    with (tmp_path / "queries.jsonl").open("a") as stream:
        stream.write('{"qid": "new", "query": "소리", "pos": "소리-열기"}\n')
    assert again()


def test_an_interrupted_evaluation_keeps_the_scores_it_had_and_leaves_no_report(
    inputs: Callable[..., EvaluateConfig], models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(models / "tuned", broken)
    weights = load_file(broken / "model.safetensors")
    weights["classifier.out_proj.bias"].fill_(float("nan"))
    save_file(weights, broken / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match="scores that are not finite"):
        evaluate_command(inputs(model=str(broken)))
    assert [path.name for path in (tmp_path / "report").iterdir()] == ["scores"]
    shown = capsys.readouterr().err
    assert "base:" in shown
    evaluate_command(inputs())
    shown = capsys.readouterr().err
    assert "fine-tuned:" in shown
    assert "base:" not in shown  # not scored a second time


def test_scores_of_another_version_device_or_precision_are_not_taken_over(
    inputs: Callable[..., EvaluateConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setattr(table, "draw", lambda rows, details, stream: None)  # takes as long as the scores

    def scored(**changes: Any) -> list[str]:
        capsys.readouterr()
        evaluate_command(inputs(sample=4, device=Device.cpu, **changes))
        shown = capsys.readouterr().err
        return [system for system in ("base", "fine-tuned") if f"{system}:" in shown]

    assert scored() == ["base", "fine-tuned"]
    here = json.loads((tmp_path / "report/details.json").read_text())["environment"]
    assert here == {"device": "cpu", "precision": "fp32", "packing": "auto", "reranker": __version__,
                    "torch": version("torch"), "transformers": version("transformers")}  # fmt: skip
    with monkeypatch.context() as elsewhere:
        other: dict[str, str] = {}
        elsewhere.setattr(report, "environment_of", lambda config: here | other)
        for changed in here:
            # The report of another machine or installation, with all else equal to the one before.
            other[changed] = "other"
            assert scored() == ["base", "fine-tuned"], changed
    assert scored() == ["base", "fine-tuned"]
    assert scored(precision=Precision.fp32) == []  # what auto means here
    (tmp_path / "report/details.json").unlink()
    assert scored() == []
    both = ["base", "fine-tuned"]
    windows: dict[str, Any] = {"long": LongPassages.windows, "max_length": 12}
    assert scored(max_length=12) == both
    for changed in ({}, {"window_overlap": 3}, {"window_overlap": 3, "window_best": 2}):
        assert scored(**windows, **changed) == both, "scores of other windows"
        assert scored(**windows, **changed) == []
    assert (
        ", at most 12 tokens a pair, longer passages by their best 2 windows (overlap 3)."
        in (tmp_path / "report/table.md").read_text()
    )
    assert scored() == both
    assert scored(precision=Precision.bf16) == ["base", "fine-tuned"]
    assert "Scored in bf16 (cpu)." in (tmp_path / "report/table.md").read_text()


def test_without_a_base_the_table_has_no_such_row(
    inputs: Callable[..., EvaluateConfig], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    evaluate_command(inputs(base=None, sample=10, output=None))
    printed = capsys.readouterr().out
    assert "10 queries" in printed
    assert "fine-tuned minus" in printed
    assert "base" not in printed
    assert not (tmp_path / "report").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"depth": 0}, "depth: found 0, expected 1 or more; change the value"),
        ({"contexts": 9}, "contexts: found 9, expected at most depth=8; raise depth or lower it"),
        ({"resamples": 5}, "resamples: found 5, expected 100 or more; change the value"),
        ({"corpus": "no/such.jsonl"},
         "corpus: found no/such.jsonl, which does not exist, expected a file; check the path"),
        ({"model": "no/such/model"},
         "model: found no/such/model, which does not exist, expected a Hugging Face model directory or hub name; "
         "check the path"),
    ],
)  # fmt: skip
def test_what_cannot_be_evaluated_is_refused_at_once(
    inputs: Callable[..., EvaluateConfig], changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError) as caught:
        evaluate_command(inputs(**changes))
    assert str(caught.value) == message
    assert not (tmp_path / "report").exists()


def test_a_report_does_not_overwrite_its_own_queries(inputs: Callable[..., EvaluateConfig], tmp_path: Path) -> None:
    before = (tmp_path / "queries.jsonl").read_bytes()
    with pytest.raises(UserError, match="which would overwrite queries="):
        evaluate_command(inputs(output=str(tmp_path)))
    assert (tmp_path / "queries.jsonl").read_bytes() == before


@pytest.mark.parametrize(
    "kept", [[1], {"inputs": {"model": "x"}}, {"inputs": {"model": {"files": {"a": 1}}}}, {"inputs": [1]}]
)
def test_a_file_of_another_form_is_no_report(inputs: Callable[..., EvaluateConfig], tmp_path: Path, kept: Any) -> None:
    (tmp_path / "report").mkdir(exist_ok=True)
    (tmp_path / "report" / "details.json").write_text(json.dumps(kept))
    assert evaluate_command(inputs()) == 0
    assert "fingerprint" in json.loads((tmp_path / "report" / "details.json").read_text())

from __future__ import annotations

import io
import json
import math
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from reranker import Reranker
from reranker.config.common import Precision
from reranker.config.models import ScoreConfig
from reranker.data.tokenize import CONFIG_KEY
from reranker.errors import UserError
from reranker.model.reranker import batches_by_tokens, normalize
from reranker.model.score import score_command
from tests.tiny import tiny_model

PASSAGES = [f"{'글을 쓰는 방법 ' * (1 + (7 * number) % 12)}{number}" for number in range(20)]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("model") / "tiny")


def _command(monkeypatch: pytest.MonkeyPatch, model: Path, text: str, **settings: Any) -> int:
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(text.encode())))
    return score_command(ScoreConfig(model=str(model), **settings))


def test_scores_are_the_models_logits_in_the_order_of_the_passages(model: Path) -> None:
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    stock = AutoModelForSequenceClassification.from_pretrained(model).eval()
    tokenizer = AutoTokenizer.from_pretrained(model)
    with torch.no_grad():
        expected = [float(stock(**tokenizer("글쓰기", text, return_tensors="pt")).logits) for text in PASSAGES]
    assert Reranker(model).score("글쓰기", PASSAGES) == pytest.approx(expected, abs=1e-6)


def test_batching_changes_nothing_but_rounding(model: Path) -> None:
    pairs = [(f"질문 {number // 4}", passage) for number, passage in enumerate(PASSAGES)]
    alone = Reranker(model, batch_tokens=1).score_pairs(pairs)
    together = Reranker(model, batch_tokens=100_000).score_pairs(pairs)
    assert alone.dtype == np.float32
    assert together == pytest.approx(alone, abs=1e-6)
    assert Reranker(model, batch_tokens=300).score_pairs(pairs[::-1])[::-1] == pytest.approx(alone, abs=1e-6)


def test_batches_hold_every_pair_once_and_no_more_tokens_than_allowed() -> None:
    lengths = [5, 90, 3, 40, 41, 200, 7, 40]
    batches = batches_by_tokens(lengths, 100, packed=False)
    assert sorted(index for batch in batches for index in batch) == list(range(len(lengths)))
    assert batches[0] == [5]  # longer than allowed: a batch of its own
    assert all(len(batch) * max(lengths[index] for index in batch) <= 100 for batch in batches[1:])


def test_rerank_puts_the_best_first_and_among_equals_the_earlier(model: Path) -> None:
    ranked = Reranker(model).rerank("글쓰기", [*PASSAGES[:5], PASSAGES[0]])
    assert [entry.score for entry in ranked] == sorted((entry.score for entry in ranked), reverse=True)
    assert sum(entry.probability for entry in ranked) == pytest.approx(1)
    places = [entry.index for entry in ranked]
    assert places.index(0) + 1 == places.index(5)
    assert all(entry.passage == [*PASSAGES[:5], PASSAGES[0]][entry.index] for entry in ranked)


def test_probabilities_are_the_exponentials_over_their_sum() -> None:
    assert normalize([1.0, 3.0]) == pytest.approx([1 / (1 + math.e**2), 1 / (1 + math.e**-2)])
    assert normalize([1e4, 0.0]) == [1, 0]
    assert normalize([-1e4, -1e4]) == [0.5, 0.5]
    assert normalize([]) == []


def test_progress_counts_every_pair(model: Path) -> None:
    counted: list[int] = []
    Reranker(model, batch_tokens=100).score_pairs([("질문", passage) for passage in PASSAGES], progress=counted.append)
    assert sum(counted) == len(PASSAGES)
    assert len(counted) > 1


def test_the_truncation_contract_in_the_model_is_kept(tmp_path: Path) -> None:
    path = tiny_model(tmp_path / "tiny")
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(
        json.dumps(config | {CONFIG_KEY: {"max_length": 16, "truncation": "only_second"}})
    )
    short, long = "글", "글을 쓰는 방법 " * 10
    as_stored, longer = Reranker(path), Reranker(path, max_length=64)
    cut = as_stored.score("문", [long, long + "더", short])
    whole = longer.score("문", [long, long + "더", short])
    assert cut[0] == pytest.approx(cut[1], abs=1e-6)  # what differs lies behind the cut
    assert whole[0] != pytest.approx(cut[0], abs=1e-3)
    assert whole[2] == pytest.approx(cut[2], abs=1e-6)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"precision": "fp16", "device": "cpu"},
         "precision: found fp16 on a CPU, expected fp32, bf16 or auto; say precision=fp32"),
        ({"precision": "int8"}, "precision: found int8, expected one of auto, fp16, bf16, fp32; change the value"),
        ({"max_length": 600},
         "max_length: found 600, expected 8 or more and at most 512, the model's positions; change the value"),
        ({"max_length": 0},
         "max_length: found 0, expected 8 or more and at most 512, the model's positions; change the value"),
        ({"batch_tokens": 0}, "batch_tokens: found 0, expected 1 or more; change the value"),
    ],
)  # fmt: skip
def test_settings_that_cannot_be_met_are_refused(model: Path, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as caught:
        Reranker(model, **settings)
    assert str(caught.value) == message


def test_bf16_scores_nearly_alike(model: Path) -> None:
    exact, near = Reranker(model).score("질문", PASSAGES), Reranker(model, precision="bf16").score("질문", PASSAGES)
    assert near == pytest.approx(exact, abs=0.05)


def test_a_passage_in_place_of_a_list_is_refused(model: Path) -> None:
    with pytest.raises(UserError, match="found a string 'text', expected a list of strings"):
        Reranker(model).score("질문", "text")


def test_a_score_that_is_not_a_number_does_not_pass(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    path = tiny_model(tmp_path / "broken")
    weights = load_file(path / "model.safetensors")
    weights["classifier.out_proj.bias"].fill_(float("nan"))
    save_file(weights, path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match="found 2 scores that are not finite"):
        Reranker(path).score("질문", ["a", "b"])


def test_an_encoder_without_a_head_is_no_reranker(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    path = tiny_model(tmp_path / "encoder")
    weights = load_file(path / "model.safetensors")
    kept = {name: weight for name, weight in weights.items() if not name.startswith("classifier")}
    save_file(kept, path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match="an encoder without a score head, expected a trained reranker"):
        Reranker(path)


def test_answers_come_in_the_order_of_the_requests_with_probabilities_that_sum_to_one(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    requests = [{"query": f"질문 {number}", "passages": PASSAGES[: number + 1]} for number in range(5)]
    text = "\n".join(json.dumps(request, ensure_ascii=False) for request in requests) + "\n\n"
    assert _command(monkeypatch, model, text) == 0
    answers = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [answer["query"] for answer in answers] == [request["query"] for request in requests]
    assert [list(answer) for answer in answers] == [["query", "scores", "probabilities"]] * 5
    assert [sum(answer["probabilities"]) for answer in answers] == pytest.approx([1] * 5)
    reranker = Reranker(model)
    for request, answer in zip(requests, answers, strict=True):
        assert answer["scores"] == pytest.approx(reranker.score(request["query"], request["passages"]), abs=1e-6)

    (tmp_path / "requests.jsonl").write_text(text)
    written = tmp_path / "answers.jsonl"
    score_command(ScoreConfig(model=str(model), input=str(tmp_path / "requests.jsonl"), output=str(written)))
    again = [json.loads(line) for line in written.read_text().splitlines()]
    assert [answer["query"] for answer in again] == [answer["query"] for answer in answers]
    for first, second in zip(answers, again, strict=True):
        assert first["scores"] == pytest.approx(second["scores"], abs=1e-6)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"query": "q", "passages": "text"}',
         ":2: found \"passages\" a string 'text', expected a list of strings; write \"passages\": [\"...\"]"),
        ('{"query": "q", "passage": ["t"]}',
         ":2: found keys ['passage', 'query'], expected a key \"passages\"; rename \"passage\" to \"passages\""),
        ('{"query": "q", "passages": []}',
         ':2: found an empty "passages" list, expected at least one passage; add a passage or leave it out'),
        ('{"query": "q", "passages": ["t", 5]}',
         ":2: found \"passages\"[1] a number '5', expected a string; write it as text"),
        ('{"query": null, "passages": ["t"]}',
         ":2: found \"query\" a null 'None', expected a string; write it as text"),
        ('["q", "t"]',
         ":2: found a list \"['q', 't']\", expected a JSON object; "
         "write {\"query\": \"...\", \"passages\": [\"...\"]}"),
        ('{"query": "q", ',
         ":2: found '{\"query\": \"q\",' (Expecting property name enclosed in double quotes at column 15), "
         "expected one JSON value a line; write each record on one line of its own"),
    ],
)  # fmt: skip
def test_the_first_wrong_line_is_named_and_a_file_of_answers_is_whole_or_absent(
    line: str, message: str, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    text = '{"query": "q", "passages": ["t"]}\n' + line + "\n"
    with pytest.raises(UserError) as caught:
        _command(monkeypatch, model, text)
    assert str(caught.value) == "<stdin>" + message
    assert len(capsys.readouterr().out.splitlines()) == 1  # the request before it is answered

    requests, answers = tmp_path / "requests.jsonl", tmp_path / "answers.jsonl"
    requests.write_text(text)
    with pytest.raises(UserError) as caught:
        score_command(ScoreConfig(model=str(model), input=str(requests), output=str(answers)))
    assert str(caught.value) == f"{requests}{message}"
    assert list(tmp_path.iterdir()) == [requests]


def test_fp16_on_a_cpu_is_refused_by_the_command(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(UserError, match="precision: found fp16 on a CPU"):
        _command(monkeypatch, model, "", precision=Precision.fp16)


def test_the_console_command_answers_each_request_before_the_next_one_comes(model: Path) -> None:
    command = [sys.executable, "-m", "reranker", "score", f"model={model}"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdin
        assert process.stdout
        assert process.stderr
        for query in ("첫째", "둘째"):
            process.stdin.write(json.dumps({"query": query, "passages": ["가", "나"]}).encode() + b"\n")
            process.stdin.flush()
            assert json.loads(process.stdout.readline())["query"] == query
        process.stdin.write(b"[]\n")
        process.stdin.close()
        assert (
            process.stderr.read().decode().splitlines()[-1].startswith("reranker: error: <stdin>:3: found a list '[]'")
        )
        assert process.stdout.read() == b""
        assert process.wait(timeout=60) == 2

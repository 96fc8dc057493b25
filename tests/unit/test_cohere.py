"""Cohere's rerank API as a row, through its real client and a local service that answers as documented."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from reranker.config.models import EvaluateConfig
from reranker.errors import UserError
from reranker.evaluate import table
from reranker.evaluate.report import evaluate_command
from tests.cohere_server import KEY, RerankServer, relevance, reranking

Evaluate = Callable[..., list[dict[str, Any]]]
QUERIES = 12


@pytest.fixture
def service(monkeypatch: pytest.MonkeyPatch) -> Iterator[RerankServer]:
    monkeypatch.setenv("CO_API_KEY", KEY)
    # The client would find these first, and this machine's proxy is no part of the test.
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy", "CO_API_URL"):
        monkeypatch.delenv(name, raising=False)
    with reranking() as server:
        yield server


@pytest.fixture
def evaluate(
    inputs: Callable[..., EvaluateConfig], service: RerankServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Evaluate:
    """Evaluate with the service as the row `api`; the lines of queries.jsonl."""
    monkeypatch.setattr(table, "draw", lambda rows, details, stream: None)  # takes as long as the scores

    def run(settings: dict[str, Any] | None = None, **changes: Any) -> list[dict[str, Any]]:
        api = {"kind": "cohere", "model": "rerank-v5.0-pro", "base_url": service.url, "retries": 2, **(settings or {})}
        evaluate_command(inputs(**{"base": None, "sample": QUERIES, "systems": {"api": api}, **changes}))
        return [json.loads(line) for line in (tmp_path / "report/queries.jsonl").read_text("utf-8").splitlines()]

    return run


def texts(directory: Path) -> dict[str, str]:
    lines = (directory / "passages.jsonl").read_text("utf-8").splitlines()
    return {passage["id"]: passage["text"] for passage in map(json.loads, lines)}


def refusal(evaluate: Evaluate, settings: dict[str, Any] | None = None, **changes: Any) -> str:
    with pytest.raises(UserError) as caught:
        evaluate(settings, **changes)
    assert KEY not in str(caught.value)
    return str(caught.value)


def test_each_query_is_one_call_as_documented_and_scores_go_back_by_index(
    evaluate: Evaluate, service: RerankServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = evaluate()
    text_of = texts(tmp_path / "report")
    for line in lines:
        documents = [text_of[name] for name in line["candidates"]]
        expected = [relevance(line["query"], document) for document in documents]
        assert line["scores"]["api"] == expected
        assert expected != sorted(expected, reverse=True)  # the order of the answer is another one
        assert {"model": "rerank-v5.0-pro", "query": line["query"], "documents": documents} in service.calls
    assert len(service.calls) == len(service.requests) == len(lines) == QUERIES
    for path, headers in service.requests:
        assert path == "/v2/rerank"
        assert headers["Authorization"] == f"Bearer {KEY}"
        assert headers["content-type"] == "application/json"
    told = capsys.readouterr()
    assert f"note: api: 12 calls to {service.url}, 12 search units or more\n" in told.err
    assert "note: api: 12 calls, 12 search units billed\n" in told.err
    assert f"api: rerank-v5.0-pro of {service.url}." in " ".join(told.out.split())


def test_the_key_is_in_no_file_and_no_message(
    evaluate: Evaluate, service: RerankServer, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    evaluate(latency=2)
    service.mishaps += [(401, {}, {"message": f"invalid api token Bearer {KEY}"})] * 8
    assert "(invalid api token Bearer ...)" in refusal(evaluate, force=True).replace("'", "")
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) > 8
    assert [path for path in files if KEY.encode() in path.read_bytes()] == []
    shown = capfd.readouterr()
    assert KEY not in shown.out + shown.err


def test_many_candidates_are_several_calls(evaluate: Evaluate, service: RerankServer, tmp_path: Path) -> None:
    lines = evaluate({"documents_per_call": 3, "max_tokens_per_doc": 64})
    text_of = texts(tmp_path / "report")
    assert [len(line["candidates"]) for line in lines] == [8] * QUERIES
    assert sorted(len(call["documents"]) for call in service.calls) == [2] * QUERIES + [3] * 2 * QUERIES
    assert {call["max_tokens_per_doc"] for call in service.calls} == {64}
    for line in lines:
        assert line["scores"]["api"] == [relevance(line["query"], text_of[name]) for name in line["candidates"]]


def test_a_call_that_is_throttled_or_fails_is_made_again(evaluate: Evaluate, service: RerankServer) -> None:
    soon = {"retry-after-ms": "10"}
    service.mishaps += [
        (429, {"Retry-After": "1"}, {"message": "too many requests"}), (500, soon, {"message": "oh"}), (503, soon, b"no JSON"),
    ]  # fmt: skip
    lines = evaluate({"concurrency": 1, "retries": 3})
    assert len(service.requests) == QUERIES + 3
    assert len(service.calls) == len(lines)
    assert all(len(line["scores"]["api"]) == 8 for line in lines)


def test_what_was_answered_before_an_end_is_not_asked_and_paid_again(
    evaluate: Evaluate, service: RerankServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # Five calls are answered; the one behind them fails until the client gives it up.
    service.mishaps += [None] * 5 + [(500, {"retry-after-ms": "1"}, {"message": "out of order"})] * 3
    message = refusal(evaluate, {"concurrency": 1})
    assert message == (
        f"systems.api: found status 500 from {service.url} ('out of order'), expected an answer of v2/rerank; "
        "run the same command again: what was answered is kept"
    )
    assert len(service.calls) == 5
    assert not (tmp_path / "report/table.json").exists()
    kept = tmp_path / "report/scores/api.answers.jsonl"
    assert len(kept.read_bytes().splitlines()) == 5
    kept.write_bytes(kept.read_bytes()[:-9])  # as a power cut may leave it
    capsys.readouterr()
    lines = evaluate({"concurrency": 3})
    assert len(service.calls) == QUERIES + 1  # the one whose line was cut
    assert "note: api: 8 calls to " in (told := capsys.readouterr().err)
    assert "search units or more; 4 are answered already\n" in told
    assert [json.loads(line) for line in kept.read_text().splitlines() if line.endswith("}")]
    text_of = texts(tmp_path / "report")
    for line in lines:
        assert line["scores"]["api"] == [relevance(line["query"], text_of[name]) for name in line["candidates"]]
    # Another depth is another question; the same one with other metrics is none.
    evaluate({}, metrics=["map"])
    assert len(service.calls) == QUERIES + 1
    (tmp_path / "report/scores/api.json").unlink()
    evaluate({}, metrics=["mrr"])
    assert len(service.calls) == QUERIES + 1
    evaluate({}, depth=7)
    assert len(service.calls) == 2 * QUERIES + 1
    evaluate({}, depth=7, force=True)
    assert len(service.calls) == 3 * QUERIES + 1


def test_another_model_limit_or_endpoint_is_asked_anew_and_other_waiting_is_not(
    evaluate: Evaluate, service: RerankServer
) -> None:
    evaluate()
    evaluate({"retries": 1, "timeout": 9, "concurrency": 2})
    assert len(service.calls) == QUERIES
    evaluate({"max_tokens_per_doc": 100})
    assert len(service.calls) == 2 * QUERIES
    evaluate({"base_url": service.url.replace("127.0.0.1", "localhost")})
    assert len(service.calls) == 3 * QUERIES
    assert "model 'rerank-v9' not found" in refusal(evaluate, {"model": "rerank-v9"})


def test_the_latency_is_that_of_calls_and_not_of_what_is_kept(evaluate: Evaluate, service: RerankServer) -> None:
    evaluate()
    evaluate(latency=3)
    assert len(service.calls) == QUERIES + 2 + 3


QUERY = {"index": 0, "relevance_score": 0.5}
MALFORMED: dict[str, tuple[Any, str]] = {
    "no JSON": (b"<html>gateway</html>", "status 200 from URL ('<html>gateway</html>')"),
    "a list": ([1, 2], "an answer of URL with "),
    "no results": ({"id": "1"}, "an answer of URL with 0 scores of 8 documents"),
    "too few": ({"results": [{"index": 3, "relevance_score": 0.5}]}, "an answer of URL with 1 scores of 8 documents"),
    "twice": ({"results": [QUERY, QUERY]}, "an answer of URL with index '0' with relevance_score '0.5'"),
    "beyond": ({"results": [{"index": 8, "relevance_score": 0.5}]}, "an answer of URL with index '8' with relevance_score '0.5'"),
    "no index": ({"results": [{"relevance_score": 0.5}]}, "an answer of URL with index 'None' with relevance_score '0.5'"),
    "no number": ({"results": [{"index": 0, "relevance_score": "much"}]}, "an answer of URL with index '0' with relevance_score 'much'"),
    "not finite": (b'{"results": [{"index": 0, "relevance_score": NaN}]}', "an answer of URL with index '0' with relevance_score 'nan'"),
}  # fmt: skip


@pytest.mark.parametrize("name", MALFORMED)
def test_an_answer_that_is_none_is_one_line(
    evaluate: Evaluate, service: RerankServer, tmp_path: Path, name: str
) -> None:
    content, found = MALFORMED[name]
    service.mishaps.append((200, {}, content))
    message = refusal(evaluate, {"concurrency": 1})
    assert message.startswith(f"systems.api: found {found.replace('URL', service.url)}")
    assert "\n" not in message
    assert not (tmp_path / "report/scores/api.json").exists()
    assert "api" in evaluate()[0]["scores"]


def test_calls_under_way_when_one_is_refused_are_kept(
    evaluate: Evaluate, service: RerankServer, tmp_path: Path
) -> None:
    service.mishaps += [(400, {}, {"message": "no"}), "stall", "stall"]
    service.resume.set()
    assert "status 400" in refusal(evaluate, {"concurrency": 3})
    assert len(service.calls) == 2
    assert len((tmp_path / "report/scores/api.answers.jsonl").read_bytes().splitlines()) == 2


def test_no_service_is_one_line(evaluate: Evaluate) -> None:
    with reranking() as gone:
        url = gone.url
    message = refusal(evaluate, {"base_url": url, "retries": 0})
    assert message.startswith(f"systems.api: found no answer from {url} (ConnectError: ")
    assert message.endswith("check base_url and the network, and run the same command again: what was answered is kept")


def test_a_key_that_is_not_there_is_told_before_anything_is_scored(
    evaluate: Evaluate, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = (
        "systems.api.api_key_env: found the name of a variable that is not set, expected the environment variable that "
        "holds the key; export CO_API_KEY=..., for example"
    )
    monkeypatch.delenv("CO_API_KEY")
    assert refusal(evaluate) == expected
    assert refusal(evaluate, {"api_key_env": KEY}) == expected  # the key itself, in the wrong place
    assert not (tmp_path / "report").exists()
    monkeypatch.setenv("CO_API_KEY", f"{KEY}\n")
    assert refusal(evaluate) == expected.replace("is not set", "holds no key")
    monkeypatch.setenv("ANOTHER", KEY)
    assert len(evaluate({"api_key_env": "ANOTHER"})) == QUERIES
    assert refusal(evaluate, {"api_key": KEY}) == (
        "systems.api.api_key: found Key 'api_key' not in 'CohereConfig', expected one of the keys kind, model, base_url, "
        "api_key_env, max_tokens_per_doc, documents_per_call, concurrency, retries, timeout; did you mean api_key_env?"
    )

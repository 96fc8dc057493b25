"""A service is paid once: what it has answered outlives a kill of the evaluation."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest

from tests.cohere_server import KEY, relevance, reranking
from tests.distributed.ranks import run, start, until
from tests.tiny import tiny_model

QUERIES, ANSWERED = 12, 7


@pytest.mark.parametrize("world", [1, 2])
def test_a_killed_evaluation_asks_again_for_nothing_but_the_call_that_was_under_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, world: int
) -> None:
    monkeypatch.setenv("CO_API_KEY", KEY)
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    tiny_model(tmp_path / "model")
    groups = [
        {"query": f"질문 {number}", "pos": [f"글 {number}"], "neg": ["다른 글", "또 다른 글"]}
        for number in range(QUERIES)
    ]
    (tmp_path / "groups.jsonl").write_text("".join(json.dumps(group) + "\n" for group in groups), "utf-8")
    with reranking() as service:
        api = f"{{kind: cohere, model: rerank-v5.0-pro, base_url: '{service.url}', concurrency: 1}}"
        command = [
            "evaluate", f"model={tmp_path}/model", f"sets={{a: {tmp_path}/groups.jsonl}}", f"systems={{api: {api}}}",
            f"output={tmp_path}/report", "contexts=2", "resamples=100", "permutations=100", "device=cpu",
        ]  # fmt: skip
        service.mishaps += [None] * ANSWERED + ["stall"]
        job = start(world, command)
        until(lambda: service.stalled.is_set() or not job.running, job.errors)
        assert service.stalled.is_set(), job.errors()
        job.kill()
        job.end()
        service.resume.set()
        until(lambda: len(service.calls) == ANSWERED + 1, lambda: "the call that nobody waits for is not over")
        ranks = run(world, command)
        assert [rank.code for rank in ranks] == [0] * world, "\n".join(rank.err for rank in ranks)
        asked = Counter(call["query"] for call in service.calls)
        assert sorted(asked.values()) == [1] * (QUERIES - 1) + [2]
        assert f"; {ANSWERED} are answered already" in ranks[0].err
    for line in map(json.loads, (tmp_path / "report/queries.jsonl").read_text("utf-8").splitlines()):
        number = line["query"].split()[1]
        expected = [relevance(line["query"], text) for text in (f"글 {number}", "다른 글", "또 다른 글")]
        assert line["scores"]["api"] == expected

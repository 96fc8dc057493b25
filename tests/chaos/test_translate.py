"""kill -9 five times in the middle of translating the shipped documents, then two processes at a time on one ledger."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from reranker.demo import corpus
from reranker.demo.source import make_source
from reranker.groups import Group, read_groups, write_groups
from tests.amazon import Translate, translating
from tests.conftest import ROOT

CONCURRENCY, KILLS = 4, 5
QUERIES = 300
# Without gates, which refuse what people have translated freely: here every text is to come back.
DRIVER = f"""
import json, sys
from reranker.config.translation import TranslateConfig
from reranker.prepare.translate.command import translate

class Gates:
    digest = "none"
    def check_many(self, sources, translations):
        return [None] * len(sources)

url, output = sys.argv[1:]
backend = {{"class": "reranker.prepare.translate.amazon:Amazon", "endpoint_url": url, "concurrency": {CONCURRENCY}}}
told = translate(TranslateConfig(groups="groups.jsonl", output=output, ledger="ledger.sqlite", backend=backend), Gates())
print(json.dumps({{key: told[key] for key in ("groups", "texts")}}))
"""


def start(server: Translate, directory: Path, output: str) -> subprocess.Popen[str]:
    names = {"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b", "AWS_DEFAULT_REGION": "eu-west-1"}
    return subprocess.Popen(
        [sys.executable, "-c", DRIVER, server.url, output], cwd=directory, text=True, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, env=os.environ | names | {"PYTHONPATH": str(ROOT)},
    )  # fmt: skip


def test_five_kills_lose_what_was_under_way_alone_and_two_processes_share_the_rest(tmp_path: Path) -> None:
    own = [passage for passage in corpus.passages() if passage["src"] == corpus.TRAIN_SOURCE]
    source = make_source(corpus.training_queries()[:QUERIES], own, sentences=False)
    human = {pair["en"]: pair["ko"] for pair in source.memory}
    groups = [group for group in source.groups if max(map(len, (*group.pos, *group.neg))) < 5_000]  # one request each
    pairs = {text: human[text] for group in groups for text in (group.query, *group.pos, *group.neg)}
    assert len(pairs) > 2 * QUERIES > len(groups) > 0.9 * QUERIES
    write_groups(tmp_path / "groups.jsonl", groups)
    chance = random.Random(0)
    with translating(pairs) as server:
        server.seconds, server.every = 0.02, 29
        for _ in range(KILLS):
            goal = server.requests + chance.randint(30, 90)
            process = start(server, tmp_path, "killed")
            while server.requests < goal:
                assert process.poll() is None
                time.sleep(0.002)
            process.kill()
            process.communicate()
            while server.connections:  # the server answers what was under way at the kill
                time.sleep(0.002)
        before = server.served.copy()
        both = [start(server, tmp_path, output) for output in ("a", "b")]
        for process in both:
            out, err = process.communicate()
            assert process.returncode == 0, err
            told = json.loads(out.splitlines()[-1])
            assert told["groups"] == {"in": len(groups), "out": len(groups), "rejected": 0, "unreadable": 0,
                                      "negatives_rejected": 0}  # fmt: skip
            assert told["texts"] == {"distinct": len(pairs), "translated": len(pairs), "rejected": 0, "failed": 0}
        assert server.served.keys() == pairs.keys()
        assert set((server.served - before).values()) == {1}, "of two processes one sends a text, and once"
        # Sent, answered perhaps, and not recorded when the kill came: one batch of one text in each thread.
        assert sum(count - 1 for count in server.served.values()) <= KILLS * CONCURRENCY

    def translated(texts: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(pairs[text] for text in texts)

    for output in ("a", "b"):
        korean = list(read_groups(tmp_path / output / "groups.jsonl"))
        assert korean == [Group(pairs[g.query], translated(g.pos), translated(g.neg), id=g.id) for g in groups]
    assert not (tmp_path / "killed/groups.jsonl").exists()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_run_that_is_asked_to_end_records_what_is_under_way(number: int, tmp_path: Path) -> None:
    pairs = {f"text {n}": f"글 {n}" for n in range(200)}
    write_groups(tmp_path / "groups.jsonl", [Group(f"text {n}", ("text 198",), ("text 199",)) for n in range(198)])
    with translating(pairs) as server:
        server.seconds = 0.05
        for goal in (20, 70, 121):
            process = start(server, tmp_path, "out")
            while server.requests < goal:
                assert process.poll() is None
                time.sleep(0.001)
            process.send_signal(number)
            process.communicate(timeout=60)
            assert process.returncode != 0
        assert start(server, tmp_path, "out").wait() == 0
        assert server.served == dict.fromkeys(pairs, 1), "none was sent, and paid, twice"


@pytest.mark.parametrize("code", ["ThrottlingException", "TooManyRequestsException", "ServiceUnavailableException"])
def test_a_service_that_wants_fewer_requests_is_asked_again_and_no_text_is_lost(code: str, tmp_path: Path) -> None:
    pairs = {f"text {n}": f"글 {n}" for n in range(23)}
    write_groups(tmp_path / "groups.jsonl", [Group(f"text {n}", ("text 21",), ("text 22",)) for n in range(21)])
    with translating(pairs) as server:
        server.mishaps = [code, code]
        process = start(server, tmp_path, "out")
        out, err = process.communicate()
        assert process.returncode == 0, err
        assert server.requests == len(pairs) + 2
        assert set(server.served.values()) == {1}
    assert json.loads(out.splitlines()[-1])["groups"]["out"] == 21

"""kill -9 while negatives are mined: the same command goes on, and its result is that of a run that nobody killed."""

from __future__ import annotations

import filecmp
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from reranker.demo.corpus import passages, queries
from tests.conftest import ROOT

COPIES = 4  # of the queries, each with a word of its own: more than one block


def start(directory: Path, output: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "reranker", "mine", "groups=groups.jsonl", "corpus=corpus.jsonl", f"output={output}",
         "bm25.analyzer=bigrams", "workers=2", "random_share=0.25", "teacher=bm25"],
        cwd=directory, env=os.environ | {"PYTHONPATH": str(ROOT)}, start_new_session=True,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip


def test_a_kill_loses_the_blocks_under_way_alone(tmp_path: Path) -> None:
    texts = {passage["id"]: passage["text"] for passage in passages()}
    corpus = [{key: passage[key] for key in ("id", "text", "doc")} for passage in passages()]
    groups = [
        {"id": f"{query['qid']} {copy}", "query": f"{query['query']} {copy}", "pos": [texts[query["pos"]]]}
        for copy in range(COPIES) for query in queries() if query["split"] == "dev"
    ]  # fmt: skip
    for name, values in (("corpus", corpus), ("groups", groups)):
        lines = [json.dumps(value, ensure_ascii=False) + "\n" for value in values]
        (tmp_path / f"{name}.jsonl").write_text("".join(lines), encoding="utf-8")
    cache = tmp_path / "killed" / "cache"

    def found(pattern: str, number: int = 1) -> Callable[[], bool]:
        return lambda: len(list(cache.glob(pattern))) >= number

    assert start(tmp_path, "whole").wait() == 0
    blocks = len(list((tmp_path / "whole/cache").glob("bm25-search-*/*.npz")))
    assert blocks >= 4
    points = [found("*store-*"), found("store-*"), found("*bm25-*"), found("bm25-search-*/*.npz"),
              found("bm25-search-*/*.npz", blocks // 2)]  # fmt: skip
    for reached in points:
        process = start(tmp_path, "killed")
        while not reached():
            assert process.poll() is None
            time.sleep(0.001)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        assert not (tmp_path / "killed" / "groups.jsonl").exists()
    before = {path: path.stat().st_mtime_ns for path in cache.glob("bm25-search-*/*.npz")}
    assert blocks // 2 <= len(before) < blocks
    assert start(tmp_path, "killed").wait() == 0
    assert {path: path.stat().st_mtime_ns for path in before} == before
    for name in ("groups.jsonl", "rejected.jsonl"):
        assert filecmp.cmp(tmp_path / "killed" / name, tmp_path / "whole" / name, shallow=False)

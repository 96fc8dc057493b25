"""kill -9 while negatives are mined: the same command goes on, and its result is that of a run that nobody killed."""

from __future__ import annotations

import filecmp
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from reranker.demo.corpus import passages, queries
from tests.conftest import ROOT

COPIES = 8  # of the queries, each with a word of its own: many more blocks than are under way at a time
WORKERS = 2
# `reranker mine` that stands still before or behind the naming of a directory, or behind so many blocks, until it is killed.
DRIVER = """
import contextlib, os, sys, time
from pathlib import Path
from reranker.cli import main
from reranker.prepare.mine import command

place, name, mark, *arguments = sys.argv[1:]

def hold():
    Path(mark).touch()
    time.sleep(10**6)

replace, in_order = os.replace, command.in_order

def named(source, target):
    due = Path(target).name.startswith(name)
    if due and place == "before":
        hold()
    replace(source, target)
    if due and place == "behind":
        hold()

@contextlib.contextmanager
def counted(*arguments):
    with in_order(*arguments) as done:
        def held():
            for number, result in enumerate(done, 1):
                if number == int(name):
                    hold()
                yield result
        yield held()

if place == "block":
    command.in_order = counted
else:
    os.replace = named
sys.exit(main(["mine", *arguments]))
"""
ARGUMENTS = ("groups=groups.jsonl", "corpus=corpus.jsonl", "bm25.analyzer=bigrams", f"workers={WORKERS}",
             "random_share=0.25", "teacher=bm25")  # fmt: skip


def start(directory: Path, output: str, *hold: str) -> subprocess.Popen[bytes]:
    program = ["-c", DRIVER, *hold] if hold else ["-m", "reranker", "mine"]
    return subprocess.Popen(
        [sys.executable, *program, *ARGUMENTS, f"output={output}"],
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

    assert start(tmp_path, "whole").wait() == 0
    blocks = len(list((tmp_path / "whole/cache").glob("bm25-search-*/*.npz")))
    under_way = 2 * WORKERS
    assert blocks > 2 * (1 + under_way)
    points = [("before", "store-"), ("behind", "store-"), ("before", "bm25-"), ("block", "1"), ("block", "1")]
    for number, (place, name) in enumerate(points):
        mark = tmp_path / f"mark-{number}"
        process = start(tmp_path, "killed", place, name, str(mark))
        while not mark.exists():
            assert process.poll() is None
            time.sleep(0.005)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        assert not (tmp_path / "killed" / "groups.jsonl").exists()
    before = {path: path.stat().st_mtime_ns for path in cache.glob("bm25-search-*/*.npz")}
    assert 2 <= len(before) < blocks
    assert start(tmp_path, "killed").wait() == 0
    assert {path: path.stat().st_mtime_ns for path in before} == before
    for name in ("groups.jsonl", "rejected.jsonl"):
        assert filecmp.cmp(tmp_path / "killed" / name, tmp_path / "whole" / name, shallow=False)

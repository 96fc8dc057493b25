"""Ctrl-C and kill -9 in the middle of a pack by several processes: none is left, and no shards that are not whole."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from reranker.groups import Group

GROUPS = [Group(f"질문 {n}", (f"정답 {n}",), tuple(f"오답 {n} {i}" for i in range(n % 4 + 1))) for n in range(25)]
WORKER = b"spawn_main"


def processes(session: int, name: bytes = b"") -> list[int]:
    """The processes of a session that are alive and have `name` in their command line."""
    alive = []
    for entry in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            state, _, _, of = entry.read_text().rpartition(") ")[2].split()[:4]
            if int(of) == session and state != "Z" and name in (entry.parent / "cmdline").read_bytes():
                alive.append(int(entry.parent.name))
    return alive


@contextlib.contextmanager
def packing(directory: Path, until: str = "writing") -> Iterator[subprocess.Popen[str]]:
    """A real pack by two processes that start, or are writing and have many more shards to write."""
    lines = "".join(group.to_json() + "\n" for group in GROUPS)
    (directory / "groups.jsonl").write_text(lines * 1600, encoding="utf-8")
    command = [sys.executable, "-m", "reranker", "pack", "groups=groups.jsonl", "output=shards"]
    process = subprocess.Popen(
        [*command, "groups_per_shard=200", "workers=2"], cwd=directory, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    try:
        while not (
            len(processes(process.pid, WORKER)) == 2
            if until == "starting"
            else list(directory.glob(".shards.*/shard-00001.index.safetensors"))
        ):
            assert process.poll() is None
            time.sleep(0.005)
        yield process
    finally:
        for pid in processes(process.pid):
            os.kill(pid, signal.SIGKILL)
        process.communicate()


def none_left(session: int) -> bool:
    deadline = time.monotonic() + 60
    while processes(session) and time.monotonic() < deadline:
        time.sleep(0.02)
    return not processes(session)


@pytest.mark.parametrize("until", ["starting", "writing"])
def test_an_interrupt_ends_every_process_and_leaves_nothing_behind(until: str, tmp_path: Path) -> None:
    with packing(tmp_path, until) as process:
        os.killpg(process.pid, signal.SIGINT)  # what a terminal does
        out, err = process.communicate()
        assert process.returncode == 130
        assert out == ""
        assert err.endswith("reranker: interrupted\n")
        assert "Traceback" not in err
        assert none_left(process.pid)
    assert [path.name for path in tmp_path.iterdir()] == ["groups.jsonl"]


def test_a_kill_leaves_no_process_and_no_shards(tmp_path: Path) -> None:
    with packing(tmp_path) as process:
        process.kill()
        process.wait()
        assert none_left(process.pid)
    assert not (tmp_path / "shards").exists()


def test_a_process_that_is_killed_is_told_in_one_line(tmp_path: Path) -> None:
    with packing(tmp_path) as process:
        workers = [pid for pid in processes(process.pid) if WORKER in Path(f"/proc/{pid}/cmdline").read_bytes()]
        assert len(workers) == 2
        os.kill(workers[0], signal.SIGKILL)
        _, err = process.communicate()
        assert process.returncode == 2
        assert err.endswith(
            "reranker: error: workers: found one of 2 processes killed, expected processes that live to the end; "
            "see whether memory ran out, or say fewer workers\n"
        )
        assert "Traceback" not in err
        assert none_left(process.pid)
    assert [path.name for path in tmp_path.iterdir()] == ["groups.jsonl"]

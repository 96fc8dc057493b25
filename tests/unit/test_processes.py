"""Calls shared out to processes: results in order, a bounded number under way, the first error in order."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from reranker.errors import UserError
from reranker.files import read_json
from reranker.processes import in_order


@pytest.mark.parametrize("workers", [1, 3])
def test_results_come_in_the_order_of_the_calls(workers: int) -> None:
    with in_order(abs, range(-40, 0), workers) as results:
        assert list(results) == list(range(40, 0, -1))


def test_calls_run_in_processes_of_their_own() -> None:
    with in_order(os.path.realpath, ["/proc/self"] * 8, 2) as results:
        processes = set(results)
    assert f"/proc/{os.getpid()}" not in processes
    assert 1 <= len(processes) <= 2


@pytest.mark.parametrize("workers", [1, 2])
def test_few_calls_are_taken_before_their_turn(workers: int) -> None:
    taken = []

    def calls() -> Iterator[int]:
        for number in range(40):
            taken.append(number)
            yield number

    with in_order(abs, calls(), workers) as results:
        ahead = [len(taken) - done for done, _ in enumerate(results, 1)]
    assert len(ahead) == 40
    assert max(ahead) <= 2 * workers


@pytest.mark.parametrize("workers", [1, 2])
def test_the_first_error_in_order_is_raised(workers: int, tmp_path: Path) -> None:
    def calls() -> Iterator[Path]:
        yield tmp_path / "a"
        yield tmp_path / "b"
        raise UserError("calls", "x", "y", "z")

    (tmp_path / "a").write_text("1")
    with pytest.raises(UserError, match=r"/b: found no such file"), in_order(read_json, calls(), workers) as results:
        list(results)
    (tmp_path / "b").write_text("2")
    seen = []
    with pytest.raises(UserError, match="calls: found x"), in_order(read_json, calls(), workers) as results:
        for result in results:
            seen.append(result)
    assert seen == [1, 2]

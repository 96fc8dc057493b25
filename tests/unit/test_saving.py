"""A checkpoint is written beside the training; one that fails is told and tried no further than twice."""

from __future__ import annotations

import gc
import os
import threading
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch

from reranker.errors import UserError
from reranker.train.checkpoint import DIRECTORY, Retention, newest, read_weights
from reranker.train.distributed import Ranks
from reranker.train.fragments import KINDS, Fragment
from reranker.train.saving import Ranking, Saver


@pytest.fixture
def saver(ranks: Ranks, tmp_path: Path) -> Saver:
    return Saver(tmp_path, ranks.apart(60.0))


def fragments(value: float) -> list[Fragment]:
    return [Fragment("weight", kind, (3,), 0, torch.full((3,), value)) for kind in KINDS]


def save(saver: Saver, step: int, **more: Any) -> None:
    saver.save(step, fragments(float(step)), {}, Retention(9), **more)


class Place:
    """The checkpoints' directory of a run, which can be made impossible to write to, for root as well."""

    def __init__(self, run: Path) -> None:
        self.path, self.aside = run / DIRECTORY, run / "aside"

    def break_(self) -> None:
        if self.path.exists():
            self.path.rename(self.aside)
        self.path.write_bytes(b"a file where a directory is wanted")

    def mend(self) -> None:
        self.path.unlink()
        if self.aside.exists():
            self.aside.rename(self.path)


def test_the_training_goes_on_while_a_checkpoint_is_written(
    saver: Saver, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    go, replace = threading.Event(), os.replace

    def held(source: Any, target: Any) -> None:
        assert go.wait(60)
        replace(source, target)

    monkeypatch.setattr("reranker.train.checkpoint.os.replace", held)
    saved: list[int] = []
    save(saver, 3, saved=lambda: saved.append(3))
    assert newest(tmp_path) == (None, [])  # it is not there yet, and this thread has gone on
    assert saved == []
    go.set()
    saver.finish()
    assert saved == [3]
    path, _ = newest(tmp_path)
    assert path is not None
    assert read_weights(path)["weight"].tolist() == [3.0] * 3


def test_a_save_waits_for_the_one_before(saver: Saver, tmp_path: Path) -> None:
    order: list[int] = []
    for step in (1, 2, 3):
        save(saver, step, saved=lambda step=step: order.append(step))
        assert order == list(range(1, step))
    saver.finish()
    assert order == [1, 2, 3]


def test_a_save_that_fails_is_told_and_the_next_one_counts_anew(
    saver: Saver, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = Place(tmp_path)
    for step in (2, 4, 6):
        save(saver, step - 1)
        saver.wait()
        place.break_()
        save(saver, step)
        saver.wait()
        assert saver.step == 0
        place.mend()
    save(saver, 7)
    saver.finish()
    told = capsys.readouterr().err.splitlines()
    assert [line.partition(":")[0] for line in told] == [f"{place.path}/step-0000000{step}" for step in (2, 4, 6)]
    assert all(line.endswith("; the training goes on, older checkpoints stay") for line in told)
    assert sorted(path.name for path in place.path.iterdir()) == [f"step-0000000{step}" for step in (1, 3, 5, 7)]


def test_two_saves_in_a_row_that_fail_raise(saver: Saver, tmp_path: Path) -> None:
    Place(tmp_path).break_()
    save(saver, 1)
    with pytest.raises(UserError, match="2 saves in a row that failed") as caught:
        save(saver, 2)
        saver.wait()
    assert caught.value.agreed


def test_the_last_save_is_tried_once_more(saver: Saver, tmp_path: Path) -> None:
    place = Place(tmp_path)
    place.break_()
    save(saver, 1)
    saver.wait()
    place.mend()
    saver.finish()
    assert [path.name for path in place.path.iterdir()] == ["step-00000001"]

    place.break_()
    save(saver, 2)
    with pytest.raises(UserError, match="2 saves in a row that failed"):
        saver.finish()


def test_the_ranking_keeps_the_best_and_the_earlier_of_equals() -> None:
    ranking = Ranking("mrr", "abc")
    for step, value in ((10, 0.5), (20, 0.7), (30, 0.7), (40, 0.6)):
        ranking = ranking.with_(step, value, keep=3)
    assert ranking.names == ("step-00000020", "step-00000030", "step-00000040")
    assert ranking.best is not None
    assert ranking.best["step"] == 20
    state = {"ranking": list(ranking.entries), "best": ranking.best}
    assert Ranking.of(state, "mrr", "abc", 40) == ranking
    assert Ranking.of(state, "ndcg@10", "abc", 40).entries == ()
    assert Ranking.of(state, "mrr", "other groups", 40).entries == ()
    assert Ranking.of({}, "mrr", "abc", 40).best is None
    # A checkpoint of an earlier version has the best one alone.
    assert Ranking.of({"best": ranking.best}, "mrr", "abc", 40).names == ("step-00000020",)
    # Steps that a change numbers anew: what stands behind the training is no checkpoint of it.
    assert Ranking.of(state, "mrr", "abc", 25).names == ("step-00000020",)


def test_what_fails_its_gate_is_never_the_best_and_ranks_behind_all_that_pass() -> None:
    ranking = Ranking("mrr", "abc", "gate")
    for step, value, passed in ((10, 0.9, False), (20, 0.8, False)):
        ranking = ranking.with_(step, value, 2, passed)
    assert (ranking.names, ranking.best) == (("step-00000010", "step-00000020"), None)
    for step, value, passed in ((30, 0.2, True), (40, 1.0, False), (50, 0.3, True)):
        ranking = ranking.with_(step, value, 2, passed)
    assert ranking.names == ("step-00000050", "step-00000030")
    assert ranking.best is not None
    assert ranking.best["step"] == 50
    state = {"ranking": list(ranking.entries), "best": ranking.best}
    assert Ranking.of(state, "mrr", "abc", 50, "gate") == ranking
    # Of another gate, or of none, they say nothing.
    assert Ranking.of(state, "mrr", "abc", 50, "another").entries == ()
    assert Ranking.of(state, "mrr", "abc", 50).entries == ()


def test_no_copy_of_the_state_is_kept_behind_a_save(saver: Saver) -> None:
    copies = fragments(1.0)
    alive = [weakref.ref(fragment.values) for fragment in copies]
    saver.save(1, iter(copies), {}, Retention(9))
    saver.wait()
    del copies
    gc.collect()
    assert [reference() for reference in alive] == [None] * len(alive)


def test_a_defect_of_the_writer_is_raised_by_the_training_s_next_sign_of_life(
    saver: Saver, monkeypatch: pytest.MonkeyPatch
) -> None:
    def defect(*_: Any) -> None:
        raise ZeroDivisionError

    saver.check()
    monkeypatch.setattr("reranker.train.checkpoint.write_fragments", defect)
    save(saver, 1)
    assert saver._thread is not None
    saver._thread.join()
    with pytest.raises(ZeroDivisionError):
        saver.check()

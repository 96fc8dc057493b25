"""What is done beside the training costs it nothing, whatever it does."""

from __future__ import annotations

import threading

from reranker.train.aside import Aside


def test_calls_are_made_in_their_order_and_the_last_one_behind_all() -> None:
    made: list[int] = []
    aside = Aside("test", made.clear, lambda: None)
    for number in range(100):
        aside.do(lambda number=number: made.append(number))
    assert aside.close(lambda: made.append(100), 30)
    assert made == list(range(101))


def test_a_call_that_never_returns_holds_nobody_up() -> None:
    never, left_out = threading.Event(), []
    aside = Aside("test", left_out.append, lambda: left_out.append("full"), most=3)
    aside.do(never.wait)
    for _ in range(10):
        aside.do(never.wait)
    assert left_out == ["full"], "told once, though several were left out"
    assert not aside.close(never.wait, 0.05)
    never.set()


def test_a_call_that_fails_is_told_of_and_ends_the_others() -> None:
    made: list[object] = []
    aside = Aside("test", lambda error: made.append(str(error)), lambda: None)

    def fail() -> None:
        raise RuntimeError("gone")

    aside.do(fail)
    aside.do(lambda: made.append("another"))
    assert aside.close(lambda: made.append("last"), 30)
    assert made == ["gone", "last"], "what ends things is done all the same"
    assert aside.over


def test_behind_a_full_queue_the_last_call_is_made_or_missed() -> None:
    begun, go, made = threading.Event(), threading.Event(), []
    aside = Aside("test", made.append, lambda: None, most=2)
    aside.do(lambda: begun.set() or go.wait())
    begun.wait()  # from here on nothing is taken from the queue
    for _ in range(3):
        aside.do(go.wait)
    threading.Timer(0.2, go.set).start()
    assert aside.close(lambda: made.append("last"), 30)
    assert made == ["last"]


def test_the_last_call_that_fails_is_told_of() -> None:
    made: list[str] = []
    aside = Aside("test", lambda error: made.append(str(error)), lambda: None)

    def fail() -> None:
        raise RuntimeError("not ended")

    assert aside.close(fail, 30)
    assert made == ["not ended"]

"""Signs of life of the ranks -> what ends the job, if anything does.

In: the last sign of every rank, how long it has been silent, whose connection has ended. Out: one line that names the
rank and the cause, or None. Pure: when a sign is sent, and what is done about a line, is the watchdog's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Sign:
    """A rank's sign of life, as it is sent.

    Attributes:
        beats: of the main thread since the step began; idle: seconds since the last one.
        waits: whether it stands in a collective.
        failure: the error that ends the rank.
        verdict: from rank 0, what ends the job; speaker: the rank that says so where rank 0 cannot.
    """

    rank: int
    doing: str = "start"
    step: int | None = None
    beats: int = 0
    idle: float = 0.0
    waits: bool = False
    failure: str | None = None
    verdict: str | None = None
    speaker: int = 1

    def __str__(self) -> str:
        return f"{'' if self.step is None else f'in step {self.step}, '}while in {self.doing}"

    @property
    def reached(self) -> tuple[int, int]:
        """How far the rank has come, to compare ranks."""
        return -1 if self.step is None else self.step, self.beats


def gone(ended: Sequence[Sign], silent: Sequence[tuple[Sign, float]], silence: float) -> str | None:
    """Which rank is gone: its connection has `ended`, or it has been silent for `silence` seconds."""
    for sign in ended:
        if not sign.failure:
            return f"rank {sign.rank} was lost {sign}: its process has ended"
    for sign, seconds in silent:
        if seconds >= silence:
            return f"rank {sign.rank} was lost {sign}: no sign of life for {seconds:.0f} seconds"
    return None


def failing(signs: Sequence[Sign]) -> str | None:
    """Which rank has said that an error ends it."""
    return next((f"rank {sign.rank} failed {sign}: {sign.failure}" for sign in signs if sign.failure), None)


def hanging(signs: Sequence[Sign], limit: float) -> str | None:
    """Who holds up the job, if no rank has got on for `limit` seconds: while one does, it is slow and no more.

    Those that stand in no collective where others do, and of them those that are behind in the sequence of beats. The
    first tells ranks of one phase apart; the second, ranks whose device waits for the others in their place (NCCL).
    """
    if min(sign.idle for sign in signs) < limit:
        return None
    free = [sign for sign in signs if not sign.waits] or signs
    behind = min(sign.reached for sign in free)
    stuck = [sign for sign in free if sign.reached == behind]
    place = f"{stuck[0]}, for {min(sign.idle for sign in stuck):.0f} seconds"
    if len(stuck) == len(signs) > 1:
        return f"all ranks hang {place}"
    numbers = ", ".join(str(sign.rank) for sign in stuck)
    who = f"rank {numbers} hangs" if len(stuck) == 1 else f"ranks {numbers} hang"
    return f"{who} {place}{' (others wait for it)' if len(signs) > 1 else ''}"

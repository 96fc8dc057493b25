"""The learning rate of a step: a pure function of the step's number."""

from __future__ import annotations


def learning_rate(step: int, steps: int, peak: float, warmup: float) -> float:
    """Linear warm-up to `peak`, then linear decay to zero.

    Args:
        step: optimizer steps done before this one, from 0.
        steps: optimizer steps of the whole training.
        warmup: share of the steps over which the rate rises.

    As transformers' get_linear_schedule_with_warmup, but for one thing: the first step of a warm-up has
    the rate peak / warm-up steps where transformers has zero, which would waste it.
    """
    rising = int(steps * warmup)
    if step < rising:
        return peak * (step + 1) / rising
    return peak * max(0.0, (steps - step) / max(1, steps - rising))

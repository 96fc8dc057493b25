"""What each command calls, and which of its words stand alone.

In: the name of a command. Out: the function that takes its settings. What a command needs is imported when it runs.
Those that join layers which do not know each other are written out here.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any, cast

Run = Callable[[str, list[str]], int]
"""(command, arguments) -> exit code."""

_FUNCTIONS = {
    "translate": "reranker.prepare.translate.command:translate_command",
    "mine": "reranker.prepare.mine.command:mine_command",
    "check": "reranker.prepare.check.command:check_command",
    "pack": "reranker.prepare.pack:pack_command",
    "index": "reranker.prepare.foreign:index_command",
    "data inspect": "reranker.prepare.inspect:inspect_command",
    "data verify": "reranker.prepare.verify:verify_command",
    "submit": "reranker.cluster.submit:submit_command",
    "jobs": "reranker.cluster.jobs:jobs_command",
    "sweep show": "reranker.cluster.sweep:sweep_show_command",
    "doctor cluster": "reranker.cluster.doctor:doctor_command",
    "checkpoint list": "reranker.train.checkpoints:list_command",
    "checkpoint verify": "reranker.train.checkpoints:verify_command",
    "replay": "reranker.train.replay:replay_command",
    "dashboard": "reranker.train.dashboard:dashboard_command",
    "evaluate compare": "reranker.evaluate.compare:compare_command",
    "export": "reranker.export.huggingface:export_command",
    "push": "reranker.export.push:push_command",
    "trim": "reranker.export.trim:trim_command",
    "soup": "reranker.export.soup:soup_command",
    "score": "reranker.model.score:score_command",
    "demo": "reranker.demo.prepare:demo_command",
}
DIRECTORIES = {
    "data inspect": ("shards",),
    "data verify": ("shards",),
    "jobs": ("runs",),
    "sweep show": ("sweep",),
    "checkpoint list": ("run",),
    "checkpoint verify": ("path",),
    "replay": ("checkpoint",),
    "evaluate compare": ("first", "second"),
}
"""The keys that lone directories are the values of, in the commands that take any."""
TO_READ = ("score", "data inspect", "jobs", "sweep show", "checkpoint list", "replay", "evaluate compare")
"""Commands whose output is all that they are for."""
OUTSIDE = ("prepare",)
"""Commands that run others: behind Hydra, which does not run in itself."""


def function(command: str, run: Run) -> Callable[[Any], int]:
    """What a command does with its settings. `run` runs another command, with its words."""
    if command == "prepare":
        return lambda config: _prepare(config, run)
    if command in _OF_LAYERS:
        return _OF_LAYERS[command]
    module, _, name = _FUNCTIONS[command].partition(":")
    return cast(Callable[[Any], int], getattr(importlib.import_module(module), name))


def _prepare(config: Any, run: Run) -> int:
    from reranker.prepare.prepare import prepare_command

    return prepare_command(config, run)


def _train(config: Any) -> int:
    from reranker.train.preemption import hold

    hold()
    # Training has evaluations in it and an export at its end, both of later layers: joined here.
    from reranker.evaluate.guard_sets import guard_sets
    from reranker.evaluate.in_training import Evaluator
    from reranker.export.huggingface import export_run
    from reranker.train.main import train

    return train(config, evaluator=Evaluator, guard_sets=guard_sets, export=export_run)


def _evaluate(config: Any) -> int:
    # srun's ranks are known to the layer of clusters alone.
    from reranker.cluster.environment import take_from_slurm
    from reranker.evaluate.report import evaluate_command

    take_from_slurm()
    return evaluate_command(config)


_OF_LAYERS = {"train": _train, "evaluate": _evaluate}
"""Commands that join layers which do not know each other."""

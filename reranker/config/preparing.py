"""The settings of `reranker prepare`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from reranker.config.common import MISSING

STAGES = ("translate", "check", "mine", "pack")


@dataclass
class PrepareConfig:
    source: str = MISSING
    """Groups to begin with, in any form that the first stage reads: a file or directory"""
    output: str = "runs/data"
    """Directory for what each stage writes; the same command with the same directory goes on"""
    recipe: Any = None
    """Recipe that the stages' arguments are taken from"""
    stages: list[str] = field(default_factory=lambda: ["translate", "check", "mine", "check", "pack"])
    """Commands in their order; each reads what the one before wrote"""
    translate: list[str] = field(default_factory=list)
    """Arguments of reranker translate; more of them as translate.KEY=VALUE"""
    check: list[str] = field(default_factory=list)
    """Arguments of reranker check; more of them as check.KEY=VALUE"""
    mine: list[str] = field(default_factory=list)
    """Arguments of reranker mine; more of them as mine.KEY=VALUE"""
    pack: list[str] = field(default_factory=list)
    """Arguments of reranker pack; more of them as pack.KEY=VALUE"""
    more: list[str] = field(default_factory=list)
    """The KEY=VALUE of the stages on the command line, which come after those of the recipe"""
    dry_run: bool = False
    """Print the plan, what is done before and what translating would cost, then stop"""

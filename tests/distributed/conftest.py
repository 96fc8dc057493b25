"""Inputs of the trainings: a tiny model and groups that are real enough to tokenize and differ in length."""

from __future__ import annotations

import json
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from reranker.groups import Group, write_groups
from reranker.prepare.pack import pack
from tests.tiny import tiny_model

WORDS = [
    "문서",
    "글꼴",
    "표",
    "그림",
    "단락",
    "셀",
    "수식",
    "파일",
    "인쇄",
    "저장",
    "열기",
    "메뉴",
    "도구",
    "창",
    "화면",
    "설정",
    "사용자",
    "페이지",
    "서식",
    "목록",
]


@dataclass(frozen=True)
class Inputs:
    """Paths of a model directory, packed shards and the groups in them."""

    model: Path
    shards: Path
    dev: Path
    groups: list[Group]

    def overrides(self, run_dir: Path, **more: Any) -> list[str]:
        """Overrides of a training without dropout in which every choice is one of order only."""
        values: dict[str, Any] = {
            "run_dir": run_dir, "model.name": self.model, "data.shards": self.shards, "data.max_length": 48,
            "data.workers": 0, "model.dropout": 0.0, "tracking": "none", "optim.lr": 1e-3, **more,
        }  # fmt: skip
        return [f"{key}={value}" for key, value in values.items()]


def make_groups(count: int, negatives: int, seed: int = 0) -> list[Group]:
    """Groups whose query shares its words with the positive: something can be learnt."""
    draw = random.Random(seed)

    def text(words: list[str], length: int) -> str:
        return " ".join([*words, *draw.choices(WORDS, k=length)])

    groups = []
    for number in range(count):
        words = draw.sample(WORDS, 2)
        groups.append(
            Group(
                " ".join(words),
                (f"{text(words, draw.randint(1, 12))} {number}",),
                tuple(f"{text([], draw.randint(1, 20))} {number} {place}" for place in range(negatives)),
            )
        )
    return groups


def make_inputs(root: Path) -> Inputs:
    """90 groups of two negatives in three shards: with 32 groups a step the last step of an epoch is short."""
    groups = make_groups(90, 2)
    pack(groups, root / "shards", {"name": "groups.jsonl"}, groups_per_shard=40)
    write_groups(root / "dev.jsonl", make_groups(9, 4, seed=1))
    return Inputs(tiny_model(root / "model"), root / "shards", root / "dev.jsonl", groups)


@pytest.fixture(scope="session")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Inputs:
    return make_inputs(tmp_path_factory.mktemp("inputs"))


def records(run_dir: Path) -> list[dict[str, Any]]:
    """The metrics.jsonl of a run."""
    return [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text("utf-8").splitlines()]

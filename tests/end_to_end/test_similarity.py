"""The gate of similarity: what is translated back must say what the source said."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import pytest

from reranker.config.gates import GatesConfig
from reranker.config.translation import TranslateConfig
from reranker.errors import UserError
from reranker.groups import Group, read_groups, write_groups
from reranker.prepare.translate.backend import Outcome
from reranker.prepare.translate.command import translate_command
from reranker.prepare.translate.gates import Gates
from reranker.prepare.translate.similarity import Similarity
from tests.tiny import tiny_encoder

PAIRS = {f"text {n}": f"글 {n}" for n in range(4)}


class _Back:
    """A backend of the other direction that knows two texts."""

    identity, batch_texts, concurrency, price, seconds_per_text = "back", 2, 1, 0.0, 0.0
    texts: ClassVar = {"하나": "one text", "둘": "another of them"}

    def translate(self, texts: Sequence[str]) -> list[Outcome]:
        return [
            Outcome(self.texts.get(text), None if text in self.texts else "missing: no such text") for text in texts
        ]

    def close(self) -> None:
        pass


def memory(path: Path, source: str, target: str, pairs: dict[str, str]) -> dict[str, Any]:
    path.write_text("".join(json.dumps({source: a, target: b}) + "\n" for a, b in pairs.items()), "utf-8")
    return {"class": "reranker.prepare.translate.memory:Memory", "files": str(path)}


def test_what_comes_back_alike_is_similar_and_what_does_not_come_back_is_not(tmp_path: Path) -> None:
    encoder = str(tiny_encoder(tmp_path))
    similarity = Similarity(encoder, _Back(), device="cpu")
    same, lost, other = similarity.check_many(["one text", "a third", "one text"], ["하나", "셋", "둘"])
    assert same == pytest.approx(1.0, abs=1e-5)
    assert lost == -1.0
    assert other < same
    config = GatesConfig(similarity=0.999, similarity_model=encoder)
    gates = Gates.of(config, "en", "ko", similarity)
    assert gates.check_many(["one text", "a third", "one text", "a query"], ["하나", "셋", "둘", "err"]) == [
        None,
        "similarity: -1.00, below 0.999",
        f"similarity: {other:.2f}, below 0.999",
        "error: 'err' is the text of an error",
    ]
    assert gates.digest != Gates.of(GatesConfig(), "en", "ko").digest
    with pytest.raises(UserError, match=r"^gates.similarity: found 0.999 without a backend that translates back"):
        Gates.of(config, "en", "ko")


def test_what_does_not_come_back_alike_is_rejected(tmp_path: Path) -> None:
    encoder = str(tiny_encoder(tmp_path))
    write_groups(tmp_path / "groups.jsonl", [Group("text 0", ("text 1",), ("text 2", "text 3"))])
    back = {korean: english for english, korean in PAIRS.items() if english != "text 3"}
    config = TranslateConfig(
        groups=str(tmp_path / "groups.jsonl"), output=str(tmp_path / "out"), backend=memory(tmp_path / "there.jsonl", "en", "ko", PAIRS),
        back=memory(tmp_path / "back.jsonl", "ko", "en", back),
        gates=GatesConfig(similarity=0.9, similarity_model=encoder, numbers=False, language=None),
    )  # fmt: skip
    assert translate_command(config) == 0
    assert next(read_groups(tmp_path / "out/groups.jsonl")).neg == ("글 2",)
    reasons = json.loads((tmp_path / "out/rejected.jsonl").read_text("utf-8"))["reasons"]
    assert [reason["reason"] for reason in reasons] == ["similarity: -1.00, below 0.9"]

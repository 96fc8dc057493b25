"""The processes of the huggingface backend: what they change, and what is told when one is killed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from reranker.errors import UserError
from reranker.prepare.translate.huggingface import HuggingFace
from tests.translators import TEXTS, tiny_translators


def test_processes_change_nothing_and_a_killed_one_is_told(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"model": tiny_translators(tmp_path)["marian"], "max_new_tokens": 12, "device": "cpu"}
    expected = HuggingFace("en", "ko", **settings).translate(TEXTS)
    backend = HuggingFace("en", "ko", processes=2, batch_tokens=16, **settings)
    try:
        assert backend.translate(TEXTS) == expected
        assert backend._pool
        next(iter(backend._pool._processes.values())).kill()
        with pytest.raises(UserError, match=r"backend.processes: found one of 2 processes killed"):
            for _ in range(1000):
                backend.translate(TEXTS)
        assert backend.translate(TEXTS) == expected, "new processes for what comes after"
    finally:
        backend.close()


def test_what_a_process_cannot_load_is_told(tmp_path: Path) -> None:
    model = Path(tiny_translators(tmp_path)["marian"])
    (model / "model.safetensors").unlink()
    backend = HuggingFace("en", "ko", model=str(model), processes=2, device="cpu")
    try:
        with pytest.raises(UserError, match=r"backend.model: found .*marian, which cannot be loaded"):
            backend.translate(TEXTS)
    finally:
        backend.close()

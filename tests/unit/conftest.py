"""What makes the unit tests quick without their noticing, and what several files of them share."""

from __future__ import annotations

import gc
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.evaluation import ACTIONS, TOPICS, texts_of

Sweep = Callable[..., int]
"""(work, words) -> exit code of a sweep with `work` in the place of each training."""
LAUNCHER = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")


@pytest.fixture(scope="module", autouse=True)
def _quick() -> Iterator[None]:
    """No waiting for the disk, and hardly a search for garbage among the libraries.

    What `fsync` is for, the power that fails, is nothing that a test of this directory sees, and it waits for the
    disk some 4,000 times. torch and transformers are a million objects, which Python's collector would go through
    again and again: what is there when a file's tests begin stays.
    """
    gc.freeze()
    thresholds = gc.get_threshold()
    gc.set_threshold(20_000, 20, 20)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: None)
        yield
    gc.set_threshold(*thresholds)


@pytest.fixture(scope="module")
def ranks() -> Iterator[Any]:
    """A real world of one rank."""
    from reranker.config.common import Device
    from reranker.train.distributed import join, leave

    with pytest.MonkeyPatch.context() as patch:
        for name in LAUNCHER:
            patch.setenv(name, "")  # so that it is put back afterwards
            os.environ.pop(name)
        try:
            yield join(Device.cpu, 60.0)
        finally:
            leave()


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with the rerankers `tuned` and `base`."""
    from tests.tiny import tiny_model

    directory = tmp_path_factory.mktemp("models")
    tiny_model(directory / "tuned", seed=0)
    tiny_model(directory / "base", seed=1)
    return directory


@pytest.fixture
def inputs(tmp_path: Path, models: Path) -> Callable[..., Any]:
    """Settings of an evaluation of both on 32 queries, to be changed; the report goes to `report`."""
    from reranker.config.common import FirstStageConfig
    from reranker.config.models import EvaluateConfig

    texts = texts_of(TOPICS, ACTIONS)
    corpus = [{"id": name, "text": text} for name, text in texts.items()]
    queries = [
        {"qid": name, "query": text.replace(" 방법을", ""), "pos": name, "doc": name.split("-")[0]}
        for name, text in texts.items()
    ]
    for name, records in (("corpus", corpus), ("queries", queries)):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))

    def config(**changes: Any) -> EvaluateConfig:
        settings: dict[str, Any] = {
            "model": str(models / "tuned"), "base": str(models / "base"), "corpus": str(tmp_path / "corpus.jsonl"),
            "queries": str(tmp_path / "queries.jsonl"), "output": str(tmp_path / "report"), "depth": 8, "contexts": 3,
            "first_stage": FirstStageConfig(analyzer="words"), "resamples": 200,
        }  # fmt: skip
        return EvaluateConfig(**settings | changes)

    return config


@pytest.fixture
def sweep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Sweep:
    """Run `reranker train --multirun`, or another spelling of it, with `work` in the place of each training."""
    from reranker import cli

    monkeypatch.chdir(tmp_path)

    def run(work: Callable[[Any], int], *words: str, spelled: str = "--multirun") -> int:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(cli, "function", lambda command, run_command: work)
            return cli.main(["train", spelled, "data.shards=x", "hydra.sweep.dir=sweep", *words])

    return run


def listed(directory: Path) -> list[dict[str, Any]]:
    """The trainings of a sweep, as its file has them."""
    found: list[dict[str, Any]] = json.loads((directory / "sweep.json").read_text())["trainings"]
    return found

"""A tracking service that cannot be reached, never answers or dies: the training does not notice."""

from __future__ import annotations

import os
import signal
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.distributed.conftest import Inputs, records
from tests.distributed.ranks import free_port, naming, start, train, until

STEPS = 30
KEY = "0" * 40


@pytest.fixture
def silent_server() -> Iterator[str]:
    """An address that takes every connection and never says a word."""
    taken: list[socket.socket] = []
    with socket.create_server(("127.0.0.1", 0)) as server:

        def take() -> None:
            while True:
                try:
                    taken.append(server.accept()[0])
                except OSError:  # closed
                    return

        thread = threading.Thread(target=take, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.getsockname()[1]}"
        server.shutdown(socket.SHUT_RDWR)
    thread.join()
    for connection in taken:
        connection.close()


@pytest.mark.parametrize("kind", ["unreachable", "silent"])
def test_a_service_that_does_not_answer_costs_its_timeout_and_nothing_else(
    inputs: Inputs, tmp_path: Path, kind: str, silent_server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    monkeypatch.setenv("WANDB_BASE_URL", silent_server if kind == "silent" else f"http://127.0.0.1:{free_port()}")
    monkeypatch.delenv("WANDB_MODE", raising=False)
    values = {"tracking": "wandb", "tracking.timeout": 3, "batch.per_gpu": 8, "precision": "fp32", "train.epochs": 1}
    (rank,) = train(1, inputs.overrides(tmp_path / "run", **values))
    assert "tracking: Weights & Biases " in rank.err
    assert "Traceback" not in rank.err
    assert [record["step"] for record in records(tmp_path / "run")] == [1, 2, 3]
    assert (tmp_path / "run/model/model.safetensors").is_file()


def test_a_service_that_is_killed_leaves_the_training_and_its_metrics(inputs: Inputs, tmp_path: Path) -> None:
    run = tmp_path / "run"
    values = {"tracking": "offline", "batch.per_gpu": 2, "precision": "fp32", "train.epochs": STEPS // 3}
    job = start(1, ["train", *inputs.overrides(run, **values)])
    try:

        def recorded() -> bool:
            path = run / "metrics.jsonl"
            return (path.exists() and path.read_text("utf-8").count("\n") >= 3) or not job.running

        until(recorded, lambda: "no step was recorded")
        service = set(naming("wandb-core")) & set(job.descendants)
        assert service, "there is no service to kill"
        for process in service:
            os.kill(process, signal.SIGKILL)
        (rank,) = job.wait()
    finally:
        job.end()
    assert rank.code == 0, rank.err
    assert [record["step"] for record in records(run)] == list(range(1, STEPS + 1))
    assert (run / "model/model.safetensors").is_file()

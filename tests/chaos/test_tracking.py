"""A tracking service that cannot be reached, never answers or dies: the training does not notice."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.distributed.conftest import Inputs, records
from tests.distributed.ranks import ROOT, environment, free_port, naming, start, train, until

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


def test_a_service_that_stops_answering_holds_neither_the_training_nor_its_end_up(
    inputs: Inputs, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    values = {
        "tracking": "offline", "tracking.timeout": 1, "tracking.artifacts": "checkpoints", "tracking.upload_timeout": 1,
        "batch.per_gpu": 2, "precision": "fp32", "train.epochs": STEPS // 3, "data.dev": inputs.dev,
    }  # fmt: skip
    # As a user starts it: at the end of such a process W&B waits for its own.
    command = [sys.executable, "-m", "reranker", "train", *inputs.overrides(run, **values)]
    with open(tmp_path / "err", "wb") as err:
        job = subprocess.Popen(command, env=environment(), stderr=err, stdout=err, start_new_session=True, cwd=ROOT)
    service: set[int] = set()
    try:

        def recorded() -> bool:
            path = run / "metrics.jsonl"
            return (path.exists() and path.read_text("utf-8").count("\n") >= 3) or job.poll() is not None

        until(recorded, lambda: "no step was recorded")
        service = set(naming("wandb-core")) & {child.pid for child in psutil.Process(job.pid).children(recursive=True)}
        assert service, "there is no service to stop"
        for process in service:
            os.kill(process, signal.SIGSTOP)
        until(lambda: job.poll() is not None, lambda: "the training does not end")
        assert not service & set(naming("wandb-core")), "the service was left behind"
    finally:
        for process in {job.pid, *service} if job.poll() is None else service & set(naming("wandb-core")):
            os.kill(process, signal.SIGKILL)
        job.wait()
    told = (tmp_path / "err").read_text("utf-8")
    assert job.returncode == 0, told
    assert "tracking: Weights & Biases has not finished after 1 s; metrics.jsonl has all records" in told
    assert [record["step"] for record in records(run) if "train/loss" in record] == list(range(1, STEPS + 1))
    assert (run / "model/model.safetensors").is_file()

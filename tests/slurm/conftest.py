"""One cluster for all tests here. Without root there is none: the tests fail and say so, they are not skipped."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.distributed.conftest import Inputs, inputs
from tests.distributed.ranks import train
from tests.slurm.cluster import NODES, Cluster, until
from tests.slurm.jobs import WORLD, settings

__all__ = ["inputs"]


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    assert os.geteuid() == 0, "tests/slurm: found no root, which the namespaces of its cluster want; run them as root"
    root = Path(tempfile.mkdtemp(prefix="slurm-", dir="/tmp"))  # short: sockets
    cluster = Cluster(root)
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.stop()
        shutil.rmtree(root, ignore_errors=True)


@pytest.fixture(autouse=True)
def nothing_left(cluster: Cluster) -> Iterator[None]:
    """A test that fails leaves no job in the next one's way."""
    yield
    cluster.run("scancel", "--user=root")
    until(lambda: len(cluster.idle()) == len(NODES), cluster.logs)


@pytest.fixture(scope="session")
def whole(inputs: Inputs, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run directory of the training that nothing happens to, on one machine."""
    run = tmp_path_factory.mktemp("whole") / "run"
    train(WORLD, inputs.overrides(run, **settings()))
    return run

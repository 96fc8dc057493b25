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
from tests.slurm.jobs import settings

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
    """The run directory of the training that nothing happens to, two ranks on one machine."""
    return _trained(2, inputs, tmp_path_factory.mktemp("whole"))


@pytest.fixture(scope="session")
def whole_of_four(inputs: Inputs, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same of four ranks, as it is for two nodes of two."""
    return _trained(4, inputs, tmp_path_factory.mktemp("whole-of-four"))


def _trained(world: int, inputs: Inputs, directory: Path) -> Path:
    train(world, inputs.overrides(directory / "run", **settings()))
    return directory / "run"

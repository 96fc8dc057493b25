"""Two machines without a scheduler: `deepspeed --hostfile` through ssh, and torchrun on each."""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.distributed.conftest import Inputs
from tests.distributed.ranks import ROOT, environment, free_port
from tests.slurm.cluster import NODES, Cluster, address, install
from tests.slurm.jobs import assert_as_if_nothing_had_happened, settings


@pytest.fixture
def ssh(cluster: Cluster, tmp_path: Path) -> Path:
    """A client's configuration with which root of the login host comes to both nodes by key."""
    install({"sshd": "openssh-server", "ssh": "openssh-client", "pdsh": "pdsh"})
    for name in ("host", "user"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(tmp_path / name)], check=True)
    Path("/run/sshd").mkdir(exist_ok=True)  # sshd's privilege separation wants it
    server = tmp_path / "sshd_config"
    server.write_text(
        f"HostKey {tmp_path}/host\nAuthorizedKeysFile {tmp_path}/user.pub\nStrictModes no\nUsePAM no\nPidFile none\n"
        "PermitRootLogin prohibit-password\n"
    )
    for node in NODES:
        done = cluster.on(node, "/usr/sbin/sshd", "-f", str(server), "-E", str(tmp_path / f"sshd-{node}.log"))
        assert done.returncode == 0, done.stderr
    client = tmp_path / "ssh_config"
    client.write_text(
        f"IdentityFile {tmp_path}/user\nIdentitiesOnly yes\nStrictHostKeyChecking no\nUserKnownHostsFile /dev/null\n"
        "LogLevel ERROR\n"
    )
    return client


def test_deepspeed_with_a_hostfile_trains_as_one_machine_does(
    cluster: Cluster, inputs: Inputs, whole_of_four: Path, tmp_path: Path, ssh: Path
) -> None:
    run, work = tmp_path / "run", tmp_path / "work"
    work.mkdir()
    (work / "hosts").write_text("".join(f"{node} slots=2\n" for node in NODES))
    passed_on = ("DS_ACCELERATOR", "OMP_NUM_THREADS", "HF_HUB_OFFLINE", "TOKENIZERS_PARALLELISM")
    variables = environment(PDSH_SSH_ARGS_APPEND=f"-F {ssh}")
    (work / ".deepspeed_env").write_text("".join(f"{name}={variables[name]}\n" for name in passed_on))
    command = ["deepspeed", "--hostfile=hosts", "--no_ssh_check", "--no_local_rank", f"--master_addr={address('n1')}",
               f"--master_port={free_port()}", "--module", "reranker.train", *inputs.overrides(run, **settings())]  # fmt: skip
    done = cluster.on("ctl", "bash", "-c", f'cd {work} && exec "$@"', "bash", *command, **variables)
    assert done.returncode == 0, done.stdout + done.stderr
    assert_as_if_nothing_had_happened(run, whole_of_four)


def test_torchrun_on_each_node_trains_as_one_machine_does(
    cluster: Cluster, inputs: Inputs, whole_of_four: Path, tmp_path: Path
) -> None:
    run, port = tmp_path / "run", free_port()

    def on(number: int) -> subprocess.CompletedProcess[str]:
        return cluster.on(
            NODES[number], sys.executable, "-m", "torch.distributed.run", "--nnodes=2", "--nproc_per_node=2",
            f"--node_rank={number}", f"--master_addr={address('n1')}", f"--master_port={port}", "-m", "reranker.train",
            *inputs.overrides(run, **settings()), **environment(PYTHONPATH=str(ROOT)),
        )  # fmt: skip

    with ThreadPoolExecutor() as both:
        first, second = both.map(on, (0, 1))
    assert (first.returncode, second.returncode) == (0, 0), first.stderr + second.stderr
    assert_as_if_nothing_had_happened(run, whole_of_four)

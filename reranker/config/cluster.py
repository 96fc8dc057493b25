"""The settings of the commands for SLURM clusters."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Optional

from reranker.config.common import MISSING, Device
from reranker.config.training import TrainConfig

# omegaconf reads Optional[...] on every Python that we support; the X | None form it does not.
# ruff: noqa: UP045


@dataclass
class SlurmConfig:
    nodes: int = 1
    """Nodes of the job"""
    gpus_per_node: int = 8
    """GPUs of each node, with a rank for each; 0: ranks on CPUs"""
    ranks_per_node: Optional[int] = None
    """Ranks of each node; null: one for each GPU"""
    cpus_per_rank: int = 8
    """CPU cores of each rank: the training process and its data.workers"""
    partition: Optional[str] = None
    """Partition of the cluster; null: its default"""
    account: Optional[str] = None
    """Account that is charged; null: the user's own"""
    qos: Optional[str] = None
    """Quality of service; null: the user's default"""
    time: Optional[str] = None
    """Time limit as sbatch takes it, 24:00:00 for example; null: the partition's"""
    options: list[str] = field(default_factory=list)
    """Other options of sbatch: ['--constraint=h100','--mem=0']"""
    chain: int = 1
    """Jobs in a row, each of which goes on where the one before it stopped, where a cluster queues no job again"""


@dataclass
class SubmitConfig(TrainConfig):
    slurm: SlurmConfig = field(default_factory=SlurmConfig)
    dry_run: bool = False
    """Print the batch arithmetic and the sbatch command, then stop"""


@dataclass
class JobsConfig:
    runs: str = "runs"
    """Directory in which, or below which, the run directories of jobs are"""
    output: Optional[str] = None
    """JSON file for the same; null: the table is printed only"""


@dataclass
class SweepShowConfig:
    sweep: str = MISSING
    """Directory of a sweep, `reranker train --multirun ...` here or with hydra/launcher=slurm: its hydra.sweep.dir"""
    output: Optional[str] = None
    """JSON file for the same; null: the table is printed only"""


@dataclass
class DoctorConfig:
    directory: str = "."
    """Directory on the file system of the run directories, which all nodes must see"""
    mib: int = 64
    """MiB of the large all-reduce"""
    wait: float = 10.0
    """Seconds within which every node must see what another one writes in the directory"""
    device: Device = Device.auto
    """auto: the GPU if there is one"""
    timeout: float = 120.0
    """Seconds that the ranks wait for one another"""
    output: Optional[str] = None
    """JSON file for every rank's facts; null: the table is printed only"""

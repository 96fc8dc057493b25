"""The settings of tracking, and of the command that makes a dashboard of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Optional

from reranker.config.common import MISSING, Artifacts, TrackingMode

# omegaconf reads Optional[...] on every Python that we support; the X | None form it does not.
# ruff: noqa: UP045


@dataclass
class TrackingConfig:
    mode: TrackingMode = TrackingMode.auto
    """Weights & Biases online, offline or disabled; auto: online with a key and a network, else offline"""
    tensorboard: bool = False
    """Write the same metrics as TensorBoard's event files, to tensorboard/ in the run directory"""
    project: str = "ko-reranker"
    """Weights & Biases project"""
    entity: Optional[str] = None
    """Weights & Biases user or team"""
    group: Optional[str] = None
    """Weights & Biases group of the run; a sweep of hydra/launcher=slurm is one by itself"""
    job_type: str = "train"
    """Weights & Biases job type of the run, which tells the runs of a group apart"""
    tags: list[str] = field(default_factory=list)
    """Weights & Biases tags of the run"""
    notes: Optional[str] = None
    """Weights & Biases notes of the run: what was meant by it"""
    examples: int = 8
    """Queries of data.dev that a table shows at each evaluation, with their passages as they rank; 0: none"""
    alerts: Optional[bool] = None
    """Send warnings and the reason of an early end as alerts, by mail or Slack; null: where the run is online"""
    alert_wait: float = 3600.0
    """Seconds before an alert of the same cause is sent again"""
    artifacts: Artifacts = Artifacts.none
    """Upload the exported model, or that and its best and last checkpoint, with the data as their origin"""
    upload_timeout: float = 1800.0
    """Seconds that the uploads may take behind the training: then it ends without"""
    timeout: float = 30.0
    """Seconds that tracking may take to start, and to finish: then the training goes on without"""


@dataclass
class DashboardConfig:
    entity: str = MISSING
    """Weights & Biases user or team"""
    project: str = "ko-reranker"
    """Weights & Biases project of the trainings, as in tracking.project"""
    name: str = "reranker training"
    """What the workspace is called"""
    sets: list[str] = field(default_factory=list)
    """Names of sets in data.dev_sets whose metrics have panels as well"""
    metric: str = "mrr"
    """What orders the runs, by its best value: a metric of data.dev, or of a set in sets as NAME/mrr"""
    output: Optional[str] = None
    """JSON file for the workspace's specification; nothing is sent then"""
    dry_run: bool = False
    """Print the sections, then stop"""

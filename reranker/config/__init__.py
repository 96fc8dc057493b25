"""The settings of every command and their meaning; what contradicts itself in them is found by `checks.py`.

In: a composed Hydra config. Out: one typed dataclass for each command. The line under a field is its
documentation: `reranker <command> --help` prints it. Nothing here imports torch, so that help and
`--cfg job` are immediate.
"""

from __future__ import annotations

from reranker.config.checking import CheckConfig
from reranker.config.cluster import DoctorConfig, JobsConfig, SubmitConfig, SweepShowConfig
from reranker.config.evaluating import CompareConfig
from reranker.config.mining import MineConfig
from reranker.config.models import DemoConfig, EvaluateConfig, ExportConfig, PushConfig, ScoreConfig, SoupConfig
from reranker.config.preparing import PrepareConfig
from reranker.config.shards import DataInspectConfig, DataVerifyConfig, IndexConfig, PackConfig
from reranker.config.tracking import DashboardConfig
from reranker.config.training import CheckpointListConfig, CheckpointVerifyConfig, ReplayConfig, TrainConfig
from reranker.config.translation import TranslateConfig
from reranker.config.trimming import TrimConfig

COMMANDS: dict[str, tuple[type, str]] = {
    "prepare": (PrepareConfig, "make shards of groups in another language: translate, check, mine, check, pack"),
    "translate": (TranslateConfig, "translate groups, each distinct text once, with quality gates"),
    "mine": (MineConfig, "find hard negatives in a corpus, false ones filtered"),
    "check": (CheckConfig, "look for what is wrong with groups, and mend it on request"),
    "pack": (PackConfig, "write groups as WebDataset shards with a manifest"),
    "index": (IndexConfig, "index WebDataset shards of others where they lie"),
    "data inspect": (DataInspectConfig, "tell what shards hold and what micro-batches of them cost"),
    "data verify": (DataVerifyConfig, "compare every byte of shards with their checksums"),
    "train": (TrainConfig, "train a cross-encoder reranker"),
    "submit": (SubmitConfig, "train as a SLURM job: checked, shown and submitted"),
    "jobs": (JobsConfig, "list trainings that were submitted: state, step, loss, time left, restarts"),
    "sweep show": (SweepShowConfig, "list the trainings of a sweep, best first"),
    "doctor cluster": (DoctorConfig, "look at the nodes of a job: versions, devices, clocks, all-reduce, shared files"),
    "checkpoint list": (CheckpointListConfig, "list the checkpoints of a run"),
    "checkpoint verify": (CheckpointVerifyConfig, "compare every byte of checkpoints with their checksums"),
    "replay": (ReplayConfig, "run one optimizer step from a checkpoint once more and tell of each group"),
    "dashboard": (DashboardConfig, "save a Weights & Biases workspace for the trainings of a project"),
    "evaluate": (EvaluateConfig, "compare first stage, base, fine-tuned model and other systems on sets of queries"),
    "evaluate compare": (CompareConfig, "tell which queries one evaluated system wins over another, with texts"),
    "export": (ExportConfig, "write a checkpoint as a Hugging Face directory with a model card"),
    "push": (PushConfig, "send an exported model to a model hub, as one commit"),
    "trim": (TrimConfig, "cut a model's vocabulary to what a corpus uses: smaller, with the same scores"),
    "soup": (SoupConfig, "mix the weights of a base and a fine-tuned model, best on dev groups"),
    "score": (ScoreConfig, "score passages for queries"),
    "demo": (DemoConfig, "prepare the demo's documents, training groups and base model"),
}

WITH_GROUPS = {"train": "", "submit": "", "translate": "", "prepare": "prepare"}
"""Commands that choose among the yamls of directories, and where in conf/ those directories are."""

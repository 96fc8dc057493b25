"""The settings of the commands that evaluate, export and use a model, and of the demo."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Optional

from reranker.config.common import MISSING, Device, FirstStageConfig, LongPassages, Packing, Precision
from reranker.config.regression_gate import ExportGateConfig, GateConfig

# omegaconf reads Optional[...] on every Python that we support; the X | None form it does not.
# ruff: noqa: UP045


@dataclass
class EvaluateConfig:
    model: str = MISSING
    """Directory or hub name of the fine-tuned reranker"""
    base: Optional[str] = None
    """Directory or hub name of the model it started from; null: the table has no such row"""
    corpus: Optional[str] = None
    """Passages, one {"id", "text"} a line; "doc" names the document of a passage"""
    queries: Optional[str] = None
    """Queries, one {"qid", "query", "pos"} a line; "also" lists equivalents of the right passage"""
    sets: Any = field(default=None, metadata={"kind": "mapping or yaml file, or null"})
    """Sets in their place: {NAME: {path, form: groups|beir|trec|reranking|csv|own, stage: bm25|dense|run, ...}}"""
    systems: Any = field(default=None, metadata={"kind": "mapping or yaml file, or null"})
    """Other rows: {NAME: {kind: reranker|sentence_transformers|flagembedding|cohere|onnx, model: ..., ...}}"""
    output: Optional[str] = None
    """Directory for report.html, the table (.json, .md, .png), details and all queries; null: it is printed only"""
    depth: int = 20
    """Passages of the first stage that are reranked"""
    depths: list[int] = field(default_factory=list)
    """Other depths at which the systems are compared as well"""
    contexts: int = 5
    """Passages handed on: has-right-in-contexts looks among these"""
    metrics: list[str] = field(default_factory=lambda: ["has_right_in_contexts", "mrr", "ndcg@10"])
    """has_right_in_contexts, mrr, ndcg (linear gain), ndcg_exponential, map, recall; with @k behind it for a cutoff"""
    sample: Optional[int] = None
    """Queries that are used, chosen by the hash of their qid; null: all"""
    first_stage: FirstStageConfig = field(default_factory=FirstStageConfig)
    max_length: Optional[int] = None
    """Tokens of a pair at most; null: the model's own"""
    long: LongPassages = LongPassages.truncate
    """A passage that is too long for a pair: `truncate` cuts it, `windows` scores all of it, window by window"""
    window_overlap: int = 64
    """long=windows: tokens that neighbouring windows share, half of a window at most"""
    window_best: int = 1
    """long=windows: a passage's score is the mean of so many of its windows, the best ones; 1: the maximum"""
    batch_tokens: int = 4096
    """Tokens of a forward batch at most, padding included where there is any"""
    packing: Packing = Packing.auto
    """packed: no padding, attention within each pair; padded: to the longest; auto: packed where the model can"""
    precision: Precision = Precision.auto
    """auto: fp16 on a GPU, fp32 on a CPU"""
    device: Device = Device.auto
    """auto: the GPU if there is one"""
    resamples: int = 2000
    """Bootstrap resamples behind the 95% intervals"""
    permutations: int = 10000
    """Permutations behind the p-values of differences"""
    baseline: Optional[str] = None
    """System that all others are compared with; null: fine-tuned with all but fused, and that with the first stage"""
    latency: int = 0
    """Queries of each set that are scored once more, one by one, for the time that a query takes; 0: not measured"""
    seed: int = 42
    """Seed of bootstrap and permutations"""
    force: bool = False
    """Evaluate again although the inputs are those of the table in output"""


@dataclass
class ExportConfig:
    run: str = MISSING
    """Run directory of a training"""
    checkpoint: str = "best"
    """best, last or the name of a directory under checkpoints/"""
    output: Optional[str] = None
    """Directory for the model; null: model/ in the run directory"""
    dtype: Precision = Precision.fp32
    """Type of the weights on the disk: fp32, fp16 or bf16"""
    onnx: bool = False
    """Write onnx/model.onnx as well: the same weights, in float32 whatever dtype is"""
    int8: Optional[str] = None
    """Groups that judge onnx/model_quantized.onnx, which is written as well, in 8 bits; null: there is none"""
    int8_agreement: float = 0.95
    """Share of two passages of a query that the 8-bit file must leave in their order; below it nothing is written"""
    report: Optional[str] = None
    """table.json for the model card; null: the run's report/table.json, if it is of exactly these weights"""
    gate: ExportGateConfig = field(default_factory=ExportGateConfig)
    device: Device = Device.auto
    """Where guard sets are scored; auto: the GPU if there is one"""


@dataclass
class PushConfig:
    model: str = MISSING
    """Directory of an exported model"""
    repo: str = MISSING
    """OWNER/NAME of the repository; it is made if it is not there"""
    private: bool = True
    """Make it a private repository; false: a public one, and one that is there may be public"""
    revision: Optional[str] = None
    """Branch that gets the commit, made from main if it is not there; null: main"""
    message: Optional[str] = None
    """Of the commit; null: which version exported it"""
    endpoint: Optional[str] = None
    """URL of the hub; null: HF_ENDPOINT, or the public one"""
    create_pr: bool = False
    """Open a pull request to main, and leave main as it is"""
    tag: Optional[str] = None
    """Tag of the commit, which must be new; null: none"""
    force: bool = False
    """Push a model as well that has failed its gate"""
    dry_run: bool = False
    """Check and list the files, then stop: nothing is sent"""


@dataclass
class SoupConfig:
    base: str = MISSING
    """Directory or hub name of the model that the other was tuned from"""
    tuned: str = MISSING
    """Directory of the fine-tuned model"""
    output: str = MISSING
    """Directory for the mixed model"""
    alpha: Any = field(default=0.5, metadata={"kind": "float or list of float"})
    """Share of the tuned model, 0 to 1; of several the one that is best on dev, with gate.sets of those that pass"""
    dev: Optional[str] = None
    """Groups that every alpha is evaluated on; null: one alpha, untested"""
    metric: str = "mrr"
    """What chooses among alphas: mrr, ndcg@10 or has_right_in_contexts"""
    gate: GateConfig = field(default_factory=GateConfig)
    dtype: Precision = Precision.fp32
    """Type of the weights on the disk: fp32, fp16 or bf16"""
    device: Device = Device.auto
    """Where alphas are evaluated; auto: the GPU if there is one"""


@dataclass
class ScoreConfig:
    model: str = MISSING
    """Directory or hub name of a reranker"""
    input: str = "-"
    """Requests, one {"query", "passages"} a line; -: standard input"""
    output: str = "-"
    """Answers, one {"query", "scores", "probabilities"} a line; -: standard output"""
    max_length: Optional[int] = None
    """Tokens of a pair at most; null: the model's own"""
    long: LongPassages = LongPassages.truncate
    """A passage that is too long for a pair: `truncate` cuts it, `windows` scores all of it, window by window"""
    window_overlap: int = 64
    """long=windows: tokens that neighbouring windows share, half of a window at most"""
    window_best: int = 1
    """long=windows: a passage's score is the mean of so many of its windows, the best ones; 1: the maximum"""
    batch_tokens: int = 4096
    """Tokens of a forward batch at most, padding included where there is any"""
    packing: Packing = Packing.auto
    """packed: no padding, attention within each pair; padded: to the longest; auto: packed where the model can"""
    precision: Precision = Precision.auto
    """auto: fp16 on a GPU, fp32 on a CPU"""
    device: Device = Device.auto
    """auto: the GPU if there is one"""


@dataclass
class DemoConfig:
    output: str = "runs/demo"
    """Directory for data/ (English groups, translation memory, corpus, queries) and base/ (the base model)"""
    sentences: bool = True
    """Groups of passages' first sentences as well, beside those of headings"""
    dev_queries: int = 128
    """Headings of the dev documents that select checkpoints, and at most as many of their first sentences"""
    dev_negatives: int = 9
    """BM25 negatives of each dev query"""
    force: bool = False
    """Make everything again although it is there"""

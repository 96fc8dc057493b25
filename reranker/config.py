"""The settings of every command and their meaning; what contradicts itself in them is found by `checks.py`.

In: a composed Hydra config. Out: one typed dataclass for each command. The line under a field is its
documentation: `reranker <command> --help` prints it. Nothing here imports torch, so that help and
`--cfg job` are immediate.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Optional

MISSING: Any = "???"
"""omegaconf's mark of a value that must be given; to import it takes a fifth of the start of a process of pack."""

# omegaconf reads Optional[...] on every Python that we support; the X | None form it does not.
# ruff: noqa: UP045


class ShortGroups(Enum):
    repeat = "repeat"
    shrink = "shrink"
    error = "error"


class Truncation(Enum):
    longest_first = "longest_first"
    only_second = "only_second"


class Precision(Enum):
    auto = "auto"
    fp16 = "fp16"
    bf16 = "bf16"
    fp32 = "fp32"


class Device(Enum):
    auto = "auto"
    cpu = "cpu"
    cuda = "cuda"


class TrackingMode(Enum):
    auto = "auto"
    online = "online"
    offline = "offline"
    disabled = "disabled"


class ShardCheck(Enum):
    size = "size"
    sha256 = "sha256"


class BatchPolicy(Enum):
    fixed = "fixed"
    tokens = "tokens"


class Packing(Enum):
    auto = "auto"
    packed = "packed"
    padded = "padded"


MOST_OPEN = 256
"""Shards that a process holds open at a time."""

# `raise` is a word of Python's own: a class body cannot name a member so.
BadData = Enum("BadData", {"raise": "raise", "ghost": "ghost"})


@dataclass
class ModelConfig:
    name: str = "BAAI/bge-reranker-large"
    """Hub name or directory of an encoder, with or without a trained score head"""
    revision: Optional[str] = None
    """Branch, tag or commit of a hub model"""
    dropout: Optional[float] = None
    """Dropout of hidden states and attention; null keeps the model's own"""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, about a third more time"""


@dataclass
class NegativesConfig:
    warmup: float = 0.0
    """Share of the training, from its start, in which all negatives are random passages of other groups of the block"""
    random: float = 0.0
    """Share of a group's negatives that stay random afterwards; the others are the group's own"""
    hardest: Optional[int] = None
    """Choose among the first n of a group's own negatives only; null: among all"""


@dataclass
class CacheConfig:
    directory: Optional[str] = None
    """Where a node keeps copies of remote shards; null: $XDG_CACHE_HOME/ko-reranker, or ~/.cache/ko-reranker"""
    gib: float = 100.0
    """Size of the copies at most; those not read for longest make room"""


@dataclass
class DataConfig:
    shards: Any = field(default=MISSING, metadata={"kind": "str or mapping"})
    """Directory or URL of shards, or a mixture: {a: DIR, b: {shards: DIR, weight: 0.5}}"""
    dev: Optional[str] = None
    """Groups (jsonl) on which checkpoints are selected; null: the last checkpoint is the model"""
    group_size: int = 3
    """Passages of a group in the loss: one positive and the rest negatives"""
    short_groups: ShortGroups = ShortGroups.repeat
    """Fewer negatives than places: `repeat` them, `shrink` the group, or stop with an `error`"""
    truncation: Truncation = Truncation.longest_first
    """What is cut when query and passage exceed max_length: the longer of both, or the passage only"""
    max_length: int = 512
    """Tokens of a pair at most, special tokens included"""
    query_max_length: Optional[int] = None
    """Tokens of a query at most, special tokens not included; null: no limit of its own"""
    negatives: NegativesConfig = field(default_factory=NegativesConfig)
    shuffle_block: int = 64
    """Shards whose groups are shuffled together; data of fewer shards is shuffled as a whole"""
    check: ShardCheck = ShardCheck.size
    """What is compared with the manifest before training: each shard's size, or its sha256 as well"""
    workers: int = 1
    """Processes that read and tokenize for each rank; 0: the rank itself"""
    prefetch: int = 2
    """Optimizer steps that each worker prepares ahead"""
    bad: BadData = BadData["raise"]
    """A group that cannot be read, after retries: `raise` stops the training, `ghost` gives it weight zero"""
    bad_limit: int = 100
    """bad=ghost: more such groups than this in a run stop it"""
    retries: int = 3
    """Times that a failed read or fetch is tried again before the group counts as bad"""
    cache: CacheConfig = field(default_factory=CacheConfig)


@dataclass
class BatchConfig:
    groups: int = 32
    """Groups of an optimizer step over all ranks: the effective batch"""
    policy: BatchPolicy = BatchPolicy.fixed
    """Micro-batches of `per_gpu` groups (fixed), or of up to `tokens` tokens, balanced over the ranks (tokens)"""
    per_gpu: int = 1
    """policy=fixed: groups of a micro-batch on one rank; accumulation follows as groups / (per_gpu x ranks)"""
    tokens: Any = field(default=8192, metadata={"kind": "int or auto"})
    """policy=tokens: tokens of a micro-batch on a rank at most; auto: what the GPU holds, measured at the start"""
    packing: Packing = Packing.auto
    """packed: no padding, attention within each pair; padded: to the longest; auto: packed where the model can"""


@dataclass
class LossConfig:
    labels: float = 1.0
    """Weight of the cross-entropy over the scores of a group, the positive being the target"""
    distillation: float = 0.0
    """Weight of the divergence from a teacher's scores, the groups' pos_scores and neg_scores; 0: without a teacher"""
    temperature: float = 1.0
    """The teacher's scores are divided by this before their softmax"""


@dataclass
class OptimConfig:
    lr: float = 5e-6
    """Peak learning rate"""
    weight_decay: float = 0.01
    """Decoupled weight decay of matrices; biases and LayerNorm have none"""
    betas: tuple[float, float] = (0.9, 0.999)
    """AdamW's decay rates of the two moments"""
    eps: float = 1e-8
    """AdamW's epsilon"""
    warmup: float = 0.0
    """Share of the steps over which the learning rate rises from zero"""
    max_grad_norm: float = 1.0
    """Gradients are clipped to this norm; 0: not at all"""


@dataclass
class DeepspeedConfig:
    stage: int = 1
    """ZeRO stage: 0 nothing, 1 optimizer state, 2 and gradients, 3 and parameters are partitioned"""
    reduce_bucket_size: Optional[int] = None
    """Elements of a gradient bucket; null: sized to the model, at most 5e8"""


@dataclass
class PrecisionConfig:
    name: Precision = Precision.auto
    """fp16, bf16 or fp32; auto: fp16 on a GPU, fp32 on a CPU"""
    initial_scale_power: int = 16
    """fp16: the loss scale starts at two to this power"""
    loss_scale_window: int = 1000
    """fp16: steps without overflow after which the scale doubles"""
    hysteresis: int = 2
    """fp16: overflows before the scale is halved"""
    min_loss_scale: float = 1.0
    """fp16: the scale never falls below this"""
    fp16_on_cpu: bool = False
    """Let fp16 run on a CPU, several times slower than fp32: for testing the loss scaler"""


@dataclass
class TrackingConfig:
    mode: TrackingMode = TrackingMode.auto
    """Weights & Biases online, offline or disabled; auto: online with a key and a network, else offline"""
    project: str = "ko-reranker"
    """Weights & Biases project"""
    entity: Optional[str] = None
    """Weights & Biases user or team"""
    group: Optional[str] = None
    """Weights & Biases group of the run"""
    tags: list[str] = field(default_factory=list)
    """Weights & Biases tags of the run"""


@dataclass
class TrainSettings:
    epochs: int = 3
    """Times that every group is seen; of a mixture, one of weight 1"""
    max_steps: Optional[int] = None
    """Stop after this many optimizer steps; the schedule ends there as well"""
    seed: int = 42
    """Decides the order of the groups, the choice of negatives, the new head and dropout"""
    device: Device = Device.auto
    """auto: the GPU if there is one"""
    dry_run: bool = False
    """Print devices, batch arithmetic, steps and memory estimates, then stop"""
    log_every: int = 1
    """Steps between two records of metrics"""
    eval_every: Optional[int] = None
    """Steps between two evaluations on data.dev; null: at the end of each epoch"""
    metric: str = "mrr"
    """Metric of data.dev that selects the best checkpoint: mrr or ndcg@10"""
    save_every: Optional[int] = None
    """Steps between two checkpoints; null: with each evaluation"""
    keep_last: int = 2
    """Newest checkpoints that are kept, beside the best one"""
    deterministic: bool = False
    """Bitwise repeatable kernels, slower on a GPU"""
    timeout: float = 1800.0
    """Seconds after which a collective that some rank does not join ends the job"""


@dataclass
class TrainConfig:
    run_dir: str = "runs/train"
    """Everything that the run writes; the same command with the same directory resumes"""
    name: str = "train"
    """Name of the run in tracking and in the model card"""
    language: Optional[str] = None
    """Language of the data for the model card, as an ISO 639-1 code"""
    recipe: Any = None
    """Recipe that the values were taken from"""
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    batch: BatchConfig = field(default_factory=BatchConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    deepspeed: DeepspeedConfig = field(default_factory=DeepspeedConfig)
    precision: PrecisionConfig = field(default_factory=PrecisionConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    train: TrainSettings = field(default_factory=TrainSettings)


@dataclass
class PackConfig:
    groups: str = MISSING
    """Groups, one JSON object a line (.jsonl, .jsonl.gz, .jsonl.zst)"""
    output: str = MISSING
    """Directory for the shards and their manifest"""
    groups_per_shard: int = 2048
    """Groups in each shard but the last"""
    tokenizer: Optional[str] = None
    """Model whose token lengths are written as well, for batch.policy=tokens; null: training counts them"""
    workers: int = 1
    """Processes that write shards"""
    overwrite: bool = False
    """Replace shards made from other groups"""


@dataclass
class IndexConfig:
    shards: Any = field(default=MISSING, metadata={"kind": "str or list"})
    """Tars of others: a directory, a pattern like dir/{000..127}.tar, an https://, s3:// or pipe: URL, or a list"""
    output: str = MISSING
    """Directory for the manifest and the indexes; the tars stay where they are"""
    tokenizer: Optional[str] = None
    """Model whose token lengths are written as well, for batch.policy=tokens; null: training counts them"""
    workers: int = 1
    """Processes that read shards"""
    cache: CacheConfig = field(default_factory=CacheConfig)
    overwrite: bool = False
    """Replace an index made of other tars"""


@dataclass
class DataInspectConfig:
    shards: str = MISSING
    """Directory or URL of shards"""
    tokenizer: Optional[str] = None
    """Model whose tokens are counted; null: lengths that lie beside the shards, or none"""
    samples: int = 3
    """Groups that are shown"""
    worlds: list[int] = field(default_factory=lambda: [1, 2, 4, 8])
    """Numbers of ranks for which micro-batches are planned"""
    group_size: int = 3
    """Passages of a group in the plan: one positive and the rest negatives"""
    max_length: int = 512
    """Tokens of a pair at most in the plan"""
    groups: int = 32
    """Groups of an optimizer step in the plan"""
    per_gpu: int = 1
    """Groups of a micro-batch of policy `fixed`"""
    tokens: int = 8192
    """Tokens of a micro-batch of policy `tokens`"""
    steps: int = 50
    """Optimizer steps that are planned and averaged"""
    cache: CacheConfig = field(default_factory=CacheConfig)


@dataclass
class DataVerifyConfig:
    shards: str = MISSING
    """Directory or URL of shards"""
    workers: int = 4
    """Files that are read at a time"""


@dataclass
class FirstStageConfig:
    analyzer: str = "kiwi"
    """kiwi: Korean content morphemes; words: lower-cased words; bigrams: character pairs"""
    k1: float = 0.9
    """BM25's term frequency saturation"""
    b: float = 0.4
    """BM25's length normalisation"""


@dataclass
class EvaluateConfig:
    model: str = MISSING
    """Directory or hub name of the fine-tuned reranker"""
    base: Optional[str] = None
    """Directory or hub name of the model it started from; null: the table has no such row"""
    corpus: str = MISSING
    """Passages, one {"id", "text"} a line; "doc" names the document of a passage"""
    queries: str = MISSING
    """Queries, one {"qid", "query", "pos"} a line; "also" lists equivalents of the right passage"""
    output: Optional[str] = None
    """Directory for table.json, table.md and table.png; null: the table is printed only"""
    depth: int = 20
    """Passages of the first stage that are reranked"""
    contexts: int = 5
    """Passages handed on: has-right-in-contexts looks among these"""
    sample: Optional[int] = None
    """Queries that are used, chosen by the hash of their qid; null: all"""
    first_stage: FirstStageConfig = field(default_factory=FirstStageConfig)
    max_length: Optional[int] = None
    """Tokens of a pair at most; null: the model's own"""
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
    seed: int = 42
    """Seed of the bootstrap"""
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
    report: Optional[str] = None
    """table.json for the model card; null: the run's report/table.json, if it is of exactly these weights"""


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
    """Directory for data/ (corpus, queries, groups) and base/ (the base model)"""
    negatives: int = 20
    """BM25 negatives of each training group"""
    sentences: bool = True
    """Groups of passages' first sentences as well, beside those of headings"""
    teacher: bool = True
    """Scores of the base model as an embedder, for loss.distillation"""
    dev_queries: int = 128
    """Headings of the dev documents that select checkpoints, and at most as many of their first sentences"""
    dev_negatives: int = 9
    """BM25 negatives of each dev query"""
    force: bool = False
    """Make everything again although it is there"""


COMMANDS: dict[str, tuple[type, str]] = {
    "pack": (PackConfig, "write groups as WebDataset shards with a manifest"),
    "index": (IndexConfig, "index WebDataset shards of others where they lie"),
    "data inspect": (DataInspectConfig, "tell what shards hold and what micro-batches of them cost"),
    "data verify": (DataVerifyConfig, "compare every byte of shards with their checksums"),
    "train": (TrainConfig, "train a cross-encoder reranker"),
    "evaluate": (EvaluateConfig, "compare first stage, base and fine-tuned model on a corpus with queries"),
    "export": (ExportConfig, "write a checkpoint as a Hugging Face directory with a model card"),
    "score": (ScoreConfig, "score passages for queries"),
    "demo": (DemoConfig, "prepare the demo's documents, training groups and base model"),
}

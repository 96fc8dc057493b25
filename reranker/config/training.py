"""The settings of `reranker train`, and of the commands that look into its run directory."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Optional

from reranker.config.common import (
    MISSING,
    BadData,
    BatchPolicy,
    CacheConfig,
    Device,
    LabelLoss,
    Packing,
    Precision,
    ShardCheck,
    ShortGroups,
    TeacherLoss,
    Truncation,
)
from reranker.config.regression_gate import GateConfig
from reranker.config.tracking import TrackingConfig

# omegaconf reads Optional[...] on every Python that we support; the X | None form it does not.
# ruff: noqa: UP045


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
    decay: float = 0.0
    """Share of the training, behind warmup, over which random negatives become fewer, in a line, down to `random`"""
    random: float = 0.0
    """Share of a group's negatives that stay random afterwards; the others are the group's own"""
    hardest: Optional[int] = None
    """Choose among the first n of a group's own negatives only; null: among all"""
    score_temperature: Optional[float] = None
    """Draw own negatives by their neg_scores, in proportion to exp(score / this); null: all in turn"""


@dataclass
class DataConfig:
    shards: Any = field(default=MISSING, metadata={"kind": "str or mapping"})
    """Directory or URL of shards, or a mixture: {a: DIR, b: {shards: DIR, weight: 0.5}}"""
    dev: Optional[str] = None
    """Groups (jsonl) on which checkpoints are selected; null, and no dev_sets: the last checkpoint is the model"""
    dev_sets: Any = field(default=None, metadata={"kind": "mapping or yaml file, or null"})
    """More that is evaluated whenever dev is: {NAME: groups file}, or as evaluate has its sets; null: nothing"""
    origin: Optional[str] = None
    """Where the groups come from and under which licence, in one line of words, for the model card"""
    group_size: int = 3
    """Passages of a group in the loss: positives and the rest negatives"""
    positives: int = 1
    """Positives of a group in the loss at once, where it has as many; several want a loss.by_label that knows them"""
    short_groups: ShortGroups = ShortGroups.repeat
    """Fewer negatives than places: `repeat` them, `shrink` the group, or stop with an `error`"""
    truncation: Truncation = Truncation.longest_first
    """What is cut when query and passage exceed max_length: the longer of both, or the passage only"""
    max_length: int = 512
    """Tokens of a pair at most, special tokens included"""
    query_max_length: Optional[int] = None
    """Tokens of a query at most, special tokens not included; null: no limit of its own"""
    passage_max_length: Optional[int] = None
    """Tokens of a passage at most, special tokens not included; null: no limit of its own"""
    query_prefix: str = ""
    """Stands before every query, in front of a group's own prompt, and is counted with it; part of the model"""
    passage_prefix: str = ""
    """Stands before every passage and is counted with it; part of the model"""
    negatives: NegativesConfig = field(default_factory=NegativesConfig)
    shuffle_block: int = 64
    """Shards whose groups are shuffled together; data of fewer shards is shuffled as a whole"""
    check: ShardCheck = ShardCheck.size
    """What is compared with the manifest before training: each shard's size, or its sha256 as well"""
    workers: int = 1
    """Processes that read and tokenize for each rank; 0: the rank itself"""
    prefetch: int = 2
    """Optimizer steps whose number of micro-batches each worker prepares ahead"""
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
    chunk_tokens: Optional[int] = None
    """A micro-batch of more tokens runs in chunks of so many: less memory, the same gradient, one forward pass more"""
    packing: Packing = Packing.auto
    """packed: no padding, attention within each pair; padded: to the longest; auto: packed where the model can"""


@dataclass
class LossConfig:
    labels: float = 1.0
    """Weight of the loss that knows the positive: by default the cross-entropy over the scores of a group"""
    by_label: LabelLoss = LabelLoss.listwise
    """That loss: listwise cross-entropy, or another of ranking"""
    score_temperature: float = 1.0
    """The model's scores are divided by this in losses that know the positive: smaller is sharper"""
    distillation: float = 0.0
    """Weight of the loss from a teacher's scores, the groups' pos_scores and neg_scores; 0: without a teacher"""
    by_teacher: TeacherLoss = TeacherLoss.kl
    """That loss: kl, divergence of the softmax over a group; mse of the scores; margin_mse of their margins"""
    temperature: float = 1.0
    """The teacher's scores are divided by this"""
    more: Any = field(default=None, metadata={"kind": "{loss: weight}"})
    """Further losses of both kinds and their weights: {ranknet: 0.5}"""


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
    stage: Optional[int] = None
    """ZeRO stage: 0 nothing, 1 optimizer state, 2 and gradients, 3 and parameters are shared out among the ranks; null:
    1, and 0 for one rank alone whose weights are float32 (without offload)"""
    reduce_bucket_size: Optional[int] = None
    """Elements of a gradient bucket; null: sized to the model, at most 5e8"""
    offload: bool = False
    """Keep master weights and moments in the machine's memory and update them there; wants stage 1 or more"""


@dataclass
class PrecisionConfig:
    name: Precision = Precision.auto
    """fp16, bf16 or fp32; auto: fp16 on a GPU; on a CPU bf16 where it has its products, else fp32"""
    autocast: Optional[bool] = None
    """bf16: products alone have 16 bits, weights and what layers add up stay in float32; null: on a CPU, not a GPU"""
    tf32: bool = False
    """fp32 on a GPU: products with 10 bits of the mantissa (TensorFloat-32), several times as fast, rough as fp16's"""
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
    """Steps between two evaluations on data.dev and data.dev_sets; null: at the end of each epoch"""
    metric: str = "mrr"
    """What selects the best checkpoint: mrr or ndcg@10 of data.dev, or of a set in data.dev_sets as NAME/mrr"""
    save_every: Optional[int] = None
    """Steps between two checkpoints; null: with each evaluation"""
    keep_last: int = 2
    """Newest checkpoints that are kept, beside the best ones"""
    keep_best: int = 1
    """Checkpoints of the best values of train.metric that are kept"""
    keep_every: Optional[int] = None
    """Checkpoints behind every so many steps are kept for good; null: none"""
    accept: list[str] = field(default_factory=list)
    """What may differ from the checkpoint that is resumed, by key: [batch.groups]; anything else is refused"""
    deterministic: bool = False
    """Bitwise repeatable kernels, slower on a GPU"""
    timeout: float = 1800.0
    """Seconds after which a collective that some rank does not join ends the job"""
    hang: float = 600.0
    """Seconds without progress, on any rank, after which all dump their stacks and the job ends; 0: never"""


@dataclass
class GuardsConfig:
    window: int = 100
    """Records that are averaged before a loss at chance or equal scores is warned of; in a short run fewer"""
    spike: float = 8.0
    """Standard deviations above those records' mean from which on a loss is logged as a spike"""
    skip_spikes: bool = False
    """Do not update with the gradient of a spike; costs one more agreement of the ranks in each step"""


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
    guards: GuardsConfig = field(default_factory=GuardsConfig)
    gate: GateConfig = field(default_factory=GateConfig)
    train: TrainSettings = field(default_factory=TrainSettings)


@dataclass
class CheckpointListConfig:
    run: str = MISSING
    """Run directory of a training"""
    output: Optional[str] = None
    """JSON file for the same and all metrics; null: the table is printed only"""


@dataclass
class CheckpointVerifyConfig:
    path: str = MISSING
    """Run directory of a training, or one of its checkpoints"""


@dataclass
class ReplayConfig:
    checkpoint: str = MISSING
    """Directory of a checkpoint, as in runs/train/checkpoints/step-00000100"""
    step: Optional[int] = None
    """Optimizer step, as the records number it; null: the one right behind the checkpoint"""
    world: Optional[int] = None
    """Ranks that are imitated, one after another; null: as many as wrote the checkpoint"""
    shards: Any = field(default=None, metadata={"kind": "str, mapping or null"})
    """Where the shards of the training are now, as in data.shards; null: where they were"""
    device: Device = Device.auto
    """auto: the GPU if there is one"""
    texts: bool = False
    """Print query and passages of the groups that are shown, and write those of all groups to output"""
    output: Optional[str] = None
    """JSON file for all groups of the step; null: those of the largest loss are printed only"""

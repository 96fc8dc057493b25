"""What a dry run says: the sizes are those of the model and of ZeRO's arithmetic."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForSequenceClassification

from reranker.checks import Arithmetic
from reranker.config.common import BatchPolicy, Precision
from reranker.config.training import TrainConfig
from reranker.data.choose import Choice
from reranker.data.dataset import DataSet, Source
from reranker.data.manifest import Manifest, Shard
from reranker.data.reader import ShardReader
from reranker.data.tokenize import Contract, PairTokenizer
from reranker.model.cross_encoder import load_tokenizer
from reranker.train.distributed import Ranks
from reranker.train.estimate import GIB, activation_bytes, count_parameters, report, state_bytes
from reranker.train.job import Job
from tests.tiny import tiny_model

PLAIN = Arithmetic(Precision.fp32, False, 1)


def job(
    config: TrainConfig,
    sizes: list[list[int]],
    arithmetic: Arithmetic = PLAIN,
    world: int = 1,
    weights: list[float] | None = None,
) -> Job:
    """A training on sources of shards of these sizes."""
    sources = []
    for number, shards in enumerate(sizes):
        manifest = Manifest(tuple(Shard(f"{size}.tar", size, 1, "", "") for size in shards), {}, "")
        name = f"s{number}" if len(sizes) > 1 else ""
        sources.append(Source(name, manifest, ShardReader("d", manifest), (weights or [1.0] * len(sizes))[number]))
    tokenizer = PairTokenizer(load_tokenizer(config.model.name, None), Contract())
    data = DataSet(sources, tokenizer, Choice(config.data.group_size), 42, 64, 1)
    tokens = None if config.batch.tokens == "auto" else config.batch.tokens
    return Job(config, data, arithmetic, True, None, None, world, tokens)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("model"))


def test_parameters_are_counted_as_the_real_model_has_them(model: Path) -> None:
    real = AutoModelForSequenceClassification.from_pretrained(model)
    embedding = real.get_input_embeddings().weight.numel()
    assert count_parameters(AutoConfig.from_pretrained(model)) == (real.num_parameters(), embedding)


def test_the_reference_model_has_560_million_parameters_and_is_not_built_for_it() -> None:
    from transformers import XLMRobertaConfig

    config = XLMRobertaConfig(
        vocab_size=250002, hidden_size=1024, num_hidden_layers=24, num_attention_heads=16, intermediate_size=4096,
        max_position_embeddings=514, type_vocab_size=1, num_labels=1,
    )  # fmt: skip
    # The numbers of BAAI/bge-reranker-large.
    assert count_parameters(config) == (559_891_457, 250_002 * 1024)


@pytest.mark.parametrize(
    ("precision", "stage", "expected"),
    [
        # Bytes of a parameter times 8 ranks: weights, gradients, optimizer.
        (Precision.fp32, 0, (32, 32, 64)),
        (Precision.fp32, 1, (32, 32, 12)),
        (Precision.fp16, 1, (16, 32, 12)),
        (Precision.fp16, 2, (16, 4, 12)),
        (Precision.bf16, 2, (16, 4, 12)),
        (Precision.fp16, 3, (2, 4, 12)),
        (Precision.fp32, 3, (4, 4, 12)),
    ],
)
def test_each_zero_stage_shares_out_what_it_should(
    precision: Precision, stage: int, expected: tuple[int, int, int]
) -> None:
    states = state_bytes(1_000_000, precision, stage, world=8)
    assert tuple(states) == ("weights", "gradients", "optimizer")
    assert tuple(size / 1_000_000 * 8 for size in states.values()) == expected


def test_on_one_rank_nothing_is_shared_out() -> None:
    one = [state_bytes(1000, Precision.fp16, stage, 1) for stage in (1, 2, 3)]
    assert one == [{"weights": 2000.0, "gradients": 4000.0, "optimizer": 12000.0}] * 3


def test_activations_grow_with_the_batch_and_shrink_by_checkpointing(model: Path) -> None:
    config = AutoConfig.from_pretrained(model)
    plain = activation_bytes(config, 6, 512, Precision.fp16, checkpointing=False)
    # 34 bytes of 2 layers of 32 units.
    assert plain == 34 * 2 * 32 * 6 * 512
    assert activation_bytes(config, 12, 512, Precision.fp16, checkpointing=False) == 2 * plain
    assert activation_bytes(config, 6, 512, Precision.fp32, checkpointing=False) == 2 * plain
    assert activation_bytes(config, 6, 512, Precision.fp16, checkpointing=True) == plain / 2 + 2 * 2 * 32 * 6 * 512


def test_the_report_tells_the_batch_arithmetic_the_steps_and_the_sizes(model: Path) -> None:
    config = TrainConfig()
    config.model.name = str(model)
    config.batch.groups, config.batch.per_gpu, config.train.epochs, config.data.max_length = 24, 2, 3, 64
    text = report(
        job(config, [[1000, 234]], Arithmetic(Precision.fp32, False, 2), world=4),
        Ranks(0, 4, torch.device("cpu"), None),
    )
    parameters, embedding = count_parameters(AutoConfig.from_pretrained(model))
    states = state_bytes(parameters, Precision.fp32, 2, 4)
    rows = {line[2:18].strip(): line[19:] for line in text.splitlines()[1:] if line[2] != " "}
    assert text.startswith("dry run: nothing is trained\n")
    assert rows == {
        "devices": "4 x CPU",
        "precision": "fp32, ZeRO stage 2",
        "data": "1,234 groups in 2 shards, 3 passages each",
        "batch": "24 groups a step = 2 per rank x 4 ranks x 3 micro-batches",
        "forward": "packed, no padding",
        "steps": "156, 3,702 groups, 11,106 pairs",
        "parameters": f"{parameters / 1e6:.1f}M, of which {embedding / 1e6:.1f}M token embeddings",
        "memory per rank": ", ".join(f"{name} {size / GIB:.2f} GiB" for name, size in states.items()),
    }
    assert "(6 pairs of 64 tokens)" in text

    config.deepspeed.offload = True
    in_fp32 = job(config, [[1000, 234]], Arithmetic(Precision.fp32, False, 2), world=4)
    offloaded = report(in_fp32, Ranks(0, 4, torch.device("cpu"), None))
    assert f"weights {states['weights'] / GIB:.2f} GiB, gradients {states['gradients'] / GIB:.2f} GiB\n" in offloaded
    assert f"of the machine's memory: optimizer {states['optimizer'] / GIB:.2f} GiB, checkpoints" in offloaded
    config.deepspeed.offload = False

    by_autocast = job(config, [[1000, 234]], Arithmetic(Precision.bf16, True, 2), world=4)
    again = report(by_autocast, Ranks(0, 4, torch.device("cpu"), None))
    assert again == text.replace("fp32, ZeRO", "bf16 (autocast), ZeRO"), "weights, gradients and masters are float32's"


def test_a_training_cut_short_is_reported_with_the_groups_that_it_sees(model: Path) -> None:
    config = TrainConfig()
    config.model.name = str(model)
    config.train.max_steps = 5
    text = report(job(config, [[1000]]), Ranks(0, 1, torch.device("cpu"), None))
    assert "steps            5, 160 groups, 480 pairs" in text


def test_a_mixture_is_reported_source_by_source(model: Path) -> None:
    config = TrainConfig()
    config.model.name = str(model)
    text = report(job(config, [[1000], [300, 300]], weights=[1.0, 0.5]), Ranks(0, 1, torch.device("cpu"), None))
    assert "data             s0: 1,000 groups in 1 shards, 1,000 an epoch, 3 passages each" in text
    assert "data             s1: 600 groups in 2 shards, 300 an epoch, 3 passages each" in text
    assert "steps            123, 3,900 groups, 11,700 pairs" in text


def test_micro_batches_by_tokens_are_reported_by_their_limit(model: Path) -> None:
    config = TrainConfig()
    config.model.name = str(model)
    config.batch.policy, config.batch.tokens = BatchPolicy.tokens, 4096
    text = report(job(config, [[1000]], world=3), Ranks(0, 3, torch.device("cpu"), None))
    assert "batch            32 groups a step = micro-batches of at most 4,096 tokens per rank on 3 ranks" in text
    assert "(8 pairs of 512 tokens)" in text
    config.batch.chunk_tokens = 1024
    text = report(job(config, [[1000]], world=3), Ranks(0, 3, torch.device("cpu"), None))
    assert "at most 4,096 tokens per rank on 3 ranks, in chunks of at most 1,024 tokens" in text
    assert "(2 pairs of 512 tokens)" in text
    config.batch.chunk_tokens = None
    config.batch.tokens = "auto"
    text = report(job(config, [[1000]], world=3), Ranks(0, 3, torch.device("cpu"), None))
    assert "micro-batches of as many tokens as will fit per rank on 3 ranks" in text
    assert "(3 pairs of 512 tokens)" in text

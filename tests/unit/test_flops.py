"""Model FLOPs are what torch counts, and know nothing of padding."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from reranker.data.collate import pack_pairs
from reranker.data.tokenize import Pair
from reranker.model.cross_encoder import score_pairs
from reranker.model.unpad import pack
from reranker.train.flops import PEAKS, model_flops, peak_flops

SIZES = {"vocab_size": 60, "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4,
         "intermediate_size": 64, "num_labels": 1, "max_position_embeddings": 300}  # fmt: skip
LENGTHS = [5, 90, 3, 12, 200, 33]


def model_of(kind: str) -> Any:
    config = transformers.AutoConfig.for_model(kind, pad_token_id=1, **SIZES)
    return transformers.AutoModelForSequenceClassification.from_config(config)


@pytest.mark.parametrize("kind", ["xlm-roberta", "bert", "electra"])
def test_model_flops_are_those_that_torch_counts(kind: str) -> None:
    model = model_of(kind)
    flops = model_flops(model)
    assert flops is not None
    pack(model)
    pairs = pack_pairs([Pair([7] * length, [0] * length) for length in LENGTHS], pad_id=1)
    # Of the fused kernel on a CPU torch knows no count: attention is taken apart into its products.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        score_pairs(model, pairs).sum().backward()
    ours = flops.of(sum(LENGTHS), sum(length**2 for length in LENGTHS), len(LENGTHS))
    assert ours == pytest.approx(counter.get_total_flops(), rel=1e-3)


@pytest.mark.parametrize("kind", ["modernbert", "albert", "deberta-v2", "longformer"])
def test_a_model_of_another_kind_has_no_such_figure(kind: str) -> None:
    sizes = {**SIZES, "num_hidden_layers": 2, "num_attention_heads": 2, "attention_window": [8, 8]}
    if kind != "longformer":
        del sizes["attention_window"]
    config = transformers.AutoConfig.for_model(kind, pad_token_id=1, **sizes)
    with torch.device("meta"):
        model = transformers.AutoModelForSequenceClassification.from_config(config)
    assert model_flops(model) is None


def test_a_gpu_is_known_by_its_name() -> None:
    assert peak_flops("NVIDIA H100 80GB HBM3") == 989e12
    assert peak_flops("NVIDIA A100-SXM4-40GB") == 312e12
    assert peak_flops("NVIDIA L40S") == 362e12
    assert peak_flops("NVIDIA L4") == 121e12
    assert peak_flops("NVIDIA A10G") == 70e12
    assert peak_flops("NVIDIA H100 PCIe") == 756e12
    assert peak_flops("NVIDIA H100 NVL") == 835e12
    for name in ("Some other", "NVIDIA RTX A4000", "NVIDIA RTX A3000", "NVIDIA RTX A1000"):
        assert peak_flops(name) is None
    # A name that begins like a longer one stands behind it.
    names = list(PEAKS)
    assert all(not long.startswith(short) for place, short in enumerate(names) for long in names[place + 1 :])

"""The objective is the plain one, whatever the ZeRO stage, the number of ranks and the accumulation."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch.nn import functional
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from reranker.data.manifest import load_manifest
from reranker.data.order import Order
from reranker.data.reader import ShardReader
from tests.distributed.conftest import Inputs, records
from tests.distributed.ranks import train

GOLDEN = Path(__file__).resolve().parents[1] / "golden" / "losses_of_20_steps.json"
SEED, GROUPS, STEPS, RATE, CLIP, DECAY = 42, 32, 20, 1e-3, 1.0, 0.01


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Several threads on a machine that is busy wait for each other longer than such small products take."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def reference(one_thread: None, inputs: Inputs) -> list[tuple[float, float]]:
    return plain_loop(inputs, torch.float64)


def plain_loop(
    inputs: Inputs, dtype: torch.dtype, steps: int = STEPS, autocast: bool = False
) -> list[tuple[float, float]]:
    """(loss, gradient norm) of the steps of a plain PyTorch loop over the same groups, maybe multiplying in bfloat16.

    Nothing of the product but the order of the groups: the tokenizer, the model and AdamW are the
    libraries' own, and each group is run by itself.
    """
    tokenizer = AutoTokenizer.from_pretrained(inputs.model)
    model = AutoModelForSequenceClassification.from_pretrained(
        inputs.model, dtype=dtype, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0
    )
    parameters = list(model.parameters())
    optimizer = torch.optim.AdamW(
        [
            {"params": [parameter for parameter in parameters if parameter.ndim > 1], "weight_decay": DECAY},
            {"params": [parameter for parameter in parameters if parameter.ndim == 1], "weight_decay": 0.0},
        ],
        lr=RATE,
    )
    manifest = load_manifest(inputs.shards)
    reader, total = ShardReader(inputs.shards, manifest), manifest.groups
    results: list[tuple[float, float]] = []
    for epoch in range(steps):
        order = Order(manifest.sizes, SEED, epoch, 64)
        for first in range(0, total, GROUPS):
            if len(results) == steps:
                return results
            positions = range(first, min(first + GROUPS, total))
            losses = []
            for position in positions:
                group = reader.group(*order.locate(position))
                passages = [group.pos[0], *group.neg]
                pairs = tokenizer([group.query] * len(passages), passages, truncation="longest_first", max_length=48,
                                  padding=True, return_tensors="pt")  # fmt: skip
                with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
                    scores_1P = model(**pairs).logits.T
                label_1 = torch.zeros(1, dtype=torch.long)
                losses.append(functional.cross_entropy(scores_1P.to(dtype), label_1))
            loss = torch.stack(losses).mean()
            optimizer.zero_grad()
            loss.backward()
            norm = torch.nn.utils.clip_grad_norm_(parameters, CLIP)
            for group_ in optimizer.param_groups:
                group_["lr"] = RATE * (steps - len(results)) / steps
            optimizer.step()
            results.append((loss.item(), norm.item()))
    raise AssertionError("unreachable")


def test_the_numbers_of_20_steps_are_those_on_record(reference: list[tuple[float, float]]) -> None:
    """A change of the order, the pairs or the objective shows here. One that is meant ships a new record."""
    recorded = json.loads(GOLDEN.read_text("utf-8"))
    assert torch.allclose(torch.tensor(reference, dtype=torch.float64), torch.tensor(recorded, dtype=torch.float64),
                          rtol=0, atol=1e-8)  # fmt: skip


@pytest.mark.parametrize("world", [1, 2])
def test_losses_of_20_steps_equal_a_plain_float64_loop(
    inputs: Inputs, reference: list[tuple[float, float]], tmp_path: Path, world: int
) -> None:
    trainings = {}
    for stage in range(4):
        for accumulation in (1, 4):
            trainings[tmp_path / f"zero{stage}-{accumulation}"] = {
                "deepspeed": f"zero{stage}",
                "batch.per_gpu": GROUPS // world // accumulation,
                "train.max_steps": STEPS,
                "train.epochs": STEPS,
                "train.save_every": STEPS,
                "precision": "fp32",
                "batch.packing": "packed" if accumulation == 1 else "padded",
            }
    for stage in (1, 3):
        # Micro-batches by tokens, several a step and never the same number of groups: the objective is the same.
        trainings[tmp_path / f"zero{stage}-tokens"] = {
            "deepspeed": f"zero{stage}",
            "batch.policy": "tokens",
            "batch.tokens": 200,
            "train.max_steps": STEPS,
            "train.epochs": STEPS,
            "train.save_every": STEPS,
            "precision": "fp32",
        }
    for stage in (0, 2, 3):
        # In chunks, of which the ranks have different numbers: under ZeRO 2 and 3 each backward is a collective call.
        trainings[tmp_path / f"zero{stage}-chunks"] = {
            "deepspeed": f"zero{stage}",
            "batch.per_gpu": 8,
            "batch.chunk_tokens": 100 if stage == 0 else 200,
            "train.max_steps": STEPS,
            "train.epochs": STEPS,
            "train.save_every": STEPS,
            "precision": "fp32",
            "batch.packing": "padded" if stage == 0 else "packed",
        }
    for run, values in trainings.items():
        train(world, inputs.overrides(run, **values))
    shares = {run: records(run)[0]["data/useful_token_share"] for run in trainings}
    # A chunk is padded to its own longest pair.
    assert shares[tmp_path / "zero0-chunks"] > shares[tmp_path / "zero0-4"]
    for run in trainings:
        steps = records(run)
        losses = torch.tensor([record["train/loss"] for record in steps], dtype=torch.float64)
        norms = torch.tensor([record["train/grad_norm"] for record in steps], dtype=torch.float64)
        expected_losses, expected_norms = torch.tensor(reference, dtype=torch.float64).T
        assert losses.shape == expected_losses.shape
        assert (losses - expected_losses).abs().max() <= 1e-5, f"{run.name}: {losses - expected_losses}"
        # Norms before clipping: a wrong scale of the loss shows here, where Adam would hide it.
        assert ((norms - expected_norms) / expected_norms).abs().max() <= 1e-4, f"{run.name}: {norms / expected_norms}"


def test_bf16_on_a_cpu_is_autocast_of_plain_pytorch(inputs: Inputs, one_thread: None, tmp_path: Path) -> None:
    """Weights and what layers add up are float32's. Two steps: later ones tell a bit that was rounded otherwise."""
    expected = torch.tensor(plain_loop(inputs, torch.float32, steps=2, autocast=True), dtype=torch.float64)
    in_float32 = torch.tensor(plain_loop(inputs, torch.float32, steps=2), dtype=torch.float64)
    assert (expected - in_float32).abs().max() > 1e-5, "nothing to tell them apart by"
    for stage in (0, 1, 2):  # at 3 DeepSpeed's own linear layer adds the bias to what is rounded already
        run = tmp_path / f"zero{stage}"
        train(1, inputs.overrides(
            run, deepspeed=f"zero{stage}", precision="bf16",
            **{"batch.packing": "padded", "batch.per_gpu": 1, "train.max_steps": 2},
        ))  # fmt: skip
        found = [[record["train/loss"], record["train/grad_norm"]] for record in records(run)]
        assert (torch.tensor(found, dtype=torch.float64) - expected).abs().max() <= 5e-6

"""What the gradient of the token embeddings costs: dense, as it is, and as the rows that a step has touched.

    python tests/benchmarks/embedding_gradient.py model=DIR [device=cpu] [tokens=4096] [rounds=5] [layers=LAYERS]

`model` is a directory with a config.json; its weights are drawn at random (`layers` fewer of them, to measure a large
vocabulary on a small machine: the share of the embeddings is then given for all of the config's layers). Of a micro-batch
of `tokens` tokens, in bf16 with gradients accumulated in float32, as training does:

    micro_batch   forward and backward of the packed model
    dense         the embedding's backward as torch does it, vocabulary x hidden numbers, and adding those to the
                  accumulated gradient
    rows          the same for the rows alone that the tokens name: sorted, summed, added

The optimizer moves every row at each step either way: AdamW's moments decay where the gradient is zero as well.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch
from torch.nn import functional

from reranker.data.collate import pack_pairs
from reranker.data.tokenize import Pair
from reranker.model.cross_encoder import load_config, score_pairs, set_dropout
from reranker.model.unpad import pack
from tests.benchmarks.record import SEED, command_line, context, markdown, write

LENGTH = 128
"""Tokens of a pair: about what real pairs have on average."""


def main() -> None:
    settings = {"device": "cpu", "tokens": "4096", "rounds": "5", "precision": "bf16", **command_line(sys.argv[1:])}
    device, tokens, rounds = torch.device(settings["device"]), int(settings["tokens"]), int(settings["rounds"])
    config = load_config(settings["model"])
    set_dropout(config, 0.0)
    layers = config.num_hidden_layers
    config.num_hidden_layers = int(settings.get("layers", layers))
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}[settings["precision"]]
    measures = micro_batch(config, tokens, device, dtype)
    measures |= gradients(config.vocab_size, config.hidden_size, tokens, device, dtype)
    found: dict[str, list[float]] = {name: [] for name in measures}
    for number in range(rounds + 1):
        for name, measure in measures.items():
            seconds = timed(measure, device)
            if number:  # the first round warms up
                found[name].append(seconds)
    medians = {name: statistics.median(values) for name, values in found.items()}
    whole = medians["micro_batch"] * layers / config.num_hidden_layers
    told = f"{config.vocab_size:,} x {config.hidden_size}, {layers} layers, {tokens:,} tokens, {settings['precision']}"
    command = "python tests/benchmarks/embedding_gradient.py " + " ".join(
        f"{k}={v}" for k, v in settings.items() if k != "model"
    )
    common = context(f"{command} model=...", ("torch", "transformers"), settings["device"], torch.get_num_threads())
    entries = [
        {"benchmark": "embedding_gradient", "setting": told, "what": name, "ours": round(1e3 * seconds, 3), "unit": "ms",
         "share_of_micro_batch": round(seconds / whole, 4), "layers_measured": config.num_hidden_layers, **common}
        for name, seconds in medians.items()
    ]  # fmt: skip
    rows = [[entry["what"], entry["ours"], f"{entry['share_of_micro_batch']:.1%}"] for entry in entries]
    table = f"{told}\n\n" + markdown(rows, ["what", "ms, median", "of a whole micro-batch"])
    name = f"embedding-gradient-{config.vocab_size}x{config.hidden_size}-{device.type}"
    print(write(name, entries, table, {"ms": {entry["what"]: entry["ours"] for entry in entries}}), table, sep="\n")


def micro_batch(config: object, tokens: int, device: torch.device, dtype: torch.dtype) -> dict[str, Callable[[], None]]:
    from transformers import AutoModelForSequenceClassification, set_seed

    set_seed(SEED)
    model = AutoModelForSequenceClassification.from_config(config, dtype=dtype).to(device).train()
    pack(model)
    draw = torch.Generator().manual_seed(SEED)
    pairs = [
        Pair(torch.randint(5, model.config.vocab_size, (LENGTH,), generator=draw).tolist(), [0] * LENGTH)
        for _ in range(tokens // LENGTH)
    ]
    packed = pack_pairs(pairs, model.config.pad_token_id).to(device)

    def run() -> None:
        model.zero_grad(set_to_none=True)
        score_pairs(model, packed).float().sum().backward()

    return {"micro_batch": run}


def gradients(
    vocabulary: int, hidden: int, tokens: int, device: torch.device, dtype: torch.dtype
) -> dict[str, Callable[[], None]]:
    draw = torch.Generator().manual_seed(SEED)
    ids_T = torch.randint(vocabulary, (tokens,), generator=draw).to(device)
    gradient_TH = torch.randn(tokens, hidden, generator=draw).to(device, dtype)
    weight = torch.zeros(vocabulary, hidden, device=device, dtype=dtype, requires_grad=True)
    total = torch.zeros(vocabulary, hidden, device=device)

    def dense() -> None:
        weight.grad = None
        functional.embedding(ids_T, weight).backward(gradient_TH)
        assert weight.grad is not None
        total.add_(weight.grad)

    def rows() -> None:
        touched, place_T = ids_T.unique(return_inverse=True)
        sums = torch.zeros(len(touched), hidden, device=device).index_add_(0, place_T, gradient_TH.float())
        total.index_add_(0, touched, sums)

    return {"dense": dense, "rows": rows}


def timed(work: Callable[[], None], device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    begun = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - begun


if __name__ == "__main__":
    main()

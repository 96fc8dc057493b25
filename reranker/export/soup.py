"""`reranker soup`: the weights between a base model and what was tuned from it (WiSE-FT, Wortsman et al. 2022).

In: two models of one architecture and one tokenizer, and alpha: 0 is the base, 1 the tuned model, each to the bit. Of
several alphas the one is taken whose model is best on dev groups. Out: a stock directory with the tuned model's
contract, and its card with a section on what was mixed. A score head that the base lacks is the tuned model's.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from reranker.config.models import SoupConfig
from reranker.data.tokenize import Contract, PairTokenizer
from reranker.errors import UserError
from reranker.evaluate.dev import DevEvaluator
from reranker.evaluate.metrics import METRICS
from reranker.export.directory import check_output
from reranker.export.huggingface import export_weights
from reranker.model.cross_encoder import load_tokenizer, load_weights, score_pairs
from reranker.model.reranker import device_and_precision

Weights = Mapping[str, torch.Tensor]


def soup_command(config: SoupConfig) -> int:
    """`reranker soup`. Raises UserError."""
    alphas = _alphas(config)
    check_output(Path(config.output))
    tuned, fresh = load_weights(config.tuned, torch.float32, key="tuned")
    if fresh:
        raise UserError("tuned", f"{config.tuned}, an encoder without a score head", "a trained reranker",
                        "train it first, or name an exported model")  # fmt: skip
    base, lacking = load_weights(config.base, torch.float32, key="base")
    tokenizer = load_tokenizer(config.tuned, key="tuned")
    contract = Contract.of_model(tuned.config)
    encoder = PairTokenizer(tokenizer, contract)
    if PairTokenizer(load_tokenizer(config.base, key="base"), contract).fingerprint != encoder.fingerprint:
        raise UserError("base", f"{config.base} with another tokenizer", f"that of {config.tuned}",
                        "name the model that it was tuned from")  # fmt: skip
    first, second = (dict(model.named_parameters()) for model in (base, tuned))
    first.update({name: second[name] for name in lacking if name in second})
    _check_same(config, first, second)
    results = _results(config, alphas, first, second, tuned, encoder)
    # Among equals the one that is nearer to the tuned model.
    alpha = max(alphas, key=lambda one: (results[one][config.metric] if results else 0.0, one))
    table = _table(results, alpha)
    text = _card(config, alpha, table)
    weights = interpolated(first, second, alpha)
    export_weights(weights, Path(config.tuned), Path(config.output), contract, lambda *_: text, config.dtype)
    print(table + f"wrote {config.output} with alpha {alpha:g}")
    return 0


def interpolated(base: Weights, tuned: Weights, alpha: float) -> dict[str, torch.Tensor]:
    """(1 - alpha) base + alpha tuned, parameter by parameter; at 0 and 1 one of them to the bit. A pure function."""
    if alpha in (0.0, 1.0):
        return {name: (tuned if alpha else base)[name].detach() for name in tuned}
    return {name: ((1 - alpha) * base[name] + alpha * tuned[name]).detach() for name in tuned}


def _alphas(config: SoupConfig) -> list[float]:
    given = config.alpha if isinstance(config.alpha, list) else [config.alpha]
    for alpha in given:
        if isinstance(alpha, bool) or not isinstance(alpha, (int, float)) or not 0 <= alpha <= 1:
            raise UserError(
                "alpha", json.dumps(alpha), "numbers from 0 (the base) to 1 (the tuned model)", "say alpha=0.5"
            )
    if not given or (len(given) > 1 and not config.dev):
        raise UserError("alpha", f"{len(given)} values and no dev groups", "one value, or groups to choose by",
                        "say dev=dev.jsonl")  # fmt: skip
    if config.metric not in METRICS:
        raise UserError("metric", config.metric, f"one of {', '.join(METRICS)}", "change the value")
    if not (Path(config.tuned) / "config.json").is_file():
        raise UserError("tuned", config.tuned, "a model directory", "export the run, and name model/ in it")
    for key, name in (("base", config.base), ("tuned", config.tuned)):
        if Path(config.output).resolve() == Path(name).resolve():
            raise UserError("output", f"{config.output}, the {key} model", "another directory", "choose another one")
    return sorted({float(alpha) for alpha in given})


def _check_same(config: SoupConfig, base: Weights, tuned: Weights) -> None:
    for name, tensor in tuned.items():
        found = base[name].shape if name in base else None
        if found != tensor.shape:
            told = "without" if found is None else f"with {tuple(found)} numbers of"
            raise UserError("base", f"{config.base} {told} {name}", f"{tuple(tensor.shape)} as in {config.tuned}",
                            "name the model that it was tuned from")  # fmt: skip


def _results(
    config: SoupConfig, alphas: list[float], base: Weights, tuned: Weights, model: Any, encoder: PairTokenizer
) -> dict[float, dict[str, float]]:
    """{alpha: metrics on the dev groups}; empty without any."""
    if not config.dev:
        return {}
    device, _ = device_and_precision(config.device.value, "fp32")
    evaluator = DevEvaluator(config.dev, encoder)
    kept = {name: tensor.detach().clone() for name, tensor in tuned.items()}
    results = {}
    model.to(device).eval()
    for alpha in alphas:
        model.load_state_dict(interpolated(base, kept, alpha), strict=False)
        results[alpha], _ = evaluator.evaluate(
            lambda pairs: score_pairs(model, pairs), 0, 1, lambda values: [values], device, packed=False
        )
    model.load_state_dict(kept, strict=False)
    model.cpu()
    return results


def _table(results: Mapping[float, Mapping[str, float]], chosen: float) -> str:
    if not results:
        return ""
    lines = ["| alpha | " + " | ".join(METRICS) + " |", "|---|" + "---:|" * len(METRICS)]
    for alpha, found in results.items():
        cells = " | ".join(f"{found[metric]:.4f}" for metric in METRICS)
        lines.append(f"| {alpha:g}{' (chosen)' if math.isclose(alpha, chosen) else ''} | {cells} |")
    return "\n".join(lines) + "\n"


def _card(config: SoupConfig, alpha: float, table: str) -> str:
    """The tuned model's card, with a section behind it."""
    readme = Path(config.tuned) / "README.md"
    text = (
        readme.read_text("utf-8", errors="replace").rstrip("\n")
        if readme.is_file()
        else f"# {Path(config.output).name}"
    )
    chosen = f" It was chosen by {config.metric} on dev groups:\n\n{table}" if table else "\n"
    return f"""{text}

## Mixed weights

Each weight is {1 - alpha:g} of {Path(config.base).name} and {alpha:g} of {Path(config.tuned).name}. What this card
says above of an evaluation is of the latter.{chosen}"""

"""`reranker soup`: the weights between a base model and what was tuned from it (WiSE-FT, Wortsman et al. 2022).

In: two models of one architecture and one tokenizer, and alpha: 0 is the base, 1 the tuned model, each to the bit. Of
several alphas the one is taken whose model is best on dev groups, with a gate among those that pass it. Out: a stock
directory with the tuned model's contract, and its card with a section on what was mixed. A score head that the base
lacks is the tuned model's.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import torch

from reranker.config.models import SoupConfig
from reranker.config.regression_gate import GateAction
from reranker.data.tokenize import Contract, PairTokenizer
from reranker.errors import UserError
from reranker.evaluate.metrics import METRICS
from reranker.export import gate
from reranker.export.card_edit import ONNX, with_size, without_section
from reranker.export.card_words import LANGUAGES, Words
from reranker.export.directory import check_output
from reranker.export.huggingface import export_weights
from reranker.export.tasting import Tasted, Taster, Weights, best, table
from reranker.model.cross_encoder import load_tokenizer, load_weights
from reranker.train.gate import no_ranking


def soup_command(config: SoupConfig) -> int:
    """`reranker soup`. Raises UserError."""
    alphas = _alphas(config)
    check_output(Path(config.output))
    tuned, fresh = load_weights(config.tuned, torch.float32, key="tuned")
    if fresh:
        raise UserError("tuned", f"{config.tuned}, an encoder without a score head", "a trained reranker",
                        "train it first, or name an exported model")  # fmt: skip
    base, lacking = load_weights(config.base, torch.float32, key="base")
    if lacking and config.gate.sets is not None and config.gate.base is None:
        raise no_ranking("base", config.base)
    tokenizer = load_tokenizer(config.tuned, key="tuned")
    contract = Contract.of_model(tuned.config)
    encoder = PairTokenizer(tokenizer, contract)
    if PairTokenizer(load_tokenizer(config.base, key="base"), contract).fingerprint != encoder.fingerprint:
        raise UserError("base", f"{config.base} with another tokenizer", f"that of {config.tuned}",
                        "name the model that it was tuned from")  # fmt: skip
    first, second = (
        {name: tensor.detach().clone() for name, tensor in model.named_parameters()} for model in (base, tuned)
    )
    first.update({name: second[name] for name in lacking if name in second})
    _check_same(config, first, second)
    taster = Taster(config, tuned, encoder, interpolated(first, second, 0.0))
    tasted = [taster.taste(alpha, interpolated(first, second, alpha)) for alpha in alphas]
    chosen = best(tasted, config.metric)
    told = table(tasted, chosen)
    print(told, end="")
    if chosen.verdict is not None and config.gate.action is GateAction.refuse:
        what = f"no alpha above 0 that passes: {chosen.alpha:g}, " + "the best of them, " * (len(alphas) > 1)
        gate.refuse(chosen.verdict, what.rstrip(", "), "try smaller alphas, or say gate.action=mark to write this one, "
                    "with a card that says so")  # fmt: skip
    weights = interpolated(first, second, chosen.alpha)
    text = _card(config, chosen, told, sum(tensor.numel() for tensor in weights.values()))
    export_weights(weights, Path(config.tuned), Path(config.output), contract, lambda *_: text, config.dtype,
                   tried=lambda written: chosen.verdict)  # fmt: skip
    print(f"wrote {config.output} with alpha {chosen.alpha:g}")
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


def _card(config: SoupConfig, chosen: Tasted, told: str, parameters: int) -> str:
    """The tuned model's card, with what was mixed before its sections: its own gate, and its ONNX, were another's."""
    readme = Path(config.tuned) / "README.md"
    text = (
        readme.read_text("utf-8", errors="replace").rstrip("\n") + "\n"
        if readme.is_file()
        else f"# {Path(config.output).name}\n"
    )
    for title in (ONNX, *(Words(language)("gate.title") for language in LANGUAGES)):
        text = without_section(text, title)
    text = with_size(text, parameters, parameters, config.dtype)
    alpha = chosen.alpha
    how = f" It was chosen by {config.metric} on dev groups" if config.dev else ""
    among = " among those that pass the gate below" if how and chosen.verdict and chosen.passed else ""
    shown = f"{how}{among}:\n\n{told}" if how else f"\n\n{told}" if told else "\n"
    gated = "\n" + gate.section(chosen.verdict, Words("en")) + "\n" if chosen.verdict else ""
    mixed = f"""## Mixed weights

Each weight is {1 - alpha:g} of {Path(config.base).name} and {alpha:g} of {Path(config.tuned).name}. What this card
says below of an evaluation is of the latter.{shown}{gated}"""
    sections = re.search(r"^(?:## |# 한국어)", text, flags=re.MULTILINE)
    place = sections.start() if sections else len(text)
    return f"{text[:place].rstrip()}\n\n{mixed.rstrip()}\n\n{text[place:]}".rstrip("\n") + "\n"

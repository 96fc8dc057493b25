"""A training run -> a stock Hugging Face directory that any server loads without our code.

In: a run directory: config.json (the resolved TrainConfig), initial/ (config and tokenizer of the base model),
checkpoints/, optionally the report of an evaluation. Out: config.json, model.safetensors, the tokenizer, a model
card and, where it is asked for, the model in ONNX. No network is used.

The contract of a score, and who reads it where:

    config.json                 reranker: prefixes, lengths, truncation, the order of a pair, the raw logit
                                sentence_transformers.activation_fn: the identity, for CrossEncoder and vLLM
                                one label with its name: TEI and vLLM take the model for a reranker
    tokenizer_config.json       model_max_length: transformers' and CrossEncoder's limit of a pair
    sentence_bert_config.json   max_seq_length: TEI's and vLLM's

FlagReranker reads no limit and is given it. TEI and vLLM are as their sources say, and are not run here. What is
written is loaded again and must score as the weights do (`reload.py`).
The output is whole or absent, and it never takes the place of anything but an earlier export.
"""

from __future__ import annotations

import dataclasses
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from reranker.checks import told_precision
from reranker.config.common import Device, Precision
from reranker.config.models import ExportConfig
from reranker.config.regression_gate import ExportGateConfig
from reranker.data.dataset import parse_sources
from reranker.data.tokenize import CONFIG_KEY, Contract
from reranker.errors import UserError
from reranker.evaluate.metrics import METRICS
from reranker.evaluate.regression_gate import FILE as GATE
from reranker.evaluate.regression_gate import Verdict
from reranker.export.directory import check_output, finish, save
from reranker.export.gate import Try, gate_of_export
from reranker.export.model_card import LICENSES, CardFacts, model_card
from reranker.export.onnx import FILE, Fusion, check_packages, write_onnx
from reranker.export.origin import sources_of
from reranker.export.performance import performance_of
from reranker.export.quantize import INT8_FILE, Agreement, read_judges, write_int8
from reranker.export.reload import check_reload
from reranker.files import atomic_directory, read_json, write_json, write_text
from reranker.groups import Group
from reranker.model.cross_encoder import load_config, load_tokenizer
from reranker.selection import of_set
from reranker.train.run_directory import CONFIG, INITIAL

DTYPES = {Precision.fp32: torch.float32, Precision.fp16: torch.float16, Precision.bf16: torch.bfloat16}


def export_command(config: ExportConfig) -> int:
    """`reranker export`. Returns the exit code."""
    output = export_run(
        Path(config.run),
        config.checkpoint,
        Path(config.output) if config.output else None,
        config.dtype,
        Path(config.report) if config.report else None,
        config.onnx,
        config.int8,
        config.int8_agreement,
        config.gate,
        config.device,
    )
    beside = f", with {FILE} in fp32" if config.onnx else ""
    beside += f" and {INT8_FILE}" if config.int8 else ""
    print(f"exported {config.checkpoint} of {config.run} to {output} in {config.dtype.name}{beside}")
    return 0


def export_run(
    run_dir: Path,
    checkpoint: str = "best",
    output: Path | None = None,
    dtype: Precision = Precision.fp32,
    report: Path | None = None,
    onnx: bool = False,
    int8: str | None = None,
    int8_agreement: float = 0.95,
    gate: ExportGateConfig | None = None,
    device: Device = Device.auto,
) -> Path:
    """Export one checkpoint of a run and return the directory written.

    Args:
        checkpoint: "best", "last" or the name of a directory under checkpoints/.
        output: None: model/ in the run directory.
        report: table.json for the card; None: report/table.json in the run directory, if it is there and of
            the weights that are exported.
        onnx: whether to write the model in ONNX as well. It has the weights as `dtype` rounds them, in float32.
        int8: groups by which an ONNX file in 8 bits is judged, which is written as well; None: there is none.
        int8_agreement: share of two passages of a query that it must leave in their order.
        gate: what the weights may lose on guard sets; None: what the run says.
        device: where guard sets are scored.

    Raises UserError for a model that fails its gate, a directory that is no run, a checkpoint that is not there,
    weights that do not fit the base model, values beyond fp16, an output directory that holds something else, a
    `report` of other weights, and for ONNX where its packages are missing or its scores are not the model's.
    """
    from reranker.train.checkpoint import find_beside_best, read_state, read_weights

    output = output or run_dir / "model"
    if dtype not in DTYPES:
        raise UserError("dtype", dtype.name, "fp32, fp16 or bf16", "say dtype=fp32")
    if int8 and not onnx:
        raise UserError(
            "int8", f"{int8} without the ONNX file that is quantised", "onnx=true beside it", "say onnx=true"
        )
    if not 0 <= int8_agreement <= 1:
        raise UserError("int8_agreement", str(int8_agreement), "a share from 0 to 1", "change the value")
    if onnx:
        check_packages()
    judges = read_judges(int8) if int8 else None  # a file that cannot be read is told before the export, not behind it
    check_output(output)
    settings = read_json(run_dir / CONFIG, "name the run_dir of a training")
    if not isinstance(settings, dict) or not isinstance(data := settings.get("data"), dict):
        raise UserError(run_dir / CONFIG, "no settings of a training", "the run directory of a training",
                        "name its run_dir")  # fmt: skip
    contract = Contract.of_settings(data)
    found, best = find_beside_best(run_dir, checkpoint)
    state = read_state(found)
    asked = gate or ExportGateConfig()
    tried = gate_of_export(asked, settings, state, run_dir, found.name, checkpoint, contract, device)
    weights = read_weights(found)
    metric = best.get("metric") if best else None
    facts = dataclasses.replace(
        _facts(settings, state, metric, contract, dtype, sum(map(torch.Tensor.numel, weights.values()))),
        chosen_by=metric if best and best["checkpoint"] == found.name else None,
    )

    def card(written: Path, fusion: Fusion | None, quantised: Agreement | None, verdict: Verdict | None) -> str:
        table = report or run_dir / "report" / "table.json"
        performance = performance_of(written, table, required=report is not None)
        known = dataclasses.replace(
            facts, checkpoint=checkpoint, performance=performance, onnx=fusion, int8=quantised,
            int8_agreement=int8_agreement, gate=verdict,
        )  # fmt: skip
        return model_card(known)

    export_weights(weights, run_dir / INITIAL, output, contract, card, dtype, onnx, judges, int8_agreement, tried)
    return output


def export_weights(
    weights: Mapping[str, torch.Tensor],
    base: Path,
    output: Path,
    contract: Contract,
    card: Callable[[Path, Fusion | None, Agreement | None, Verdict | None], str],
    dtype: Precision = Precision.fp32,
    onnx: bool = False,
    judges: Sequence[Group] | None = None,
    int8_agreement: float = 0.95,
    tried: Try = lambda written: None,
) -> None:
    """Write a model directory.

    Args:
        weights: every parameter of the AutoModelForSequenceClassification of `base`, by name; no buffers.
        base: directory with the config and the tokenizer of the base model; the dropout values are its own.
        card: makes the model card, given the directory that the weights have just been written to, what became of
            the attentions in the ONNX file, how far the 8-bit file agrees with them, and the verdict of their gate:
            each of the three None where there is none.
        tried: gives that verdict, and is written beside the weights.
        onnx, int8_agreement: as `export_run` has them. judges: the groups of its `int8`.
    """
    check_output(output)
    model = _model(weights, base, contract, DTYPES[dtype])
    tokenizer = load_tokenizer(str(base), key=str(base))
    tokenizer.model_max_length = contract.max_length
    with atomic_directory(output) as staging:
        save(model, tokenizer, staging)
        # float32 of the rounded weights: what all who load the directory in float32 score with.
        model.float().eval()
        check_reload(model, tokenizer, contract, staging)
        if verdict := tried(staging):
            write_json(staging / GATE, verdict.to_dict())
        fusion = write_onnx(model, staging, contract.max_length) if onnx else None
        if fusion and fusion.reason:
            print(f"note: {FILE}: its attentions are not fused: {fusion.reason}", file=sys.stderr)
        quantised = write_int8(model, tokenizer, contract, staging, judges, int8_agreement) if judges else None
        write_text(staging / "README.md", card(staging, fusion, quantised, verdict))
        finish(staging)


def _model(weights: Mapping[str, torch.Tensor], base: Path, contract: Contract, dtype: torch.dtype) -> Any:
    """The model of `base` with `weights` in it and the config that is exported."""
    from transformers import AutoModelForSequenceClassification

    if not (base / "config.json").is_file():  # said here: a relative path with one slash would pass for a hub name
        raise UserError(base, "no config.json", "config and tokenizer of the base model", "start the training again")
    config = load_config(str(base), key=str(base))
    config.id2label = {0: "LABEL_0"}
    setattr(config, CONFIG_KEY, {**contract.to_dict(), "pair": ["query", "passage"], "score": "logit"})
    # CrossEncoder's default for one label is a sigmoid; the older key of the same meaning would contradict.
    config.sentence_transformers = {"activation_fn": "torch.nn.modules.linear.Identity"}
    if hasattr(config, "sbert_ce_default_activation_function"):
        del config.sbert_ce_default_activation_function
    model = AutoModelForSequenceClassification.from_config(config, dtype=torch.float32)
    _check_weights(weights, model, base)
    model.load_state_dict(dict(weights), strict=False)  # strict for parameters, by the check; buffers are the model's
    model.to(dtype)
    for name, parameter in model.named_parameters():
        if not torch.isfinite(parameter).all():
            if torch.isfinite(weights[name]).all():
                raise UserError(name, f"values beyond {dtype}", "finite weights", "say dtype=fp32 or dtype=bf16")
            raise UserError(name, "values that are not finite", "finite weights", "choose an earlier checkpoint")
    return model


def _check_weights(weights: Mapping[str, torch.Tensor], model: Any, base: Path) -> None:
    expected = dict(model.named_parameters())
    aliases = {name for name, _ in model.named_parameters(remove_duplicate=False)}  # tied weights have two names
    buffers = {name for name, _ in model.named_buffers()}
    problems = [f"no {name}" for name in expected if name not in weights]
    problems += [f"an unknown {name}" for name in weights if name not in aliases | buffers]
    problems += [
        f"{name} of shape {tuple(weights[name].shape)} instead of {tuple(parameter.shape)}"
        for name, parameter in expected.items()
        if name in weights and weights[name].shape != parameter.shape
    ]
    if problems:
        raise UserError(base, f"a checkpoint with {problems[0]} ({len(problems)} such weights)",
                        "the weights of exactly this model", "use the directory that the run wrote itself")  # fmt: skip


def _facts(
    settings: dict[str, Any],
    state: dict[str, Any],
    metric: str | None,
    contract: Contract,
    dtype: Precision,
    parameters: int,
) -> CardFacts:
    """What is known of a checkpoint with this state; `metric` is what the best one of its run is chosen by."""
    base = settings["model"]["name"]
    on_hub = not Path(base).exists() and re.fullmatch(r"[\w.-]+/[\w.-]+", base) is not None
    # An evaluation's records are named for the tracker, "eval/mrr"; a checkpoint between two has none.
    evaluated = {name.removeprefix("eval/"): value for name, value in (state.get("metrics") or {}).items()}
    selecting, _ = of_set(metric or "")
    told = [*METRICS, *(f"{selecting}/{own}" for own in METRICS if selecting is not None)]
    sources = sources_of(state)
    return CardFacts(
        name=settings["name"],
        base=base if on_hub else Path(base).name,
        base_on_hub=on_hub,
        contract=contract,
        dtype=dtype.name,
        parameters=parameters,
        settings=settings,
        license=LICENSES.get(base) if on_hub else _license(Path(base) / "README.md"),
        groups=sum(source.groups for source in sources.values()) if sources else _packed_groups(settings),
        sources=sources,
        fingerprint=(state.get("cursor") or {}).get("fingerprint"),
        step=state.get("step"),
        epoch=state.get("epoch"),
        groups_seen=state.get("groups_seen"),
        world=state.get("world"),
        precision=told_precision(state["precision"], state.get("autocast", False)) if "precision" in state else None,
        packed=state.get("packed"),
        measured_tokens=(state.get("measured") or {}).get("tokens"),
        device=state.get("device"),
        stage=state.get("stage"),
        dev={name: evaluated[name] for name in told if name in evaluated},
        versions=state.get("versions") or {},
    )


def _packed_groups(settings: dict[str, Any]) -> int | None:
    """How many groups the training data hold, where the shards are still at hand."""
    total = 0
    for _, shards, _ in parse_sources(settings["data"]["shards"]):
        manifest = Path(shards) / "manifest.json"
        groups = read_json(manifest).get("groups") if manifest.is_file() else None
        if not isinstance(groups, int):
            return None
        total += groups
    return total


def _license(readme: Path) -> str | None:
    """The license in the front matter of a base model's own card."""
    if not readme.is_file():
        return None
    front = re.match(r"---\n(.*?)\n---\n", readme.read_text("utf-8", errors="replace"), re.DOTALL)
    stated = re.search(r"^license: *([\w.-]+) *$", front.group(1), re.MULTILINE) if front else None
    return stated.group(1) if stated else None

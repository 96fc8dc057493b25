"""What a reranker weighs in each form that it is shipped in, what becomes of its scores, and how fast it is.

    python tests/benchmarks/sizes.py model=runs/demo/model groups=runs/demo/data/dev.jsonl
        corpus=runs/demo/4-check/groups.jsonl,runs/demo/data/triplets.jsonl work=DIR [groups_scored=128] [pairs=240]
        [rounds=5] [threads=2] [limit=0.95]

`model` is a trained reranker, `groups` are those that its forms are compared on, `corpus` are the texts that its vocabulary is
trimmed to: others than the groups, so that trimming is not judged by what it has seen. The forms are in
`sizes_inputs.py`: in fp32, fp16 and bf16, trimmed, as an ONNX file in float32 and in 8 bits. The demo's vocabulary has been
cut already, so its forms come twice, the second time with the vocabulary that its base had. `limit` is export's
`int8_agreement`: below it the second products of the feed-forward layers stay in float32.

Each measurement is a process of its own that loads one form, scores 64 pairs, then is timed over `pairs` real ones of mixed
lengths, tokenizing and sorting included; the forms take turns for `rounds` rounds, and medians count. Scores are compared on
all pairs of `groups_scored` groups. PyTorch scores packed, at most 4,096 tokens a batch, ONNX Runtime sorted in batches of
four, which `scoring.py` found best. What is computed in bf16 is measured where the processor has its products, and said
to be left out elsewhere. Memory is the most that the process had at once, libraries included: a server with ONNX
Runtime needs no PyTorch. What is measured is kept in `work`: the same command goes on where it was stopped.
"""

from __future__ import annotations

import itertools
import json
import re
import statistics
import sys
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np

from tests.benchmarks.record import Measured, command_line, context, environment_of, markdown, run_watched, write
from tests.benchmarks.scoring import onnx_score
from tests.benchmarks.sizes_inputs import TRIMMED_TO, VARIANTS, make_variants, parameters, shipped

WARM, BATCH = 64, 4
PACKAGES = ("torch", "transformers", "tokenizers", "onnx", "onnxruntime")
NAMES = {"own": "as it is", "full": "with the whole vocabulary of its base"}


def main() -> None:
    settings = {"groups_scored": "128", "pairs": "240", "rounds": "5", "threads": "2", "limit": "0.95",
                **command_line(sys.argv[1:])}  # fmt: skip
    work = Path(settings["work"]).resolve()
    if "form" in settings:
        print(json.dumps(measure(settings, work)))
        return
    from reranker.train.distributed import multiplies_bf16

    corpus = [str(Path(path).resolve()) for path in settings["corpus"].split(",")]
    model = Path(settings["model"]).resolve()
    check_contract(model)
    vocabularies = make_variants(model, settings["groups"], corpus, float(settings["limit"]), work)
    write_pairs(settings, work)
    measured = Measured(work / "measured.jsonl")
    names = [name for name, variant in VARIANTS.items() if variant.precision == "fp32" or multiplies_bf16()]
    forms = [f"{vocabulary}/{name}" for vocabulary in vocabularies for name in names]
    for form in forms:
        measured.get(f"{form}:scores", partial(turn, settings, work, form, "scores"))
    for number in range(int(settings["rounds"])):
        for form in forms:
            measured.get(f"{form}:{number}", partial(turn, settings, work, form, "speed"))
    if failed := {key: found["failed"] for key, found in measured.all.items() if "failed" in found}:
        raise SystemExit(f"not all was measured, say the same again: {failed}")
    report(forms, measured.all, settings, work)


def check_contract(model: Path) -> None:
    """What ONNX Runtime is fed with here knows of a limit alone."""
    from transformers import AutoConfig

    from reranker.data.tokenize import Contract

    contract = Contract.of_model(AutoConfig.from_pretrained(model))
    if contract != Contract(contract.max_length):
        raise SystemExit(f"{model} has the contract {contract}; this benchmark knows of max_length alone")


def write_pairs(settings: dict[str, str], work: Path) -> None:
    """The pairs of the groups, the positives of each first."""
    from reranker.groups import read_groups

    chosen = itertools.islice(read_groups(settings["groups"]), int(settings["groups_scored"]))
    rows = [{"query": one.prompted_query, "passages": [*one.pos, *one.neg], "right": len(one.pos)} for one in chosen]
    (work / "pairs.json").write_text(json.dumps(rows, ensure_ascii=False), encoding="utf-8")


def turn(settings: dict[str, str], work: Path, form: str, what: str) -> dict[str, Any]:
    """One measurement of a form, in a process of its own."""
    words = [f"{key}={settings[key]}" for key in ("pairs", "threads")]
    command = [sys.executable, __file__, f"form={form}", f"what={what}", f"work={work}", *words]
    finished = run_watched(command, work / "logs" / "sizes.log", environment_of("cpu", int(settings["threads"])))
    return {"failed": finished.failed} if finished.failed else json.loads(finished.out.splitlines()[-1])


def measure(settings: dict[str, str], work: Path) -> dict[str, Any]:
    """Scores of all pairs, or the seconds of some, and the most memory that there was, in this process."""
    vocabulary, _, name = settings["form"].partition("/")
    variant, threads = VARIANTS[name], int(settings["threads"])
    directory = work / vocabulary / variant.directory
    if variant.file:
        limit = json.loads((directory / "config.json").read_text("utf-8"))["reranker"]["max_length"]
        score = onnx_score(directory / variant.file, directory, threads, BATCH, limit)
    else:
        from reranker import Reranker

        score = Reranker(directory, device="cpu", precision=variant.precision).score_pairs
    rows = json.loads((work / "pairs.json").read_text("utf-8"))
    pairs = [(row["query"], passage) for row in rows for passage in row["passages"]]
    score(pairs[:WARM])
    if settings["what"] == "speed":
        pairs = pairs[: int(settings["pairs"])]
    begun = time.perf_counter()
    scores = score(pairs)
    seconds = time.perf_counter() - begun
    found: dict[str, Any] = {"seconds": [seconds], "pairs": len(pairs), "peak_mb": peak_mb()}
    return found | ({"scores": [float(value) for value in scores]} if settings["what"] == "scores" else {})


def peak_mb() -> float:
    """The most memory that this process has had. Not `ru_maxrss`, which counts what its parent had when it forked."""
    status = Path("/proc/self/status").read_text("utf-8")
    return int(re.search(r"^VmHWM:\s+(\d+) kB$", status, re.MULTILINE).group(1)) / 1000  # type: ignore[union-attr]


def report(forms: Sequence[str], measured: dict[str, Any], settings: dict[str, str], work: Path) -> None:
    from reranker.export.quantize import agreement

    rows = json.loads((work / "pairs.json").read_text("utf-8"))
    ends = np.cumsum([len(row["passages"]) for row in rows])[:-1]
    scores = {form: np.split(np.array(measured[f"{form}:scores"]["scores"]), ends) for form in forms}
    # Where these lie is nobody's business.
    words = [
        f"{key}={'...' if key in ('model', 'groups', 'corpus', 'work') else value}" for key, value in settings.items()
    ]
    command = " ".join(["python tests/benchmarks/sizes.py", *sorted(words, key=lambda word: not word.endswith("..."))])
    common = context(command, PACKAGES, "cpu", int(settings["threads"]))
    entries, bars = [], {"MB on disk": {}, "pairs a second": {}}  # type: ignore[var-annotated]
    table = ""
    for vocabulary, of in itertools.groupby(forms, key=lambda form: form.partition("/")[0]):
        lines, whole = [], f"{vocabulary}/whole"
        for form in of:
            variant = VARIANTS[form.partition("/")[2]]
            directory = work / vocabulary / variant.directory
            speeds = [turn_of["pairs"] / turn_of["seconds"][0] for number in range(int(settings["rounds"]))
                      if (turn_of := measured[f"{form}:{number}"])]  # fmt: skip
            found = agreement(scores[whole], scores[form])
            entry = {
                "benchmark": "sizes", "setting": f"{variant.title}; {NAMES[vocabulary]}",
                "bytes": sum(path.stat().st_size for path in shipped(directory, variant)),
                "parameters": parameters(directory), "pairs_compared": found.pairs, "largest_difference": found.largest,
                "mean_difference": found.mean, "deviation_of_the_scores": found.deviation, "order_kept": found.order,
                "best_kept": found.best, "mrr": mrr(rows, scores[form]), "pairs_per_second": statistics.median(speeds),
                "least": min(speeds), "largest": max(speeds), "rounds": len(speeds), "pairs_timed": int(settings["pairs"]),
                "peak_mb": statistics.median(measured[f"{form}:{n}"]["peak_mb"] for n in range(int(settings["rounds"]))),
            }  # fmt: skip
            entries.append(entry)
            lines.append(cells(variant.title, entry))
            bars["MB on disk"][f"{variant.title} ({vocabulary})"] = entry["bytes"] / 1e6
            bars["pairs a second"][f"{variant.title} ({vocabulary})"] = entry["pairs_per_second"]
        trimmed = json.loads((work / vocabulary / "trimmed" / "trim.json").read_text("utf-8"))
        entries.append({"benchmark": "sizes-details", "setting": f"trimmed; {NAMES[vocabulary]}", "trimmed": {
            key: trimmed[key] for key in ("languages", "before", "after", "corpus", "unseen")
        }})  # fmt: skip
        table += f"The reranker {NAMES[vocabulary]}:\n\n{markdown(lines, HEAD)}\n{told(trimmed, vocabulary)}\n\n"
    if left_out := [variant.title for name, variant in VARIANTS.items() if f"own/{name}" not in forms]:
        entries.append({"benchmark": "sizes-details", "setting": "left out", "left_out": left_out})
        table += f"Not measured, as this processor has no products in bf16: {'; '.join(left_out)}.\n"
    path = write("sizes", [{**entry, **common} for entry in entries], table.rstrip() + "\n", bars)
    print(f"{table}\n{path}")


HEAD = ("form", "MB on disk", "parameters, million", "largest difference", "mean difference", "pairs in order",
        "same best", "MRR", "pairs/s", "least to largest", "memory, MB")  # fmt: skip


def cells(title: str, entry: dict[str, Any]) -> list[str]:
    return [
        title, f"{entry['bytes'] / 1e6:.1f}", f"{entry['parameters'] / 1e6:.1f}", f"{entry['largest_difference']:.2g}",
        f"{entry['mean_difference']:.2g}", f"{entry['order_kept']:.2%}", f"{entry['best_kept']:.1%}", f"{entry['mrr']:.4f}",
        f"{entry['pairs_per_second']:.1f}", f"{entry['least']:.1f} to {entry['largest']:.1f}", f"{entry['peak_mb']:.0f}",
    ]  # fmt: skip


def told(trimmed: dict[str, Any], vocabulary: str) -> str:
    """What trimming did to the vocabulary, and to texts that it had not seen."""
    unseen = trimmed["unseen"]
    return (
        f"Trimmed ({', '.join(TRIMMED_TO[vocabulary])} and a corpus of other texts): {trimmed['before']['pieces']:,} pieces to "
        f"{trimmed['after']['pieces']:,}; of {unseen['texts']:,} texts of the groups compared {unseen['same']:,} are cut into "
        f"the same pieces."
    )


def mrr(rows: Sequence[dict[str, Any]], scores: Sequence[np.ndarray]) -> float:
    """Of the right passages among those of their groups; a tie counts against the model."""
    ranks = []
    for row, of in zip(rows, scores, strict=True):
        right, wrong = of[: row["right"]], of[row["right"] :]
        ranks.append(1 + int((wrong >= right.max()).sum()))
    return float(np.mean([1 / rank for rank in ranks]))


if __name__ == "__main__":
    main()

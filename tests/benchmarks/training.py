"""Training, from groups to updated weights: pairs per second beside what others train rerankers with, in one run.

    python tests/benchmarks/training.py groups=FILE model=DIR work=DIR [device=cpu] [steps=4] [rounds=5] [threads=2]
        [contestants=PATTERN,...] [parts=contestants,overhead,compile,scaling] [precisions=fp32,bf16]
        [compiled=parts,whole] [record=training]

`model=xlm-roberta-large-random tokenizer=DIR` writes random weights of that shape to `work`, for a GPU.

Every contestant trains the same model on the same groups, 32 in each optimizer step (`training_inputs.py`,
`training_peers.py`), in a process of its own; ours is `reranker train` as anyone would call it, timed by its own
metrics.jsonl, and ended when its last step is recorded. First all run once, in a round that only chooses: then the
best setting of each contestant in each precision, and those that are measured anyhow (one group at a time, as the
reference run had it), take turns for `rounds` rounds, of which the median counts. Seconds of a step are those from
the end of the step before: the first step is never timed. What is measured is kept in `work`: the same command goes
on where it was stopped, and `contestants` (patterns of names as printed) adds some at a time. The record, written
whatever ends the command, has all that `work` has: for a record of one part alone give that part a `work` of its own.
"""

from __future__ import annotations

import fnmatch
import json
import shutil
import statistics
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from reranker.train.distributed import multiplies_bf16
from tests.benchmarks import training_report
from tests.benchmarks.contest import Contestant, compete
from tests.benchmarks.record import SEED, Measured, command_line, environment_of, run_watched
from tests.benchmarks.training_inputs import CLIP, GROUPS, LR, WEIGHT_DECAY, prepare

HERE = Path(__file__).resolve().parent
MICRO = {"cpu": (1, 2, 4), "cuda": (1, 4, 16, 32)}
PRECISIONS = {"cpu": ("fp32", "bf16"), "cuda": ("fp16", "bf16")}
TOKENS = {"cpu": (1536, 2048, 4096, 8192), "cuda": (4096, 16384, 65536)}
SCALING_TOKENS = 4096


def main() -> None:
    settings = {
        "device": "cpu", "steps": "4", "rounds": "5", "threads": "2", "contestants": "*",
        "parts": "contestants,overhead,compile,scaling", "record": "training",
        "compiled": "parts", **command_line(sys.argv[1:]),
    }  # fmt: skip
    work, parts = Path(settings["work"]).resolve(), settings["parts"].split(",")
    prepare(settings, work)
    measured = Measured(work / "measured.jsonl")
    patterns = settings["contestants"].split(",")
    chosen = [one for one in contestants(settings["device"]) if any(fnmatch.fnmatch(one.name, p) for p in patterns)]
    try:
        if "contestants" in parts:
            compete(
                chosen, int(settings["rounds"]), lambda one: turn(one, settings, work), measured,
                lambda number: measured.get(f"products:{number}", partial(in_process, "arithmetic", (), settings, work)),
            )  # fmt: skip
        measure_parts(parts, settings, work, measured)
    finally:
        known = [one for one in contestants(settings["device"]) if f"{one.name}:choosing" in measured.all]
        training_report.report(known, measured.all, settings, work)
    # A contestant may fail, as where memory ends at its larger micro-batches; these may not.
    failed = {key: found["failed"] for key, found in measured.all.items()
              if key.startswith(("overhead:", "compile:")) and "failed" in found}  # fmt: skip
    if failed:
        raise SystemExit(f"not all was measured, say the same again: {failed}")


def measure_parts(parts: Sequence[str], settings: dict[str, str], work: Path, measured: Measured) -> None:
    """Those parts of the benchmark that have no contestants."""
    usual = ["bf16"] if settings["device"] == "cuda" else ["fp32", *["bf16"] * multiplies_bf16()]
    precisions = settings["precisions"].split(",") if "precisions" in settings else usual
    if "overhead" in parts:
        for precision in precisions:
            for count in (1, GROUPS):
                options = (f"micro_batches={count}", f"precision={precision}", f"repeats={settings['rounds']}")
                measure = partial(in_process, "engine_overhead", options, settings, work)
                measured.get(f"overhead:{count}:{precision}", measure)
    if "compile" in parts:
        for precision in precisions:
            tokens = TOKENS[settings["device"]][2]
            said = [f"precision={precision}", f"tokens={tokens}", f"repeats={settings['rounds']}"]
            said.append(f"ways={settings['compiled']}")
            key = f"compile:{precision}:{settings['compiled']}"
            measured.get(key, partial(in_process, "compiled", said, settings, work))
    if "scaling" in parts and settings["device"] == "cpu":
        for number in range(int(settings["rounds"])):
            for world in (1, 2):
                packed = (*ours_options("tokens", SCALING_TOKENS, "packed"), "deepspeed=zero1")
                one = Contestant("ours", f"ranks-{world}", "fp32", packed)
                measured.get(f"{one.name}:{number}", partial(ours, one, settings, work, world))


def contestants(device: str) -> list[Contestant]:
    """All that compete on a device."""
    found = []
    for precision in PRECISIONS[device]:
        for micro in MICRO[device]:
            name = f"{micro}x{GROUPS // micro}"
            options: tuple[str, ...] = (f"micro={micro}",)
            found += [
                Contestant("flagembedding", name, precision, options, micro == 1),
                Contestant("sentence-transformers", name, precision, options, micro == 1),
                Contestant("sentence-transformers", f"{name}-whole", precision, (*options, "mini_batch=-1")),
                Contestant("transformers", name, precision, options, micro == 1),
            ]
            if micro > 1:
                rebalanced = (*options, "sampling=batch_rebalance")
                found.append(Contestant("transformers", f"{name}-rebalanced", precision, rebalanced))
        found.append(Contestant("plain", f"1x{GROUPS}", precision, ("micro=1",), True))
        for packing in ("padded", "packed"):
            options = ours_options("fixed", 1, packing)
            found.append(Contestant("ours", f"1x{GROUPS}-{packing}", precision, options, True))
        if device == "cpu":  # where one rank has stage 0: what ZeRO's own copies take is seen beside it
            options = (*ours_options("fixed", 1, "packed"), "deepspeed=zero1")
            found.append(Contestant("ours", f"1x{GROUPS}-packed-zero1", precision, options, True))
        for tokens in TOKENS[device]:
            options = ours_options("tokens", tokens, "packed")
            found.append(Contestant("ours", f"tokens-{tokens}-packed", precision, options))
        found.append(Contestant("ours", f"tokens-{TOKENS[device][1]}-padded", precision,
                                ours_options("tokens", TOKENS[device][1], "padded")))  # fmt: skip
        if device == "cuda":
            for stage in (2, 3):
                options = (*ours_options("tokens", TOKENS[device][1], "packed"), f"deepspeed=zero{stage}")
                found.append(Contestant("ours", f"zero{stage}", precision, options, True))
    if device == "cuda":
        options = (*ours_options("tokens", TOKENS[device][1], "packed"), "deepspeed=zero0", "precision.autocast=true")
        found.append(Contestant("ours", "zero0-autocast", "bf16", options, True))
        # The packed attention has no float32 kernel there, and stage 0 no weights of 16 bits.
        for stage in (0, 1):
            options = (*ours_options("tokens", TOKENS[device][0], "padded"), f"deepspeed=zero{stage}")
            found.append(Contestant("ours", f"zero{stage}", "fp32", options, True))
    return found


def ours_options(policy: str, size: int, packing: str) -> tuple[str, ...]:
    """Settings of `reranker train`."""
    key = "batch.per_gpu" if policy == "fixed" else "batch.tokens"
    return (f"batch.policy={policy}", f"{key}={size}", f"batch.packing={packing}")


def turn(one: Contestant, settings: dict[str, str], work: Path) -> dict[str, Any]:
    """One measurement of a contestant, in a process of its own."""
    if one.who == "ours":
        return ours(one, settings, work)
    options = (f"contestant={one.who}", f"precision={one.precision}", *one.options)
    return in_process("training_peers", options, settings, work)


def in_process(module: str, options: Sequence[str], settings: dict[str, str], work: Path) -> dict[str, Any]:
    """The last line that a module of ours prints, and the memory that its process had."""
    shared = [f"work={work}", f"device={settings['device']}", f"steps={settings['steps']}"]
    command = [sys.executable, str(HERE / f"{module}.py"), *options, *shared]
    environment = environment_of(settings["device"], int(settings["threads"]))
    finished = run_watched(command, work / "logs" / f"{module}.log", environment)
    if finished.failed:
        return {"failed": finished.failed}
    return {**json.loads(finished.out.splitlines()[-1]), "peak_mb": finished.peak_mb}


def ours(one: Contestant, settings: dict[str, str], work: Path, ranks: int = 0) -> dict[str, Any]:
    """`reranker train`; on some `ranks` with torchrun, of one thread each."""
    run_dir, steps = work / "run", int(settings["steps"])
    shutil.rmtree(run_dir, ignore_errors=True)
    start = ["-m", "reranker", "train"]
    if ranks:
        start = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={ranks}", "-m", "reranker.train"]
    command = [
        sys.executable, *start, f"run_dir={run_dir}", f"model.name={work / 'model'}", f"data.shards={work / 'shards'}",
        f"train.device={settings['device']}", f"train.seed={SEED}", "train.epochs=1", f"train.max_steps={steps}",
        f"optim.lr={LR}", f"optim.weight_decay={WEIGHT_DECAY}", f"optim.max_grad_norm={CLIP}", "tracking=none",
        f"precision={one.precision}", *one.options,
    ]  # fmt: skip
    metrics = run_dir / "metrics.jsonl"

    def records() -> list[dict[str, Any]]:
        text = metrics.read_text("utf-8") if metrics.exists() else ""
        return [json.loads(line) for line in text.splitlines() if line.endswith("}")]

    finished = run_watched(
        command, work / "logs" / "ours.log", environment_of(settings["device"], 1 if ranks else int(settings["threads"])),
        enough=lambda: len(records()) == steps,
    )  # fmt: skip
    found = records()
    shutil.rmtree(run_dir, ignore_errors=True)
    if finished.failed or len(found) < steps:
        return {"failed": finished.failed or f"{len(found)} of {steps} steps"}
    useful = [record["data/useful_token_share"] for record in found[1:]]
    result = {
        "seconds": [record["system/step_seconds"] for record in found[1:]],
        "losses": [record["train/loss"] for record in found],
        "useful_token_share": statistics.mean(useful), "peak_mb": finished.peak_mb,
        "wait_share": statistics.mean(record["data/wait_share"] for record in found[1:]),
    }  # fmt: skip
    if settings["device"] == "cuda":
        result["peak_gpu_mb"] = found[-1]["system/peak_memory_gib"] * 2**30 / 1e6
    return result


if __name__ == "__main__":
    main()

"""What the training benchmark measured -> its record, table and plot.

Speed is pairs per second: 96 pairs of a step over its seconds, the mean over a round's timed steps, the median over
the rounds. The losses of every step are compared in float32, ours with FlagEmbedding's and sentence-transformers':
the record says by how much they differ at most, and the benchmark fails if that is more than the tolerance.
"""

from __future__ import annotations

import itertools
import json
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.benchmarks.arithmetic import step_flops
from tests.benchmarks.record import compared, context, markdown, write
from tests.benchmarks.scaling import BANDWIDTH, computed
from tests.benchmarks.training_inputs import GROUPS, PASSAGES

PAIRS = GROUPS * PASSAGES
TOLERANCE = 1e-4
"""Of the loss of a step, in float32: the smallest digit that a training curve is read to."""
PACKAGES = ("torch", "transformers", "FlagEmbedding", "sentence-transformers", "deepspeed", "accelerate")
FULL_NAMES = {
    "flagembedding": "FlagEmbedding, encoder-only runner", "sentence-transformers": "sentence-transformers, "
    "CrossEncoderTrainer with ListNetLoss", "transformers": "transformers.Trainer", "plain": "plain PyTorch loop",
}  # fmt: skip
KINDS = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}


def report(chosen: Sequence[Any], measured: dict[str, Any], settings: dict[str, str], work: Path) -> None:
    """Write the record; `chosen` are the contestants that were measured. Exits with 1 if losses differ."""
    command = "python tests/benchmarks/training.py groups=... work=... " + " ".join(
        f"{key}={Path(value).name}" for key, value in settings.items() if key not in ("groups", "work")
    )
    common = context(command, PACKAGES, settings["device"], int(settings["threads"]))
    rounds = int(settings["rounds"])
    speeds = {one.name: found for one in chosen if (found := _speeds(one.name, measured, rounds))}
    agreed = losses_agree(chosen, measured)
    rows = [_row(one, speeds[one.name], measured, work) for one in chosen if one.name in speeds]
    rows.sort(key=lambda row: -row["pairs_per_second"])
    entries = (
        comparisons(chosen, speeds) + overheads(measured) + compilation(measured) + ranks(measured, rounds, settings)
    )
    for precision in dict.fromkeys(one.precision for one in chosen):
        if best := _best("ours", precision, chosen, speeds, "tokens"):
            tokens = int(best.setting.split("-")[1])
            for world in BANDWIDTH[settings["device"]]:
                seconds = PAIRS / statistics.median(speeds[best.name])
                paper = computed(work, seconds, tokens, precision, settings["device"], world, int(settings["steps"]))
                entries.append(on_paper(paper, best.setting, precision))
    details = {
        "benchmark": "training-details", "losses": agreed, "median_of_rounds": rows, "groups_per_step": GROUPS,
        "choosing_round": {name: found for name, found in measured.items() if name.endswith(":choosing")},
        "rounds": {name: found for name, found in measured.items() if not name.endswith(":choosing")},
    }  # fmt: skip
    table = ""
    if rows:
        head = ["contestant", "pairs/s", "s per step", "useful tokens", "of the machine's arithmetic", "memory, MB"]
        table = markdown(
            [[row["name"], f"{row['pairs_per_second']:.2f}", f"{row['seconds_per_step']:.2f}",
              _percent(row["useful_token_share"]), _percent(row["share_of_product_rate"]), f"{row['peak_mb']:.0f}"]
             for row in rows], head,
        ) + "\n"  # fmt: skip
    table += markdown(
        [[entry["benchmark"], entry["peer"], entry["setting"], entry["ours"], entry["theirs"], entry["ratio"]] for entry in entries],
        ["benchmark", "peer", "setting", "ours", "theirs", "ours / theirs"],
    )  # fmt: skip
    bars: dict[str, dict[str, float]] = {}
    for row in rows:
        name, _, precision = row["name"].rpartition(":")
        bars.setdefault(f"Training in {precision}, pairs per second", {})[name] = row["pairs_per_second"]
    path = write(settings["record"], [{**entry, **common} for entry in [*entries, details]], table, bars)
    print(f"{table}\n{path}\nlosses: {json.dumps(agreed)}")
    if agreed["float32_agrees"] is False:
        sys.exit(1)


def _speeds(name: str, measured: dict[str, Any], rounds: int) -> list[float]:
    """Pairs per second of each round; empty if any is missing or has failed."""
    found = [measured.get(f"{name}:{number}", {}) for number in range(rounds)]
    return [PAIRS / statistics.mean(one["seconds"]) for one in found] if all("seconds" in one for one in found) else []


def _best(who: str, precision: str, chosen: Sequence[Any], speeds: dict[str, list[float]], kind: str = "") -> Any:
    """The fastest of a kind of contestant among those measured in every round; None if there is none."""
    same = [one for one in chosen if one.who == who and one.precision == precision and one.name in speeds]
    same = [one for one in same if one.setting.startswith(kind)]
    return max(same, key=lambda one: statistics.median(speeds[one.name]), default=None)


def comparisons(chosen: Sequence[Any], speeds: dict[str, list[float]]) -> list[dict[str, Any]]:
    """Ours against each peer, both one group at a time without packing, then ours at its best against both of theirs."""
    found = []
    for precision, who in itertools.product(dict.fromkeys(one.precision for one in chosen), FULL_NAMES):
        by_name = {(one.who, one.setting): one for one in chosen if one.precision == precision and one.name in speeds}
        plainly, theirs = by_name.get(("ours", f"1x{GROUPS}-padded")), by_name.get((who, f"1x{GROUPS}"))
        our_best, their_best = (_best(name, precision, chosen, speeds) for name in ("ours", who))
        pairs = dict.fromkeys([(plainly, theirs), (our_best, theirs), (our_best, their_best)])
        for own, other in pairs:
            if own and other:
                found.append({
                    "benchmark": "training", "peer": FULL_NAMES[who],
                    "setting": f"{precision}; ours {own.setting}, theirs {other.setting}",
                    **compared(speeds[own.name], speeds[other.name]), "unit": "pairs/s",
                })  # fmt: skip
    return found


def overheads(measured: dict[str, Any]) -> list[dict[str, Any]]:
    found = []
    for name, seconds in measured.items():
        if name.startswith("overhead:") and "failed" not in seconds:
            _, count, precision = name.split(":")
            speeds = {who: [PAIRS / one for one in seconds[who]] for who in ("ours", "plain")}
            found.append({
                "benchmark": "engine-overhead", "peer": "the same step in plain PyTorch",
                "setting": f"{precision}, micro-batches a step: {count}, {'packed' if seconds['packed'] else 'padded'}, ZeRO 1",
                **compared(speeds["ours"], speeds["plain"]), "unit": "pairs/s",
            })  # fmt: skip
    return found


def compilation(measured: dict[str, Any]) -> list[dict[str, Any]]:
    """Forward and backward with `torch.compile`, of each way that was asked for, beside the same without it."""
    found = []
    for name, one in measured.items():
        if name.startswith("compile:") and "largest_difference_of_a_gradient_norm" in one:
            precision = name.split(":")[1]
            speeds = {
                how: [pairs / seconds for pairs, seconds in zip(one["pairs"], of, strict=True)]
                for how, of in one["seconds"].items()
            }
            eager = speeds.pop("eager")
            for how, own in speeds.items():
                found.append({
                    "benchmark": "compile", "peer": "the same without torch.compile",
                    "setting": f"{precision}, {how} compiled, {'packed' if one['packed'] else 'padded'}, "
                    f"forward and backward; first step {one['first'][how]:.0f} s instead of {one['first']['eager']:.0f}",
                    **compared(own, eager), "unit": "pairs/s",
                    "largest_difference_of_a_loss": one["largest_difference_of_a_loss"][how],
                    "largest_difference_of_a_gradient_norm": one["largest_difference_of_a_gradient_norm"][how],
                })  # fmt: skip
    return found


def ranks(measured: dict[str, Any], rounds: int, settings: dict[str, str]) -> list[dict[str, Any]]:
    one, two = (_speeds(f"ours:ranks-{world}:fp32", measured, rounds) for world in (1, 2))
    if not one or not two:
        return []
    setting = f"fp32, {settings['device']}, 2 ranks against 1, each with 1 thread"
    return [{"benchmark": "scaling", "kind": "measured", "peer": "ours on 1 rank", "setting": setting,
             **compared(two, one), "unit": "pairs/s"}]  # fmt: skip


def on_paper(paper: dict[str, Any], setting: str, precision: str) -> dict[str, Any]:
    """A computed figure in the form of a measured one, and marked."""
    alone = PAIRS / paper["seconds_of_one_rank"]
    return {
        "benchmark": "scaling", "peer": "ours on 1 rank",
        "setting": f"COMPUTED, not measured: {paper['world']} ranks, {GROUPS} groups a step, {precision}, ours {setting}",
        "ours": round(paper["strong"]["pairs_per_second"], 2), "theirs": round(alone, 2),
        "ratio": round(paper["strong"]["pairs_per_second"] / alone, 3), "unit": "pairs/s", **paper,
    }  # fmt: skip


def losses_agree(chosen: Sequence[Any], measured: dict[str, Any]) -> dict[str, Any]:
    """For each precision the largest difference of a step's loss between ours and the two peers with a loss of their own."""
    differences: dict[str, float] = {}
    for precision in dict.fromkeys(one.precision for one in chosen):
        of = {name: [found["losses"] for one in chosen if one.who in name and one.precision == precision
                     if "losses" in (found := measured.get(f"{one.name}:choosing", {}))]
              for name in (("ours",), ("flagembedding", "sentence-transformers"))}  # fmt: skip
        own, other = of.values()
        if own and other:
            differences[precision] = max(
                abs(a - b) for first, second in itertools.product(own, other) for a, b in zip(first, second, strict=True)
            )  # fmt: skip
    agrees = differences["fp32"] <= TOLERANCE if "fp32" in differences else None
    return {"tolerance_in_float32": TOLERANCE, "largest_difference": differences, "float32_agrees": agrees}


def _row(one: Any, speeds: list[float], measured: dict[str, Any], work: Path) -> dict[str, Any]:
    """The medians of a contestant."""
    rounds = [measured[f"{one.name}:{number}"] for number in range(len(speeds))]
    config = json.loads((work / "model" / "config.json").read_text("utf-8"))
    lengths = json.loads((work / "lengths.json").read_text("utf-8"))
    timed = [length for group in lengths[GROUPS:] for length in group]
    seconds = PAIRS / statistics.median(speeds)
    flops = step_flops(config, timed) / (len(lengths) / GROUPS - 1)
    products = [found for number in range(len(speeds)) if "failed" not in (found := measured[f"products:{number}"])]
    of_this = [[rate for name, rate in found.items() if name.startswith(KINDS[one.precision])] for found in products]
    rates = [max(found) for found in of_this if found]
    return {
        "name": one.name, "options": one.options, "pairs_per_second": round(PAIRS / seconds, 3),
        "seconds_per_step": round(seconds, 3),
        "useful_token_share": rounds[0].get("useful_token_share") or useful_share(one, lengths),
        "gflops": round(flops / seconds / 1e9, 1),
        "share_of_product_rate": round(flops / seconds / 1e9 / statistics.median(rates), 3) if rates else None,
        **{key: round(statistics.median(found[key] for found in rounds), 1)
           for key in ("peak_mb", "peak_gpu_mb") if key in rounds[0]},
    }  # fmt: skip


def useful_share(one: Any, lengths: Sequence[Sequence[int]]) -> float | None:
    """Of a peer's tokens, where each forward has the next pairs in order and is padded to the longest."""
    micro, _, rest = one.setting.partition("x")
    if rest.endswith("rebalanced"):
        return None
    pairs = [length for group in lengths[GROUPS:] for length in group]
    # ListNetLoss has by default as many pairs in a forward as there are groups in the micro-batch.
    of_a_forward = int(micro) * (1 if one.who == "sentence-transformers" and not rest.endswith("whole") else PASSAGES)
    forwards = [pairs[first : first + of_a_forward] for first in range(0, len(pairs), of_a_forward)]
    return sum(pairs) / sum(max(forward) * len(forward) for forward in forwards)


def _percent(share: float | None) -> str:
    return "" if share is None else f"{share:.0%}"

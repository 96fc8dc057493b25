"""How fast `reranker check` goes through triplets, and in how much memory, by the number of processes.

    python tests/benchmarks/checking.py work=DIR [triplets=500000]

Synthetic triplets of MS MARCO's lengths (queries of 6 words, passages of 56, in characters 35 and 335) against an
evaluation of 7,000 queries with their passages; 1 in 1,000 is damaged in turn: a duplicate, a leak, a near leak, a
string for `pos`. What is found must be what was put in. Peak memory is that of all processes, pages counted once.
"""

from __future__ import annotations

import json
import os
import random
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from tests.benchmarks import record  # noqa: E402

EVALUATION, DAMAGED = 7_000, 1_000


def main() -> None:
    settings = record.command_line(sys.argv[1:])
    work, triplets = Path(settings["work"]), int(settings.get("triplets", 500_000))
    work.mkdir(parents=True, exist_ok=True)
    expected = make(work, triplets)
    entries: list[dict[str, Any]] = []
    for workers, fix in ((1, False), (2, False), (2, True)):
        name = f"{workers} processes{', fix' if fix else ''}"
        out = work / f"out-{workers}-{fix}"
        command = [
            sys.executable, "-m", "reranker", "check", f"groups={work}/train.jsonl", f"evaluation={work}/dev.jsonl",
            f"output={out}", f"workers={workers}", f"fix={str(fix).lower()}",
        ]  # fmt: skip
        start = time.monotonic()
        finished = record.run_watched(command, work / f"{out.name}.log", record.environment_of("cpu", 1))
        seconds = time.monotonic() - start
        report = json.loads((out / "report.json").read_text("utf-8"))  # exit code 1: there are errors to find
        found = {of["kind"]: of["count"] for of in report["findings"] if of["severity"] == "error"}
        assert found == expected, (found, expected)
        entries.append({
            "benchmark": "checking", "setting": name, "triplets": triplets, "seconds": round(seconds, 1),
            "triplets_per_second": round(triplets / seconds), "peak_mb": round(finished.peak_mb), "found": found,
            **record.context("python tests/benchmarks/checking.py work=... triplets=" + str(triplets),
                             ["numpy", "pyarrow"], "cpu", 1),
        })  # fmt: skip
        print(json.dumps({key: entries[-1][key] for key in ("setting", "triplets_per_second", "peak_mb")}), flush=True)
    path = record.RECORDS / f"checking-{time.strftime('%Y-%m-%d')}.json"
    path.write_text(json.dumps(entries, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def make(work: Path, triplets: int) -> dict[str, int]:
    """Write train.jsonl and dev.jsonl; how many findings of each kind of error are to be expected."""
    generator = random.Random(record.SEED)
    words = ["".join(generator.choices("etaoinshrdlucmfwypvbgk", k=generator.randint(2, 9))) for _ in range(60_000)]

    def text(count: int) -> str:
        return " ".join(generator.choices(words, k=count))

    dev = [(text(6), text(56), text(56)) for _ in range(EVALUATION)]
    (work / "dev.jsonl").write_text("".join(json.dumps(triplet) + "\n" for triplet in dev), encoding="utf-8")
    expected = {"unreadable": 0, "duplicate_group": 0, "leak_exact": 0, "leak_near": 0}
    with open(work / "train.jsonl", "w", encoding="utf-8") as stream:
        line = ""
        for number in range(triplets):
            before, line = line, json.dumps([text(6), text(56), text(56)])
            if number % DAMAGED == DAMAGED - 1:
                kind = list(expected)[number // DAMAGED % len(expected)]
                expected[kind] += 1
                positive = dev[number // DAMAGED % EVALUATION][1]
                line = {
                    "unreadable": json.dumps({"query": "q", "pos": "text", "neg": ["n"]}), "duplicate_group": before,
                    "leak_exact": json.dumps([text(6), positive, text(56)]),
                    "leak_near": json.dumps([text(6), positive + " " + text(3), text(56)]),
                }[kind]  # fmt: skip
            stream.write(line + "\n")
    return {kind: count for kind, count in expected.items() if count}


if __name__ == "__main__":
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    main()

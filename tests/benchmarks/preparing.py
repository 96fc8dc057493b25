"""How fast triplets of MS MARCO's number and lengths go the whole way from English to shards, and in how much memory.

    python tests/benchmarks/preparing.py work=DIR [triplets=500000]

Synthetic text: English and Korean words made from one vocabulary by frequency (Zipf), queries of 6 words, passages of 56
(in English characters about 37 and 350), a million passages for half a million triplets, each text once. A translation
memory has a Korean text for each, and the stages are those of `reranker prepare`, run one by one so that each has its
peak: the proportional set size of all its processes. The estimate is what `reranker translate dry_run=true` says of the
same texts. Needs about 40 bytes of disk for each byte of triplets. Out: records/preparing-DATE.json, .md and .png.
"""

from __future__ import annotations

import json
import shutil
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from tests.benchmarks import record  # noqa: E402

VOCABULARY, EVALUATION, AT_ONCE = 300_000, 7_000, 10_000
WORKERS = "workers=2"


def vocabularies() -> tuple[list[str], list[str]]:
    """English and Korean words, the frequent ones short."""
    consonants, vowels = "bdfgklmnprst", "aeiou"
    pairs = [first + second for first in consonants for second in vowels]

    def spelled(number: int, signs: list[str]) -> str:
        made = ""
        while True:
            number, rest = divmod(number, len(signs))
            made += signs[rest]
            if not number:
                return made
            number -= 1

    syllables = [chr(0xAC00 + step * 89) for step in range(125)]
    return [spelled(n + len(pairs), pairs) for n in range(VOCABULARY)], [
        spelled(n, syllables) for n in range(VOCABULARY)
    ]


def texts(count: int, seed: int) -> Iterator[tuple[list[int], list[int]]]:
    """(a passage's words, a query's words out of it), `count` times."""
    generator = np.random.default_rng(seed)
    shares = 1 / np.arange(1, VOCABULARY + 1)
    cumulated = np.cumsum(shares / shares.sum())
    for first in range(0, count, AT_ONCE):
        lengths = np.clip(generator.normal(56, 20, min(AT_ONCE, count - first)).astype(int), 12, 150)
        words = np.minimum(np.searchsorted(cumulated, generator.random(lengths.sum())), VOCABULARY - 1)
        for passage in np.split(words, np.cumsum(lengths)[:-1]):
            yield passage.tolist(), generator.choice(passage, 6, replace=False).tolist()


def make(work: Path, triplets: int) -> None:
    """triplets.jsonl in English, memory.jsonl, and dev.jsonl in Korean, which none of them is from."""
    english, korean = vocabularies()

    def joined(words: list[int], vocabulary: list[str]) -> str:
        return " ".join(vocabulary[word] for word in words)

    with (
        open(work / "triplets.jsonl", "w", encoding="utf-8") as groups,
        open(work / "memory.jsonl", "w", encoding="utf-8") as memory,
    ):
        right, wrong = texts(triplets, record.SEED), texts(triplets, record.SEED + 1)
        for (positive, query), (negative, _) in zip(right, wrong, strict=True):
            row = [query, positive, negative]
            groups.write(json.dumps([joined(words, english) for words in row]) + "\n")
            for words in row:
                pair = {"en": joined(words, english), "ko": joined(words, korean)}
                memory.write(json.dumps(pair, ensure_ascii=False) + "\n")
    with open(work / "dev.jsonl", "w", encoding="utf-8") as stream:
        for passage, query in texts(EVALUATION, record.SEED + 2):
            group = {"query": joined(query, korean), "pos": [joined(passage, korean)]}
            stream.write(json.dumps(group, ensure_ascii=False) + "\n")


def stages(work: Path) -> dict[str, list[str]]:
    """The arguments of each stage, as `reranker prepare` gives them."""
    check = [f"evaluation={work}/dev.jsonl", "fix=true", "group_size=3", WORKERS]
    return {
        "translate": [f"groups={work}/triplets.jsonl", f"output={work}/1", "backend=memory", f"backend.files=[{work}/memory.jsonl]"],
        "check (before mining)": [f"groups={work}/1/groups.jsonl", f"output={work}/2", "negatives=false", *check],
        "mine": [f"groups={work}/2/groups.jsonl", f"output={work}/3", "bm25.analyzer=words", "negatives=8", WORKERS],
        "check (after mining)": [f"groups={work}/3/groups.jsonl", f"output={work}/4", *check],
        "pack": [f"groups={work}/4/groups.jsonl", f"output={work}/shards", WORKERS],
    }  # fmt: skip


def groups_in(path: Path) -> int:
    if path.name == "shards":
        return int(json.loads((path / "manifest.json").read_text("utf-8"))["groups"])
    with open(path / "groups.jsonl", "rb") as lines:
        return sum(1 for _ in lines)


def main() -> None:
    settings = record.command_line(sys.argv[1:])
    work, triplets = Path(settings["work"]).resolve(), int(settings.get("triplets", 500_000))
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    make(work, triplets)
    about = record.context(f"python tests/benchmarks/preparing.py work=... triplets={triplets}",
                           ["bm25s", "numpy", "webdataset", "py3langid"], "cpu", 1)  # fmt: skip
    environment = record.environment_of("cpu", 1)
    amazon = [f"groups={work}/triplets.jsonl", f"output={work}/1", "backend=amazon", "dry_run=true"]
    told = record.run_watched([sys.executable, "-m", "reranker", "translate", *amazon], work / "dry.log", environment)
    assert not told.failed, told.failed
    print(told.out, flush=True)
    entries: list[dict[str, Any]] = [{"benchmark": "preparing", "setting": "estimate at Amazon's price",
                                      "triplets": triplets, "told": told.out.splitlines(), **about}]  # fmt: skip
    rows: list[tuple[str, ...]] = []
    for name, arguments in stages(work).items():
        command = [sys.executable, "-m", "reranker", name.partition(" ")[0], *arguments]
        start = time.monotonic()
        finished = record.run_watched(command, work / f"{name.partition(' ')[0]}-{len(rows)}.log", environment)
        seconds = time.monotonic() - start
        # A check that has mended errors ends with 1.
        assert not finished.failed or (name.startswith("check") and finished.failed.startswith("exit 1")), (
            finished.failed
        )
        left = groups_in(Path(arguments[1].partition("=")[2]))
        entries.append({
            "benchmark": "preparing", "setting": name, "triplets": triplets, "groups_out": left, "unit": "triplets/s",
            "seconds": round(seconds, 1), "ours": round(triplets / seconds), "peak_mb": round(finished.peak_mb), **about,
        })  # fmt: skip
        rows.append(
            (name, f"{left:,}", f"{seconds:.0f}", f"{triplets / seconds:,.0f}", f"{finished.peak_mb / 1000:.2f}")
        )
        print(rows[-1], flush=True)
    table = record.markdown(rows, ("stage", "groups out", "s", "triplets/s", "peak GB"))
    bars = {"ours, triplets a second": {f"ours: {row[0]}": triplets / float(row[2]) for row in rows}}
    print(record.write("preparing", entries, table, bars))
    print(table)


if __name__ == "__main__":
    main()

"""How well mining finds and filters on the shipped corpus: MRR@10 of each retriever, and each filter on planted
false negatives.

In: `python tests/benchmarks/mining.py work=DIRECTORY [encoder=MODEL] [reranker=MODEL]`. Beside every dev query's positive stand
two rewritings of it, its sentences in another order and its particles and spacing changed, and what the query's "also"
names: nobody tells the filters of them. Out: records/mining-DATE.json with table and plot; the table is printed.
"""

from __future__ import annotations

import json
import re
import shutil
import sys
from collections import Counter
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from reranker.config.mining import MineConfig, Retriever
from reranker.demo import corpus as shipped
from reranker.groups import read_groups
from reranker.prepare.mine.cache import Blocks
from reranker.prepare.mine.command import mine_command
from reranker.prepare.mine.store import Store
from tests.benchmarks import record

DEPTH = 50
E5 = {"query_prefix": "query: ", "passage_prefix": "passage: "}
FILTERS: dict[str, dict[str, Any]] = {
    "margin 0.95": {"margin": 0.95},
    "near-duplicates 0.8": {"near_duplicates": 0.8},
    "near-duplicates 0.6": {"near_duplicates": 0.6},
    "near-duplicates 0.4": {"near_duplicates": 0.4},
    "margin 0.95, near-duplicates 0.6": {"margin": 0.95, "near_duplicates": 0.6},
}
RESCORED: dict[str, dict[str, Any]] = {
    "rescored, margin 0.95": {"rescore.margin": 0.95},
    "rescored, threshold 0.5": {"rescore.margin": None, "rescore.threshold": 0.5},
}


def reordered(text: str) -> str:
    sentences = re.split(r"(?<=[.!?]) +", text)
    return " ".join(sentences[1:] + sentences[:1])


def reworded(text: str) -> str:
    """Particles exchanged and every third blank taken away."""
    for old, new in (("을 ", "은 "), ("를 ", "는 "), ("이 ", "도 "), ("합니다", "하십시오")):
        text = text.replace(old, new)
    words = text.split(" ")
    return "".join(word + ("" if number % 3 == 2 else " ") for number, word in enumerate(words)).strip()


def write_inputs(work: Path) -> tuple[list[dict[str, Any]], dict[tuple[str, str], str]]:
    """The dev queries, and {(qid, text): kind}: what is planted for one query is a true negative of the others."""
    passages = {passage["id"]: passage for passage in shipped.passages()}
    queries = [query for query in shipped.queries() if query["split"] == "dev"]
    planted: dict[tuple[str, str], str] = {}
    for query in queries:
        text = passages[query["pos"]]["text"]
        for kind, made in (("reordered", reordered(text)), ("reworded", reworded(text))):
            if made != text:
                planted[query["qid"], made] = kind
        planted |= {(query["qid"], passages[name]["text"]): "also" for name in query["also"]}
    plain = [{key: passage[key] for key in ("id", "text", "doc")} for passage in passages.values()]
    new = dict.fromkeys(text for (_, text), kind in planted.items() if kind != "also")
    added = [{"id": f"planted {n}", "text": text} for n, text in enumerate(new)]
    groups = [{"id": q["qid"], "query": q["query"], "pos": [passages[q["pos"]]["text"]]} for q in queries]
    for name, values in (("corpus", plain), ("planted", plain + added), ("groups", groups)):
        lines = [json.dumps(value, ensure_ascii=False) + "\n" for value in values]
        (work / f"{name}.jsonl").write_text("".join(lines), encoding="utf-8")
    return queries, planted


def mine(work: Path, corpus: str, retriever: Retriever, encoder: str | None, **settings: Any) -> Path:
    config = MineConfig(
        groups=str(work / "groups.jsonl"), corpus=str(work / f"{corpus}.jsonl"), output=str(work / corpus),
        retriever=retriever, negatives=DEPTH, window=[1, DEPTH], margin=None, near_duplicates=None,
    )  # fmt: skip
    config.dense.model = encoder
    for key, value in E5.items():
        setattr(config.dense, key, value)
    for key, value in settings.items():
        part, _, name = key.rpartition(".")
        setattr(getattr(config, part) if part else config, name, value)
    mine_command(config)
    return Path(config.output)


def mrr(work: Path, queries: list[dict[str, Any]], output: Path, stage: str) -> float:
    """MRR@10 of the newest ranking of a stage: what the right passage or an equivalent of it reaches."""
    store = Store(next((output / "cache").glob("store-*")))
    texts = {passage["id"]: passage["text"] for passage in shipped.passages()}
    newest = max((output / "cache").glob(f"{stage}-search-*"), key=lambda path: path.stat().st_mtime)
    total, number = 0.0, 0
    for block in range(store.blocks):
        for row in Blocks(newest).get(block)["places"]:
            query = queries[number]
            right = {texts[name] for name in (query["pos"], *query["also"])}
            ranks = [rank for rank, place in enumerate(row[:10], 1) if place >= 0 and store.text(int(place)) in right]
            total += 1 / ranks[0] if ranks else 0.0
            number += 1
    return total / number


def left(output: Path) -> dict[str, set[str]]:
    return {str(group.id): set(group.neg) for group in read_groups(output / "groups.jsonl")}


def main() -> None:
    arguments = record.command_line(sys.argv[1:])
    work, encoder, reranker = Path(arguments["work"]), arguments.get("encoder"), arguments.get("reranker")
    rescored = {"rescore.model": reranker, "rescore.depth": DEPTH}
    every = FILTERS | {name: {**rescored, **settings} for name, settings in RESCORED.items() if reranker}
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    queries, planted = write_inputs(work)
    about = record.context(
        "python tests/benchmarks/mining.py " + " ".join(f"{key}=..." for key in arguments),
        ("bm25s", "kiwipiepy", "sentence-transformers", "torch", "numpy"), "cpu", 1,
    )  # fmt: skip
    entries: list[dict[str, Any]] = []
    found: dict[str, float] = {}
    for analyzer in ("kiwi", "bigrams", "words", "whitespace"):
        output = mine(work, "corpus", Retriever.bm25, None, **{"bm25.analyzer": analyzer})
        found[f"bm25 {analyzer}"] = mrr(work, queries, output, "bm25")
    for share in (0.1, 0.03):
        output = mine(work, "corpus", Retriever.bm25, None, **{"bm25.max_document_share": share})
        found[f"bm25 kiwi, terms in at most {share:.0%}"] = mrr(work, queries, output, "bm25")
    if encoder:
        found["dense"] = mrr(work, queries, mine(work, "corpus", Retriever.dense, encoder), "dense")
    for name, value in found.items():
        entries.append({"benchmark": "mining", "setting": name, "unit": "MRR@10", "ours": round(value, 4), **about})
    table = record.markdown([(name, f"{value:.3f}") for name, value in found.items()], ("retriever", "MRR@10")) + "\n"
    rows = []
    for retriever in (Retriever.bm25, *((Retriever.dense,) if encoder else ())):
        free = left(mine(work, "planted", retriever, encoder))
        candidates = [(qid, text) for qid, texts in free.items() for text in texts]
        reached = Counter(planted[pair] for pair in candidates if pair in planted)
        others = sum(pair not in planted for pair in candidates)
        for name, settings in every.items():
            kept = left(mine(work, "planted", retriever, encoder, **settings))
            pairs = [((qid, text), text in kept.get(qid, ())) for qid, text in candidates]
            caught = Counter(planted[pair] for pair, stays in pairs if pair in planted and not stays)
            true = sum(stays for pair, stays in pairs if pair not in planted) / others
            groups = len(kept) / len(free)
            recall = {kind: caught[kind] / reached[kind] for kind in sorted(reached)}
            recall["all"] = caught.total() / reached.total()
            rows.append((retriever.value, name, *(f"{value:.3f}" for value in (*recall.values(), true, groups))))
            entries.append({
                "benchmark": "mining", "setting": f"{retriever.value}, {name}", "unit": "share", "recall": recall,
                "true_negatives_kept": true, "groups_kept": groups, "planted_reached": dict(reached), **about,
            })  # fmt: skip
    kinds = sorted(reached)
    table += record.markdown(rows, ("retriever", "filter", *kinds, "recall", "true negatives kept", "groups kept"))
    path = record.write("mining", entries, table, {"MRR@10": found})
    print(f"\n{table}\n{path}")


if __name__ == "__main__":
    main()

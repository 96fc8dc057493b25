"""How fast groups get from shards to tokenized micro-batches, beside what others use for it, in one run.

    python tests/benchmarks/loader.py groups=FILE tokenizer=MODEL work=DIR [peers=PYTHON] [copies=6] [rounds=3]

The same groups, the same tokenizer, the same micro-batches (4 groups of one positive and two negatives, shuffled),
one worker process, each measurement in a process of its own, the contestants taking turns. Measured of each:

    groups_per_second   through a loader with one worker, tokenizing included, once it runs
    first_batch         seconds from the request for the loader to its first micro-batch
    first_step          the same to the 32 groups of the first optimizer step, which a training waits for
    resume_batch        first_batch and
    resume_step         first_step, 90% of an epoch behind them; what each offers for that is in `_RESUME`
    memory              MB that the worker and its parent have for themselves (USS), the interpreter included

`peers` is the Python of an environment with mosaicml-streaming (0.13 wants an older transformers than this project)
and tokenizers; the other contestants run beside us. Times on a busy machine mean little by themselves: the record holds ratios to ours.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.benchmarks.record import ROOT, SEED, compared, context, markdown, write

GROUPS, PASSAGES, LENGTH = 4, 3, 512
MEASURED, WARM = 300, 20
"""Micro-batches of a measurement of speed, and those taken before it."""
CONTESTANTS = ("reranker", "webdataset", "mosaicml-streaming", "datasets")
_RESUME = {
    "reranker": "a cursor",
    "webdataset": "none of its own: samples are read and passed over, before they are decoded",
    "mosaicml-streaming": "StreamingDataLoader.load_state_dict",
    "datasets": "IterableDataset.load_state_dict, its shuffle buffer filled anew",
}
_UNITS = {"groups_per_second": "groups/s, one worker", "memory": "MB"}
"""Of what is not in seconds."""


def main() -> None:
    settings = dict(argument.split("=", 1) for argument in sys.argv[1:])
    if "contestant" in settings:
        print(json.dumps(measure(settings)))
        return
    work, rounds = Path(settings["work"]), int(settings.get("rounds", 3))
    peers = settings.get("peers", sys.executable)
    prepare(settings["groups"], settings["tokenizer"], work, int(settings.get("copies", 6)), peers)
    found: dict[str, dict[str, list[float]]] = {name: {} for name in CONTESTANTS}
    for _ in range(rounds):
        for mode in ("speed", "first", "resume"):
            for name in CONTESTANTS:
                for key, value in in_process(
                    name, mode, work, peers if name.startswith("mosaicml") else sys.executable
                ).items():
                    found[name].setdefault(key, []).append(value)
                print(f"{name:20} {mode:7} {found[name]}", file=sys.stderr, flush=True)
    entries, table = report(found, int((work / "done").read_text("utf-8")), versions_beside(peers))
    bars = {"Tokenized groups per second, one worker": {
        "ours" if name == "reranker" else name: statistics.median(rows["groups_per_second"])
        for name, rows in found.items()
    }}  # fmt: skip
    print(f"{table}\n{write('loader', entries, table, bars)}")


def prepare(groups: str, tokenizer: str, work: Path, copies: int, peers: str) -> None:
    """The same groups in each contestant's form; four negatives of each, `copies` times over with another id."""
    from transformers import AutoTokenizer

    from reranker.groups import read_groups

    done = work / "done"
    if done.exists():
        return
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    lines = []
    for copy in range(copies):
        for number, group in enumerate(read_groups(groups)):
            record = {
                "query": group.query,
                "pos": list(group.pos[:1]),
                "neg": list(group.neg[:4]),
                "id": f"{copy}-{number}",
            }
            lines.append(json.dumps(record, ensure_ascii=False))
    random.Random(SEED).shuffle(lines)
    (work / "groups.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    AutoTokenizer.from_pretrained(tokenizer).save_pretrained(work / "tokenizer")
    subprocess.run(
        [sys.executable, "-m", "reranker", "pack", f"groups={work / 'groups.jsonl'}", f"output={work / 'shards'}",
         "groups_per_shard=512"], check=True, cwd=ROOT,
    )  # fmt: skip
    (work / "jsonl").mkdir()
    for number, first in enumerate(range(0, len(lines), 512)):
        part = "\n".join(lines[first : first + 512]) + "\n"
        (work / "jsonl" / f"part-{number:05d}.jsonl").write_text(part, encoding="utf-8")
    code = (
        "import sys, types\nsys.modules['streaming.vision'] = types.ModuleType('streaming.vision')\n"
        "from streaming import MDSWriter\n"
        "with MDSWriter(out=sys.argv[2], columns={'json': 'str'}, size_limit=1 << 21) as out:\n"
        "    for line in open(sys.argv[1], encoding='utf-8'): out.write({'json': line})\n"
    )
    subprocess.run([peers, "-c", code, str(work / "groups.jsonl"), str(work / "mds")], check=True)
    done.write_text(str(len(lines)), encoding="utf-8")


def in_process(name: str, mode: str, work: Path, python: str) -> dict[str, float]:
    environment = {**os.environ, "TOKENIZERS_PARALLELISM": "false", "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1",
                   "PYTHONPATH": str(ROOT)}  # fmt: skip
    ran = subprocess.run(
        [python, __file__, f"contestant={name}", f"mode={mode}", f"work={work}"], check=True, env=environment,
        stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    return dict(json.loads(ran.stdout.splitlines()[-1]))


def measure(settings: dict[str, str]) -> dict[str, float]:
    """One contestant, one mode, in this process."""
    name, mode, work = settings["contestant"], settings["mode"], Path(settings["work"])
    total = int((work / "done").read_text("utf-8"))
    skipped = int(total * 0.9) // 32 * 32 if mode == "resume" else 0
    # What has to be imported is, before the clock starts; what a resume needs was saved by the run before it.
    loader = {"reranker": ours, "webdataset": webdataset_, "mosaicml-streaming": mosaic, "datasets": datasets_}[name]
    start = loader(work, skipped)
    begun = time.perf_counter()
    batches = start()
    groups = next(batches)
    first = time.perf_counter() - begun
    while groups < 32:
        groups += next(batches)
    if mode != "speed":
        return {f"{mode}_batch": first, f"{mode}_step": time.perf_counter() - begun}
    for _ in range(WARM):
        next(batches)
    begun = time.perf_counter()
    groups = sum(next(batches) for _ in range(MEASURED))
    return {"groups_per_second": groups / (time.perf_counter() - begun), "memory": memory()}


def memory() -> float:
    import psutil

    me = psutil.Process()
    return sum(process.memory_full_info().uss for process in (me, *me.children(recursive=True))) / 1e6


def encoder(work: Path) -> Any:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(work / "tokenizer" / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.enable_truncation(LENGTH)
    return tokenizer


def tokenized(records: list[dict[str, Any]], tokenizer: Any) -> Any:
    """The micro-batch of some groups, padded, as torch tensors. The peers' collate."""
    import torch

    pairs = []
    for record in records:
        negatives = random.sample(record["neg"], PASSAGES - 1)
        pairs += [(record["query"], passage) for passage in (record["pos"][0], *negatives)]
    encodings = tokenizer.encode_batch(pairs)
    longest = max(len(encoding.ids) for encoding in encodings)
    ids = torch.ones(len(pairs), longest, dtype=torch.long)
    mask = torch.zeros(len(pairs), longest, dtype=torch.long)
    for row, encoding in enumerate(encodings):
        ids[row, : len(encoding.ids)] = torch.tensor(encoding.ids)
        mask[row, : len(encoding.ids)] = 1
    return {"ids": ids, "mask": mask, "groups": len(records)}


def ours(work: Path, skipped: int) -> Any:
    from transformers import AutoTokenizer

    from reranker.data.choose import Choice
    from reranker.data.dataset import DataSet, Source
    from reranker.data.manifest import load_manifest
    from reranker.data.plan import Cursor, plan_fixed, step_numbers
    from reranker.data.reader import ShardReader
    from reranker.data.stream import PlanSource, micro_batches
    from reranker.data.tokenize import Contract, PairTokenizer
    from reranker.errors import UserError

    tokenizer = PairTokenizer(AutoTokenizer.from_pretrained(work / "tokenizer"), Contract(LENGTH))

    def start() -> Iterator[int]:
        manifest = load_manifest(work / "shards")
        source = Source("", manifest, ShardReader(work / "shards", manifest))
        data = DataSet([source], tokenizer, Choice(PASSAGES), SEED, 64, 3 * manifest.groups)
        cursor = Cursor(SEED, 0, skipped, 32, manifest.fingerprint)
        plan = PlanSource(
            lambda: step_numbers(cursor, data.positions, 3),
            lambda epoch, step: plan_fixed(epoch, step, data.positions, 32, GROUPS, 1), 0,
        )  # fmt: skip
        for item in micro_batches(data, plan, workers=1, prefetch=16, pin_memory=False):
            if isinstance(item, UserError):
                raise item
            yield len(item.batch.positions)

    return start


def webdataset_(work: Path, skipped: int) -> Any:
    import itertools

    import webdataset

    tokenizer = encoder(work)
    tars = sorted(str(path) for path in (work / "shards").glob("*.tar"))

    def start() -> Iterator[int]:
        def passed_over(samples: Any) -> Any:
            return itertools.islice(samples, skipped, None)

        dataset = webdataset.DataPipeline(
            webdataset.SimpleShardList(tars), webdataset.detshuffle(1000, seed=SEED), webdataset.split_by_worker,
            webdataset.tarfile_to_samples(), webdataset.detshuffle(1000, seed=SEED), passed_over, webdataset.decode(),
            webdataset.batched(GROUPS, collation_fn=lambda rows: tokenized([row["json"] for row in rows], tokenizer)),
        )  # fmt: skip
        for batch in webdataset.WebLoader(dataset, batch_size=None, num_workers=1, prefetch_factor=16):
            yield batch["groups"]

    return start


def without_images() -> None:
    """streaming imports its image datasets, and those torchvision, which must fit torch to the letter: not needed."""
    import types

    sys.modules["streaming.vision"] = types.ModuleType("streaming.vision")


def mosaic(work: Path, skipped: int) -> Any:
    without_images()
    from streaming import StreamingDataLoader, StreamingDataset

    tokenizer = encoder(work)

    def collate(rows: list[dict[str, str]]) -> Any:
        return tuple(tokenized([json.loads(row["json"]) for row in rows], tokenizer).values())

    def start() -> Iterator[int]:
        dataset = StreamingDataset(local=str(work / "mds"), shuffle=True, shuffle_seed=SEED, batch_size=GROUPS)
        loader = StreamingDataLoader(dataset, batch_size=GROUPS, num_workers=1, prefetch_factor=16, collate_fn=collate)
        if skipped:
            loader.load_state_dict(dataset.state_dict(skipped, from_beginning=True))
        for batch in loader:
            yield batch[2]

    return start


def datasets_(work: Path, skipped: int) -> Any:
    import datasets
    from torch.utils.data import DataLoader

    tokenizer = encoder(work)
    files = sorted(str(path) for path in (work / "jsonl").glob("*.jsonl"))

    def opened() -> Any:
        return datasets.load_dataset("json", data_files=files, split="train", streaming=True).shuffle(
            SEED, buffer_size=1000
        )

    state = work / "datasets-state.json"
    if skipped and not state.exists():
        before = opened()
        for number, _ in enumerate(before, 1):
            if number == skipped:
                break
        state.write_text(json.dumps(before.state_dict()), encoding="utf-8")

    def start() -> Iterator[int]:
        dataset = opened()
        if skipped:
            dataset.load_state_dict(json.loads(state.read_text("utf-8")))
        loader = DataLoader(
            dataset, batch_size=GROUPS, num_workers=1, prefetch_factor=16,
            collate_fn=lambda rows: tokenized(rows, tokenizer),
        )  # fmt: skip
        for batch in loader:
            yield batch["groups"]

    return start


def report(
    found: dict[str, dict[str, list[float]]], groups: int, peer_versions: dict[str, str]
) -> tuple[list[dict[str, Any]], str]:
    """(the entries of the record: each measure beside each peer, then all rounds; the table)."""
    own = found["reranker"]
    common = context("python tests/benchmarks/loader.py groups=... tokenizer=... work=... peers=...",
                     ("torch", "webdataset", "tokenizers", "datasets"), "cpu", 1)  # fmt: skip
    common["versions"] |= peer_versions
    entries: list[dict[str, Any]] = [
        {"benchmark": "loader", "peer": name, "setting": measure, **compared(own[measure], rows[measure]),
         "unit": _UNITS.get(measure, "s"), **common}
        for measure in own for name, rows in found.items() if name != "reranker"
    ]  # fmt: skip
    table = markdown(
        [[one["setting"], one["peer"], one["ours"], one["theirs"], one["ratio"], one["unit"]] for one in entries],
        ["measure", "peer", "ours", "theirs", "ours / theirs", "unit"],
    )
    rounds = {name: {key: [round(value, 4) for value in values] for key, values in rows.items()}
              for name, rows in found.items()}  # fmt: skip
    details = {"benchmark": "loader-details", "groups": groups, "resume_by": _RESUME, "rounds": rounds, **common}
    return [*entries, details], table


def versions_beside(peers: str) -> dict[str, str]:
    code = "from importlib.metadata import version; print(version('mosaicml-streaming'), version('torch'))"
    told = subprocess.run([peers, "-c", code], check=True, capture_output=True, text=True).stdout.split()
    return {"mosaicml-streaming": told[0], "torch beside it": told[1]}


if __name__ == "__main__":
    main()

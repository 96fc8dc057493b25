"""What the contestants of the learning benchmark start from: the same weights, and the groups that ours shows, written out.

`prepare` leaves in a directory:

    model/           the demo's base in float32 with its fresh score head, dropout 0 in its config; its tokenizer
    ordered.jsonl    the groups of every step of the demo's plan, in its order, each with the passages that it shows and
                     no others: the random negatives of the warm-up, then its own. For those who read from front to back
    ordered/         the same as shards, laid so that ours shows them in that order
    inputs.json      how many groups, and of how many pairs the tokens are those of the demo's own texts

FlagEmbedding decodes and tokenizes again what it tokenized (under transformers 5), so a text is here what its tokens
decode to, cut to what the pair has room for; one that this changes loses its last token until nothing changes.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.benchmarks.record import ROOT, SEED
from tests.benchmarks.training_inputs import write_model

GROUPS = 32
"""Groups of an optimizer step."""
LR, LR_WARMUP, WEIGHT_DECAY, CLIP = 2e-4, 0.1, 0.01, 1.0
RECIPES = ("demo", "ko_docs")
"""Those that train on the demo's groups, with the rates above."""


@dataclass(frozen=True)
class Shape:
    """What a recipe shows of the groups.

    Attributes:
        passages: of a group. length: tokens of a pair at most.
        random_warmup: share of the steps in which negatives are random.
    """

    passages: int
    length: int
    random_warmup: float


def shape_of(recipe: str) -> Shape:
    """The shape that a recipe has in conf/recipe. Exits for one that does not train on the demo's groups."""
    from omegaconf import OmegaConf

    if recipe not in RECIPES:
        raise SystemExit(f"recipe={recipe}: found no recipe of the demo's groups, expected one of {', '.join(RECIPES)}")
    found: Any = OmegaConf.load(ROOT / "conf" / "recipe" / f"{recipe}.yaml")
    assert (found.optim.lr, found.optim.warmup, found.batch.groups) == (LR, LR_WARMUP, GROUPS), f"other rates: {recipe}"
    return Shape(found.data.group_size, found.data.max_length, found.data.negatives.warmup)


def prepare(demo: Path, work: Path, steps: int, precision: str, recipe: str) -> None:
    """Write the inputs of `steps` optimizer steps from the directory of a demo; nothing where they are there already."""
    asked = {"demo": str(demo), "steps": steps, "precision": precision, "recipe": recipe}
    shape = shape_of(recipe)
    done = work / "inputs.json"
    if done.exists():
        if (known := json.loads(done.read_text("utf-8"))["asked"]) != asked:
            raise SystemExit(f"{work} has the inputs of {known}, not of {asked}: name another work")
        return
    work.mkdir(parents=True, exist_ok=True)
    write_model({"model": str(demo / "base")}, work / "model")
    shown, same = shown_groups(work / "model", demo / "shards", steps, shape)
    lines = [json.dumps(group, ensure_ascii=False) + "\n" for group in shown]
    (work / "ordered.jsonl").write_text("".join(lines), encoding="utf-8")
    write_shards(work, lines)
    check_shards(work, shown, shape)
    pairs = len(shown) * shape.passages
    found = {"asked": asked, "groups": len(shown), "pairs": pairs, "pairs_with_the_demos_tokens": same}
    done.write_text(json.dumps(found), encoding="utf-8")


def data_of(model: Path, shards: Path, steps: int, shape: Shape) -> Any:
    """The product's own `DataSet`: which group stands where, and what it shows."""
    import torch

    from reranker.config.common import Precision
    from reranker.config.training import TrainConfig
    from reranker.train.distributed import Ranks
    from reranker.train.job import prepare as prepare_job

    config = TrainConfig()
    config.precision.name = Precision.fp32  # auto asks all ranks, and here is no group of them
    config.model.name, config.data.shards = str(model), str(shards)
    config.data.group_size, config.data.max_length = shape.passages, shape.length
    config.data.negatives.warmup = shape.random_warmup
    config.train.seed, config.train.epochs, config.train.max_steps = SEED, 100, steps
    return prepare_job(config, Ranks(0, 1, torch.device("cpu"), None), lambda *_: None, lambda *_: None)[0].data


def shown_groups(model: Path, shards: Path, steps: int, shape: Shape) -> tuple[list[dict[str, Any]], int]:
    """(the groups of every step in order with the passages they show, of how many pairs the tokens are the demo's)."""
    from transformers import AutoTokenizer

    from reranker.data.plan import plan_fixed, steps_per_epoch

    tokenizer = AutoTokenizer.from_pretrained(model)
    data = data_of(model, shards, steps, shape)
    found, same = [], 0
    for number in range(steps):
        epoch, step = divmod(number, steps_per_epoch(data.positions, GROUPS))
        planned = plan_fixed(epoch, step, data.positions, GROUPS, GROUPS, 1)
        assert planned.groups == GROUPS, "a short step at the end of an epoch, which the peers cannot have: lower steps"
        for position in planned.positions:
            place = data.locate(epoch, position)
            group = place.reader.group(place.shard, place.index)
            passages = data.passages(place, group, planned)
            assert passages.positives == 1
            pairs = data.tokenizer.encode(group.query, passages.texts)
            query, texts = settled_pairs(tokenizer, group.query, passages.texts, shape.length)
            again = data.tokenizer.encode(query, texts)
            # What a peer's tokenizer makes of the pair, which does not cut it.
            assert [pair.ids for pair in again] == [tokenizer(query, text)["input_ids"] for text in texts]
            same += sum(one.ids == other.ids for one, other in zip(pairs, again, strict=True))
            found.append({"query": query, "pos": texts[:1], "neg": texts[1:]})
    return found, same


def settled_pairs(tokenizer: Any, query: str, passages: Sequence[str], length: int) -> tuple[str, list[str]]:
    """Query and passages, each cut to its place in a pair of so many tokens, as texts that stay what they are."""
    query = settled(tokenizer, query, length)
    used = len(tokenizer(query, add_special_tokens=False)["input_ids"])
    room = length - tokenizer.num_special_tokens_to_add(pair=True) - used
    assert used <= room, f"a query of {used} tokens, of which longest_first would cut some"
    return query, [settled(tokenizer, passage, room) for passage in passages]


def settled(tokenizer: Any, text: str, limit: int) -> str:
    """The text that its first `limit` tokens, or as few less as need be, decode to, and that has just these tokens."""
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    for count in range(min(limit, len(ids)), 0, -1):
        cut = tokenizer.decode(ids[:count], skip_special_tokens=False, clean_up_tokenization_spaces=False)
        if tokenizer(cut, add_special_tokens=False)["input_ids"] == ids[:count]:
            return str(cut)
    raise AssertionError(f"no beginning of this text is tokenized to the same again: {text!r}")


def write_shards(work: Path, lines: Sequence[str]) -> None:
    """`ordered/`: each line where our order will look for it."""
    from reranker.data.order import Order

    order = Order([len(lines)], SEED, 0, 64)
    laid = [""] * len(lines)
    for position, line in enumerate(lines):
        laid[order.locate(position)[1]] = line
    (work / "laid.jsonl").write_text("".join(laid), encoding="utf-8")
    shutil.rmtree(work / "ordered", ignore_errors=True)
    subprocess.run(
        [sys.executable, "-m", "reranker", "pack", f"groups={work / 'laid.jsonl'}", f"output={work / 'ordered'}",
         f"groups_per_shard={len(lines)}", f"tokenizer={work / 'model'}"], check=True, cwd=ROOT,
    )  # fmt: skip


def check_shards(work: Path, shown: Sequence[dict[str, Any]], shape: Shape) -> None:
    """Ours will show exactly these groups in exactly this order."""
    from reranker.data.plan import plan_fixed

    data = data_of(work / "model", work / "ordered", len(shown) // GROUPS, replace(shape, random_warmup=0.0))
    for position, expected in enumerate(shown):
        planned = plan_fixed(0, position // GROUPS, data.positions, GROUPS, GROUPS, 1)
        place = data.locate(0, position)
        group = place.reader.group(place.shard, place.index)
        texts = data.passages(place, group, planned).texts
        assert (group.query, list(texts)) == (expected["query"], [*expected["pos"], *expected["neg"]]), position

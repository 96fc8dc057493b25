"""What all contestants of the training benchmark start from: the same weights, the same groups in the same order.

`prepare` leaves in a directory:

    model/         a whole checkpoint in float32, score head included, dropout 0 in its config; its tokenizer
    shards/        the groups, of one positive and two negatives, as ours reads them
    ordered.jsonl  the same in the order in which ours will show them, for those who read from front to back
    lengths.json   tokens of each of their pairs, in that order

Texts are cut once, beforehand, to where no contestant cuts: FlagEmbedding's limits for query and passage, and 512
tokens for the pair. They are what their own tokens decode to, as FlagEmbedding decodes and tokenizes again what it
tokenized (under transformers 5); a text that changes thereby is left out, with its group.
"""

from __future__ import annotations

import json
import random
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.benchmarks.record import ROOT, SEED

GROUPS, PASSAGES, LENGTH = 32, 3, 512
"""Groups of an optimizer step, passages of a group, tokens of a pair at most."""
QUERY, PASSAGE = 128, 496
"""Tokens of a query and of a passage at most: FlagEmbedding cuts at 152 and 496 where its two settings sum to 512."""
LR, WEIGHT_DECAY, CLIP = 2e-5, 0.01, 1.0
RANDOM_LARGE = "xlm-roberta-large-random"


def prepare(settings: dict[str, str], work: Path) -> None:
    """Write the inputs of `steps` optimizer steps; nothing where they are there already."""
    asked = {key: settings.get(key) for key in ("groups", "model", "tokenizer", "device", "threads", "steps")}
    done = work / "inputs.json"
    if done.exists() and json.loads(done.read_text("utf-8")) == asked:
        return
    if done.exists():
        raise SystemExit(f"{work} has the inputs of {done.read_text('utf-8')}, not of {asked}: name another work")
    work.mkdir(parents=True, exist_ok=True)
    write_model(settings, work / "model")
    write_groups(settings["groups"], work, int(settings["steps"]) * GROUPS)
    shutil.rmtree(work / "shards", ignore_errors=True)
    subprocess.run(
        [sys.executable, "-m", "reranker", "pack", f"groups={work / 'groups.jsonl'}", f"output={work / 'shards'}",
         f"tokenizer={work / 'model'}"], check=True, cwd=ROOT,
    )  # fmt: skip
    write_order(work)
    done.write_text(json.dumps(asked), encoding="utf-8")


def write_model(settings: dict[str, str], output: Path) -> None:
    """The given model with a head, or random weights of XLM-RoBERTa-large's shape with the given tokenizer."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer, XLMRobertaConfig, set_seed

    from reranker.model.cross_encoder import load_model

    if settings["model"] == RANDOM_LARGE:
        tokenizer = AutoTokenizer.from_pretrained(settings["tokenizer"])
        config = XLMRobertaConfig(
            vocab_size=max(250_002, len(tokenizer)), hidden_size=1024, num_hidden_layers=24, num_attention_heads=16,
            intermediate_size=4096, max_position_embeddings=514, type_vocab_size=1, layer_norm_eps=1e-5, num_labels=1,
            hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, pad_token_id=1, bos_token_id=0, eos_token_id=2,
        )  # fmt: skip
        set_seed(SEED)
        model: Any = AutoModelForSequenceClassification.from_config(config)
    else:
        tokenizer = AutoTokenizer.from_pretrained(settings["model"])
        model, _ = load_model(settings["model"], seed=SEED, dropout=0.0)
    model.save_pretrained(output)
    tokenizer.save_pretrained(output)


def write_groups(groups: str, work: Path, wanted: int) -> None:
    """The first `wanted` groups of a shuffled file whose texts stay what they are when tokenized twice."""
    from transformers import AutoTokenizer

    from reranker.groups import read_groups

    tokenizer = AutoTokenizer.from_pretrained(work / "model")
    everything = [group for group in read_groups(groups) if len(group.neg) >= PASSAGES - 1]
    draw = random.Random(SEED)
    draw.shuffle(everything)
    lines: list[str] = []
    for group in everything:
        passages = [group.pos[0], *draw.sample(list(group.neg), PASSAGES - 1)]
        query = settled(tokenizer, group.query, QUERY)
        room = LENGTH - tokenizer.num_special_tokens_to_add(pair=True) - token_count(tokenizer, query or "")
        texts = [settled(tokenizer, passage, min(PASSAGE, room)) for passage in passages]
        if query and all(texts):
            lines.append(json.dumps({"query": query, "pos": texts[:1], "neg": texts[1:]}, ensure_ascii=False) + "\n")
        if len(lines) == wanted:
            (work / "groups.jsonl").write_text("".join(lines), encoding="utf-8")
            return
    raise SystemExit(f"{groups}: {len(lines)} groups fit, {wanted} are wanted: lower steps")


def settled(tokenizer: Any, text: str, limit: int) -> str | None:
    """The text that the first `limit` tokens decode to; None if it is not tokenized to the same again."""
    ids = tokenizer(text, add_special_tokens=False)["input_ids"][:limit]
    cut = tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
    return cut if cut and tokenizer(cut, add_special_tokens=False)["input_ids"] == ids else None


def token_count(tokenizer: Any, text: str) -> int:
    return len(tokenizer(text, add_special_tokens=False)["input_ids"])


def write_order(work: Path) -> None:
    """The groups in the order of our first epoch, and the tokens of their pairs."""
    job = product_job(work)
    lines, lengths = [], []
    for position in range(job.data.positions):
        place = job.data.locate(0, position)
        group = place.reader.group(place.shard, place.index)
        lines.append(json.dumps({"query": group.query, "pos": list(group.pos), "neg": list(group.neg)},
                                ensure_ascii=False) + "\n")  # fmt: skip
        pairs = job.data.tokenizer.encode(group.query, [*group.pos, *group.neg])
        lengths.append([len(pair.ids) for pair in pairs])
    (work / "ordered.jsonl").write_text("".join(lines), encoding="utf-8")
    (work / "lengths.json").write_text(json.dumps(lengths), encoding="utf-8")


def product_job(work: Path, device: str = "cpu", precision: str = "fp32", world: int = 1, **batch: Any) -> Any:
    """The product's own `Job` of these inputs on so many ranks; `batch` sets keys of its section."""
    import torch

    from reranker.config.common import Precision
    from reranker.config.training import TrainConfig
    from reranker.train.distributed import Ranks
    from reranker.train.job import prepare as prepare_job

    config = TrainConfig()
    config.model.name, config.data.shards = str(work / "model"), str(work / "shards")
    config.train.seed, config.train.epochs, config.precision.name = SEED, 100, Precision[precision]
    for key, value in batch.items():
        setattr(config.batch, key, value)
    return prepare_job(config, Ranks(0, world, torch.device(device), None), lambda *_: None, lambda *_: None)[0]

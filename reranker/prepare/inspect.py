"""Shards -> what they hold, and what optimizer steps of them would cost, without training anything.

In: a directory or URL of shards and, for tokens, a tokenizer. Out: tables on standard output: groups, passages of a
group, tokens of texts, how much of the ranks' time each policy of micro-batches makes use of, and a few groups as
they were packed. What is counted comes from indexes and token lengths, shard by shard: only samples are read.
"""

from __future__ import annotations

import dataclasses
import textwrap
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from reranker.checks import cache_directory, check_at_least
from reranker.config.shards import DataInspectConfig
from reranker.data.cache import ShardCache
from reranker.data.choose import Choice
from reranker.data.dataset import DataSet, Source
from reranker.data.lengths import find_or_write_lengths
from reranker.data.manifest import Manifest, load_manifest
from reranker.data.permutation import Permutation
from reranker.data.plan import Step, plan_fixed, plan_tokens, slot_cost, steps_per_epoch
from reranker.data.reader import ShardReader
from reranker.data.tokenize import Contract, PairTokenizer
from reranker.errors import UserError
from reranker.model.cross_encoder import load_tokenizer
from reranker.progress import progress_bar

_SEED = 42
_SHARES = (0, 10, 50, 90, 99, 100)
_CLIP = 300


def inspect_command(config: DataInspectConfig) -> int:
    """`reranker data inspect`."""
    least = {"samples": 0, "group_size": 2, "max_length": 8, "groups": 1, "per_gpu": 1, "steps": 1}
    least |= {key: 1 for key in ("query_max_length", "passage_max_length") if getattr(config, key) is not None}
    check_at_least(
        [("cache.gib", config.cache.gib, 0), *((key, getattr(config, key), value) for key, value in least.items())]
    )
    if not config.worlds or min(config.worlds) < 1:
        raise UserError("worlds", str(list(config.worlds)), "numbers of ranks", "say worlds=[1,8]")
    if config.tokens < config.group_size * config.max_length:
        raise UserError("tokens", str(config.tokens), f"at least group_size x max_length = "
                        f"{config.group_size * config.max_length}, the longest group", "raise it")  # fmt: skip
    manifest = load_manifest(config.shards, "shards")
    cache = ShardCache(cache_directory(config.cache), int(config.cache.gib * 2**30))
    reader = ShardReader(config.shards, manifest, cache)
    tokenizer = None
    if config.tokenizer:
        contract = Contract.of_settings(dataclasses.asdict(config))
        tokenizer = PairTokenizer(load_tokenizer(config.tokenizer, key="tokenizer"), contract)
    _print_counts(config, manifest, reader)
    if tokenizer is None:
        print("\ntokens: say tokenizer=MODEL for lengths of texts and the cost of micro-batches")
    else:
        source = Source("", manifest, reader, lengths=find_or_write_lengths(reader, tokenizer, cache.directory))
        data = DataSet([source], tokenizer, Choice(config.group_size), _SEED, 64, manifest.groups)
        _print_tokens(data)
        _print_plans(data, config)
    _print_samples(reader, manifest, config.samples)
    return 0


def _print_counts(config: DataInspectConfig, manifest: Manifest, reader: ShardReader) -> None:
    positives, negatives, size = Counted(), Counted(), sum(shard.bytes for shard in manifest.shards)
    for shard in progress_bar(range(len(manifest.shards)), desc="indexes", unit=" shards"):
        index = reader.index(shard)
        own = index.positives.astype(np.int64)
        positives.add(own)
        negatives.add(np.diff(index.first.astype(np.int64)) - 1 - own)
    groups = [shard.groups for shard in manifest.shards]
    print(f"{config.shards}: {manifest.groups:,} groups in {len(groups):,} shards of {min(groups):,} to "
          f"{max(groups):,} groups, {size / 1e6:,.1f} MB, fingerprint {manifest.fingerprint}")  # fmt: skip
    print(f"  from {manifest.source.get('name', 'unknown')}: {manifest.command}\n")
    _print_shares("passages of a group", [("positives", positives), ("negatives", negatives)])
    short = negatives.below(config.group_size - 1)
    print(f"  {short:,} groups have fewer than the {config.group_size - 1} negatives of group_size={config.group_size}")


def _print_tokens(data: DataSet) -> None:
    (source,) = data.sources
    assert source.lengths is not None
    queries, passages, cut, pairs = Counted(), Counted(), 0, 0
    contract = data.tokenizer.contract
    for shard in progress_bar(range(len(source.manifest.shards)), desc="lengths", unit=" shards"):
        index, tokens = source.reader.index(shard), source.lengths.tokens(shard).astype(np.int64)
        first = index.first.astype(np.int64)
        is_query = np.zeros(len(tokens), dtype=bool)
        is_query[first[:-1]] = True
        queries.add(tokens[is_query])
        passages.add(tokens[~is_query])
        of_pairs = zip(
            np.repeat(tokens[is_query], np.diff(first) - 1).tolist(), tokens[~is_query].tolist(), strict=True
        )
        for query, passage in of_pairs:
            cut += query + passage + data.tokenizer.special > data.tokenizer.pair_length(query, passage)
            pairs += 1
    print()
    _print_shares("tokens of a text", [("query", queries), ("passage", passages)])
    limits = [f"max_length={contract.max_length}"]
    limits += [
        f"{key}={value}" for key in ("query_max_length", "passage_max_length") if (value := getattr(contract, key))
    ]  # fmt: skip
    print(f"  {cut / pairs:.1%} of the pairs are cut at {', '.join(limits)}")


def _print_plans(data: DataSet, config: DataInspectConfig) -> None:
    total = data.positions
    steps = min(config.steps, steps_per_epoch(total, config.groups))
    pairs = _pair_lengths(data, steps, config.groups)
    print(f"\nmicro-batches of {steps} steps of {config.groups} groups of {config.group_size}, "
          f"fixed: {config.per_gpu} groups, tokens: at most {config.tokens:,}")  # fmt: skip
    print(f"  {'ranks':>5}  {'policy':7} {'forward':7}  {'micro-batches a step':>20}  {'tokens each':>11}  "
          f"{'useful share':>12}")  # fmt: skip
    for world in config.worlds:
        for policy in ("fixed", "tokens"):
            for packed in (False, True):
                shown = f"  {world:>5}  {policy:7} {'packed' if packed else 'padded':7}"
                if policy == "fixed" and config.groups % (config.per_gpu * world):
                    print(f"{shown}  {config.groups} groups do not divide by {config.per_gpu} x {world}")
                    continue
                planned = [_plan(step, policy, packed, world, total, pairs, config) for step in range(steps)]
                rows, each, useful = _cost(planned, pairs, packed)
                print(f"{shown}  {rows:>20.1f}  {each:>11,.0f}  {useful:>12.1%}")
    print("  useful share: tokens of pairs / tokens that ranks compute or wait for, micro-batch by micro-batch")


def _pair_lengths(data: DataSet, steps: int, groups: int) -> dict[int, list[int]]:
    found = {}
    for number in progress_bar(range(steps), desc="plan", unit=" steps"):
        step = plan_fixed(0, number, data.positions, groups, groups, 1)
        for position in step.positions:
            found[position] = data.pair_lengths(data.locate(0, position), step)
    return found


def _plan(
    step: int, policy: str, packed: bool, world: int, total: int, pairs: dict[int, list[int]], config: DataInspectConfig
) -> Step:
    if policy == "fixed":
        return plan_fixed(0, step, total, config.groups, config.per_gpu, world)
    return plan_tokens(0, step, total, config.groups, config.tokens, world, pairs.__getitem__, packed)


def _cost(steps: Sequence[Step], pairs: dict[int, list[int]], packed: bool) -> tuple[float, float, float]:
    """(micro-batches a step, tokens of a micro-batch, share of useful tokens in the time of ranks in lockstep)."""
    rows = [row for step in steps for row in step.slots]
    costs = [[slot_cost([pairs[position] for position in slot], packed) for slot in row] for row in rows]
    useful = sum(sum(pairs[position]) for row in rows for slot in row for position in slot)
    spent = sum(max(row) * len(row) for row in costs)
    return len(rows) / len(steps), float(np.mean([cost for row in costs for cost in row])), useful / spent


class Counted:
    """How often each number was seen: exact percentiles of any amount of data, in memory of the largest number."""

    def __init__(self) -> None:
        self.counts = np.zeros(1, dtype=np.int64)

    def add(self, values: np.ndarray) -> None:
        new = np.bincount(values, minlength=len(self.counts))
        new[: len(self.counts)] += self.counts
        self.counts = new

    @property
    def total(self) -> int:
        return int(self.counts.sum())

    @property
    def mean(self) -> float:
        return float((self.counts * np.arange(len(self.counts))).sum() / self.total)

    def below(self, limit: int) -> int:
        """How many were below `limit`."""
        return int(self.counts[:limit].sum())

    def share(self, percent: float) -> int:
        """The smallest number that this share of all does not exceed; of 0%, the smallest of all."""
        return int(np.searchsorted(np.cumsum(self.counts), max(1, self.total * percent / 100)))


def _print_shares(title: str, rows: Iterable[tuple[str, Counted]]) -> None:
    head = "".join(f"{name:>9}" for name in ("least", "10%", "median", "90%", "99%", "most", "mean"))
    print(f"{title:22}{head}")
    for name, counted in rows:
        shares = "".join(f"{counted.share(percent):>9,}" for percent in _SHARES)
        print(f"  {name:20}{shares}{counted.mean:>9,.1f}")


def _print_samples(reader: ShardReader, manifest: Manifest, count: int) -> None:
    chosen = Permutation(manifest.groups, _SEED)
    for number in sorted(chosen(place) for place in range(min(count, manifest.groups))):
        shard, index = reader.place(number)
        group = reader.group(shard, index)
        texts: list[tuple[str, Any]] = [("query", group.prompted_query)]
        texts += [("positive", text) for text in group.pos] + [("negative", text) for text in group.neg[:2]]
        print(f"\n{reader.name(shard, index)}")
        for name, text in texts:
            shown = textwrap.shorten(text, _CLIP, placeholder=" ...")
            print(textwrap.fill(shown, 110, initial_indent=f"  {name:9} ", subsequent_indent=" " * 12))
        if len(group.neg) > 2:
            print(f"  and {len(group.neg) - 2} more negatives")

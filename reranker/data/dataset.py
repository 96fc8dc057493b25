"""The groups of a training: sources mixed into epochs, and for each position of an epoch what it shows.

In: sources of shards with weights, and the settings of the choice. Out: pure functions of (epoch, position):
where the group lies, which passages it shows, how many tokens they take. What is read is read through the
sources' readers. Pickles into workers; opens files when first used. Memory is O(shards).
"""

from __future__ import annotations

import hashlib
import json
import math
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field

from reranker.data.choose import Choice, Neighbours, Shown, choose
from reranker.data.lengths import Lengths
from reranker.data.manifest import Manifest
from reranker.data.mixture import Mixture, Share
from reranker.data.order import Block, Order
from reranker.data.permutation import keyed
from reranker.data.plan import Step
from reranker.data.reader import ShardReader
from reranker.data.tokenize import PairTokenizer
from reranker.errors import UserError
from reranker.groups import Group

_SOURCE = 21
_PASSES = 8
"""Orders that are kept: of a small source with a large weight, one step may show several passes."""


@dataclass
class Source:
    """Shards and what is asked of them.

    Attributes:
        name: what the user calls it; weight: times that a group is shown in an epoch, on average.
        lengths: tokens of every text, where micro-batches are planned by tokens.
    """

    name: str
    manifest: Manifest
    reader: ShardReader
    weight: float = 1.0
    lengths: Lengths | None = None
    _orders: OrderedDict[int, Order] = field(default_factory=OrderedDict)

    def order(self, number: int, seed: int, block: int) -> Order:
        """The order of a pass over this source."""
        if number not in self._orders:
            while len(self._orders) >= _PASSES:
                self._orders.popitem(last=False)
            self._orders[number] = Order(self.manifest.sizes, seed, number, block)
        self._orders.move_to_end(number)
        return self._orders[number]


@dataclass(frozen=True)
class Place:
    """Where the group of a position lies: in a pass over a source, in a block of it, in a shard."""

    source: int
    pass_: int
    block: Block
    shard: int
    index: int
    reader: ShardReader

    @property
    def name(self) -> str:
        return self.reader.name(self.shard, self.index)

    def read(self) -> bytes:
        """The bytes of its member. Raises BadMember."""
        return self.reader.read(self.shard, self.index)


@dataclass(frozen=True)
class Passages:
    """What a group shows, the positives first.

    Attributes:
        texts: of the passages; positives: how many of them answer the query.
        teacher: a teacher's scores of them: NaN for a neighbour's, which it never saw, and where none are wanted.
    """

    texts: tuple[str, ...]
    positives: int
    teacher: tuple[float, ...]


@dataclass
class DataSet:
    """Everything that turns a position into pairs.

    Attributes:
        positions_in_all: positions of the whole training; shares of negatives are schedules over them.
        block: shards that are shuffled together.
        ghosts: a group that cannot be read gets weight zero instead of ending the training.
        teacher: the groups carry a teacher's scores, which are wanted.
    """

    sources: Sequence[Source]
    tokenizer: PairTokenizer
    choice: Choice
    seed: int
    block: int
    positions_in_all: int
    ghosts: bool = False
    teacher: bool = False
    _seen: dict[int, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.mixture = make_mixture(self.sources)

    @property
    def positions(self) -> int:
        """Positions of an epoch."""
        return self.mixture.positions

    def locate(self, epoch: int, position: int) -> Place:
        """Where the group at a position of an epoch lies. Starts to fetch the shards that come after its own."""
        spot = self.mixture.locate(epoch, position)
        source = self.sources[spot.source]
        order = source.order(spot.number, self._seed_of(spot.source), self.block)
        block = order.block_of(spot.position)
        self._prefetch(spot.source, spot.number, block, order)
        return Place(spot.source, spot.number, order.block(block), *order.locate(spot.position), source.reader)

    def shown(self, place: Place, step: Step) -> list[Shown]:
        """The passages that a group shows in a step, the positives first."""
        reader = place.reader
        number = reader.number(place.shard, place.index)
        block = place.block
        neighbours = Neighbours(
            block.groups, block.rank(place.shard, place.index), lambda rank: reader.texts(*block.at(rank))
        )
        return choose(
            reader.texts(place.shard, place.index), number, neighbours, seed=self._seed_of(place.source),
            pass_=place.pass_, progress=self.progress(step), choice=self.choice,
            scores=lambda: reader.neg_scores(place.shard, place.index), name=place.name,
        )  # fmt: skip

    def passages(self, place: Place, group: Group, step: Step) -> Passages:
        """The texts of `shown`, with a teacher's scores of them where they are wanted.

        Raises BadMember for a neighbour that cannot be read, UserError where a teacher's scores are asked for and
        the group has none.
        """
        own = (*(group.pos_scores or ()), *(group.neg_scores or ()))
        if self.teacher and (group.pos_scores is None or group.neg_scores is None):
            raise UserError(place.name, "a group without pos_scores and neg_scores", "a teacher's scores, as a part of "
                            "the loss looks at them", "add them, or leave out loss.distillation and such losses of "
                            "loss.more")  # fmt: skip
        texts, scores = [], []
        every = self.shown(place, step)
        for shown in every:
            owner = group if shown.neighbour is None else place.reader.group(*place.block.at(shown.neighbour))
            texts.append((*owner.pos, *owner.neg)[shown.passage])
            scores.append(own[shown.passage] if self.teacher and shown.neighbour is None else math.nan)
        return Passages(tuple(texts), sum(shown.positive for shown in every), tuple(scores))

    def pair_lengths(self, place: Place, step: Step) -> list[int]:
        """Tokens of each pair of `shown`, special tokens included. The source must have lengths."""
        lengths = self.sources[place.source].lengths
        assert lengths is not None, "a plan by tokens needs lengths"
        reader = place.reader
        query, own = lengths.group(place.shard, place.index, reader.index(place.shard))
        found = []
        for shown in self.shown(place, step):
            passages = own
            if shown.neighbour is not None:
                shard, index = place.block.at(shown.neighbour)
                _, passages = lengths.group(shard, index, reader.index(shard))
            found.append(self.tokenizer.pair_length(query, passages[shown.passage]))
        return found

    def progress(self, step: Step) -> float:
        """Share of the training behind a step: one number for all of its groups, whatever micro-batch they are in."""
        return (step.epoch * step.groups_in_epoch + step.first) / self.positions_in_all

    def _seed_of(self, source: int) -> int:
        # Two copies of the same shards, mixed, must not go in step.
        return keyed(self.seed, _SOURCE, source) if source else self.seed

    def _prefetch(self, source: int, number: int, block: int, order: Order) -> None:
        """Once for each block that is entered: the block after it is copied to this node, if it is remote."""
        key = number * order.blocks + block
        # A step may stand in two blocks and be read back and forth: only going on counts.
        if key <= self._seen.get(source, -1):
            return
        self._seen[source] = key
        reader, share = self.sources[source].reader, self.mixture.shares[source]
        shards = order.block(block).shards.tolist()
        before = order.block(block - 1).shards.tolist() if block else []
        after: list[int] = []
        if block + 1 < order.blocks:
            after = order.block(block + 1).shards.tolist()
        elif (number + 1) * share.groups * self.positions < self.positions_in_all * share.positions:
            after = self.sources[source].order(number + 1, self._seed_of(source), self.block).block(0).shards.tolist()
        reader.keep({*before, *shards, *after})
        reader.prefetch([*shards, *after])


def make_mixture(sources: Sequence[Source]) -> Mixture:
    """How the sources share an epoch."""
    return Mixture([Share.weighted(source.manifest.groups, source.weight) for source in sources])


def fingerprint(sources: Sequence[Source]) -> str:
    """Changes when the groups, their order, the sources or their weights do; not with places and names."""
    if len(sources) == 1 and sources[0].weight == 1:
        return sources[0].manifest.fingerprint
    content = json.dumps([[source.manifest.fingerprint, source.weight] for source in sources])
    return hashlib.sha256(content.encode()).hexdigest()[:16]


def parse_sources(shards: object) -> list[tuple[str, str, float]]:
    """(name, shards, weight) of each source that `data.shards` names. Raises UserError."""
    form = "a directory, a URL, or {name: DIR, other: {shards: DIR, weight: 0.5}}"
    if isinstance(shards, str) and shards:
        return [("", shards, 1.0)]
    if not isinstance(shards, dict) or not shards:
        raise UserError("data.shards", str(shards), form, "say data.shards=DIR")
    found = []
    for name, value in shards.items():
        entry = {"shards": value} if isinstance(value, str) else value
        key = f"data.shards.{name}"
        if not isinstance(entry, dict) or not isinstance(entry.get("shards"), str):
            raise UserError(key, str(value), "a directory or {shards: DIR, weight: NUMBER}", f"say {name}: DIR")
        if unknown := entry.keys() - {"shards", "weight"}:
            raise UserError(key, f"keys {sorted(unknown)}", "shards and weight", "remove the others")
        weight = entry.get("weight", 1.0)
        if isinstance(weight, bool) or not isinstance(weight, (int, float)) or not 0 < weight < float("inf"):
            raise UserError(f"{key}.weight", str(weight), "a number above 0", "leave a source out to show none of it")
        found.append((str(name), entry["shards"], float(weight)))
    return found

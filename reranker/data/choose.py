"""A group -> which passages it shows in a pass, positives first: a pure function of (seed, pass, group).

In: hashes of the passages, as the index of a shard holds them. Out: references to passages; nothing is read, so
that a plan can count tokens of what will be shown. Positives take turns from pass to pass. A group's own
negatives are dealt from a keyed permutation, so that over the passes all are visited before one repeats, or drawn by
their scores. Random negatives are passages of the group's neighbours, the groups that are shuffled together with it and
so lie in shards that are read anyhow. Nothing depends on rank, worker or earlier groups.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from reranker.data.index import GroupTexts
from reranker.data.permutation import Permutation, keyed
from reranker.errors import UserError

_POSITIVE, _NEGATIVE, _RANDOM, _SCORED = 11, 12, 13, 14
_TRIES = 16


@dataclass(frozen=True)
class Choice:
    """The settings of the choice; see `DataConfig` and `NegativesConfig`.

    Attributes:
        warmup: share of the training in which all negatives are random.
        decay: share of the training, behind that, over which they become fewer.
        random: share of random negatives afterwards.
        hardest: own negatives that count, from the first on; None: all.
        positives: those shown at once, at most.
        score_temperature: own negatives are drawn in proportion to exp(score / this); None: they take turns.
    """

    group_size: int
    short_groups: str = "repeat"
    warmup: float = 0.0
    random: float = 0.0
    hardest: int | None = None
    positives: int = 1
    decay: float = 0.0
    score_temperature: float | None = None

    def random_count(self, progress: float, places: int) -> int:
        """Random ones among `places` negatives when `progress` of the training (0 to 1) is done."""
        behind = progress - self.warmup
        if behind < 0:
            return places
        left = 1 - behind / self.decay if behind < self.decay else 0.0
        return round((self.random + (1 - self.random) * left) * places)


@dataclass(frozen=True)
class Neighbours:
    """The groups that random negatives are drawn from.

    Attributes:
        count: how many there are, this group among them; rank: its own place, 0 <= rank < count.
        texts: the passages of the neighbour at a place.
    """

    count: int
    rank: int
    texts: Callable[[int], GroupTexts]


@dataclass(frozen=True)
class Shown:
    """A passage: of the group itself (neighbour None) or of the neighbour at a place.

    `passage` counts that group's positives and then its negatives; `positive` is whether it answers this group's query.
    """

    neighbour: int | None
    passage: int
    positive: bool = False


def choose(
    group: GroupTexts,
    number: int,
    neighbours: Neighbours,
    *,
    seed: int,
    pass_: int,
    progress: float,
    choice: Choice,
    scores: Callable[[], Sequence[float]] | None = None,
    name: object = "group",
) -> list[Shown]:
    """The passages of a group in a pass, its positives first.

    Args:
        number: the group's place in its source, which keys its choice.
        progress: share of the training behind this group.
        scores: gives those of its negatives, which `score_temperature` wants.
        name: what an error calls the group.

    Returns: `group_size` passages; fewer only with short_groups="shrink". Where the group has fewer positives than are
    shown, negatives take their places.
    Raises: UserError with short_groups="error" where negatives are missing.
    """
    count = len(group.pos)
    positives = _next(count, min(count, choice.positives), number, seed, pass_)
    places = choice.group_size - len(positives)
    wanted = choice.random_count(progress, places) if neighbours.count > 1 else 0
    drawn = _random_negatives(group, number, wanted, seed, pass_, neighbours)
    own, wanted = len(group.neg[: choice.hardest]), places - len(drawn)
    if choice.score_temperature is None:
        dealt = _dealt(own, wanted, number, seed, pass_)
    else:
        assert scores is not None, "negatives are drawn by their scores"
        dealt = _by_scores(scores()[:own], choice.score_temperature, wanted, number, seed, pass_)
    negatives = [Shown(None, count + place) for place in dealt] + drawn
    if len(negatives) < places:
        if choice.short_groups == "error":
            raise UserError(
                name, f"{len(negatives)} negatives", f"{places}, as data.group_size={choice.group_size}",
                "mine more, or say data.short_groups=repeat or shrink",
            )  # fmt: skip
        if choice.short_groups == "repeat":
            negatives = [negatives[place % len(negatives)] for place in range(places)]
    return [*(Shown(None, positive, positive=True) for positive in positives), *negatives]


def _next(positives: int, count: int, number: int, seed: int, pass_: int) -> list[int]:
    """`count` of range(positives), which take turns in a keyed order that stays the same."""
    turn = Permutation(positives, seed, _POSITIVE, number) if positives > 1 else int
    return [turn((pass_ * count + place) % positives) for place in range(count)]


def _dealt(negatives: int, count: int, number: int, seed: int, pass_: int) -> list[int]:
    """`count` of range(negatives) (all, if there are no more): the pass's share of a keyed permutation."""
    if count >= negatives:
        return list(range(negatives))
    if count == 0:
        return []
    # A cycle deals every negative once; its last hand is filled up from its first.
    hands = -(-negatives // count)
    deal = Permutation(negatives, seed, _NEGATIVE, number, pass_ // hands)
    first = pass_ % hands * count
    return [deal((first + place) % negatives) for place in range(count)]


def _by_scores(
    scores: Sequence[float], temperature: float, count: int, number: int, seed: int, pass_: int
) -> list[int]:
    """`count` places (all, if there are no more), drawn one after another in proportion to exp(score / temperature).

    Without replacement, by the largest of score / temperature + Gumbel noise (Kool et al., 2019).
    """

    def perturbed(place: int) -> float:
        uniform = ((keyed(seed, _SCORED, pass_, number, place) >> 11) + 0.5) / 2**53
        return scores[place] / temperature - math.log(-math.log(uniform))

    return sorted(range(len(scores)), key=perturbed, reverse=True)[:count]


def _random_negatives(
    group: GroupTexts, number: int, count: int, seed: int, pass_: int, neighbours: Neighbours
) -> list[Shown]:
    """Up to `count` passages of other groups, none of them a passage of this one, all different."""
    found: list[Shown] = []
    # Mined groups share passages: one of the group's own could stand in it twice, or its positive as a negative.
    taken = {*group.pos, *group.neg} if count else set()
    for draw in range(count * _TRIES):
        if len(found) == count:
            break
        key = keyed(seed, _RANDOM, pass_, number, draw)
        other = key % (neighbours.count - 1)
        other += other >= neighbours.rank
        source = neighbours.texts(other)
        passages = (*source.pos, *source.neg)
        place = keyed(key) % len(passages)
        if passages[place] not in taken:
            taken.add(passages[place])
            found.append(Shown(other, place))
    return found

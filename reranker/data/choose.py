"""A group -> the passages that it shows in an epoch, positive first: a pure function of (seed, epoch, group).

Positives take turns from epoch to epoch. A group's own negatives are dealt from a keyed permutation, so
that over the epochs all are visited before one repeats. Random negatives are passages of other groups,
named by keyed numbers; the caller fetches them. Nothing depends on rank, worker or earlier groups.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from reranker.data.permutation import Permutation, keyed
from reranker.errors import UserError
from reranker.groups import Group

_POSITIVE, _NEGATIVE, _RANDOM = 11, 12, 13
_TRIES = 16


@dataclass(frozen=True)
class Choice:
    """The settings of the choice; see `DataConfig` and `NegativesConfig`.

    Attributes:
        warmup: share of the training in which all negatives are random.
        random: share of random negatives afterwards.
    """

    group_size: int
    short_groups: str = "repeat"
    warmup: float = 0.0
    random: float = 0.0
    hardest: int | None = None

    def random_count(self, progress: float) -> int:
        """Random negatives of a group when `progress` of the training (0 to 1) is done."""
        places = self.group_size - 1
        return places if progress < self.warmup else round(self.random * places)


def choose(
    group: Group,
    number: int,
    *,
    seed: int,
    epoch: int,
    progress: float,
    choice: Choice,
    total: int,
    fetch: Callable[[int], Group],
) -> list[str]:
    """The passages of a group in an epoch, the positive first.

    Args:
        number: the group's place in the data set, 0 <= number < total; `fetch(n)` returns the n-th group.
        progress: share of the training behind this group.

    Returns: `group_size` passages; fewer only with short_groups="shrink".
    Raises: UserError with short_groups="error" where negatives are missing.
    """
    positive = group.pos[Permutation(len(group.pos), seed, _POSITIVE, number)(epoch % len(group.pos))]
    places = choice.group_size - 1
    wanted = choice.random_count(progress) if total > 1 else 0
    drawn = _random_negatives(group, number, wanted, seed, epoch, total, fetch)
    own = _own_negatives(group.neg[: choice.hardest], places - len(drawn), number, seed, epoch)
    negatives = own + drawn
    if len(negatives) < places:
        if choice.short_groups == "error":
            raise UserError(
                f"group {number}", f"{len(negatives)} negatives", f"{places}, as data.group_size={choice.group_size}",
                "mine more, or say data.short_groups=repeat or shrink",
            )  # fmt: skip
        if choice.short_groups == "repeat":
            negatives = [negatives[place % len(negatives)] for place in range(places)]
    return [positive, *negatives]


def _own_negatives(negatives: tuple[str, ...], count: int, number: int, seed: int, epoch: int) -> list[str]:
    """`count` of the negatives (all, if there are no more): the epoch's share of a keyed permutation."""
    if count >= len(negatives):
        return list(negatives)
    if count == 0:
        return []
    # A cycle deals every negative once; its last hand is filled up from its first.
    hands = -(-len(negatives) // count)
    deal = Permutation(len(negatives), seed, _NEGATIVE, number, epoch // hands)
    first = epoch % hands * count
    return [negatives[deal((first + place) % len(negatives))] for place in range(count)]


def _random_negatives(
    group: Group, number: int, count: int, seed: int, epoch: int, total: int, fetch: Callable[[int], Group]
) -> list[str]:
    """Up to `count` passages of other groups, none of them a passage of this one, all different."""
    taken: list[str] = []
    for draw in range(count * _TRIES):
        if len(taken) == count:
            break
        key = keyed(seed, _RANDOM, epoch, number, draw)
        other = key % (total - 1)
        other += other >= number
        source = fetch(other)
        passages = (*source.pos, *source.neg)
        passage = passages[keyed(key) % len(passages)]
        # Mined groups share passages: one of the group's own negatives could stand in the group twice.
        if passage not in group.pos and passage not in group.neg and passage not in taken:
            taken.append(passage)
    return taken

"""The settings of a training's passages -> what its model card says of them. Pure functions.

In: the `data` of a resolved training config; keys may be missing. Out: sentences and rows of a table, true for
every setting of short groups and random negatives that `reranker.data.choose` knows.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from reranker.config.common import ShortGroups
from reranker.config.training import DataConfig, NegativesConfig
from reranker.data.choose import Choice


def sentences(data: Mapping[str, Any]) -> list[str]:
    """Which passages of a group the loss sees."""
    if "group_size" not in data:
        return []
    size, positives = data["group_size"], data.get("positives", 1)
    places = size - positives
    short, negatives = _short(data), data.get("negatives") or {}
    most = "at most " if short is ShortGroups.shrink else ""
    several = "1 positive" if positives == 1 else f"up to {positives} positive"
    said = [f"The loss sees {most}{size} passages of each at a time, {several} and {most}{places} negative."]
    if positives > 1:
        said.append("Where a group has fewer positives, negatives take their places.")
    if places > 1 and short is not ShortGroups.error:
        done = "repeats them" if short is ShortGroups.repeat else "stays smaller"
        said.append(f"A group with fewer negatives {done}.")
    warmup, choice = negatives.get("warmup", 0.0), Choice(size, random=negatives.get("random", 0.0))
    random = choice.random_count(1.0, places)
    decay = negatives.get("decay", 0.0)
    if warmup >= 1 or random == places:
        said.append("All negatives are random passages of other groups.")
    elif warmup or decay:
        first = f"In the first {100 * warmup:g}% of the training" if warmup else "At the start of the training"
        then = f"over {100 * decay:g}% of it they become fewer, then" if decay else "afterwards"
        said.append(f"{first} all negatives are random passages of other groups, {then} {random or 'none'} of the "
                    f"{most}{places}.")  # fmt: skip
    elif random:
        said.append(f"Random passages of other groups make up {random} of the {most}{places} negatives.")
    if hardest := negatives.get("hardest"):
        said.append(f"Of a group's own negatives only the first {hardest} are used.")
    if temperature := negatives.get("score_temperature"):
        said.append(f"Own negatives are drawn in proportion to exp(score / {temperature:g}).")
    return said


def rows(data: Mapping[str, Any]) -> list[tuple[str, str]]:
    """(parameter, value) of those settings that are not the default."""
    usual, negatives, short = NegativesConfig(), data.get("negatives") or {}, _short(data)
    forms = {
        "warmup": ("random negatives only", "the first {:g} of the training"),
        "decay": ("random negatives become fewer", "over {:g} of the training"),
        "random": ("random negatives", "{:g} of a group's"),
        "hardest": ("own negatives", "the first {} of a group"),
        "score_temperature": ("own negatives", "drawn by their scores / {:g}"),
    }
    found = [(name, form.format(negatives[key])) for key, (name, form) in forms.items()
             if negatives.get(key, getattr(usual, key)) != getattr(usual, key)]  # fmt: skip
    return found if short is DataConfig.short_groups else [("groups with too few negatives", short.value), *found]


def _short(data: Mapping[str, Any]) -> ShortGroups:
    return ShortGroups(data.get("short_groups", DataConfig.short_groups.value))

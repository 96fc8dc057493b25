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
    least = f"{most}{places}" if positives == 1 else f"at least {places}"
    said = [f"The loss sees {most}{size} passages of each at a time, {several} and {least} negative."]
    if positives > 1:
        said.append("Where a group has fewer positives, negatives take their places.")
    if size > 2 and short is not ShortGroups.error:
        done = "repeats them" if short is ShortGroups.repeat else "stays smaller"
        said.append(f"A group with fewer negatives {done}.")
    warmup, decay, random = (negatives.get(name, 0.0) for name in ("warmup", "decay", "random"))
    choice = Choice(size, random=random)
    # Groups of fewer positives have more places for negatives.
    drawn = {count: choice.random_count(1.0, count) for count in range(places, size)}
    behind = f"{drawn[places] or 'none'} of the {most}{places}" if positives == 1 else f"{100 * random:g}% of them"
    if warmup >= 1 or all(count == of for of, count in drawn.items()):
        said.append("All negatives are random passages of other groups.")
    elif warmup or decay:
        first = f"In the first {100 * warmup:g}% of the training" if warmup else "At the start of the training"
        then = f"over {100 * decay:g}% of it they become fewer, then" if decay else "afterwards"
        said.append(f"{first} all negatives are random passages of other groups, {then} {behind}.")
    elif any(drawn.values()):
        of = f"{behind} negatives" if positives == 1 else f"{100 * random:g}% of the negatives"
        said.append(f"Random passages of other groups make up {of}.")
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
        "score_temperature": ("own negatives drawn", "by their scores / {:g}"),
    }
    found = [(name, form.format(negatives[key])) for key, (name, form) in forms.items()
             if negatives.get(key, getattr(usual, key)) != getattr(usual, key)]  # fmt: skip
    if data.get("positives", 1) > 1:
        found.insert(0, ("positives at once", f"up to {data['positives']}"))
    return found if short is DataConfig.short_groups else [("groups with too few negatives", short.value), *found]


def _short(data: Mapping[str, Any]) -> ShortGroups:
    return ShortGroups(data.get("short_groups", DataConfig.short_groups.value))

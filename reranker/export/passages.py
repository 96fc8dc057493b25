"""The settings of a training's passages -> what its model card says of them. Pure functions.

In: the `data` of a resolved training config; keys may be missing. Out: sentences and rows of a table, in the words of
a language, true for every setting of short groups and random negatives that `reranker.data.choose` knows.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from reranker.config.common import ShortGroups
from reranker.config.training import DataConfig, NegativesConfig
from reranker.data.choose import Choice
from reranker.export.card_words import Words


def sentences(data: Mapping[str, Any], say: Words) -> list[str]:
    """Which passages of a group the loss sees."""
    if "group_size" not in data:
        return []
    size, positives = data["group_size"], data.get("positives", 1)
    places = size - positives
    short, negatives = _short(data), data.get("negatives") or {}
    shrinks = short is ShortGroups.shrink
    several = "sees" if positives == 1 else "sees_several"
    said = [say(f"data.{several}{'_at_most' if shrinks else ''}", size=size, positives=positives, places=places)]
    if positives > 1:
        said.append(say("data.fewer_positives"))
    if size > 2 and short is not ShortGroups.error:
        said.append(say(f"data.{short.value}"))
    warmup, decay, random = (negatives.get(name, 0.0) for name in ("warmup", "decay", "random"))
    choice = Choice(size, random=random)
    # Groups of fewer positives have more places for negatives.
    drawn = {count: choice.random_count(1.0, count) for count in range(places, size)}
    facts = {"random": drawn[places], "places": places, "at_most": say("data.at_most") if shrinks else "",
             "percent": 100 * random}  # fmt: skip
    if warmup >= 1 or all(count == of for of, count in drawn.items()):
        said.append(say("data.all_random"))
    elif warmup or decay:
        first = say("data.first_share", percent=100 * warmup) if warmup else say("data.first")
        then = say("data.then_fewer", percent=100 * decay) if decay else say("data.then")
        behind = "behind_share" if positives > 1 else "behind" if drawn[places] else "behind_none"
        said.append(say("data.at_first", first=first, then=then, behind=say(f"data.{behind}", **facts)))
    elif any(drawn.values()):
        said.append(say("data.random" if positives == 1 else "data.random_share", **facts))
    if hardest := negatives.get("hardest"):
        said.append(say("data.hardest", hardest=hardest))
    if temperature := negatives.get("score_temperature"):
        said.append(say("data.temperature", temperature=temperature))
    return said


def rows(data: Mapping[str, Any], say: Words) -> list[tuple[str, str]]:
    """(name in the words, value) of those settings that are not the default."""
    usual, negatives, short = NegativesConfig(), data.get("negatives") or {}, _short(data)
    names = {"warmup": "warmup_negatives"}  # the learning rate has a warm-up as well
    found = [
        (name := names.get(key, key), say(f"training.values.{name}", negatives[key]))
        for key in ("warmup", "decay", "random", "hardest", "score_temperature")
        if negatives.get(key, getattr(usual, key)) != getattr(usual, key)
    ]
    if data.get("positives", 1) > 1:
        found.insert(0, ("positives", say("training.values.positives", data["positives"])))
    return found if short is DataConfig.short_groups else [("short_groups", short.value), *found]


def _short(data: Mapping[str, Any]) -> ShortGroups:
    return ShortGroups(data.get("short_groups", DataConfig.short_groups.value))

"""What a training knows of where its groups came from -> what its model card says of it. Pure functions.

In: what a checkpoint describes of its shards (`train.identity`), each with the source that `pack` or `index` wrote into
their manifest, and the setting data.origin. Out: sentences. Of a file its name and the start of its sha256 are told,
never where it lay; what is not known is left out.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from reranker.export.card_words import Words

_TARS = re.compile(r"\d+ tars")
"""What `reranker index` calls its source. The sha256 beside it is of their locations, not of what is in them."""
_DIGITS = 16
"""Of a sha256 that are shown."""
_BREAKS = re.compile(r"^(?=#|```|~~~)|(?=<[A-Za-z/!?])")
"""Where Markdown would see the start of a heading, of a block of code, or of HTML."""


@dataclass(frozen=True)
class Source:
    """One source of training data.

    Attributes:
        groups: in it. weight: in the mixture.
        file: name of the file that it was packed from, or None.
        sha256: of that file, or None.
        tars: whether it is an index of tars that were there before.
    """

    groups: int
    weight: float
    file: str | None = None
    sha256: str | None = None
    tars: bool = False


def sources_of(state: Mapping[str, Any]) -> dict[str, Source]:
    """The sources by their names, as a checkpoint's state describes them; one alone has the name ""."""
    told = (state.get("description") or {}).get("data.shards") or {}
    return {name: _source(of) for name, of in ({"": told} if isinstance(told.get("groups"), int) else told).items()}


def sentence(sources: Mapping[str, Source], say: Words) -> str | None:
    """Where the groups come from, or None where nothing is known of it."""
    if len(sources) > 1:
        every = [_of_mixture(name, source, say) for name, source in sources.items()]
    else:
        every = [file for source in sources.values() if (file := _file(source, say))]
    return say("data.sources", sources=", ".join(every)) if every else None


def own_words(origin: str | None) -> str | None:
    """The setting data.origin as a paragraph of its own, or None. It stands as it was written, but for what could break
    the card around it, which is escaped."""
    return _BREAKS.sub(r"\\", " ".join((origin or "").split())) or None


def _source(of: Mapping[str, Any]) -> Source:
    # A manifest may have been written by others: its source is whatever they put there.
    made = found if isinstance(found := of.get("from"), Mapping) else {}
    name, digest = (value if isinstance(value := made.get(key), str) else "" for key in ("name", "sha256"))
    tars = _TARS.fullmatch(name) is not None
    file = re.split(r"[/\\]", " ".join(name.split()).replace("`", "'"))[-1]
    known = bool(file) and not tars
    whole = known and re.fullmatch(r"[0-9a-f]{64}", digest)
    return Source(of["groups"], of["weight"], file if known else None, digest if whole else None, tars)


def _of_mixture(name: str, source: Source, say: Words) -> str:
    facts: dict[str, Any] = {"name": name, "groups": source.groups, "weight": source.weight}
    file = _file(source, say)
    return say("data.source_of", file=file, **facts) if file else say("data.source", **facts)


def _file(source: Source, say: Words) -> str | None:
    if source.tars:
        return say("data.tars")
    if source.file is None:
        return None
    if source.sha256 is None:
        return say("data.file", file=source.file)
    return say("data.hashed", file=source.file, sha256=source.sha256[:_DIGITS])

"""Things that the settings list by name, as sets and systems are: a mapping {name: {key: value}}, or a yaml file.

In: the setting. Out: {name: its settings}, in the order of the mapping, each merged into a config dataclass. Raises
`UserError`. Of a key that it does not know it tells no value: somebody may have written a secret there.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from reranker.errors import UserError, closest


@dataclasses.dataclass(frozen=True)
class Named:
    """What one of them is called and looks like, for the messages.

    Attributes:
        key: the setting. noun: with its article.
        short: the key whose value a lone string is.
        example: what an entry may be.
    """

    key: str
    noun: str
    short: str
    example: str


def read_named(value: Any, of: Named, schema: Callable[[str, Mapping[str, Any]], type]) -> dict[str, Any]:
    """{name: an instance of the dataclass that `schema(where, given)` chooses}."""
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    where, value = _read(value, of)
    if not isinstance(value, dict) or not value:
        raise UserError(where, f"{value!r}", f"{{name: {{{of.short}: ...}}, ...}}", f"name each {of.noun.split()[-1]}")
    found_all: dict[str, Any] = {}
    for name, given in value.items():
        if not isinstance(name, str) or not name.replace("-", "").replace("_", "").replace(".", "").isalnum():
            raise UserError(where, f"{of.noun} called {name!r}", "a name of letters, digits, -, _ and .",
                            "call it otherwise")  # fmt: skip
        given = {of.short: given} if isinstance(given, str) else given
        if not isinstance(given, dict):
            raise UserError(f"{where}.{name}", f"{given!r}", of.example, "write one")
        config = schema(f"{where}.{name}", given)
        try:
            found_all[name] = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(config), given))
        except OmegaConfBaseException as error:
            raise _told(error, config, f"{where}.{name}") from None
    return found_all


def _read(value: Any, of: Named) -> tuple[str, Any]:
    """(what errors call it, the mapping)."""
    if not isinstance(value, str):
        return of.key, value
    import yaml

    try:
        return value, yaml.safe_load(Path(value).read_text("utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        mark = getattr(error, "problem_mark", None)
        reason = f"line {mark.line + 1}: {getattr(error, 'problem', '')}" if mark else str(error)
        raise UserError(of.key, f"{value}, which cannot be read ({reason})", f"a yaml file of {of.key}",
                        "check the path") from None  # fmt: skip


def _told(error: Any, config: type, where: str) -> UserError:
    key = error.full_key or str(error.key)
    known = [item.name for item in dataclasses.fields(config)]
    near = closest(key, known) if key not in known else None
    reason = " ".join(str(error.msg or error).split("\n", 1)[0].split())
    return UserError(f"{where}.{key}", reason, "one of the keys " + ", ".join(known),
                     f"did you mean {near}?" if near else "change the value")  # fmt: skip

"""What translates: the protocol of every backend, and how one is made from its yaml in `conf/backend/`.

In: the settings under `backend`, whose `class` names a class as `module:Name`. Out: that class, called with
`source` and `target` (language codes) and the other settings by name, and with `config_key` where it takes one: what
its errors call its settings, backend or fallback. A new backend is one such class and one such yaml, in the directory
that `--config-dir` names or in `conf/`. A setting that the class does not know is a `UserError` before any work begins.
"""

from __future__ import annotations

import importlib
import inspect
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, cast

from reranker.errors import UserError, closest

MISSING = "missing: "
"""How the reason begins of a text that a backend does not have, so that the next one is asked."""
ERROR = "error: "
"""How the reason begins of a text that failed and can be tried again."""
_NOT_SETTINGS = ("source", "target", "config_key")


@dataclass(frozen=True)
class Outcome:
    """What became of one text.

    Attributes:
        text: the translation, or None.
        reason: why there is none, beginning with `MISSING` or `ERROR`; None where there is one.
    """

    text: str | None
    reason: str | None = None


class Backend(Protocol):
    """Translates batches of texts; `translate` is called from `concurrency` threads at a time.

    Attributes:
        identity: the name, the version and every setting that changes the output: a part of the ledger's key.
        batch_texts: texts of one call at most; what is lost at a kill is at most `concurrency` such batches.
        concurrency: calls at a time.
        price: US dollars for a million characters of source text; 0: none.
        seconds_per_text: what a text takes in one of the calls, for the dry run's hours; 0: no time worth telling.
    """

    identity: str
    batch_texts: int
    concurrency: int
    price: float
    seconds_per_text: float

    def translate(self, texts: Sequence[str]) -> list[Outcome]:
        """One outcome for each text, in order. Raises UserError for what no later text would be spared."""
        ...

    def close(self) -> None:
        """Let go of connections, files and devices."""
        ...


def make_backend(settings: Mapping[str, Any], key: str, source: str, target: str) -> Backend:
    """The backend that `settings` describe, which errors call `key`. Raises UserError."""
    given = dict(settings)
    name = given.pop("class", None)
    if not isinstance(name, str) or ":" not in name:
        raise UserError(f"{key}.class", repr(name), "module:Name of a backend's class", "see conf/backend/amazon.yaml")
    module_name, _, class_name = name.partition(":")
    try:
        made = getattr(importlib.import_module(module_name), class_name)
    except (ImportError, AttributeError) as error:
        raise UserError(f"{key}.class", f"{name}, which cannot be imported ({error})", "module:Name of a class",
                        "mend the name or install the package") from None  # fmt: skip
    parameters = inspect.signature(made).parameters
    known = [parameter for parameter in parameters if parameter not in _NOT_SETTINGS]
    for setting in given:
        if setting not in known:
            near = closest(setting, known)
            raise UserError(f"{key}.{setting}", "an unknown key", f"a setting of {class_name}: {', '.join(known)}",
                            f"did you mean {key}.{near}?" if near else "leave it out")  # fmt: skip
    for setting in known:
        required = parameters[setting].default is inspect.Parameter.empty
        if given.get(setting) is None and required:
            raise UserError(f"{key}.{setting}", "no value", f"a value for {class_name}", f"say {key}.{setting}=...")
    if "config_key" in parameters:
        given["config_key"] = key
    try:
        return cast(Backend, made(source=source, target=target, **given))
    except UserError as error:
        where = re.sub(r"^backend\b", key, error.where)  # what a class without `config_key` calls itself
        raise UserError(where, error.found, error.expected, error.fix) from None


def check_counts(key: str, concurrency: int, batch_texts: int, price: float, seconds_per_text: float) -> None:
    """Raise UserError for settings that every backend has and that cannot be."""
    check_whole(key, concurrency=(concurrency, 1), batch_texts=(batch_texts, 1))
    for name, value in (("price", price), ("seconds_per_text", seconds_per_text)):
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if not number or not 0 <= value < float("inf"):
            raise UserError(f"{key}.{name}", repr(value), "a number of 0 or more", "change the value")


def check_whole(key: str, **values: tuple[object, int]) -> None:
    """Raise UserError for a value (behind it the least that it may be) that is no whole number, or too small."""
    for name, (value, least) in values.items():
        # A batch of 1.5 texts would never be full: a kill would lose a window of them.
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            raise UserError(f"{key}.{name}", repr(value), f"a whole number of {least} or more", "change the value")

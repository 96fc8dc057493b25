"""The sentences of a model card in one language, by name: of card.LANGUAGE.yaml beside this file.

Which sentence is said, and of which facts, is the business of `model_card` and is the same in every language.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from importlib.resources import files
from typing import Any

LANGUAGES = ("en", "ko")


class Words:
    """`Words("ko")("data.groups", groups=7)` is that sentence. `language`: the code."""

    def __init__(self, language: str) -> None:
        self.language, self._texts = language, texts(language)

    def __call__(self, name: str, /, *values: object, **facts: object) -> str:
        return self._texts[name].format(*values, **facts)

    def __contains__(self, name: str) -> bool:
        return name in self._texts


@functools.lru_cache(maxsize=len(LANGUAGES))
def texts(language: str) -> Mapping[str, str]:
    """Every text of a language by its dotted name."""
    import yaml

    return dict(_flat(yaml.safe_load((files("reranker.export") / f"card.{language}.yaml").read_text("utf-8"))))


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value

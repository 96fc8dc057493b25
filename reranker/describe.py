"""What the settings mean, read from `reranker.config` itself: for the help texts and the messages.

In: a config dataclass. Out: its keys with type, default and the line of documentation under each field.
"""

from __future__ import annotations

import ast
import dataclasses
import functools
import inspect
import typing
from enum import Enum
from pathlib import Path
from typing import Any


def carried_directory(name: str) -> Path:
    """`conf` or `launch`: beside the package in a checkout, inside it in an installed wheel."""
    package = Path(__file__).resolve().parent
    for path in (package / name, package.parent / name):
        if path.is_dir():
            return path
    raise AssertionError(f"the installation lacks {name}/")


@functools.cache
def field_docs(config: type) -> dict[str, str]:
    """{field: what stands under it, as one line} of a config dataclass, those that it inherits among them."""
    docs = dict(field_docs(base)) if (base := config.__base__) and dataclasses.is_dataclass(base) else {}
    body = ast.parse(inspect.getsource(config)).body[0]
    assert isinstance(body, ast.ClassDef)
    for statement, following in zip(body.body, body.body[1:], strict=False):
        if isinstance(statement, ast.AnnAssign) and isinstance(following, ast.Expr):
            assert isinstance(statement.target, ast.Name)
            assert isinstance(following.value, ast.Constant)
            docs[statement.target.id] = " ".join(str(following.value.value).split())
    return docs


def describe(config: type, prefix: str = "") -> list[tuple[str, str, Any, str]]:
    """(key, type, default, documentation) of every value of a config, nested ones with dotted keys."""
    rows: list[tuple[str, str, Any, str]] = []
    hints, docs = typing.get_type_hints(config), field_docs(config)
    for item in dataclasses.fields(config):
        if dataclasses.is_dataclass(hint := hints[item.name]):
            rows += describe(typing.cast(type, hint), f"{prefix}{item.name}.")
            continue
        default = item.default
        if item.default_factory is not dataclasses.MISSING:
            default = item.default_factory()
        kind = item.metadata.get("kind") or _type_name(hint)
        rows.append((prefix + item.name, kind, default, docs[item.name]))
    return rows


def _type_name(hint: Any) -> str:
    arguments = [argument for argument in typing.get_args(hint) if argument is not type(None)]
    if typing.get_origin(hint) is typing.Union:
        return f"{_type_name(arguments[0])} or null"
    if isinstance(hint, type) and issubclass(hint, Enum):
        return "|".join(member.name for member in hint)
    if hint is Any:
        return "name"
    if arguments:  # list[str], tuple[float, float]
        return ", ".join(_type_name(argument) for argument in arguments).join(
            ("list of ", "") if typing.get_origin(hint) is list else ("[", "]")
        )
    return str(getattr(hint, "__name__", hint))

"""The words after a command, checked before Hydra composes them, and Hydra's own refusals in our form.

In: `key=value`, `group=option` and Hydra's flags. Out: the same in the order that Hydra reads them, or
`UserError`. What can be known from the config dataclasses alone is checked here, with Hydra's grammar and
omegaconf's conversions; the rest (a user's own yaml, sweeps, interpolations) is left to Hydra, and `explain`
puts what it raises in the same form.
"""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Iterable
from enum import Enum
from pathlib import Path
from typing import Any, NoReturn

import yaml
from hydra._internal.utils import get_args_parser
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import MissingConfigException, OverrideParseException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import (
    ConfigAttributeError,
    ConfigKeyError,
    InterpolationResolutionError,
    MissingMandatoryValue,
    OmegaConfBaseException,
    ReadonlyConfigError,
)

from reranker.config import COMMANDS, WITH_GROUPS
from reranker.describe import carried_directory, describe
from reranker.errors import UserError, closest, shorten


def check_arguments(command: str, arguments: list[str]) -> list[str]:
    """`arguments` with the flags before the overrides, as Hydra wants them. Raises UserError."""
    flags = [argument for argument in arguments if not _is_override(argument)]
    overrides = [argument for argument in arguments if _is_override(argument)]
    parser = get_args_parser()

    def refuse(message: str) -> NoReturn:
        found = message.removeprefix("unrecognized arguments: ")
        raise UserError("command line", found, "key=value and Hydra's flags", _see(command))

    # argparse would print a usage of twenty lines and exit by itself.
    parser.error = refuse  # type: ignore[method-assign]
    parsed = parser.parse_args(flags + overrides)
    directories = _of_groups(command)
    directories += [Path(parsed.config_dir)] if parsed.config_dir else []
    parsed_overrides = [_parse(command, text) for text in parsed.overrides]
    _refuse_taken_apart(parsed_overrides)
    free = {row[0] for row in describe(COMMANDS[command][0]) if "mapping" in row[1] or row[1].startswith("{")}
    words = [word for override in parsed_overrides for word in _as_whole(override, free)]
    if any(override.key_or_group == "hydra.searchpath" for override in parsed_overrides):
        return flags + words  # groups and options of the user's own: Hydra knows them
    config = OmegaConf.structured(COMMANDS[command][0])  # takes longer than all of its values do
    for override in parsed_overrides:
        if not override.key_or_group.startswith(("hydra.", "hydra/")) and override.package is None:
            _check_override(command, override, directories, asks_for_sweep(parsed), config, free)
    return flags + words


def hydra_flags(arguments: list[str]) -> Namespace:
    """Hydra's own flags among `arguments` that `check_arguments` has returned, however they are spelled."""
    return get_args_parser().parse_args(arguments)


def asks_for_sweep(flags: Namespace) -> bool:
    """Whether a command line asks for a sweep. A yaml can as well: hydra.mode."""
    return flags.multirun or "hydra.mode=MULTIRUN" in flags.overrides


def _as_whole(override: Override, free: set[str]) -> list[str]:
    """The words of an override. Hydra would merge a mapping into that of a recipe, and refuse names that it lacks.

    `free`: keys of mappings with names of the user's own.
    """
    word = str(override.input_line)
    if override.key_or_group in free and override.package is None and isinstance(override.value(), dict):
        return [f"{override.key_or_group}=null", f"++{word}"]  # a sweep keeps the last of equal words alone
    return [word]


def _refuse_taken_apart(overrides: list[Override]) -> None:
    """Raise UserError for `shards` given twice: Hydra would take the last one, as for any key, and say nothing.

    A shell makes several arguments of an unquoted pattern: shards=part-{0..3}.tar names four tars and not one.
    """
    given = [str(override.input_line) for override in overrides if override.key_or_group == "shards"]
    if len(given) > 1:
        found = f"{given[0]} and {len(given) - 1} more"
        raise UserError("shards", found, "one value", "leave the others out; quote a pattern with braces")


def explain(command: str, error: Exception) -> UserError:
    """What Hydra or omegaconf raised while composing, in our form."""
    if isinstance(error, OverrideParseException):
        return _syntax_error(command, error.override)
    link: BaseException | None = error
    while link is not None:
        if isinstance(link, MissingConfigException) and link.missing_cfg_file and link.options is not None:
            group, _, option = link.missing_cfg_file.rpartition("/")
            return _unknown_option(command, group, option, link.options)
        if isinstance(link, OmegaConfBaseException) and link.full_key:
            told = _bad_value(command, link.full_key, link.value, link)
            return UserError(told.where, told.found + _place(error), told.expected, told.fix)
        link = link.__cause__ or link.__context__
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark:
        mark = error.problem_mark
        return UserError(f"{mark.name}:{mark.line + 1}", str(error.problem), "YAML", "mend the file")
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    found = " ".join(lines[0].split()) if lines else type(error).__name__
    return UserError("command line", f"a refusal by Hydra ({found.rstrip('.')})", "values that compose", _see(command))


def _place(error: Exception) -> str:
    # Hydra names the file whose content does not compose in its message only: "In 'recipe/mine': ...".
    text = str(error)
    return f" in {text.split(chr(39))[1]}.yaml" if text.startswith("In '") else ""


def groups(command: str) -> dict[str, list[str]]:
    """{group: its options in conf/} of a command."""
    names = dict.fromkeys(key.split(".")[0] for key, *_ in describe(COMMANDS[command][0]))
    return {name: options for name in names if (options := _options(name, _of_groups(command)))}


def _of_groups(command: str) -> list[Path]:
    """The directory whose directories hold a command's yamls to choose from: `model` is a plain value where none is."""
    return [carried_directory("conf") / WITH_GROUPS[command]] if command in WITH_GROUPS else []


def known_keys(config: type) -> list[str]:
    """Every value and every section of a config, by dotted key."""
    values = [key for key, *_ in describe(config)]
    sections = {key.rsplit(".", depth)[0] for key in values for depth in range(1, key.count(".") + 1)}
    return values + sorted(sections)


def _is_override(argument: str) -> bool:
    return not argument.startswith("-") and ("=" in argument or argument.startswith("~"))


def _parse(command: str, text: str) -> Override:
    try:
        return OverridesParser.create().parse_override(text)
    except Exception as error:  # the grammar raises several kinds, and bare ones of its functions
        raise _syntax_error(command, text) from error


def _syntax_error(command: str, text: str) -> UserError:
    key, equals, value = text.partition("=")
    fix = f"write {key}=value" if key.isidentifier() else _see(command)
    if equals and key:
        value = value.replace("\\", "\\\\").replace('"', '\\"')
        fix = f"quote the value: '{key}=\"{value}\"'"
    return UserError("command line", shorten(text), "key=value", fix)


def _check_override(
    command: str, override: Override, directories: list[Path], multirun: bool, config: DictConfig, free: set[str]
) -> None:
    """Put the value of an override into `config`, which has those before it, as Hydra will.

    Raises UserError where it does not fit. `free` as in `_as_whole`.
    """
    key, value = override.key_or_group, override.value()
    schema = COMMANDS[command][0]
    if override.is_delete():
        raise UserError(key, f"~{key}, a deletion", "a value", f"every key of {command} keeps a value: say {key}=...")
    if override.is_sweep_override():
        if not multirun:
            shown = shorten(str(override.input_line).partition("=")[2])
            kinds = {row[0]: row[1] for row in describe(schema)}
            fix = f"write {key}=[...]" if kinds.get(key, "").startswith(("list", "[")) else "give one"
            raise UserError(key, shown, "one value", f"{fix}, or add --multirun for a sweep")
        return  # each job's own values are checked when Hydra composes it
    options = _options(key, directories)
    if options and not isinstance(value, dict):
        for option in value if isinstance(value, list) else [value]:
            if not isinstance(option, str) or not _has_option(key, option, directories):
                raise _unknown_option(command, key, option, options)
        return
    leaves = [row[0] for row in describe(schema) if not isinstance(row[2], (list, tuple, dict))]
    for leaf in leaves:
        if key.startswith(f"{leaf}."):
            raise UserError(key, "an unknown key", f"a key of {command}", f"did you mean {leaf}?")
    try:
        OmegaConf.update(config, key, value, merge=key not in free)
    except OmegaConfBaseException as error:
        raise _bad_value(command, key, value, error) from None
    if override.is_add():
        raise UserError(key, f"+{key}", "an existing key without the plus sign", f"say {str(override.input_line)[1:]}")


def _bad_value(command: str, key: str, value: Any, error: OmegaConfBaseException) -> UserError:
    schema = COMMANDS[command][0]
    full_key = error.full_key or key
    rows = {row[0]: row for row in describe(schema)}
    if isinstance(error, InterpolationResolutionError):
        reason = " ".join(str(error.msg or error).split("\n", 1)[0].split())
        return UserError(full_key, f"an interpolation that fails ({reason})", "one that resolves",
                         "check what stands between ${ and }")  # fmt: skip
    sections = [known for known in rows if known.startswith(f"{key}.")]
    if sections and not isinstance(value, dict):
        return UserError(key, _shown(value), "a value for one of its keys, " + ", ".join(sections),
                         f"say {sections[0]}=..., for example")  # fmt: skip
    if isinstance(error, (ConfigKeyError, ConfigAttributeError)):
        return _unknown_key(command, full_key, known_keys(schema))
    # A value inside a list reports its own place, as in optim.betas[1].
    base = full_key.partition("[")[0]
    row = rows.get(full_key) or rows.get(base) or rows.get(key)
    if row is None or isinstance(error, (ReadonlyConfigError, MissingMandatoryValue)):
        reason = " ".join(str(error.msg or error).split("\n", 1)[0].split())
        return UserError(full_key, reason or type(error).__name__, "a value of another kind", _see(command))
    found = error.value if full_key != key and error.value is not None else value
    return UserError(full_key, _shown(found), row[1], _suggest(row[0], found, row[1], row[2]))


def _suggest(key: str, found: Any, kind: str, default: Any) -> str:
    near = closest(str(found), kind.split("|")) if "|" in kind else None
    if near:
        return f"did you mean {near}?"
    if kind.startswith("list") and not isinstance(found, (list, dict)):
        return f"write {key}=[{found}]"
    if default in (None, "???", []):
        return "see --help"
    return f"say {key}={shown_default(default)}, for example"


def shown_default(default: Any) -> str:
    """A default as it would be written on the command line."""
    if isinstance(default, Enum):
        return default.name
    if isinstance(default, bool) or default is None:
        return {True: "true", False: "false", None: "null"}[default]
    if isinstance(default, (list, tuple)):
        return "[" + ",".join(shown_default(item) for item in default) + "]"
    return str(default).replace("e-0", "e-") if isinstance(default, float) else str(default)


def _unknown_key(command: str, key: str, known: Iterable[str]) -> UserError:
    known = list(known)
    # `lr` is meant as optim.lr more often than as any key spelled alike.
    same_name = [candidate for candidate in known if candidate.rpartition(".")[2] == key.rpartition(".")[2]]
    parent = key.rpartition(".")[0]
    near = same_name[0] if same_name else closest(key, [candidate for candidate in known if candidate != parent])
    fix = f"did you mean {near}?" if near else _see(command)
    return UserError(key, "an unknown key", f"a key of {command}", fix)


def _unknown_option(command: str, group: str, option: Any, options: Iterable[str]) -> UserError:
    options = sorted(options)
    if option is None:
        fix = f"leave {group} out"
    else:
        holding = [name for name in options if str(option) in name]
        # zero2 for 2, of which zero2_offload is a variant.
        held = min(holding, key=len, default="")
        near = closest(str(option), options) or (held if all(one.startswith(held) for one in holding) else None) or None
        fix = f"did you mean {near}?" if near else _see(command)
    return UserError(group, _shown(option), "one of " + ", ".join(options) if options else "an option", fix)


def _options(group: str, directories: Iterable[Path]) -> list[str]:
    return sorted({path.stem for directory in directories for path in (directory / group).glob("*.yaml")})


def _has_option(group: str, option: str, directories: Iterable[Path]) -> bool:
    return any((directory / group / f"{option}.yaml").is_file() for directory in directories)


def _shown(value: Any) -> str:
    return shorten(value) if isinstance(value, str) else shorten(shown_default(value)).strip("'\"")


def _see(command: str) -> str:
    return f"see reranker {command} --help"

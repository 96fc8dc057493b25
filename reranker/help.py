"""What `reranker --help` and `reranker COMMAND --help` print: commands, and keys with kind, default and meaning."""

from __future__ import annotations

import shutil
import textwrap
from collections.abc import Collection

from reranker.config import COMMANDS
from reranker.describe import describe


def overview(commands: Collection[str]) -> str:
    """The commands, a line each."""
    width = max(map(len, commands))
    lines = ["usage: reranker <command> key=value ...", "", "commands:"]
    lines += [f"  {name:{width}s}  {COMMANDS[name][1]}" for name in commands]
    lines += ["", "reranker <command> --help tells what each key means, --cfg job prints the composed config."]
    return "\n".join(lines)


def command_help(command: str, directories: int) -> str:
    """Every key of a command; `directories`: how many lone ones are the values of some."""
    from reranker.overrides import groups, shown_default  # which reads Hydra: the overview does without

    schema, summary = COMMANDS[command]
    width = max(60, min(100, shutil.get_terminal_size((96, 24)).columns))
    directory = "DIRECTORY " * directories
    lines = [f"usage: reranker {command} {directory}key=value ...", "", f"{summary[0].upper()}{summary[1:]}."]
    if choices := groups(command):
        lines += ["", "Choices, each of which sets the keys under its name:"]
        lines += [f"  {group}={'|'.join(options)}" for group, options in choices.items()]
    sections: dict[str, list[str]] = {}
    for key, kind, default, doc in describe(schema):
        value = shown_default(default)
        value = value if len(value) < width // 2 else f"{value[: width // 2]}…"  # --cfg job has it whole
        shown = f"{key}=...  ({kind}, required)" if default == "???" else f"{key}={value}  ({kind})"
        section = sections.setdefault(key.rpartition(".")[0], [])
        lines_of_doc = textwrap.wrap(
            doc, width, initial_indent="      ", subsequent_indent="      ", break_on_hyphens=False
        )
        section += [f"  {shown}", *lines_of_doc]
    for name, section in sections.items():
        lines += ["", f"{name}:" if name else "Keys:", *section]
    notes = ["--cfg job prints the composed config", "--multirun runs a sweep: key=1,2,3"]
    lines += ["", "; ".join(notes) + " (Hydra)."]
    return "\n".join(lines)

"""The console command: `reranker <command> key=value ...`, one Hydra entry point for each command.

In: the command line. Out: the command's effect and the exit code: 0 done, 2 a user's mistake (one line on
standard error, from rank 0 only), anything else a defect of ours. Heavy imports wait until a command runs.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable
from typing import Any

from reranker.config import COMMANDS, carried_directory, describe
from reranker.errors import EXIT_CODE, UserError, closest


def main(argv: list[str] | None = None) -> int:
    """Run one command. Returns the exit code."""
    argv = sys.argv[1:] if argv is None else argv
    try:
        if not argv or argv[0] in ("-h", "--help", "help"):
            print(_overview())
            return 0
        if argv[0] in ("--version", "version"):
            from reranker import __version__

            print(__version__)
            return 0
        if argv[0] not in COMMANDS:
            near = closest(argv[0], COMMANDS)
            fix = f"did you mean {near}?" if near else "see reranker --help"
            raise UserError("command", argv[0], "one of " + ", ".join(COMMANDS), fix)
        return run_command(argv[0], argv[1:])
    except UserError as error:
        if os.environ.get("RANK", "0") == "0" or not getattr(error, "agreed", False):
            print(f"reranker: error: {error}", file=sys.stderr, flush=True)
        return EXIT_CODE
    except BrokenPipeError:
        # `reranker score ... | head` closed our output: not an error, but nothing more can be written.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def run_command(command: str, overrides: list[str]) -> int:
    """Compose the config of `command` and run it. Raises UserError."""
    if any(argument in ("-h", "--help") for argument in overrides):
        print(_help(command))
        return 0
    import hydra
    from hydra.core.config_store import ConfigStore
    from hydra.errors import HydraException
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    schema = COMMANDS[command][0]
    ConfigStore.instance().store(name=f"{command}_schema", node=schema)
    # Without this Hydra prints its own report and exits with 1; we tell it in our form.
    os.environ["HYDRA_FULL_ERROR"] = "1"
    code: list[int] = []

    def run(config: Any) -> None:
        try:
            missing = sorted(OmegaConf.missing_keys(config))
            if missing:
                docs = {key: doc for key, _, _, doc in describe(schema)}
                raise UserError(missing[0], "no value", _lower(docs.get(missing[0], "a value")), f"say {missing[0]}=...")
            resolved = OmegaConf.to_object(config)
        except OmegaConfBaseException as error:
            raise _override_error(command, error) from None
        code.append(_function(command)(resolved))

    application = hydra.main(version_base="1.3", config_path=str(carried_directory("conf")), config_name=command)(run)
    saved = sys.argv
    sys.argv = [f"reranker {command}", *overrides]
    try:
        application()
    except (HydraException, OmegaConfBaseException) as error:
        raise _override_error(command, error) from None
    finally:
        sys.argv = saved
    return code[0] if code else 0


def _function(command: str) -> Callable[[Any], int]:
    if command == "pack":
        from reranker.prepare.pack import pack_command

        return pack_command
    if command == "train":
        return _train
    if command == "evaluate":
        from reranker.evaluate.report import evaluate_command

        return evaluate_command
    if command == "export":
        from reranker.export.huggingface import export_command

        return export_command
    if command == "score":
        from reranker.model.reranker import score_command

        return score_command
    from reranker.demo.prepare import demo_command

    return demo_command


def _train(config: Any) -> int:
    # Training ends with an evaluation on the dev groups and an export, both of later layers: joined here.
    from reranker.evaluate.dev import DevEvaluator
    from reranker.export.huggingface import export_run
    from reranker.train.main import train

    return train(config, evaluator=DevEvaluator, export=export_run)


def _override_error(command: str, error: Exception) -> UserError:
    """Hydra's and omegaconf's words about an override, in our form."""
    cause: BaseException = error
    while cause.__cause__ is not None:
        cause = cause.__cause__
    text = " ".join(str(error).split())
    detail = " ".join(str(cause).split())
    schema = COMMANDS[command][0]
    keys = {key: (kind, doc) for key, kind, _, doc in describe(schema)}
    unknown = re.search(r"Could not override '([^']+)'", text) or re.search(r"Key '([^']+)' (?:is )?not in", text)
    bad_value = re.search(r"[Vv]alue '(.*?)' of type '[^']*' could not be converted to (\w+)", detail)
    bad_enum = re.search(r"Invalid value '(.*?)', expected one of \[(.*?)\]", detail)
    full_key = re.search(r"full_key: (\S+)", text + " " + detail)
    if full_key and (bad_value or bad_enum):
        key = full_key.group(1)
        kind = keys[key][0] if key in keys else ""
        found = (bad_value or bad_enum).group(1)  # type: ignore[union-attr]
        return UserError(key, repr(found), kind or "another type", f"see reranker {command} --help")
    group = re.search(r"Could not find '([^'/]+)/([^']+)'", text)
    if group:
        options = re.findall(r"'([^']+)'", text.split("Available options", 1)[-1]) if "Available" in text else []
        options = options or _options(group.group(1))
        near = closest(group.group(2), options)
        return UserError(group.group(1), group.group(2), "one of " + ", ".join(options),
                         f"did you mean {near}?" if near else f"see reranker {command} --help")  # fmt: skip
    if unknown:
        key = full_key.group(1) if full_key else unknown.group(1)
        near = closest(key, keys)
        return UserError(key, "a key that is not known", f"a key of {command}",
                         f"did you mean {near}?" if near else f"see reranker {command} --help")  # fmt: skip
    where = full_key.group(1) if full_key else "command line"
    return UserError(where, text.split(" full_key:")[0], "key=value overrides", f"see reranker {command} --help")


def _options(group: str) -> list[str]:
    return sorted(path.stem for path in (carried_directory("conf") / group).glob("*.yaml"))


def _overview() -> str:
    lines = ["usage: reranker <command> key=value ...", "", "commands:"]
    lines += [f"  {name:10s} {summary}" for name, (_, summary) in COMMANDS.items()]
    lines += ["", "reranker <command> --help tells what each key means, --cfg job prints the composed config."]
    return "\n".join(lines)


def _help(command: str) -> str:
    schema, summary = COMMANDS[command]
    lines = [f"usage: reranker {command} key=value ...", "", f"{summary[0].upper()}{summary[1:]}.", ""]
    groups = sorted({key.split(".")[0] for key, *_ in describe(schema)})
    chosen = [(group, _options(group)) for group in groups if (carried_directory("conf") / group).is_dir()]
    if chosen:
        lines += ["choices:"] + [f"  {group}={'|'.join(options)}" for group, options in chosen] + [""]
    lines.append("keys (type, default):")
    for key, kind, default, doc in describe(schema):
        shown = getattr(default, "name", default)
        shown = "required" if shown == "???" else "null" if shown is None else shown
        lines.append(f"  {key}  ({kind}, {shown})\n      {doc}")
    lines += ["", "--cfg job prints the composed config, --multirun runs a sweep (Hydra)."]
    return "\n".join(lines)


def _lower(text: str) -> str:
    return text[:1].lower() + text[1:]


if __name__ == "__main__":
    sys.exit(main())

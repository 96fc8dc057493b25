"""The console command: `reranker <command> key=value ...`, one Hydra entry point for each command.

In: the command line. Out: the command's effect and the exit code: 0 done, 2 a user's mistake (one line on
standard error, from rank 0 only where every rank holds the same), 130 interrupted, anything else a defect of
ours. Heavy imports wait until a command runs.
"""

from __future__ import annotations

import os
import shutil
import sys
import textwrap
import time
import traceback
from collections.abc import Callable
from typing import Any, cast

from reranker.config import COMMANDS
from reranker.describe import carried_directory, describe
from reranker.errors import EXIT_CODE, UserError, closest

INTERRUPTED = 130
HEAD_START = 2.0  # seconds


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
        _tell(error)
        return EXIT_CODE
    except KeyboardInterrupt:
        if _is_rank_0():
            print("reranker: interrupted", file=sys.stderr, flush=True)
        return INTERRUPTED
    except BrokenPipeError:
        # `reranker score ... | head` closed our output: not an error, but nothing more can be written.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def run_command(command: str, arguments: list[str]) -> int:
    """Compose the config of `command` and run it, once for each job of a sweep.

    Returns the exit code, the largest one of a sweep. Raises UserError.
    """
    if any(argument in ("-h", "--help") for argument in arguments):
        print(_help(command))
        return 0
    import yaml
    from hydra.core.config_store import ConfigStore
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    from reranker.overrides import check_arguments, explain

    codes: list[int] = []
    failures: list[Exception] = []

    def job(config: Any) -> None:
        # What a job raises would make Hydra print a report of its own: it is kept until Hydra is done.
        try:
            codes.append(_function(command)(_to_settings(command, config)))
        except Exception as error:
            failures.append(error)
            if sweeping:
                codes.append(_report(error))

    ConfigStore.instance().store(name=f"{command}_schema", node=COMMANDS[command][0])
    sweeping = any(argument in ("-m", "--multirun") for argument in arguments)
    saved_arguments, saved_report = sys.argv, os.environ.get("HYDRA_FULL_ERROR")
    os.environ["HYDRA_FULL_ERROR"] = "1"  # raise what is wrong with the config, do not print it and exit
    try:
        if sweeping and command == "train":
            _check_sweep(arguments)
        sys.argv = [f"reranker {command}", *check_arguments(command, arguments)]
        _application(command, job)()
    except UserError as error:
        error.agreed = True  # every rank reads the same command line
        raise
    except (HydraException, OmegaConfBaseException, yaml.YAMLError, ValueError) as error:
        told = explain(command, error)
        told.agreed = True
        raise told from None
    finally:
        sys.argv = saved_arguments
        if saved_report is None:
            del os.environ["HYDRA_FULL_ERROR"]
        else:
            os.environ["HYDRA_FULL_ERROR"] = saved_report
    if failures and not sweeping:
        raise failures[0]
    return max(codes, default=0)


def _application(command: str, job: Callable[[Any], None]) -> Callable[[], None]:
    import hydra
    from hydra.core.config_store import ConfigStore
    from omegaconf import OmegaConf

    conf = carried_directory("conf")
    if command != "train":
        # Where Hydra sees the directory conf/model/, it takes model=DIRECTORY for the choice of a yaml in it. A
        # command without such groups is composed from its own file alone, beside a directory that holds neither
        # groups nor a file of the command's name (recipe/ has a demo.yaml).
        ConfigStore.instance().store(command, OmegaConf.to_container(OmegaConf.load(conf / f"{command}.yaml")))
        conf = conf / "deepspeed"
    return cast(Callable[[], None], hydra.main(version_base="1.3", config_path=str(conf), config_name=command)(job))


def _to_settings(command: str, config: Any) -> Any:
    """The composed config as the command's dataclass. Raises UserError for a value that is missing."""
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    from reranker.overrides import explain

    try:
        missing = OmegaConf.missing_keys(config)
        for key, _, _, doc in describe(COMMANDS[command][0]):
            if key in missing:
                raise UserError(key, "no value", doc[:1].lower() + doc[1:], f"say {key}=...")
        return OmegaConf.to_object(config)
    except UserError as error:
        error.agreed = True
        raise
    except OmegaConfBaseException as error:
        told = explain(command, error)
        told.agreed = True
        raise told from None


def _check_sweep(arguments: list[str]) -> None:
    """Every job of a sweep wants a run directory of its own: in a shared one the second resumes the first."""
    chosen = next((argument for argument in arguments if argument.startswith("run_dir=")), "run_dir=")
    if "${" not in chosen and "," not in chosen:
        raise UserError(
            "run_dir", "one directory for all jobs of a sweep", "one for each job",
            "say run_dir='runs/lr-${optim.lr}', for example",
        )  # fmt: skip


def _report(error: Exception) -> int:
    """Print the failure of one job of a sweep and give its exit code; the other jobs go on."""
    if isinstance(error, UserError):
        _tell(error)
        return EXIT_CODE
    traceback.print_exception(type(error), error, error.__traceback__)
    return 1


def _tell(error: UserError) -> None:
    if _is_rank_0() or not error.agreed:
        print(f"reranker: error: {error}", file=sys.stderr, flush=True)
    else:
        # A launcher kills every rank when the first one ends: rank 0 must have said its line by then.
        time.sleep(HEAD_START)


def _is_rank_0() -> bool:
    return os.environ.get("RANK", "0") == "0"


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


def _overview() -> str:
    lines = ["usage: reranker <command> key=value ...", "", "commands:"]
    lines += [f"  {name:10s} {summary}" for name, (_, summary) in COMMANDS.items()]
    lines += ["", "reranker <command> --help tells what each key means, --cfg job prints the composed config."]
    return "\n".join(lines)


def _help(command: str) -> str:
    from reranker.overrides import groups, shown_default

    schema, summary = COMMANDS[command]
    width = max(60, min(100, shutil.get_terminal_size((96, 24)).columns))
    lines = [f"usage: reranker {command} key=value ...", "", f"{summary[0].upper()}{summary[1:]}."]
    if choices := groups(schema):
        lines += ["", "Choices, each of which sets the keys under its name:"]
        lines += [f"  {group}={'|'.join(options)}" for group, options in choices.items()]
    sections: dict[str, list[str]] = {}
    for key, kind, default, doc in describe(schema):
        shown = f"{key}=...  ({kind}, required)" if default == "???" else f"{key}={shown_default(default)}  ({kind})"
        section = sections.setdefault(key.rpartition(".")[0], [])
        section += [f"  {shown}", *textwrap.wrap(doc, width, initial_indent="      ", subsequent_indent="      ")]
    for name, section in sections.items():
        lines += ["", f"{name}:" if name else "Keys:", *section]
    notes = ["--cfg job prints the composed config", "--multirun runs a sweep: key=1,2,3"]
    lines += ["", "; ".join(notes) + " (Hydra)."]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())

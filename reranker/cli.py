"""The console command: `reranker <command> key=value ...`, one Hydra entry point for each command.

In: the command line; some commands are two words, as `reranker data verify DIRECTORY`. Out: the command's effect and
the exit code: 0 done, 1 done but not all is well (check, translate: the output says what), 2 a user's mistake (one
line on standard error, from rank 0 only where every rank holds the same), 130 interrupted. A traceback is a defect of
ours. Heavy imports wait until a command runs.
"""

from __future__ import annotations

import atexit
import contextlib
import importlib
import os
import sys
import time
import traceback
from collections.abc import Callable
from typing import Any, NoReturn, cast

from reranker.commands import DIRECTORIES, OUTSIDE, TO_READ, function
from reranker.config import COMMANDS, WITH_GROUPS
from reranker.config.grammar import quoted
from reranker.config.preparing import STAGES
from reranker.describe import carried_directory, describe
from reranker.errors import EXIT_CODE, UserError, closest
from reranker.help import command_help, overview

INTERRUPTED = 130
HEAD_START = 2.0  # seconds
_HELP = ("-h", "--help", "help")


def main(argv: list[str] | None = None) -> int:
    """Run one command. Returns the exit code."""
    argv = sys.argv[1:] if argv is None else argv
    try:
        if not argv or argv[0] in _HELP:
            print(overview(COMMANDS))
            return 0
        if argv[0] in ("--version", "version"):
            from reranker import __version__

            print(__version__)
            return 0
        family = [name for name in COMMANDS if name.startswith(f"{argv[0]} ")]
        alone = argv[0] in COMMANDS  # `evaluate` is a command, and so is `evaluate compare`
        if family and not alone and (len(argv) == 1 or argv[1] in _HELP):
            print(overview(family))
            return 0
        words = 2 if " ".join(argv[:2]) in COMMANDS or (family and not alone) else 1
        command = " ".join(argv[:words])
        if command not in COMMANDS:
            near = closest(command, family or COMMANDS)
            fix = f"did you mean {near}?" if near else f"see reranker {f'{argv[0]} ' if family else ''}--help"
            raise UserError("command", command, "one of " + ", ".join(family or COMMANDS), fix)
        return run_command(command, argv[words:])
    except UserError as error:
        _tell(error)
        return EXIT_CODE
    except KeyboardInterrupt:
        if _is_rank_0():
            print("reranker: interrupted", file=sys.stderr, flush=True)
        return INTERRUPTED
    except BrokenPipeError:
        # `reranker score ... | head` closed our output: not an error, but nothing more can be written. A command that
        # is for more than its output has not ended well.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0 if any(" ".join(argv[:words]) in TO_READ for words in (1, 2)) else 1


def console(argv: list[str] | None = None) -> NoReturn:
    """`main` as a process of its own, which it ends."""
    code = main(argv)
    if "reranker.train.main" not in sys.modules:
        sys.exit(code)
    # All is written and told. What is left are threads of libraries, and a thread in C++ that asks for the interpreter
    # while that is being taken down ends the process with SIGABRT (one training of some hundreds, torch 2.13): its job
    # would be taken for a failed one.
    atexit._run_exitfuncs()
    try:
        sys.stdout.flush()
    except OSError as error:
        print(f"reranker: error: standard output: {error.strerror}", file=sys.stderr)
        code = code or 1
    finally:
        sys.stderr.flush()
        os._exit(code)


def run_command(command: str, arguments: list[str], work: Callable[[Any], int] | None = None) -> int:
    """Compose the config of `command` and run it, once for each job of a sweep.

    `work` takes the settings in the command's place. Returns the exit code, the largest one of a sweep. Raises
    UserError.
    """
    if any(argument in ("-h", "--help") for argument in arguments):
        print(command_help(command, len(DIRECTORIES.get(command, ()))))
        return 0
    import yaml
    from hydra.core.config_store import ConfigStore
    from hydra.core.hydra_config import HydraConfig
    from hydra.errors import HydraException
    from hydra.types import RunMode
    from omegaconf.errors import OmegaConfBaseException

    from reranker.overrides import asks_for_sweep, check_arguments, explain, hydra_flags

    codes: list[int] = []
    failures: list[Exception] = []
    outside: list[Any] = []

    def job(config: Any) -> int | None:
        # What a job raises would make Hydra print a report of its own: it is kept until Hydra is done.
        try:
            settings = _to_settings(command, config)
            if command in OUTSIDE:
                outside.append(settings)
            else:
                codes.append((work or function(command, run_command))(settings))
        except Exception as error:
            if HydraConfig.get().mode is RunMode.MULTIRUN:
                codes.append(_report(error))
            else:
                failures.append(error)
        return codes[-1] if codes else None

    ConfigStore.instance().store(name=f"{_config_name(command)}_schema", node=COMMANDS[command][0])
    saved_arguments, saved_report = sys.argv, os.environ.get("HYDRA_FULL_ERROR")
    os.environ["HYDRA_FULL_ERROR"] = "1"  # raise what is wrong with the config, do not print it and exit
    try:
        written = _with_stages(arguments) if command == "prepare" else _with_directory(command, arguments)
        checked = check_arguments(command, written)
        flags = hydra_flags(checked)
        sys.argv = [f"reranker {command}", *checked]
        with contextlib.ExitStack() as behind:
            if command == "train" and not flags.cfg:  # which is quicker than importing what starts jobs
                if asks_for_sweep(flags):
                    _check_sweep(checked)
                behind.enter_context(importlib.import_module("reranker.cluster.plugins").launchers())
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
    if failures:
        raise failures[0]
    codes += [function(command, run_command)(settings) for settings in outside]
    return max(codes, default=0)


def _application(command: str, job: Callable[[Any], int | None]) -> Callable[[], None]:
    import hydra
    from hydra.core.config_store import ConfigStore
    from omegaconf import OmegaConf

    conf, name = carried_directory("conf"), _config_name(command)
    if WITH_GROUPS.get(command) != "":
        # Where Hydra sees the directory conf/model/, it takes model=DIRECTORY for the choice of a yaml in it. A
        # command without such groups is composed from its own file alone, beside a directory that holds neither
        # groups nor a file of the command's name (recipe/ has a demo.yaml).
        ConfigStore.instance().store(name, OmegaConf.to_container(OmegaConf.load(conf / f"{name}.yaml")))
        conf = conf / WITH_GROUPS.get(command, "deepspeed")
    return cast(Callable[[], None], hydra.main(version_base="1.3", config_path=str(conf), config_name=name)(job))


def _config_name(command: str) -> str:
    """The name of a command's yaml in conf/."""
    return command.replace(" ", "_")


def _with_directory(command: str, arguments: list[str]) -> list[str]:
    """`arguments` with lone directories written as key=..., where the command takes any."""
    keys = list(DIRECTORIES.get(command, ()))
    written = list(arguments)
    for place, argument in enumerate(arguments):
        of_a_flag = place > 0 and arguments[place - 1].startswith("-")  # --cfg job
        if keys and argument and "=" not in argument and not argument.startswith(("-", "~")) and not of_a_flag:
            written[place] = f"{keys.pop(0)}={quoted(argument)}"
    return written


def _with_stages(arguments: list[str]) -> list[str]:
    """`arguments` with those of the stages of prepare, translate.KEY=VALUE, in one list of them."""
    stages = [argument for argument in arguments if argument.startswith(tuple(f"{name}." for name in STAGES))]
    others = [argument for argument in arguments if argument not in stages]
    return [*others, f"more=[{','.join(map(quoted, stages))}]"] if stages else others


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


if __name__ == "__main__":
    console()

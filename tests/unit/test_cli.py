"""What the console command says: one line for each mistake, exit codes, help, Hydra's own flags."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from hydra.core.config_store import ConfigStore

from reranker import cli
from reranker.config import COMMANDS
from reranker.describe import describe
from reranker.errors import UserError

KEYS = {command: [key for key, *_ in describe(schema)] for command, (schema, _) in COMMANDS.items()}


@pytest.fixture(autouse=True)
def _a_process_of_its_own(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    monkeypatch.delenv("RANK", raising=False)
    monkeypatch.chdir(tmp_path)
    # Hydra's --cfg and --info leave a handler on the standard output of that moment.
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    # A process has one command; Hydra copies all that are stored whenever it composes one.
    monkeypatch.setattr(ConfigStore.instance(), "repo", dict(ConfigStore.instance().repo))
    yield
    root.handlers[:] = handlers
    root.setLevel(level)


def line_of(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The one line that a wrong command says, without `reranker: error: `."""
    assert cli.main(list(arguments)) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("reranker: error: ")
    assert err.count("\n") == 1
    return err.removeprefix("reranker: error: ").rstrip("\n")


STAGES = "one of auto, zero0, zero1, zero2, zero2_offload, zero3, zero3_offload"
SEE = "see reranker train --help"
UNKNOWN = "found an unknown key, expected a key of train"
NO_SHARDS = (
    "data.shards: found no value, expected directory or URL of shards, or a mixture: "
    "{a: DIR, b: {shards: DIR, weight: 0.5}}; say data.shards=..."
)
MISTAKES = {
    "data.shardz=1": f"data.shardz: {UNKNOWN}; did you mean data.shards?",
    "lr=1": f"lr: {UNKNOWN}; did you mean optim.lr?",
    "quantum=1": f"quantum: {UNKNOWN}; {SEE}",
    "deepspeeed=zero1": f"deepspeeed: {UNKNOWN}; did you mean deepspeed?",
    "optim.lr.x=1": f"optim.lr.x: {UNKNOWN}; did you mean optim.lr?",
    "optim={lrr: 1}": f"optim.lrr: {UNKNOWN}; did you mean optim.lr?",
    "+x=1": f"x: {UNKNOWN}; {SEE}",
    "++x=1": f"x: {UNKNOWN}; {SEE}",
    "+optim.lr=1": "optim.lr: found +optim.lr, expected an existing key without the plus sign; say optim.lr=1",
    "~data.shards": "data.shards: found ~data.shards, a deletion, expected a value; "
    "every key of train keeps a value: say data.shards=...",
    "~deepspeed": "deepspeed: found ~deepspeed, a deletion, expected a value; "
    "every key of train keeps a value: say deepspeed=...",
    "train.epochs=x": "train.epochs: found 'x', expected int; say train.epochs=3, for example",
    "optim.lr=[1]": "optim.lr: found [1], expected float; say optim.lr=5e-6, for example",
    "optim.lr=null": "optim.lr: found null, expected float; say optim.lr=5e-6, for example",
    "optim.betas=[1,b]": "optim.betas[1]: found 'b', expected [float, float]; say optim.betas=[0.9,0.999], for example",
    "tracking.tags=ko": "tracking.tags: found 'ko', expected list of str; write tracking.tags=[ko]",
    "data.truncation=longest": "data.truncation: found 'longest', expected longest_first|only_second; "
    "did you mean longest_first?",
    "train.device=tpu": "train.device: found 'tpu', expected auto|cpu|cuda; did you mean cpu?",
    "batch=4": "batch: found 4, expected a value for one of its keys, batch.groups, batch.policy, batch.per_gpu, batch.tokens, batch.chunk_tokens, batch.packing; "
    "say batch.groups=..., for example",
    "deepspeed=zero9": f"deepspeed: found 'zero9', expected {STAGES}; did you mean zero3?",
    "deepspeed=2": f"deepspeed: found 2, expected {STAGES}; did you mean zero2?",
    "deepspeed=zero1,zero2": "deepspeed: found 'zero1,zero2', expected one value; "
    "give one, or add --multirun for a sweep",
    "tracking.tags=a,b": "tracking.tags: found 'a,b', expected one value; "
    "write tracking.tags=[...], or add --multirun for a sweep",
    "deepspeed=null": f"deepspeed: found null, expected {STAGES}; leave deepspeed out",
    "hydra/sweeper=cloud": f"hydra/sweeper: found 'cloud', expected one of basic; {SEE}",
    "hydra.run.dirr=1": f"hydra.run.dirr: {UNKNOWN}; {SEE}",
    "a b": f"command line: found 'a b', expected key=value; {SEE}",
    "": f"command line: found '', expected key=value; {SEE}",
    "recipe": "command line: found 'recipe', expected key=value; write recipe=value",
    "data.shards=[": "command line: found 'data.shards=[', expected key=value; quote the value: 'data.shards=\"[\"'",
    "x==1": "command line: found 'x==1', expected key=value; quote the value: 'x=\"=1\"'",
    "--verbose": f"command line: found --verbose, expected key=value and Hydra's flags; {SEE}",
    "seed=1": f"seed: {UNKNOWN}; did you mean train.seed?",
    "data.shards=???": NO_SHARDS,
    "optim.lr=1": NO_SHARDS,
}


@pytest.mark.parametrize("argument", MISTAKES)
def test_a_wrong_override_is_one_line_that_says_what_to_do(argument: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert line_of(capsys, "train", argument) == MISTAKES[argument]


def test_an_interpolation_that_fails_is_named_by_its_key(capsys: pytest.CaptureFixture[str]) -> None:
    assert line_of(capsys, "train", "data.shards=x", "run_dir=${nowhere}") == (
        "run_dir: found an interpolation that fails (Interpolation key 'nowhere' not found), "
        "expected one that resolves; check what stands between ${ and }"
    )


def test_the_quoting_that_a_syntax_error_proposes_works(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    line = line_of(capsys, "pack", "groups=a=[b", "output=x")
    proposed = line.partition("quote the value: '")[2].rstrip("'")
    seen = run_with(monkeypatch, lambda config: seen_groups.append(config.groups) or 0)
    seen_groups: list[str] = []
    assert seen("pack", proposed, "output=x") == 0
    assert seen_groups == ["a=[b"]


def test_a_command_that_does_not_exist_is_told_with_the_nearest_one(capsys: pytest.CaptureFixture[str]) -> None:
    assert line_of(capsys, "trian") == (
        "command: found trian, expected one of " + ", ".join(COMMANDS) + "; did you mean train?"
    )


DATA = "data inspect, data verify"
TWO_WORDS = {
    "data inspekt": f"command: found data inspekt, expected one of {DATA}; did you mean data inspect?",
    "data verify-shards x": f"command: found data verify-shards, expected one of {DATA}; did you mean data verify?",
    "data shards=x": f"command: found data shards=x, expected one of {DATA}; see reranker data --help",
    "verify x": "command: found verify, expected one of " + ", ".join(COMMANDS) + "; did you mean data verify?",
    "data verify": "shards: found no value, expected directory or URL of shards; say shards=...",
    "data verify a b": "command line: found 'b', expected key=value; write b=value",
    "data verify a workerz=1": "workerz: found an unknown key, expected a key of data verify; did you mean workers?",
    "data verify workers=x a": "workers: found 'x', expected int; say workers=4, for example",
    "data inspect a --verbose": "command line: found --verbose, expected key=value and Hydra's flags; "
    "see reranker data inspect --help",
}


@pytest.mark.parametrize("words", TWO_WORDS)
def test_a_wrong_command_of_two_words_is_one_line_too(words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert line_of(capsys, *words.split()) == TWO_WORDS[words]


@pytest.mark.parametrize("words", [["data"], ["data", "--help"], ["data", "help"], ["data", "-h"]])
def test_the_first_word_of_two_tells_the_second_ones(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(words) == 0
    out = capsys.readouterr().out
    assert [line.split()[:2] for line in out.splitlines() if line.startswith("  ")] == [
        ["data", "inspect"], ["data", "verify"],
    ]  # fmt: skip


def test_the_overview_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--help"]) == 0
    out = capsys.readouterr().out
    for command, (_, summary) in COMMANDS.items():
        assert f"  {command} " in out
        assert f" {summary}\n" in out


@pytest.mark.parametrize("place", [0, 1])
def test_a_directory_by_itself_may_stand_before_or_behind_the_keys(place: int, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[str, int]] = []
    words = ["workers=2"]
    words.insert(place, "shards")
    run = run_with(monkeypatch, lambda config: seen.append((config.shards, config.workers)) or 0)
    assert run("data", "verify", *words) == 0
    assert seen == [("shards", 2)]


@pytest.mark.parametrize(
    ("command", "key"),
    [
        ("data inspect", "shards"),
        ("data verify", "shards"),
        ("checkpoint list", "run"),
        ("checkpoint verify", "path"),
        ("replay", "checkpoint"),
    ],
)
def test_a_directory_by_itself_is_what_the_command_is_about(
    command: str, key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []
    run = run_with(monkeypatch, lambda config: seen.append(getattr(config, key)) or 0)
    assert run(*command.split(), "a,b c") == run(*command.split(), f"{key}=named") == 0
    assert seen == ["a,b c", "named"]


@pytest.mark.parametrize(
    "directory",
    [
        "a b,c",
        "/x/[0-9]/{y}",
        "it's",
        'a"b',
        "a\\b",
        "a\\",
        'a\\"',
        "null",
        "1e3",
        "s3://bucket/shards",
        "$x: #y",
    ],
)
def test_a_directory_by_itself_is_taken_as_it_is(directory: str, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []
    run = run_with(monkeypatch, lambda config: seen.append(config.shards) or 0)
    assert run("data", "verify", directory, "workers=2") == 0
    assert seen == [directory]


def test_flags_and_a_directory_go_together(capsys: pytest.CaptureFixture[str]) -> None:
    for words in (["here", "--cfg", "job"], ["--cfg", "job", "shards=here"]):
        assert cli.main(["data", "verify", *words]) == 0
        assert "shards: here\nworkers: 4\n" in capsys.readouterr().out
    assert cli.main(["data", "verify", "here", "--help"]) == 0
    assert capsys.readouterr().out.startswith("usage: reranker data verify DIRECTORY key=value ...\n")


def test_a_recipe_of_the_users_own_is_found_and_checked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine" / "recipe").mkdir(parents=True)
    recipe = tmp_path / "mine" / "recipe" / "short.yaml"
    recipe.write_text("# @package _global_\ntrain:\n  epochs: 1\n")
    arguments = ["train", "--config-dir", str(tmp_path / "mine"), "data.shards=x"]
    epochs: list[int] = []
    run = run_with(monkeypatch, lambda config: epochs.append(config.train.epochs) or 0)
    assert run(*arguments, "recipe=short") == 0
    assert epochs == [1]
    assert "did you mean short?" in line_of(capsys, *arguments, "recipe=shorter")
    recipe.write_text("# @package _global_\ntrain:\n  epoks: 1\n")
    assert line_of(capsys, *arguments, "recipe=short") == (
        "train.epoks: found an unknown key in recipe/short.yaml, expected a key of train; did you mean train.epochs?"
    )


@pytest.mark.parametrize("flags", [[], ["--multirun", "optim.lr=1e-5,2e-5", "train.epochs=1"]])
def test_a_mapping_on_the_command_line_stands_for_that_of_a_recipe(
    flags: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "recipe").mkdir()
    (tmp_path / "recipe" / "mine.yaml").write_text(
        "# @package _global_\ngate: {sets: {one: a.jsonl}}\nloss: {more: {mse: 1}}\ndata: {shards: {a: x, b: y}}\n"
    )
    monkeypatch.chdir(tmp_path)
    found: list[Any] = []
    run = run_with(monkeypatch, lambda config: found.append(config) or 0)
    own = ["gate.sets={other: b.jsonl}", "loss.more={ranknet: 0.5}", "data.shards={c: {shards: z, weight: 2}}"]
    run_dir = "run_dir=runs/${optim.lr}" if flags else "run_dir=runs"
    assert run("train", "--config-dir", str(tmp_path), "recipe=mine", *own, run_dir, *flags) == 0
    assert len(found) == (2 if flags else 1)
    for config in found:
        assert config.gate.sets == {"other": "b.jsonl"}
        assert config.loss.more == {"ranknet": 0.5}
        assert config.data.shards == {"c": {"shards": "z", "weight": 2}}


@pytest.mark.parametrize("first", ["data.shards=a", "data.shards=[a]", "data.shards={c: [x]}", "data.shards={a: x}"])
def test_of_a_key_that_is_given_twice_the_last_one_counts(first: str, monkeypatch: pytest.MonkeyPatch) -> None:
    found: list[Any] = []
    run = run_with(monkeypatch, lambda config: found.append(config) or 0)
    assert run("train", first, "data.shards={c: {shards: z}}") == 0
    assert found[0].data.shards == {"c": {"shards": "z"}}


def test_words_are_put_in_one_behind_the_other(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found: list[Any] = []
    run = run_with(monkeypatch, lambda config: found.append(config) or 0)
    assert run("train", "data.shards=x", "optim.betas=[0.5,0.6]", "optim.betas.1=0.7") == 0
    assert list(found[0].optim.betas) == [0.5, 0.7]
    assert line_of(capsys, "train", "data.shards=x", "optim.betas=[0.5,0.6]", "optim.betas.1=b") == (
        "optim.betas[1]: found 'b', expected [float, float]; say optim.betas=[0.9,0.999], for example"
    )


def test_a_recipe_that_is_no_yaml_is_named_by_its_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "recipe").mkdir()
    recipe = tmp_path / "recipe" / "broken.yaml"
    recipe.write_text("# @package _global_\ntrain: {epochs: 1\nname: x\n")
    line = line_of(capsys, "train", "--config-dir", str(tmp_path), "recipe=broken", "data.shards=x")
    assert line.startswith(f"{recipe}:3: found ")
    assert line.endswith(", expected YAML; mend the file")


def test_flags_that_exclude_each_other_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert "Only one of" in line_of(capsys, "train", "--cfg", "job", "--info", "defaults")


def run_with(monkeypatch: pytest.MonkeyPatch, function: object):  # type: ignore[no-untyped-def]
    """`cli.main`, with `function` in the place of the command's work."""
    monkeypatch.setattr(cli, "function", lambda command, run: function)
    return lambda *arguments: cli.main(list(arguments))


def test_flags_may_stand_anywhere(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["train", "optim.lr=3", "--cfg", "job", "data.shards=here"]) == 0
    out = capsys.readouterr().out
    assert "lr: 3.0" in out
    assert "shards: here" in out


@pytest.mark.parametrize("recipe", ["demo", "ko_docs", "ko_reranker"])
def test_the_command_line_has_the_last_word_over_a_recipe(recipe: str, capsys: pytest.CaptureFixture[str]) -> None:
    model = "bge_reranker_large" if recipe.startswith("demo") else "demo_base"
    words = [f"model={model}", "precision=bf16", "tracking=none", "deepspeed=zero3_offload"]
    assert cli.main(["train", f"recipe={recipe}", *words, "--cfg", "job"]) == 0
    found = yaml.safe_load(capsys.readouterr().out)
    assert (found["deepspeed"]["stage"], found["deepspeed"]["offload"]) == (3, True)
    assert (found["precision"]["name"], found["tracking"]["mode"]) == ("bf16", "disabled")
    assert (found["model"]["name"] == "runs/demo/base") == (model == "demo_base")


@pytest.mark.parametrize("flags", [["--cfg", "job", "--resolve"], ["--info", "defaults"]])
@pytest.mark.parametrize("command", COMMANDS)
def test_hydras_own_flags_work(command: str, flags: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([*command.split(), *flags]) == 0
    out, err = capsys.readouterr()
    if flags[0] == "--cfg":
        assert {line.partition(":")[0] for line in out.splitlines()} >= {key.partition(".")[0] for key in KEYS[command]}
    else:
        assert len(out.splitlines()) >= 2
    assert err == ""


def test_a_users_mistake_in_the_job_is_printed_without_hydras_report(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def job(config: object) -> int:
        raise UserError("train.jsonl:3", "x", "y", "z")

    run_with(monkeypatch, job)
    assert line_of(capsys, "pack", "groups=a", "output=b") == "train.jsonl:3: found x, expected y; z"


def test_a_defect_in_the_job_is_raised_as_it_is(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def job(config: object) -> int:
        raise ZeroDivisionError("ours")

    run = run_with(monkeypatch, job)
    with pytest.raises(ZeroDivisionError, match="ours"):
        run("pack", "groups=a", "output=b")
    assert capsys.readouterr() == ("", "")
    assert "HYDRA_FULL_ERROR" not in os.environ


def test_an_interrupt_is_one_line_and_130(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def job(config: object) -> int:
        raise KeyboardInterrupt

    assert run_with(monkeypatch, job)("pack", "groups=a", "output=b") == 130
    assert capsys.readouterr() == ("", "reranker: interrupted\n")


def test_the_commands_exit_code_is_passed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    assert run_with(monkeypatch, lambda config: 7)("pack", "groups=a", "output=b") == 7


def test_a_sweep_runs_every_job_and_tells_each_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    rates = []

    def job(config: object) -> int:
        rates.append(config.optim.lr)  # type: ignore[attr-defined]
        if len(rates) == 2:
            raise UserError("a", "b", "c", "d")
        return 0

    run = run_with(monkeypatch, job)
    own = "run_dir=runs/lr-${optim.lr}"
    assert run("train", "--multirun", "data.shards=x", own, "optim.lr=1e-5,2e-5,3e-5") == 2
    assert rates == [1e-5, 2e-5, 3e-5]
    assert "reranker: error: a: found b, expected c; d\n" in capsys.readouterr().err
    assert "zero9" in line_of(capsys, "train", "--multirun", "data.shards=x", own, "deepspeed=zero1,zero9")


def test_a_sweep_wants_a_run_directory_for_each_job(capsys: pytest.CaptureFixture[str]) -> None:
    assert line_of(capsys, "train", "--multirun", "data.shards=x", "optim.lr=1e-5,2e-5") == (
        "run_dir: found one directory for all jobs of a sweep, expected one for each job; "
        "say run_dir='runs/lr-${optim.lr}', for example"
    )


def test_what_every_rank_finds_is_said_by_rank_0_and_what_one_finds_by_that_one(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setattr(cli, "HEAD_START", 0.0)
    assert cli.main(["train", "nonsense=1"]) == 2
    assert cli.main(["train"]) == 2
    assert capsys.readouterr().err == ""

    def job(config: object) -> int:
        raise UserError("shard-3.tar", "x", "y", "z")

    run_with(monkeypatch, job)
    assert line_of(capsys, "train", "data.shards=x") == "shard-3.tar: found x, expected y; z"
    monkeypatch.setenv("RANK", "0")
    assert "nonsense" in line_of(capsys, "train", "nonsense=1")


@pytest.mark.parametrize("command", COMMANDS)
def test_help_explains_every_key_in_a_hundred_columns(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([*command.split(), "--help"]) == 0
    out = capsys.readouterr().out
    words = " ".join(out.split())
    for key, _, _, doc in describe(COMMANDS[command][0]):
        assert f"  {key}=" in out
        assert " ".join(doc.split()) in words
    assert max(map(len, out.splitlines())) <= 100


def test_help_and_composing_do_not_wait_for_torch() -> None:
    script = (
        "import sys; from reranker import cli; "
        "cli.main(['train', '--help']); cli.main(['train', '--cfg', 'job']); cli.main(['train', 'x=1']); "
        "sys.exit(bool({'torch', 'deepspeed', 'transformers', 'numpy'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", script], capture_output=True).returncode == 0


def test_the_program_the_module_and_the_launchers_name_are_the_same(tmp_path: Path) -> None:
    program = Path(sys.executable).with_name("reranker")
    results = [
        subprocess.run([*start, "data.shardz=1"], capture_output=True, text=True, cwd=tmp_path)
        for start in (
            [str(program), "train"],
            [sys.executable, "-m", "reranker", "train"],
            [sys.executable, "-m", "reranker.train"],
        )
    ]
    for result in results:
        assert result.returncode == 2
        assert result.stdout == ""
        assert result.stderr == f"reranker: error: {MISTAKES['data.shardz=1']}\n"


def test_an_unquoted_pattern_that_the_shell_took_apart_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["index", "shards=part-0.tar", "shards=part-1.tar", "output=new"]) == 2
    assert capsys.readouterr().err == (
        "reranker: error: shards: found shards=part-0.tar and 1 more, expected one value; "
        "leave the others out; quote a pattern with braces\n"
    )

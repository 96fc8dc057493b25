"""A pushed model is on the hub as it lies in its directory, in one commit, or not at all.

The hub is a server on this machine that speaks the service's API (tests/hub.py); the client is its own.
"""

from __future__ import annotations

import json
import shutil
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import huggingface_hub.constants as client
import pytest
from huggingface_hub.utils import close_session
from safetensors.torch import load_file

from reranker import cli
from reranker.export.huggingface import export_run
from tests.hub import OWNER, TOKEN, Commit, Hub, hub, large
from tests.tiny import tiny_model
from tests.unit.test_export import make_run

REPO = f"{OWNER}/ko-reranker"
Push = Callable[..., int]


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("push")
    base = tiny_model(directory / "base")
    return export_run(make_run(directory / "run", base, load_file(base / "model.safetensors")))


@pytest.fixture
def model(exported: Path, tmp_path: Path) -> Path:
    """A copy, to be spoilt."""
    shutil.copytree(exported, tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture
def server() -> Iterator[Hub]:
    with hub() as server:
        yield server


@pytest.fixture(autouse=True)
def _online(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """The client as it is outside of the tests, but for Xet, whose store is no part of the server."""
    monkeypatch.setattr(client, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(client, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(client, "HF_TOKEN_PATH", str(tmp_path / "no-login"))
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.delenv("HUGGING_FACE_HUB_TOKEN", raising=False)
    yield
    close_session()  # connections to a server that is gone


@pytest.fixture
def push(server: Hub, model: Path) -> Push:
    def run(*words: str, repo: str = REPO) -> int:
        return cli.main(["push", f"model={model}", f"repo={repo}", f"endpoint={server.url}", *words])

    return run


def contents(directory: Path) -> dict[str, bytes]:
    files = (path for path in directory.rglob("*") if path.is_file())
    return {path.relative_to(directory).as_posix(): path.read_bytes() for path in files}


def refused(capsys: pytest.CaptureFixture[str], code: int) -> str:
    """The one line of a push that failed; the token is nowhere."""
    out, err = capsys.readouterr()
    assert code == 2
    assert TOKEN not in out + err
    assert err.startswith("reranker: error: ")
    assert err.count("\n") == 1
    return err.removeprefix("reranker: error: ").rstrip("\n")


def test_what_arrives_is_the_directory_byte_for_byte_in_one_commit_of_a_private_repository(
    push: Push, server: Hub, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (model / "onnx").mkdir()
    (model / "onnx" / "model.onnx").write_bytes(b"\0" * 1000)
    assert push() == 0
    repository = server.repositories[REPO]
    assert repository.files() == contents(model)
    assert repository.private
    assert len(repository.commits) == 2, "the service's own first one, and ours"
    out, err = capsys.readouterr()
    size = sum(map(len, contents(model).values())) / 1e6
    first, last = out.splitlines()
    assert first == f"{model}: {len(contents(model))} files, {size:.1f} MB, for {REPO}"
    assert last == f"{server.url}/{REPO}/commit/{repository.branches['main']} (private)"
    assert err == ""


def test_the_token_goes_to_the_hub_alone_and_into_no_output(
    push: Push, server: Hub, capsys: pytest.CaptureFixture[str]
) -> None:
    assert push() == 0
    sent = {request.what: request.authorization for request in server.requests}
    assert sent.pop("upload") is None, "the URL of an upload is of a store, which has a signature of its own"
    assert set(sent.values()) == {f"Bearer {TOKEN}"}
    assert {"create", "preupload", "batch", "commit"} <= set(sent)
    assert TOKEN not in "".join(capsys.readouterr())
    server.mishaps["preupload"] = [403]  # it answers with the header that it was sent
    assert "403: 'as the test has it, Bearer ***" in refused(capsys, push())


def test_a_push_that_fails_leaves_the_repository_as_it_was_and_the_same_command_goes_on(
    push: Push, server: Hub, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    repository = server.make(REPO, private=True, files={"model.safetensors": b"old", "README.md": b"old"})
    before = dict(repository.branches), repository.files()
    for what, status in (("preupload", 403), ("batch", 403), ("upload", 403), ("commit", 500)):
        server.mishaps[what] = [status]
        assert f"{status}: " in refused(capsys, push())
        assert (dict(repository.branches), repository.files()) == before, what
    uploaded = server.count("upload")
    assert push() == 0
    assert repository.files() == contents(model)
    assert server.count("upload") == uploaded, "what had arrived was not sent again"
    assert len(repository.commits) == 2


def test_a_store_that_fails_once_is_asked_again(
    push: Push, server: Hub, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    server.mishaps["upload"] = [503]
    assert push() == 0
    assert server.repositories[REPO].files() == contents(model)
    assert capsys.readouterr().err == ""


def test_a_push_of_what_is_there_makes_no_commit(push: Push, server: Hub, capsys: pytest.CaptureFixture[str]) -> None:
    assert push() == 0
    before = dict(server.repositories[REPO].branches)
    capsys.readouterr()
    assert push() == 0
    assert server.repositories[REPO].branches == before
    assert capsys.readouterr().out.endswith(f"{REPO} has these files already, in commit {before['main']}\n")


def test_files_of_an_earlier_export_go_in_the_same_commit_and_others_stay(
    push: Push, server: Hub, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    old = {
        "onnx/model.onnx": b"of other weights",
        "model-00001-of-00002.safetensors": b"too",
        "modules.json": b"[]",
        "picture.png": b"mine",
    }
    repository = server.make(REPO, private=True, files=old)
    assert push() == 0
    assert repository.files() == contents(model) | {"picture.png": b"mine"}
    assert len(repository.commits) == 2
    told = "; of an earlier export went model-00001-of-00002.safetensors, modules.json, onnx/model.onnx\n"
    assert capsys.readouterr().out.endswith(told)


def test_a_commit_of_somebody_else_in_between_is_not_overwritten(
    push: Push, server: Hub, capsys: pytest.CaptureFixture[str]
) -> None:
    repository = server.make(REPO, private=True)
    server.uploaded = lambda: repository.add("main", Commit({"README.md": b"theirs"}))
    line = refused(capsys, push())
    assert line.startswith(
        f"repo: found {REPO} with a commit that was made meanwhile (412: 'A commit has happened since."
    )
    assert repository.files() == {"README.md": b"theirs"}


def test_a_branch_a_tag_and_a_message_are_as_asked(
    push: Push, server: Hub, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert push("revision=v2", "tag=v2.0", "message=the second", "private=false") == 0
    repository = server.repositories[REPO]
    assert repository.files() == {}
    assert repository.files("v2") == contents(model)
    oid = repository.branches["v2"]
    assert repository.tags == {"v2.0": oid}
    assert repository.commits[oid].message == "the second"
    assert not repository.private
    assert capsys.readouterr().out.endswith(f"/commit/{oid} (public), tagged v2.0\n")
    assert refused(capsys, push("tag=v2.0", "private=false")).startswith(
        f"tag: found v2.0, which {REPO} has, expected a new"
    )
    assert repository.files() == {}


def test_a_pull_request_leaves_main_as_it_is(
    push: Push, server: Hub, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    repository = server.make(REPO, private=True, files={"README.md": b"old"})
    assert push("create_pr=true") == 0
    assert repository.files() == {"README.md": b"old"}
    (opened,) = (name for name in repository.branches if name != "main")
    assert repository.files(opened) == contents(model)
    assert capsys.readouterr().out.endswith(f"{server.url}/{REPO}/discussions/1 (private)\n")


def test_a_public_repository_gets_nothing_that_was_meant_to_be_private(
    push: Push, server: Hub, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    repository = server.make(REPO, private=False)
    assert refused(capsys, push("revision=new")) == (
        f"repo: found {REPO}, which is public, expected a private one, as private=true has it; "
        "make it private, or say private=false"
    )
    assert list(repository.branches) == ["main"]
    assert server.uploads == {}
    assert push("private=false") == 0
    assert repository.files() == contents(model)


def test_a_dry_run_lists_the_files_and_sends_nothing(
    push: Push, server: Hub, model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("HF_TOKEN")
    assert push("dry_run=true") == 0
    listed = [line.split() for line in capsys.readouterr().out.splitlines()[1:]]
    sizes = {name: len(content) for name, content in contents(model).items()}
    assert {name: int(size.replace(",", "")) for size, name in listed} == sizes
    assert server.requests == []


def test_without_a_token_with_a_wrong_one_without_a_right_and_without_a_network_it_is_one_line(
    push: Push, server: Hub, model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    login = "expected one with the right to write; hf auth login, or set HF_TOKEN"
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    line = refused(capsys, push())
    assert (
        line
        == f"token: found one that {server.url} refuses (401: 'Invalid credentials in Authorization header'), {login}"
    )
    monkeypatch.delenv("HF_TOKEN")
    assert refused(capsys, push()) == f"token: found none, in the environment or of a login, {login}"
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    assert refused(capsys, push(repo="others/model")) == (
        "repo: found others/model, to which this token may not write (403: \"You don't have the rights to create a model "
        "under the namespace 'others'\"), expected a repository of yours, and a token with the right to write; "
        "choose another one of them"
    )
    assert server.repositories == {}
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{nobody.getsockname()[1]}"
        line = refused(capsys, push(f"endpoint={url}"))
        assert line.startswith(f"endpoint: found no success at {url} ('ConnectError: ")
    monkeypatch.setattr(client, "HF_HUB_OFFLINE", True)
    assert (
        refused(capsys, push())
        == "HF_HUB_OFFLINE: found 1, with which nothing is sent, expected 0; say HF_HUB_OFFLINE=0"
    )


def test_a_hub_whose_store_refuses_xet_is_one_line(
    push: Push, server: Hub, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(client, "HF_HUB_DISABLE_XET", False)
    line = refused(capsys, push())
    assert server.count("xet") > 0
    assert "403" in line
    assert "HF_HUB_DISABLE_XET=1" in line
    assert server.repositories[REPO].files() == {}


def test_a_card_that_the_hub_does_not_take_is_told_before_a_file_is_sent(
    push: Push, server: Hub, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    card = (model / "README.md").read_text("utf-8")
    (model / "README.md").write_text(card.replace("---\n", "---\nlicense: no-such-license\n", 1), encoding="utf-8")
    assert "must be one of the known ones" in refused(capsys, push())
    assert server.uploads == {}


def test_a_model_that_failed_its_gate_is_pushed_only_by_force(
    push: Push, server: Hub, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    gate = model / "gate.json"
    gate.write_text(json.dumps({"passed": False}))
    assert refused(capsys, push()) == (
        f"{gate}: found a gate that this model has failed, expected a model that has passed it; train a better one, or say "
        "force=true to push it all the same"
    )
    assert server.requests == []
    assert push("force=true") == 0
    gate.write_text(json.dumps({"passed": True}))
    assert push() == 0
    assert server.repositories[REPO].files() == contents(model)
    gate.write_text(json.dumps({"passed": "yes"}))
    capsys.readouterr()
    assert refused(capsys, push()) == f"{gate}: found passed: 'yes', expected true or false; export the run again"


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-10])


SPOILT: dict[str, tuple[Callable[[Path], object], str]] = {
    "no tokenizer": (lambda model: (model / "tokenizer.json").unlink(), "tokenizer.json: found no such file, expected a whole"),
    "no weights": (lambda model: (model / "model.safetensors").unlink(), "model.safetensors: found no such file"),
    "weights cut short": (lambda model: cut(model / "model.safetensors"), "model.safetensors: found weights that cannot be read"),
    "no card": (lambda model: (model / "README.md").unlink(), "README.md: found no such file"),
    "card without front matter": (lambda model: (model / "README.md").write_text("# model\n"),
                                  "README.md: found a model card without front matter"),
    "card of broken YAML": (lambda model: (model / "README.md").write_text("---\na: [\n---\n"),
                            "README.md: found a model card that cannot be read"),
    "a hidden file": (lambda model: (model / ".env").write_text("KEY=1"), ".env: found a hidden file"),
    "a shard missing": (lambda model: (model / "model.safetensors.index.json").write_text(
        json.dumps({"weight_map": {"a": "model-00001-of-00001.safetensors"}})), "00001.safetensors: found no such file"),
    "no export": (lambda model: (model / "config.json").write_text("{}"), "whose config.json is not of an export"),
    "no directory": (shutil.rmtree, "which is no directory"),
}  # fmt: skip


@pytest.mark.parametrize("what", SPOILT)
def test_a_directory_that_is_no_whole_export_is_refused_before_anything_is_sent(
    what: str, push: Push, server: Hub, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spoil, said = SPOILT[what]
    spoil(model)
    assert said in refused(capsys, push())
    assert server.requests == []


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["repo=name"], "repo: found 'name', expected OWNER/NAME"),
        (["repo=a/b/c"], "repo: found 'a/b/c', expected OWNER/NAME"),
        (["repo=a/-b"], "repo: found 'a/-b', expected OWNER/NAME"),
        (["endpoint=hub"], "endpoint: found 'hub', expected a URL; say endpoint=https://..."),
        (
            ["create_pr=true", "tag=v1"],
            "create_pr: found true with a tag, expected a pull request to main, without a tag",
        ),
        (["create_pr=true", "revision=v1"], "create_pr: found true with a revision, expected"),
        (["token=hf_secret"], "token: found an unknown key, expected a key of push"),
    ],
)
def test_settings_that_cannot_be_are_refused_before_anything_is_sent(
    words: list[str], said: str, push: Push, server: Hub, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["push", "model=m", f"repo={REPO}", f"endpoint={server.url}"]
    keys = [word.split("=")[0] for word in words]
    assert refused(capsys, cli.main([word for word in arguments if word.split("=")[0] not in keys] + words)).startswith(
        said
    )
    assert server.requests == []


def test_the_large_files_are_large_ones_for_the_server(model: Path) -> None:
    """Without any, uploads would not be tested above."""
    assert sum(large(name) for name in contents(model)) == 2

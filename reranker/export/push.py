"""`reranker push`: an exported model -> one commit in a repository of a model hub.

    checks, offline -> repository, made if it is not there -> what it holds -> one commit -> tag

In: a whole export, and the token of the environment (HF_TOKEN) or of `hf auth login`, which goes to the endpoint alone
and into no output. Out: the revision holds the files of the directory, and of an earlier export none that this one
lacks; what else lies there stays. Large files are uploaded first and are part of nothing until the commit: a push that
ends before it leaves the revision as it was, and the same command goes on. No commit of others is overwritten.

The client's own `upload_folder` is not used: where Xet is installed it splits what is large into several commits.
"""

from __future__ import annotations

import contextlib
import re
import sys
from collections.abc import Iterator, Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from reranker import __version__
from reranker.config.models import PushConfig
from reranker.errors import UserError, shorten
from reranker.export.directory import PROMPT_FILES
from reranker.export.push_checks import GATE, INDEX, TOKENIZER, WEIGHTS, files_to_push

OURS = (
    WEIGHTS, INDEX, "model-*-of-*.safetensors", "onnx/model.onnx", "onnx/model.onnx_data", "onnx/model_quantized.onnx",
    *TOKENIZER, "special_tokens_map.json", "sentence_bert_config.json", *PROMPT_FILES,
    "trim.json", GATE,
)  # fmt: skip
"""Files that exports write: what of these a new export lacks would stay behind as a part of another model."""
LOG_IN = "hf auth login, or set HF_TOKEN"


def push_command(config: PushConfig) -> int:
    """`reranker push`. Returns the exit code. Raises UserError."""
    _check(config)
    files = files_to_push(Path(config.model), config.force)
    sizes = {name: path.stat().st_size for name, path in files.items()}
    print(f"{config.model}: {len(files)} files, {sum(sizes.values()) / 1e6:,.1f} MB, for {config.repo}", flush=True)
    if config.dry_run:
        for name, size in sizes.items():
            print(f"{size:>15,}  {name}")
        return 0
    print(push(config, files))
    return 0


def push(config: PushConfig, files: dict[str, Path]) -> str:
    """Send the files; a line on what became of them. Raises UserError for what the hub refuses or leaves unanswered."""
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi

    token = _token()
    with _told(config, token):
        api = HfApi(endpoint=config.endpoint, token=token)
        api.create_repo(config.repo, private=config.private, exist_ok=True)
        before = api.model_info(config.repo)
        if config.private and not before.private:
            raise UserError("repo", f"{config.repo}, which is public", "a private one, as private=true has it",
                            "make it private, or say private=false")  # fmt: skip
        if config.tag and config.tag in [tag.name for tag in api.list_repo_refs(config.repo).tags]:
            raise UserError("tag", f"{config.tag}, which {config.repo} has", "a new one", "choose another")
        if config.revision:
            if not config.revision.startswith("refs/"):
                api.create_branch(config.repo, branch=config.revision, exist_ok=True)
            before = api.model_info(config.repo, revision=config.revision)
        there = [file.rfilename for file in before.siblings or []]
        gone = [name for name in there if name not in files and any(fnmatch(name, form) for form in OURS)]
        commit = api.create_commit(
            config.repo,
            [*(CommitOperationDelete(name) for name in gone),
             *(CommitOperationAdd(name, path) for name, path in files.items())],
            commit_message=config.message or f"Export of reranker {__version__}",
            revision=config.revision,
            create_pr=config.create_pr,
            parent_commit=before.sha,
        )  # fmt: skip
        if config.tag:
            api.create_tag(config.repo, tag=config.tag, revision=commit.oid)
    return _line(config, before, commit, gone)


def _line(config: PushConfig, before: Any, commit: Any, gone: Sequence[str]) -> str:
    if commit.oid == before.sha:
        return f"{config.repo} has these files already, in commit {commit.oid}"
    where = "private" if before.private else "public"
    line = f"{commit.pr_url or commit.commit_url} ({where})"
    line += f", tagged {config.tag}" if config.tag else ""
    return line + (f"; of an earlier export went {', '.join(gone)}" if gone else "")


def _check(config: PushConfig) -> None:
    """Raise UserError for settings that cannot be."""
    from huggingface_hub.utils import HFValidationError, validate_repo_id

    try:
        if config.repo.count("/") != 1:
            raise HFValidationError("not OWNER/NAME")
        validate_repo_id(config.repo)
    except HFValidationError:
        raise UserError("repo", shorten(config.repo), "OWNER/NAME, of letters, digits, -, _ and .",
                        "say repo=OWNER/NAME") from None  # fmt: skip
    if config.endpoint is not None and not re.match(r"https?://\S+$", config.endpoint):
        raise UserError("endpoint", shorten(config.endpoint), "a URL", "say endpoint=https://...")
    if config.create_pr and (config.revision or config.tag):
        key = "revision" if config.revision else "tag"
        raise UserError("create_pr", f"true with a {key}", "a pull request to main, without a tag",
                        f"leave {key} out")  # fmt: skip


def _token() -> str:
    """The client's own: of the environment, or of a login. Raises UserError without one."""
    from huggingface_hub import get_token

    try:
        token = get_token()
    except Exception as error:  # each kind of login has a class of its own
        raise UserError("token", f"a login that fails ({shorten(error, 160)})", "one that gives a token",
                        LOG_IN) from None  # fmt: skip
    if token is None:
        raise UserError("token", "none, in the environment or of a login", "one with the right to write", LOG_IN)
    return token


@contextlib.contextmanager
def _told(config: PushConfig, token: str) -> Iterator[None]:
    """What the client raises in the block becomes one line; it is silent otherwise, and no line has the token."""
    from huggingface_hub import logging
    from huggingface_hub.errors import HfHubHTTPError
    from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    before, bars = logging.get_verbosity(), not are_progress_bars_disabled()
    if bars and not sys.stderr.isatty():
        disable_progress_bars()
    # Of each try that it repeats the client tells the URL, and those of uploads are secrets for as long as they last.
    logging.set_verbosity_error()
    try:
        yield
    except UserError:
        raise
    # HTTPError of httpx or httpx2, as the client's version has it; Xet's errors are of Python's own classes.
    except (HfHubHTTPError.__bases__[0], OSError, RuntimeError, ValueError) as error:
        raise _explained(config, error, token) from None
    finally:
        logging.set_verbosity(before)
        if bars:
            enable_progress_bars()


def _explained(config: PushConfig, error: BaseException, token: str) -> UserError:
    from huggingface_hub import constants
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    def quoted(text: object) -> str:
        return shorten(str(text).replace(token, "***"), 200)  # an answer may repeat what it was sent

    endpoint, again = config.endpoint or constants.ENDPOINT, "push again: what has arrived is not sent twice"
    while error.__cause__ and not isinstance(error, HfHubHTTPError):
        error = error.__cause__  # "Error while uploading" says nothing of why
    if isinstance(error, OfflineModeIsEnabled):
        return UserError("HF_HUB_OFFLINE", "1, with which nothing is sent", "0", "say HF_HUB_OFFLINE=0")
    if not isinstance(error, HfHubHTTPError):
        said = quoted(f"{type(error).__name__}: {error}")
        return UserError("endpoint", f"no success at {endpoint} ({said})", "a hub that can be reached and takes files",
                         f"check network and endpoint (HF_HUB_DISABLE_XET=1 for one without Xet); {again}")  # fmt: skip
    status = error.response.status_code
    said = f"{status}: {quoted(error.server_message or error.response.reason_phrase)}"
    if status == 401:
        return UserError("token", f"one that {endpoint} refuses ({said})", "one with the right to write", LOG_IN)
    if status == 403 and str(error.response.url).startswith(endpoint):  # and not of a store that takes an upload
        return UserError("repo", f"{config.repo}, to which this token may not write ({said})",
                         "a repository of yours, and a token with the right to write",
                         "choose another one of them")  # fmt: skip
    if status == 404:
        return UserError("repo", f"nothing at {config.repo}, revision {config.revision or 'main'} ({said})",
                         "a repository, and a branch of it", "check repo, revision and token")  # fmt: skip
    if status == 412:
        return UserError("repo", f"{config.repo} with a commit that was made meanwhile ({said})",
                         "that of before", "look at it, then push again")  # fmt: skip
    return UserError("endpoint", f"an answer of {endpoint} that is no success ({said})", "a commit", again)

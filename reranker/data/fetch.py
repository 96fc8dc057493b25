"""A fetch from elsewhere, tried again where it fails.

In: a function that reads a location. Out: what it returns. What may pass (a network, a server, a command, bytes
that changed on the way) is tried again after a wait that grows; what remains is raised as a `UserError` about the
location.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import tenacity

from reranker.data.location import PIPE, open_location
from reranker.errors import UserError

WAIT: Any = tenacity.wait_random_exponential(multiplier=1, max=60)
"""Seconds before a fetch is tried again: at random, so that the nodes of a job do not come back all at once."""


_RETRIES = 3


class Changed(Exception):
    """A file that is not the one that its manifest describes: what was found, what was expected."""


def fetch_with_retries(fetch: Callable[..., Any], location: str, *arguments: Any, retries: int) -> Any:
    """`fetch(location, *arguments)`, tried again after a growing wait. Its last failure is raised as a UserError.

    A UserError is nothing that passes: it is raised at once.
    """
    attempts = tenacity.Retrying(
        stop=tenacity.stop_after_attempt(retries + 1),
        wait=WAIT,
        retry=tenacity.retry_if_exception(_is_failure),
        reraise=True,
    )
    try:
        return attempts(fetch, location, *arguments)
    except UserError:
        raise
    except Changed as error:
        found, expected = error.args
        raise UserError(location, f"bytes that differ from the manifest ({found})", expected,
                        "if the file was changed on purpose, pack or index the shards again") from None  # fmt: skip
    except Exception as error:
        raise UserError(location, f"a file that cannot be fetched ({_reason(error)})", "a readable file",
                        "check the location, the network and the credentials") from None  # fmt: skip


def read_location(location: str) -> bytes:
    """The bytes of a small file under a URL. Raises FileNotFoundError where there is none; UserError."""
    missing: list[bytes | None] = []

    def read(name: str) -> bytes | None:
        try:
            with open_location(name) as stream:
                return stream.read()
        except FileNotFoundError as error:
            # Over HTTP fsspec says so whatever went wrong; the cause tells what it was.
            if error.__cause__ is not None and getattr(error.__cause__, "status", 404) != 404:
                raise
            missing.append(None)
            return None

    content = fetch_with_retries(read, location, retries=_RETRIES)
    if missing:
        raise FileNotFoundError(location)
    return bytes(content)


def prepare_to_open(location: str) -> None:
    """Import and start what opens a location, so that a thread which is to fetch it need not.

    If this process forks while a thread does it, the child inherits a lock that nobody gives up: an import's, or that
    of fsspec's event loop, which fsspec 2026.9 does not make anew in a child as it means to.
    """
    if location.startswith(PIPE):
        import webdataset.gopen  # noqa: F401

        return
    import fsspec.asyn

    fsspec.asyn.get_loop()
    fsspec.core.url_to_fs("file:///")  # imports what all file systems need
    with contextlib.suppress(ImportError, ValueError):  # told when it is opened
        fsspec.get_filesystem_class(fsspec.core.split_protocol(location)[0])


def _is_failure(error: BaseException) -> bool:
    # aiohttp, botocore and others have exceptions of their own that are not OSErrors.
    return isinstance(error, Exception) and not isinstance(error, UserError)


def _reason(error: BaseException) -> str:
    # Over HTTP fsspec says FileNotFoundError whatever went wrong, and what it was in the cause.
    error = error.__cause__ or error
    return ": ".join(filter(None, (type(error).__name__, " ".join(str(error).split()))))

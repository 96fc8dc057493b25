"""Where shards may lie: a path, or a URL that fsspec opens, or a `pipe:` command.

In: locations as texts. Out: binary streams. A `pipe:` command's standard output is read, as webdataset does
it; every other URL (`https://`, `s3://`, `gs://`, `hf://`, ...) is fsspec's. Raises `UserError` for what
cannot be opened.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from typing import IO, Any

from reranker.errors import UserError

PIPE = "pipe:"
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*(::|://)")


def is_remote(location: str) -> bool:
    """Whether a location is read through the cache and not where it lies."""
    return location.startswith(PIPE) or (bool(_URL.match(location)) and not location.startswith("file://"))


def local_path(location: str) -> str:
    """The path of a location that is not remote."""
    return location.removeprefix("file://")


def join(directory: str, name: str) -> str:
    """The location of a file in a directory, which may be a URL."""
    if directory.startswith(PIPE):
        raise UserError("data.shards", directory, "a directory or its URL", "index the shards: reranker index")
    return f"{directory.rstrip('/')}/{name}"


@contextlib.contextmanager
def open_location(location: str) -> Iterator[IO[bytes]]:
    """A binary stream of what lies at a location, to be read once from its beginning.

    Raises: FileNotFoundError, PermissionError or another OSError of the file system; UserError where the
    URL's file system is not installed.
    """
    if location.startswith(PIPE):
        with _output(location) as stream:
            yield stream
        return
    import fsspec

    try:
        opened = fsspec.open(location, "rb", **_options(location))
    except (ImportError, ValueError) as error:
        raise UserError(location, str(error), "a URL that an installed fsspec file system opens",
                        "install ko-reranker[remote] or the package it names") from None  # fmt: skip
    with opened as stream:
        yield stream


@contextlib.contextmanager
def _output(location: str) -> Iterator[IO[bytes]]:
    """What a `pipe:` command prints. Raises OSError if it fails; one that is not read to its end may."""
    from webdataset.gopen import gopen

    with gopen(location, "rb") as stream:
        stream.ignore_errors = True  # it would raise for a command that is left early, over what is raised here
        yield stream
    if stream.status:
        raise OSError(f"the command ended with status {stream.status}")


def _options(location: str) -> dict[str, Any]:
    if not location.startswith(("http://", "https://")):
        return {}
    import aiohttp

    # Of itself aiohttp gives up a file that takes five minutes, however well it comes.
    return {"client_kwargs": {"timeout": aiohttp.ClientTimeout(total=None, sock_connect=30, sock_read=60)}}

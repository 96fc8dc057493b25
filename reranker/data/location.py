"""Where shards may lie: a path, or a URL that fsspec opens, or a `pipe:` command.

In: locations as texts. Out: binary streams. A `pipe:` command's standard output is read, as webdataset does
it; every other URL (`https://`, `s3://`, `gs://`, `hf://`, ...) is fsspec's. Raises `UserError` for what
cannot be opened. `public` is what may be told of a location to others: credentials are left out.
"""

from __future__ import annotations

import contextlib
import re
import shlex
from collections.abc import Iterator
from typing import IO, Any

from reranker.errors import UserError

PIPE = "pipe:"
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*(::|://)")
_URL_WITHIN = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*://)(\S+)")
_HOST = re.compile(r"(\[.*\]|[^:]*)(:\d*)?(::)?")
_PROGRAM = re.compile(r"[\w./-]+")


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


def public(value: Any) -> Any:
    """A JSON value without what opens the locations in its texts. A pure function.

    URLs lose user, password, query and fragment, where presigned ones have their signature; of a `pipe:` command only
    the program stays, as any word of it may be a secret. What is no location stays as it is.
    """
    if isinstance(value, dict):
        return {public(key): public(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [public(one) for one in value]
    if not isinstance(value, str):
        return value
    before, pipe, command = value.partition(PIPE)
    before = _URL_WITHIN.sub(lambda found: found[1] + _bare(found[2]), before)
    return f"{before}{pipe}{_program(command)} …" if pipe and command.strip() else before + pipe


def _bare(url: str) -> str:
    """Host and path of a URL without its scheme; "…" where a password that is not quoted may stand among them."""
    if within := _URL_WITHIN.search(url):  # zip://name::https://...
        return _bare(url[: within.start()]) + within[1] + _bare(within[2])
    authority, slash, path = url.partition("/")
    if re.search("[?#]", authority):
        return "…" if "@" in authority else re.split("[?#]", authority)[0]
    host = authority.rpartition("@")[2]
    return host + slash + re.split("[?#]", path)[0] if _HOST.fullmatch(host) else "…"


def _program(command: str) -> str:
    try:
        words = shlex.split(command)
    except ValueError:
        return ""
    # In front of it variables may be set.
    program = next((word for word in words if "=" not in word), "")
    return program if _PROGRAM.fullmatch(program) else ""


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

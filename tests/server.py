"""A real HTTP server on a thread of the test, which counts what is asked of it and fails on demand."""

from __future__ import annotations

import contextlib
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TypeVar


class Stalling(ThreadingHTTPServer):
    """A server that can be let wait for `resume`."""

    resume: threading.Event


S = TypeVar("S", bound=Stalling)


class FileServer(Stalling):
    """Serves `files` by name.

    Attributes:
        mishaps: what happens to the next GETs of a name, one after another: "error" (503), "cut" (the connection
            ends halfway), "changed" (a flipped byte), "longer" (a byte more), "stall" (halfway it waits for
            `resume`, after it has set `stalled`).
        ranges: whether parts of files can be asked for, as from an object store.
        gets: names of the GETs so far.
    """

    daemon_threads = True

    def __init__(self, ranges: bool = False) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.files: dict[str, bytes] = {}
        self.mishaps: dict[str, list[str]] = {}
        self.ranges = ranges
        self.gets: list[str] = []
        self.stalled, self.resume = threading.Event(), threading.Event()

    def url(self, name: str) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/{name}"


class _Handler(BaseHTTPRequestHandler):
    server: FileServer

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self.server.gets.append(self.path[1:])
        self._answer(body=True)

    def _answer(self, body: bool) -> None:
        name = self.path[1:]
        mishaps = self.server.mishaps.get(name, [])
        mishap = mishaps.pop(0) if body and mishaps else ""
        content = self.server.files.get(name)
        if content is None or mishap == "error":
            self.send_error(404 if content is None else 503)
            return
        if mishap == "changed":
            content = bytes([content[0] ^ 1]) + content[1:]
        elif mishap == "longer":
            content += b"!"
        wanted = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", "")) if self.server.ranges else None
        if wanted:
            first, last = int(wanted[1]), min(int(wanted[2]), len(content) - 1)
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {first}-{last}/{len(content)}")
            content = content[first : last + 1]
        else:
            self.send_response(200)
            self.send_header("Accept-Ranges", "bytes" if self.server.ranges else "none")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if not body:
            return
        half = len(content) // 2
        with contextlib.suppress(ConnectionError):  # who asked may have been killed
            self.wfile.write(content[:half])
            if mishap == "cut":
                self.close_connection = True
                return
            if mishap == "stall":
                self.wfile.flush()
                self.server.stalled.set()
                self.server.resume.wait(60)
            self.wfile.write(content[half:])

    def log_message(self, *arguments: object) -> None:
        pass


@contextlib.contextmanager
def on_a_thread(server: S) -> Iterator[S]:
    """Let a server of tests serve; what stalls goes on at the end."""
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.resume.set()
        server.shutdown()
        thread.join()
        server.server_close()


def serving(ranges: bool = False) -> contextlib.AbstractContextManager[FileServer]:
    return on_a_thread(FileServer(ranges))

"""A local endpoint of Amazon Translate's TranslateText, in the JSON protocol that boto3 speaks to it."""

from __future__ import annotations

import contextlib
import json
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class Translate(ThreadingHTTPServer):
    """Serves `pairs`; a text that is none is answered as an invalid request.

    Attributes:
        mishaps: error codes for the next requests, one after another.
        every: each request of such a number fails at the server; 0: none.
        served: how often each text was answered.
        asked: each request as it came.
        seconds: waited for before an answer.
        connections: how many are open, or closed with something left to answer.
    """

    daemon_threads = True
    request_queue_size = 64

    def __init__(self, pairs: dict[str, str]) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.pairs, self.mishaps, self.every = pairs, list[str](), 0
        self.seconds = 0.0
        self.requests, self.served, self.lock = 0, Counter[str](), threading.Lock()
        self.asked: list[dict[str, Any]] = []
        self.connections = 0

    def process_request(self, request: Any, client_address: Any) -> None:
        with self.lock:
            self.connections += 1
        super().process_request(request, client_address)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            with self.lock:
                self.connections -= 1

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exc_info()[1], ConnectionError):  # who asked may have been killed
            super().handle_error(request, client_address)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class _Handler(BaseHTTPRequestHandler):
    server: Translate
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        assert self.headers["X-Amz-Target"] == "AWSShineFrontendService_20170701.TranslateText"
        assert self.headers["Authorization"].startswith("AWS4-HMAC-SHA256 ")
        text = request["Text"]
        time.sleep(self.server.seconds)
        with self.server.lock:
            self.server.requests += 1
            self.server.asked.append(request)
            every = self.server.every
            code = self.server.mishaps.pop(0) if self.server.mishaps else ""
            if not code and every and self.server.requests % every == 0:
                code = "InternalServerException"
            if not code and len(text.encode("utf-8")) > 10_000:
                code = "TextSizeLimitExceededException"
            if not code and text not in self.server.pairs:
                code = "InvalidRequestException"
            if not code:
                self.server.served[text] += 1
        if code:
            self._answer(
                500 if code.startswith(("Internal", "Service")) else 400, {"__type": code, "message": "as asked for"}
            )
        else:
            self._answer(200, {"TranslatedText": self.server.pairs[text],
                               "SourceLanguageCode": request["SourceLanguageCode"],
                               "TargetLanguageCode": request["TargetLanguageCode"]})  # fmt: skip

    def _answer(self, status: int, value: dict[str, str]) -> None:
        content = json.dumps(value).encode()
        with contextlib.suppress(ConnectionError):  # who asked may have been killed
            self.send_response(status)
            self.send_header("Content-Type", "application/x-amz-json-1.1")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

    def log_message(self, *arguments: object) -> None:
        pass


@contextlib.contextmanager
def translating(pairs: dict[str, str]) -> Iterator[Translate]:
    server = Translate(pairs)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()

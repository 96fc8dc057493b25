"""Cohere's rerank endpoint (POST /v2/rerank) as its reference documents it, on a thread of the test.

It answers with a relevance score for each document, best first, and fails on demand.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import threading
from collections.abc import Sequence
from http.server import BaseHTTPRequestHandler
from typing import Any

from tests.server import Stalling, on_a_thread

KEY = "co-Kx93hF7QpLm2sVb8TzWn"
"""The only key that it takes."""


def relevance(query: str, document: str) -> float:
    """What the service answers for them: a number in [0, 1] that has nothing to do with their meaning."""
    return int.from_bytes(hashlib.sha256(f"{query}\n{document}".encode()).digest()[:4], "big") / 2**32


class RerankServer(Stalling):
    """The service.

    Attributes:
        calls: the bodies that were answered, in the order of their answers.
        requests: the (path, headers) of all requests.
        mishaps: what happens to the next requests, one after another: (status, headers, body), or "stall": it sets
            `stalled`, waits for `resume`, and answers then.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.calls: list[dict[str, Any]] = []
        self.requests: list[tuple[str, dict[str, str]]] = []
        self.mishaps: list[Any] = []
        self.stalled, self.resume = threading.Event(), threading.Event()
        self.lock = threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class _Handler(BaseHTTPRequestHandler):
    server: RerankServer

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        with self.server.lock:
            self.server.requests.append((self.path, dict(self.headers)))
            mishap = self.server.mishaps.pop(0) if self.server.mishaps else None  # None: nothing happens
        if mishap == "stall":
            self.server.stalled.set()
            self.server.resume.wait(60)
        elif mishap is not None:
            status, headers, content = mishap
            self._answer(status, content if isinstance(content, bytes) else json.dumps(content).encode(), headers)
            return
        status, value = self._judge(json.loads(body))
        self._answer(status, json.dumps(value).encode(), {})

    def _judge(self, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        if self.path != "/v2/rerank":
            return 404, {"message": f"no {self.path}"}
        if self.headers.get("Authorization") != f"Bearer {KEY}":
            return 401, {"id": "1", "message": f"invalid api token {self.headers.get('Authorization')}"}
        if unknown := body.keys() - {"model", "query", "documents", "top_n", "max_tokens_per_doc", "priority"}:
            return 422, {"message": f"unknown fields {sorted(unknown)}"}
        documents = body.get("documents")
        if not body.get("query") or not documents or not all(isinstance(one, str) for one in documents):
            return 400, {"message": "query and documents must be given"}
        if body.get("model") != "rerank-v5.0-pro":
            return 404, {"message": f"model '{body.get('model')}' not found"}
        with self.server.lock:
            self.server.calls.append(body)
        return 200, answer_to(body["query"], documents)

    def _answer(self, status: int, content: bytes, headers: dict[str, str]) -> None:
        with contextlib.suppress(ConnectionError):  # who asked may have been killed
            self.send_response(status)
            for name, value in {
                "Content-Type": "application/json",
                "Content-Length": str(len(content)),
                **headers,
            }.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(content)

    def log_message(self, *arguments: object) -> None:
        pass


def answer_to(query: str, documents: Sequence[str]) -> dict[str, Any]:
    """The body of an answer: the documents by falling relevance, each by its place."""
    results = [{"index": place, "relevance_score": relevance(query, one)} for place, one in enumerate(documents)]
    return {
        "id": "07734bd2-2473-4f07-94e1-0d9f0e6843cf",
        "results": sorted(results, key=lambda result: -float(result["relevance_score"])),
        "meta": {"api_version": {"version": "2"}, "billed_units": {"search_units": -(-len(documents) // 100)}},
    }  # fmt: skip


def reranking() -> contextlib.AbstractContextManager[RerankServer]:
    return on_a_thread(RerankServer())

"""A dashboard is saved by W&B's own client, against a server that answers what it asks."""

from __future__ import annotations

import http.server
import json
import sys
import threading
from typing import Any

import pytest

from reranker.config.tracking import DashboardConfig
from reranker.train.dashboard import specification, workspace
from tests.distributed.ranks import launch
from tests.unit.test_dashboard import panels

COMMAND = [sys.executable, "-m", "reranker", "dashboard", "entity=team", "project=rerankers"]


class _Service(http.server.ThreadingHTTPServer):
    """Answers the two questions that W&B's own client asks to save a workspace, as the service does."""

    def __init__(self, known: bool) -> None:
        self.known, self.saved = known, []
        super().__init__(("127.0.0.1", 0), _Answers)


class _Answers(http.server.BaseHTTPRequestHandler):
    server: Any

    def do_POST(self) -> None:
        content = self.rfile.read(int(self.headers["Content-Length"]))
        if self.path != "/graphql":
            return self._answer({})
        asked = json.loads(content)
        if "UpsertView2" in asked["query"]:
            self.server.saved.append(asked["variables"])
            return self._answer({"data": {"upsertView": {"view": {"id": "id1", "name": "nw-abc-v"}, "inserted": True}}})
        assert "viewer" in asked["query"]
        viewer = {"id": "1", "entity": "team", "username": "u", "email": "", "flags": "{}", "teams": {"edges": []}}
        return self._answer({"data": {"viewer": viewer if self.server.known else None}})

    def _answer(self, value: object) -> None:
        content = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        pass


def run_against(service: _Service, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{service.server_port}")
    with service:
        thread = threading.Thread(target=service.serve_forever, daemon=True)
        thread.start()
        (finished,) = launch(COMMAND)
        service.shutdown()
        thread.join()
    return finished


def test_it_is_saved_as_the_clients_own_request(monkeypatch: pytest.MonkeyPatch) -> None:
    service = _Service(known=True)
    finished = run_against(service, monkeypatch)
    assert finished.code == 0, finished.err
    (saved,) = service.saved
    assert (saved["entityName"], saved["projectName"]) == ("team", "rerankers")
    assert (saved["displayName"], saved["type"]) == ("reranker training", "project-view")
    shown = list(panels({"spec": json.loads(saved["spec"])}))
    assert shown == list(panels(specification(workspace(DashboardConfig(entity="team")))))
    assert finished.out.strip().endswith("/team/rerankers?nw=abc")


def test_a_service_that_refuses_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    finished = run_against(_Service(known=False), monkeypatch)
    assert finished.code == 2
    assert finished.err.startswith("reranker: error: dashboard: found 'Failed to verify credentials")
    assert finished.err.count("\n") == 1
    assert "wandb login" in finished.err

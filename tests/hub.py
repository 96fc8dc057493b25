"""A model hub on a thread of the test: what of its API a client needs to make a repository and to commit files to it.

It behaves as the service does where that matters here: a commit is made whole or not at all, large files are uploaded to
a URL of their own beforehand and are part of nothing until then, and who has no right to something is told by its codes.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import re
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from urllib.parse import unquote, urlsplit

from tests.server import Stalling, on_a_thread

TOKEN = "hf_a_token_that_nobody_may_read"
OWNER = "owner"
LARGE = (".safetensors", ".onnx", "tokenizer.json")
"""Files that are large ones here, whatever their size."""


@dataclass
class Commit:
    """`files` are all that the repository holds behind it."""

    files: dict[str, bytes]
    message: str = "initial commit"
    parent: str = ""

    @property
    def oid(self) -> str:
        told = json.dumps(
            [self.parent, self.message, sorted((n, hashlib.sha1(c).hexdigest()) for n, c in self.files.items())]
        )
        return hashlib.sha1(told.encode()).hexdigest()


@dataclass
class Repository:
    private: bool
    commits: dict[str, Commit] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)

    def add(self, branch: str, commit: Commit) -> str:
        self.commits[commit.oid], self.branches[branch] = commit, commit.oid
        return commit.oid

    def files(self, branch: str = "main") -> dict[str, bytes]:
        """What it holds, without the file that the service itself puts there."""
        held = self.commits[self.branches[branch]].files
        return {name: content for name, content in held.items() if name != ".gitattributes"}


@dataclass(frozen=True)
class Request:
    what: str
    path: str
    authorization: str | None


class Hub(Stalling):
    """Attributes:
    repositories: by name; only `OWNER` may have any of its own. uploads: large files by their sha256.
    mishaps: answers to the next requests of a kind ("create", "commit", "upload", ...), one after another: a
        status, or "stall": nothing, until `resume` is set, after `stalled` was.
    requests: all so far. uploaded: what happens behind each upload.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repositories: dict[str, Repository] = {}
        self.uploads: dict[str, bytes] = {}
        self.mishaps: dict[str, list[int | str]] = {}
        self.requests: list[Request] = []
        self.stalled, self.resume = threading.Event(), threading.Event()
        self.uploaded: Callable[[], object] = lambda: None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def make(self, name: str, private: bool, files: dict[str, bytes] | None = None) -> Repository:
        repository = self.repositories[name] = Repository(private)
        repository.add("main", Commit({".gitattributes": b"*.safetensors filter=lfs\n", **(files or {})}))
        return repository

    def count(self, what: str) -> int:
        return sum(request.what == what for request in self.requests)


_ROUTES = (
    ("create", "POST", r"/api/repos/create"),
    ("validate", "POST", r"/api/validate-yaml"),
    ("upload", "PUT", r"/uploads/(?P<oid>[0-9a-f]{64})"),
    ("batch", "POST", r"/(?P<repo>[^/]+/[^/]+)\.git/info/lfs/objects/batch"),
    ("refs", "GET", r"/api/models/(?P<repo>[^/]+/[^/]+)/refs"),
    ("xet", "GET", r"/api/models/(?P<repo>[^/]+/[^/]+)/xet-write-token/(?P<revision>[^/]+)"),
    ("info", "GET", r"/api/models/(?P<repo>[^/]+/[^/]+)(/revision/(?P<revision>[^/]+))?"),
    ("branch", "POST", r"/api/models/(?P<repo>[^/]+/[^/]+)/branch/(?P<revision>[^/]+)"),
    ("tag", "POST", r"/api/models/(?P<repo>[^/]+/[^/]+)/tag/(?P<revision>[^/]+)"),
    ("preupload", "POST", r"/api/models/(?P<repo>[^/]+/[^/]+)/preupload/(?P<revision>[^/]+)"),
    ("commit", "POST", r"/api/models/(?P<repo>[^/]+/[^/]+)/commit/(?P<revision>[^/]+)"),
)


class _Refusal(Exception):
    def __init__(self, status: int, said: str, code: str | None = None, **more: object) -> None:
        self.status, self.said, self.code, self.more = status, said, code, more


class _Handler(BaseHTTPRequestHandler):
    server: Hub
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self._route()

    do_POST = do_PUT = do_GET

    def _route(self) -> None:
        url = urlsplit(self.path)
        found = [(what, match) for what, method, form in _ROUTES
                 if method == self.command and (match := re.fullmatch(form, url.path))]  # fmt: skip
        assert found, f"{self.command} {self.path} is not known here"
        what, match = found[0]
        self.server.requests.append(Request(what, self.path, self.headers.get("Authorization")))
        words = {name: unquote(value) if value else None for name, value in match.groupdict().items()}
        mishaps = self.server.mishaps.get(what, [])
        mishap = mishaps.pop(0) if mishaps else None
        try:
            if mishap == "stall":
                self.server.stalled.set()
                self.server.resume.wait(60)
            content = self._content()
            if isinstance(mishap, int):
                raise _Refusal(mishap, f"as the test has it, {self.headers.get('Authorization')}")
            if what != "upload" and self.headers.get("Authorization") != f"Bearer {TOKEN}":
                raise _Refusal(401, "Invalid credentials in Authorization header")
            self._answer(200, getattr(self, f"_{what}")(content, "create_pr=1" in url.query, **words))
        except _Refusal as refusal:
            self._answer(refusal.status, {"error": refusal.said, **refusal.more}, refusal)
        except ConnectionError:
            self.close_connection = True  # who asked was killed

    def _content(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self._exactly(int(self.headers.get("Content-Length") or 0))
        parts = []
        while size := int(self.rfile.readline(), 16):
            parts.append(self._exactly(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def _exactly(self, size: int) -> bytes:
        content = self.rfile.read(size)
        if len(content) < size:
            raise ConnectionError
        return content

    def _answer(self, status: int, value: object, refusal: _Refusal | None = None) -> None:
        content = json.dumps(value).encode()
        self.send_response(status)
        if refusal:
            self.send_header("X-Error-Message", refusal.said)
            if refusal.code:
                self.send_header("X-Error-Code", refusal.code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def _repository(self, name: str) -> Repository:
        if name not in self.server.repositories:
            raise _Refusal(404, "Repository not found", "RepoNotFound")
        return self.server.repositories[name]

    def _head(self, repo: str, revision: str | None) -> Commit:
        repository = self._repository(repo)
        if (revision or "main") not in repository.branches:
            raise _Refusal(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return repository.commits[repository.branches[revision or "main"]]

    def _create(self, content: bytes, pull: bool) -> object:
        asked = json.loads(content)
        name = f"{asked['organization']}/{asked['name']}"
        if asked["organization"] != OWNER:
            raise _Refusal(
                403, f"You don't have the rights to create a model under the namespace {asked['organization']!r}"
            )
        if name in self.server.repositories:
            raise _Refusal(409, "You already created this model repo", url=f"{self.server.url}/{name}")
        self.server.make(name, private=asked.get("visibility") == "private" or asked.get("private") is True)
        return {"url": f"{self.server.url}/{name}"}

    def _info(self, content: bytes, pull: bool, repo: str, revision: str | None) -> object:
        head = self._head(repo, revision)
        return {"id": repo, "modelId": repo, "sha": head.oid, "private": self._repository(repo).private,
                "siblings": [{"rfilename": name} for name in sorted(head.files)], "tags": [], "downloads": 0}  # fmt: skip

    def _refs(self, content: bytes, pull: bool, repo: str) -> object:
        held = self._repository(repo)
        forms = {"branches": ("heads", held.branches), "tags": ("tags", held.tags)}
        return {"converts": [], **{kind: [{"name": name, "ref": f"refs/{form}/{name}", "targetCommit": oid}
                                          for name, oid in of.items()] for kind, (form, of) in forms.items()}}  # fmt: skip

    def _branch(self, content: bytes, pull: bool, repo: str, revision: str) -> object:
        repository = self._repository(repo)
        if revision in repository.branches:
            raise _Refusal(409, "Reference already exists")
        repository.branches[revision] = repository.branches["main"]
        return {}

    def _tag(self, content: bytes, pull: bool, repo: str, revision: str) -> object:
        self._repository(repo).tags[json.loads(content)["tag"]] = revision
        return {}

    def _validate(self, content: bytes, pull: bool) -> object:
        if "license: no-such-license" in json.loads(content)["content"]:
            raise _Refusal(400, "Invalid YAML", errors=[{"message": '"license" must be one of the known ones'}])
        return {"errors": [], "warnings": []}

    def _preupload(self, content: bytes, pull: bool, repo: str, revision: str) -> object:
        held = self._head(repo, revision).files
        return {"files": [
            {"path": file["path"], "uploadMode": "lfs" if large(file["path"]) else "regular", "shouldIgnore": False,
             "oid": _oid(file["path"], held[file["path"]]) if file["path"] in held else None}
            for file in json.loads(content)["files"]
        ]}  # fmt: skip

    def _batch(self, content: bytes, pull: bool, repo: str) -> object:
        objects = json.loads(content)["objects"]
        for one in objects:
            if one["oid"] not in self.server.uploads:
                one["actions"] = {"upload": {"href": f"{self.server.url}/uploads/{one['oid']}?signature=secret"}}
        return {"transfer": "basic", "objects": objects}

    def _upload(self, content: bytes, pull: bool, oid: str) -> object:
        if hashlib.sha256(content).hexdigest() != oid:
            raise _Refusal(400, "other content than was announced")
        self.server.uploads[oid] = content
        self.server.uploaded()
        return {}

    def _xet(self, content: bytes, pull: bool, repo: str, revision: str) -> object:
        raise _Refusal(403, "no Xet here")

    def _commit(self, content: bytes, pull: bool, repo: str, revision: str) -> object:
        repository, head = self._repository(repo), self._head(repo, revision)
        header, *operations = [json.loads(line) for line in content.splitlines()]
        if header["value"].get("parentCommit") not in (None, head.oid):
            raise _Refusal(412, "A commit has happened since. Please refresh and try again.")
        files = dict(head.files)
        for operation in operations:
            value = operation["value"]
            if operation["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif operation["key"] == "lfsFile":
                if value["oid"] not in self.server.uploads:
                    raise _Refusal(400, f"{value['path']} was not uploaded")
                files[value["path"]] = self.server.uploads[value["oid"]]
            else:
                assert operation["key"] == "deletedFile"
                del files[value["path"]]
        branch = f"refs/pr/{len(repository.commits)}" if pull else revision
        oid = repository.add(branch, Commit(files, header["value"]["summary"], head.oid))
        made = {"success": True, "commitOid": oid, "commitUrl": f"{self.server.url}/{repo}/commit/{oid}"}
        return {**made, "pullRequestUrl": f"{self.server.url}/{repo}/discussions/1"} if pull else made

    def log_message(self, *arguments: object) -> None:
        pass


def large(name: str) -> bool:
    return name.endswith(LARGE)


def _oid(name: str, content: bytes) -> str:
    """What the service calls a file's content."""
    if large(name):
        return hashlib.sha256(content).hexdigest()
    return hashlib.sha1(f"blob {len(content)}\0".encode() + content).hexdigest()


def hub() -> contextlib.AbstractContextManager[Hub]:
    return on_a_thread(Hub())

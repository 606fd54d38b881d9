"""A hub on this machine: as much of Hugging Face's protocol as publishing and fetching need."""

import hashlib
import json
import threading
from base64 import b64decode
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit


@dataclass
class Repo:
    """Every commit of a repository, oldest first: its hash to its files."""

    private: bool = False
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    messages: list[list[dict[str, Any]]] = field(default_factory=list)

    @property
    def newest(self) -> str:
        return list(self.commits)[-1]

    @property
    def files(self) -> dict[str, bytes]:
        """Those of the newest commit."""
        return self.commits[self.newest]

    def commit(self, files: dict[str, bytes]) -> str:
        oid = hashlib.sha1(repr((len(self.commits), sorted(files))).encode()).hexdigest()
        self.commits[oid] = files
        return oid


class Hub:
    """The repositories of a hub, and where it listens."""

    def __init__(self) -> None:
        self.repos: dict[str, Repo] = {}
        self.large: dict[str, bytes] = {}
        self.ignored: set[str] = set()
        self.endpoint = ""

    def create(self, name: str, files: dict[str, bytes], *, private: bool = False) -> Repo:
        repo = self.repos[name] = Repo(private)
        repo.commit({".gitattributes": b"*.npy filter=lfs", **files})
        return repo


@contextmanager
def running_hub() -> Iterator[Hub]:
    """A hub that answers for as long as the block lasts."""
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": hub}))
    hub.endpoint = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    hub: Hub

    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_GET(self) -> None:
        self._handle()

    do_HEAD = do_POST = do_PUT = do_GET

    def _handle(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        parts = [unquote(part) for part in urlsplit(self.path).path.strip("/").split("/")]
        try:
            match parts:
                case ["api", "repos", "create"]:
                    self._create(json.loads(body))
                case ["api", "validate-yaml"]:
                    self._answer({"errors": [], "warnings": []})
                case ["api", "models", owner, name, *rest]:
                    self._model(f"{owner}/{name}", rest, body)
                case [_, _, "info", "lfs", "objects", "batch"]:
                    self._batch(json.loads(body)["objects"])
                case ["large", oid]:
                    self.hub.large[oid] = body
                    self._answer({})
                case [owner, name, "resolve", revision, *path]:
                    self._resolve(f"{owner}/{name}", revision, "/".join(path))
                case _:
                    self._refuse(404, "RepoNotFound")
        except KeyError:
            self._refuse(404, "RepoNotFound")

    def _create(self, asked: dict[str, Any]) -> None:
        name = f"{asked['organization']}/{asked['name']}"
        url = {"url": f"{self.hub.endpoint}/{name}"}
        if name in self.hub.repos:
            self._answer(url, 409)
            return
        self.hub.create(name, {}, private=asked.get("visibility") == "private")
        self._answer(url)

    def _model(self, name: str, rest: list[str], body: bytes) -> None:
        repo = self.hub.repos[name]
        match rest:
            case [] | ["revision", _]:
                revision = self._revision(repo, rest[1] if rest else "main")
                if revision is not None:
                    self._answer({"id": name, "sha": revision, "private": repo.private})
            case ["tree", revision]:
                files = repo.commits[revision].items()
                kind = {"type": "file", "oid": "0" * 40}
                self._answer([{**kind, "path": path, "size": len(data)} for path, data in files])
            case ["preupload", _]:
                self._answer({"files": [self._mode(file) for file in json.loads(body)["files"]]})
            case ["commit", _]:
                self._commit(name, repo, [json.loads(line) for line in body.splitlines()])

    def _mode(self, file: dict[str, Any]) -> dict[str, Any]:
        path = file["path"]
        text = path.endswith((".json", ".md"))
        mode = "regular" if text else "lfs"
        return {"path": path, "uploadMode": mode, "shouldIgnore": path in self.hub.ignored}

    def _batch(self, objects: list[dict[str, Any]]) -> None:
        for each in objects:
            if each["oid"] not in self.hub.large:
                each["actions"] = {"upload": {"href": f"{self.hub.endpoint}/large/{each['oid']}"}}
        self._answer({"transfer": "basic", "objects": objects})

    def _commit(self, name: str, repo: Repo, lines: list[dict[str, Any]]) -> None:
        head, *changes = lines
        if head["value"].get("parentCommit", repo.newest) != repo.newest:
            self._refuse(412, "")
            return
        files = dict(repo.files)
        for change in changes:
            match change["key"], change["value"]:
                case "file", value:
                    files[value["path"]] = b64decode(value["content"])
                case "lfsFile", value:
                    files[value["path"]] = self.hub.large[value["oid"]]
                case "deletedFile", value:
                    del files[value["path"]]
        repo.messages.append(changes)
        oid = repo.commit(files)
        self._answer({"commitUrl": f"{self.hub.endpoint}/{name}/commit/{oid}", "commitOid": oid})

    def _resolve(self, name: str, revision: str, path: str) -> None:
        repo = self.hub.repos[name]
        data = repo.commits[revision][path]
        headers = {"X-Repo-Commit": revision, "ETag": f'"{hashlib.sha256(data).hexdigest()}"'}
        self._send(200, data, headers)

    def _revision(self, repo: Repo, revision: str) -> str | None:
        if revision == "main":
            return repo.newest
        if revision in repo.commits:
            return revision
        self._refuse(404, "RevisionNotFound")
        return None

    def _refuse(self, status: int, code: str) -> None:
        self._send(status, b"{}", {"X-Error-Code": code})

    def _answer(self, value: object, status: int = 200) -> None:
        self._send(status, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _send(self, status: int, data: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(data))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

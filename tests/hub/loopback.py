"""A server on loopback that speaks the part of the hub's HTTP API which huggingface_hub needs for models."""

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

TOKEN = "hf_test"


class Hub(ThreadingHTTPServer):
    """Repositories in memory: a list of commits, and branches that name one."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.repositories: dict[str, dict] = {}
        self.requests: list[str] = []
        self.moves: dict[str, dict[str, bytes]] = {}  # committed once config.json was read

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def commit(self, name: str, files: dict[str, bytes], branch: str = "main") -> str:
        repository = self.repositories[name]
        before = repository["commits"].get(repository["branches"].get(branch, ""), {})
        tree = before | files
        oid = hashlib.sha1(repr(sorted(tree.items())).encode()).hexdigest()
        repository["commits"][oid] = tree
        repository["branches"][branch] = oid
        return oid

    def create(self, name: str, private: bool = False) -> None:
        self.repositories.setdefault(name, {"commits": {}, "branches": {}, "private": private})


class Handler(BaseHTTPRequestHandler):
    server: Hub  # pyright: ignore[reportIncompatibleVariableOverride]

    def log_message(self, *_: object) -> None:
        pass

    def reply(self, status: int, body: object = b"", **headers: str) -> None:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", headers.get("X_Size", str(len(data))))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        self.server.requests.append(f"{self.command} {self.path}")
        about = re.fullmatch(r"/api/models/([^/]+/[^/]+)/revision/([^?]+)(\?.*)?", self.path)
        if about and about[1] in self.server.repositories:  # asked by releases before 1.0
            return self.reply(200, {"id": about[1], "xetEnabled": False})
        found = re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/([^?]+)(\?.*)?", self.path)
        if not found:
            return self.reply(404, {"error": "not found"}, X_Error_Code="EntryNotFound")
        name, revision, file, _ = found.groups()
        repository = self.server.repositories.get(name)
        allowed = self.headers.get("Authorization") == f"Bearer {TOKEN}"
        if repository is None or (repository["private"] and not allowed):
            return self.reply(401, {"error": "no such repository"}, X_Error_Code="RepoNotFound")
        oid = repository["branches"].get(revision, revision)
        if oid not in repository["commits"]:
            return self.reply(404, {"error": "no revision"}, X_Error_Code="RevisionNotFound")
        tree = repository["commits"][oid]
        if file not in tree:
            return self.reply(
                404, {"error": "no file"}, X_Error_Code="EntryNotFound", X_Repo_Commit=oid
            )
        data = tree[file]
        etag = f'"{hashlib.sha1(data).hexdigest()}"'
        if self.command == "HEAD":
            return self.reply(200, b"", ETag=etag, X_Repo_Commit=oid, X_Size=str(len(data)))
        if file == "config.json" and name in self.server.moves:
            self.server.commit(name, self.server.moves.pop(name))
        return self.reply(200, data, ETag=etag, X_Repo_Commit=oid)

    def do_POST(self) -> None:
        self.server.requests.append(f"POST {self.path}")
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            return self.reply(401, {"error": "who are you?"})
        if self.path == "/api/repos/create":
            asked = json.loads(body)
            name = f"{asked.get('organization') or 'me'}/{asked['name']}"
            private = asked.get("visibility") == "private" or bool(asked.get("private"))
            self.server.create(name, private)
            return self.reply(
                200, {"url": f"{self.server.address}/{name}", "name": name, "id": name}
            )
        if self.path == "/api/validate-yaml":
            return self.reply(200, {"errors": [], "warnings": []})
        found = re.fullmatch(
            r"/api/models/([^/]+/[^/]+)/(preupload|commit)/([^?]+)(\?.*)?", self.path
        )
        if not found:
            return self.reply(404, {"error": "not found"})
        name, what, branch, _ = found.groups()
        if what == "preupload":
            files = [file["path"] for file in json.loads(body)["files"]]
            modes = [{"path": p, "uploadMode": "regular", "shouldIgnore": False} for p in files]
            return self.reply(200, {"files": modes})
        entries = [json.loads(line) for line in body.splitlines()]
        files = {
            entry["value"]["path"]: base64.b64decode(entry["value"]["content"])
            for entry in entries
            if entry["key"] == "file"
        }
        oid = self.server.commit(name, files, branch)
        url = f"{self.server.address}/{name}/commit/{oid}"
        return self.reply(200, {"success": True, "commitOid": oid, "commitUrl": url})


@contextmanager
def hub() -> Iterator[Hub]:
    server = Hub()
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()

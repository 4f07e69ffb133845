"""A stand-in of the Hub's API on localhost: repositories in memory, commits with small and large files, downloads."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class HubServer:
    """The state of the server: the files of each repository, and the requests that it got."""

    def __init__(self) -> None:
        self.repositories: dict[str, dict[str, bytes]] = {}
        self.private: dict[str, bool] = {}
        self.large: dict[str, bytes] = {}
        self.requests: list[str] = []
        self.refuses = False
        hub = self

        class Handler(_Handler):
            state = hub

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self.server.server_address[1]}"


@contextmanager
def hub_server() -> Iterator[HubServer]:
    """Serve a Hub without repositories."""
    hub = HubServer()
    thread = threading.Thread(target=hub.server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        hub.server.shutdown()
        hub.server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    state: HubServer
    protocol_version = "HTTP/1.1"

    def _send(self, status: int, content: bytes | dict[str, Any] | list[Any] = b"", **headers: str) -> None:
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        state, path = self.state, self.path.partition("?")[0]
        state.requests.append(f"{self.command} {path}")
        if path == "/":
            return self._send(200)
        if found := re.fullmatch(r"/api/models/([^/]+/[^/]+)(/.*)?", path):
            files = state.repositories.get(found[1])
            if files is None:
                return self._send(404, {"error": "not found"}, X_Error_Code="RepoNotFound")
            if "/tree/" in (found[2] or ""):
                entries = [
                    {"type": "file", "path": name, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
                    for name, content in files.items()
                ]
                return self._send(200, entries)
            siblings = [{"rfilename": name} for name in files]
            return self._send(200, {"id": found[1], "sha": COMMIT, "siblings": siblings, "private": False})
        if found := re.fullmatch(r"/([^/]+/[^/]+)/resolve/[^/]+/(.+)", path):
            files = state.repositories.get(found[1])
            if files is None:
                return self._send(404, X_Error_Code="RepoNotFound")
            if found[2] not in files:
                return self._send(404, X_Error_Code="EntryNotFound", X_Repo_Commit=COMMIT)
            content = files[found[2]]
            etag = f'"{hashlib.sha256(content).hexdigest()}"'
            return self._send(200, content, ETag=etag, X_Repo_Commit=COMMIT)
        return self._send(404, {"error": path})

    def do_PUT(self) -> None:
        content = self.rfile.read(int(self.headers["Content-Length"]))
        self.state.large[hashlib.sha256(content).hexdigest()] = content
        self._send(200)

    def do_POST(self) -> None:
        state, path = self.state, self.path.partition("?")[0]
        state.requests.append(f"POST {path}")
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if state.refuses or self.headers.get("Authorization") != "Bearer hf_test":
            return self._send(403, {"error": "no permission"})
        if path == "/api/repos/create":
            record = json.loads(body)
            name = f"{record['organization']}/{record['name']}" if record.get("organization") else record["name"]
            state.repositories.setdefault(name, {})
            state.private[name] = record.get("visibility") == "private" or bool(record.get("private"))
            return self._send(200, {"url": f"{state.address}/{name}", "name": name, "id": name})
        if path == "/api/validate-yaml":
            return self._send(200, {"errors": [], "warnings": []})
        if path.endswith("/preupload/main"):
            files = [
                {
                    "path": each["path"],
                    "uploadMode": "lfs" if each["path"].endswith(".safetensors") else "regular",
                    "shouldIgnore": False,
                    "oid": None,
                }
                for each in json.loads(body)["files"]
            ]
            return self._send(200, {"files": files})
        if path.endswith(".git/info/lfs/objects/batch"):
            objects = [
                {**each, "actions": {"upload": {"href": f"{state.address}/large/{each['oid']}", "header": {}}}}
                for each in json.loads(body)["objects"]
            ]
            return self._send(200, {"transfer": "basic", "objects": objects})
        if found := re.fullmatch(r"/api/models/([^/]+/[^/]+)/commit/main", path):
            for line in body.splitlines():
                record = json.loads(line)
                if record["key"] == "file":
                    content = base64.b64decode(record["value"]["content"])
                    state.repositories[found[1]][record["value"]["path"]] = content
                elif record["key"] == "lfsFile":
                    state.repositories[found[1]][record["value"]["path"]] = state.large[record["value"]["oid"]]
            url = f"{state.address}/{found[1]}/commit/{COMMIT}"
            return self._send(200, {"commitUrl": url, "commitOid": COMMIT, "pullRequestUrl": None})
        return self._send(404, {"error": path})

    def log_message(self, format: str, *args: Any) -> None:
        pass

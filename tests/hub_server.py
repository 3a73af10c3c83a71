"""A stand-in for the Hugging Face hub, in memory: the part of its HTTP API that pushing and loading a model ask."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any
from urllib.parse import urlsplit

COMMIT = "c" * 40


class Hub:
    """What was pushed.

    Attributes:
        url: where it answers.
        repositories: name -> file -> bytes.
        asked: method and path of every request.
        tokens: what requests carried as authorisation.
    """

    def __init__(self) -> None:
        self.url = ""
        self.repositories: dict[str, dict[str, bytes]] = {}
        self.large: dict[str, bytes] = {}
        self.asked: list[tuple[str, str]] = []
        self.tokens: set[str | None] = set()

    def commit(self, repository: str, lines: list[dict[str, Any]]) -> None:
        files = self.repositories[repository]
        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.large[value["oid"]]


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        """Say nothing."""

    def _reply(self, status: int, body: Any = b"", **headers: str) -> None:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(data)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def _received(self) -> bytes:
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def _noted(self) -> str:
        path = urlsplit(self.path).path
        self.hub.asked.append((self.command, path))
        self.hub.tokens.add(self.headers.get("Authorization"))
        return path

    def do_POST(self) -> None:
        path, data = self._noted(), self._received()
        if path == "/api/repos/create":
            asked = json.loads(data)
            name = f"{asked['organization']}/{asked['name']}"
            if name.startswith("forbidden/"):
                return self._reply(403, {"error": "you may not write here"})
            self.hub.repositories.setdefault(name, {})
            return self._reply(200, {"url": f"{self.hub.url}/{name}"})
        if path == "/api/validate-yaml":
            return self._reply(200, {"errors": [], "warnings": []})
        if path.endswith("/info/lfs/objects/batch"):
            objects = [
                {**one, "actions": {"upload": {"href": f"{self.hub.url}/large/{one['oid']}"}}}
                for one in json.loads(data)["objects"]
            ]
            return self._reply(200, {"transfer": "basic", "objects": objects})
        if found := re.fullmatch(r"/api/models/(.+/.+)/preupload/main", path):
            files = [
                {
                    "path": one["path"],
                    "uploadMode": "lfs" if one["path"].endswith(".safetensors") else "regular",
                    "shouldIgnore": False,
                }
                for one in json.loads(data)["files"]
            ]
            return self._reply(200, {"files": files})
        if found := re.fullmatch(r"/api/models/(.+/.+)/commit/main", path):
            self.hub.commit(found[1], [json.loads(line) for line in data.splitlines()])
            url = f"{self.hub.url}/{found[1]}/commit/{COMMIT}"
            return self._reply(200, {"commitUrl": url, "commitOid": COMMIT, "pullRequestUrl": ""})
        return self._reply(404, {"error": path})

    def do_PUT(self) -> None:
        path, data = self._noted(), self._received()
        if hashlib.sha256(data).hexdigest() != path.rpartition("/")[2]:
            return self._reply(400)
        self.hub.large[path.rpartition("/")[2]] = data
        return self._reply(200)

    def do_GET(self) -> None:
        path = self._noted()
        if (about := re.fullmatch(r"/api/models/([^/]+/[^/]+)(/.*)?", path)) and about[1] in self.hub.repositories:
            if about[2]:  # a folder of the repository: it has none
                return self._reply(404, {"error": path}, X_Error_Code="EntryNotFound")
            siblings = [{"rfilename": name} for name in self.hub.repositories[about[1]]]
            return self._reply(200, {"id": about[1], "sha": COMMIT, "siblings": siblings})
        found = re.fullmatch(r"/([^/]+/[^/]+)/resolve/[^/]+/(.+)", path)
        files = self.hub.repositories.get(found[1]) if found else None
        if found and files is not None and found[2] in files:
            data = files[found[2]]
            etag = f'"{hashlib.sha256(data).hexdigest()}"'
            return self._reply(200, data, ETag=etag, X_Repo_Commit=COMMIT, Accept_Ranges="bytes")
        missing = "EntryNotFound" if files is not None else "RepoNotFound"
        return self._reply(404, {"error": path}, X_Error_Code=missing, X_Repo_Commit=COMMIT)

    do_HEAD = do_GET


@contextmanager
def hub_server() -> Iterator[Hub]:
    """Give a running stand-in; it stops with the context."""
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": hub}))
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = Thread(target=server.serve_forever)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        thread.join()
        server.server_close()

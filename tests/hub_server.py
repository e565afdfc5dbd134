"""A small stand-in for the Hugging Face Hub on 127.0.0.1, which the real clients reach through HF_ENDPOINT.

It knows what a dataset's or a tokenizer's download asks for, and one fault at a time.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import socket
import struct
import threading
import time
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any
from urllib.parse import unquote, urlsplit

TOKEN = "hf_member"


@dataclass
class Fault:
    """What happens to the next `times` requests whose "METHOD /path" matches; -1: to all of them."""

    match: str
    times: int = 1
    status: int | None = None  # this instead of the answer
    flip: int | None = None  # the byte at this offset of the body arrives altered
    cut: int | None = None  # the body ends after so many bytes
    reset: bool = False  # there the connection is reset, not closed
    pause: float = 0  # seconds after each 32 KiB of the body
    silent: bool = False  # no answer as long as the server runs

    def hits(self, request: str) -> bool:
        if self.times == 0 or not re.search(self.match, request):
            return False
        self.times -= self.times > 0
        return True


class HubServer:
    """Serves repositories: {"datasets/owner/name" or "models/owner/name": {file name: bytes}}, one commit each."""

    def __init__(self, repositories: dict[str, dict[str, bytes]], gated: tuple[str, ...] = ()):
        self.repositories, self.gated = repositories, gated
        self.fault: Fault | None = None
        self.ended = threading.Event()
        self.requests: list[str] = []
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
        self._server.hub = self  # type: ignore[attr-defined]

    def commit(self, repository: str) -> str:
        return hashlib.sha1(repr(sorted(self.repositories[repository].items())).encode()).hexdigest()

    def environment(self, home: Path, **changes: str) -> dict[str, str]:
        """The environment of a child process that takes this server for the Hub and has an empty cache in `home`."""
        inherited = {k: v for k, v in os.environ.items() if not k.startswith("HF_")}
        endpoint = f"http://127.0.0.1:{self._server.server_port}"
        return inherited | {"HF_ENDPOINT": endpoint, "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1"} | changes

    def __enter__(self) -> HubServer:
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.ended.set()
        self._server.shutdown()
        self._server.server_close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *args: object) -> None:
        pass

    def do_GET(self) -> None:
        hub: HubServer = self.server.hub  # type: ignore[attr-defined]
        path = unquote(urlsplit(self.path).path)
        payload = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        request = f"{self.command} {path}"
        hub.requests.append(request)
        fault = hub.fault if hub.fault and hub.fault.hits(request) else None
        if fault and fault.silent:
            hub.ended.wait()
            self.close_connection = True
            return
        if fault and fault.status:
            status, headers, body = fault.status, {}, b""
        else:
            status, headers, body = self._answer(hub, path, payload)
        self.send_response(status)
        for name, value in ({"Content-Length": str(len(body))} | headers).items():
            self.send_header(name, value)
        self.end_headers()
        if fault and fault.flip is not None:
            body = body[: fault.flip] + bytes([body[fault.flip] ^ 1]) + body[fault.flip + 1 :]
        if fault and fault.cut is not None:
            body, self.close_connection = body[: fault.cut], True
        if self.command != "HEAD":
            size = 2**15 if fault and fault.pause else len(body) or 1
            for start in range(0, len(body), size):
                self.wfile.write(body[start : start + size])
                time.sleep(fault.pause if fault else 0)
        if fault and fault.reset:
            self.wfile.flush()
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            os.close(self.connection.detach())

    do_HEAD = do_POST = do_GET

    def _answer(self, hub: HubServer, path: str, payload: bytes) -> tuple[int, dict[str, str], bytes]:
        file = re.fullmatch(r"/(datasets/)?([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path)
        listing = re.fullmatch(r"/api/(datasets|models)/([^/]+/[^/]+)/(tree|paths-info)/([^/]+)/?(.*)", path)
        info = re.fullmatch(r"/api/(datasets|models)/([^/]+/[^/]+)(?:/revision/(.+))?", path)
        if file:
            name, revision = f"{file[1] or 'models/'}{file[2]}", file[3]
        elif listing:
            name, revision = f"{listing[1]}/{listing[2]}", listing[4]
        elif info:
            name, revision = f"{info[1]}/{info[2]}", info[3] or "main"
        else:
            return 404, {}, b""
        refused = self._refusal(hub, name, revision, is_file=file is not None)
        if refused:
            return refused
        files, commit = hub.repositories[name], hub.commit(name)
        if file:
            if file[4] not in files:
                return 404, {"X-Error-Code": "EntryNotFound"}, b""
            content = files[file[4]]
            return 200, {"ETag": f'"{_oids(content, file[4])[0]}"', "X-Repo-Commit": commit}, content
        if listing:
            wanted = _json_or_form(payload)["paths"] if listing[3] == "paths-info" else None
            entries = [
                _entry(path, content)
                for path, content in files.items()
                if (path in wanted if wanted is not None else path.startswith(listing[5]))
            ]
            return _json(entries)
        siblings = [{"rfilename": path} for path in files]
        return _json({"id": name.partition("/")[2], "sha": commit, "siblings": siblings, "tags": []})

    def _refusal(
        self, hub: HubServer, name: str, revision: str, is_file: bool
    ) -> tuple[int, dict[str, str], bytes] | None:
        token = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
        if token not in ("", TOKEN):
            return 401, {"X-Error-Message": "Invalid credentials in Authorization header"}, b""
        if name not in hub.repositories:
            return 401, {"X-Error-Code": "RepoNotFound"}, b""
        if revision not in ("main", hub.commit(name)):
            return 404, {"X-Error-Code": "RevisionNotFound"}, b""
        if is_file and name in hub.gated and token != TOKEN:
            return 401, {"X-Error-Code": "GatedRepo"}, b""
        return None


def _oids(content: bytes, name: str) -> tuple[str, str]:
    """The id under which the Hub stores a file, and its git id: large kinds are stored by their SHA-256."""
    git = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
    return (hashlib.sha256(content).hexdigest() if name.endswith(".parquet") else git), git


def _entry(name: str, content: bytes) -> dict[str, Any]:
    oid, git = _oids(content, name)
    entry = {"type": "file", "path": name, "size": len(content), "oid": git}
    lfs = {"oid": oid, "size": len(content), "pointerSize": 134}
    return entry | {"lfs": lfs} if oid != git else entry


def _json(content: object) -> tuple[int, dict[str, str], bytes]:
    return 200, {"Content-Type": "application/json"}, json.dumps(content).encode()


def _json_or_form(payload: bytes) -> dict[str, list[str]]:
    from urllib.parse import parse_qs

    try:
        content = json.loads(payload)
    except ValueError:
        return parse_qs(payload.decode())
    return {"paths": [content["paths"]] if isinstance(content["paths"], str) else content["paths"]}

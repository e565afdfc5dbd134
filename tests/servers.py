"""A real MLflow server on loopback, and a way to it that can be slow, stop, refuse, or not be there."""

from __future__ import annotations

import contextlib
import http.client
import math
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import psutil


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class MlflowServer:
    """`mlflow server` with its store and artifacts in a folder; it can be killed, frozen and started again."""

    def __init__(self, folder: Path, store: str | None = None):
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.port = folder, free_port()
        self.uri = f"http://127.0.0.1:{self.port}"
        self._store = store or f"sqlite:///{folder}/store.db"
        self.start()

    def start(self) -> None:
        command = [
            sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(self.port), "--workers", "1",
            "--backend-store-uri", self._store, "--artifacts-destination", str(self.folder / "artifacts"),
        ]  # fmt: skip
        environment = os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
        with (self.folder / "log").open("a") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log, env=environment)
        while not _answers(self.port):
            assert self._process.poll() is None, (self.folder / "log").read_text()
            time.sleep(0.2)

    def _signal(self, number: signal.Signals) -> None:
        server = psutil.Process(self._process.pid)
        for process in [server, *server.children(recursive=True)]:
            with contextlib.suppress(psutil.NoSuchProcess):  # a child that has ended meanwhile
                process.send_signal(number)

    def freeze(self) -> None:
        self._signal(signal.SIGSTOP)

    def thaw(self) -> None:
        self._signal(signal.SIGCONT)

    def kill(self) -> None:
        self._signal(signal.SIGKILL)
        self._process.wait()


def _answers(port: int) -> bool:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    try:
        connection.request("GET", "/health")
        return connection.getresponse().status == 200
    except OSError:
        return False
    finally:
        connection.close()


class Way(ThreadingHTTPServer):
    """Forwards requests to a server: `delay` seconds after each has come, and no more than `answers` of them, after
    which it keeps the others waiting; or none, and answers with the status `refusal`."""

    daemon_threads = True

    def __init__(self, server: MlflowServer, port: int = 0):
        super().__init__(("127.0.0.1", port), _Forward)
        self.target, self.delay, self.answers, self.refusal = server.port, 0.0, math.inf, 0
        self.uri = f"http://127.0.0.1:{self.server_address[1]}"
        self.released = threading.Event()
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def let_go(self) -> None:
        """Those it keeps waiting get no answer, those that come now do."""
        self.answers, self.refusal = math.inf, 0
        self.released.set()

    def close(self) -> None:
        self.shutdown()
        self.server_close()


class _Forward(BaseHTTPRequestHandler):
    server: Way

    def _forward(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        time.sleep(self.server.delay)
        if self.server.refusal:
            self.send_error(self.server.refusal)
            return
        self.server.answers -= 1
        if self.server.answers < 0:
            self.server.released.wait()
            return
        connection = http.client.HTTPConnection("127.0.0.1", self.server.target)
        connection.request(self.command, self.path, body, dict(self.headers))
        answer = connection.getresponse()
        content = answer.read()
        self.send_response(answer.status)
        for name in ("Content-Type", "Content-Disposition"):
            if value := answer.headers.get(name):
                self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = _forward

    def log_message(self, format: str, *args: object) -> None:
        pass

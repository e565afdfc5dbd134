"""Processes of the project that start at once: forked from one that has imported PyTorch and MLflow already.

To the module that runs it is as if `python -m MODULE` or `python -c CODE` had started it, in a process of its own that
can be killed; but importing what every stage imports takes longer than most stages do, and is done once for all tests.
The stages of a `dvc repro` start so too, in an environment whose `python` is that of `quick_environment()`. In a copy
of the repository `stages` is the copy's, but the package custom_transformer is this repository's.
"""

from __future__ import annotations

import atexit
import functools
import json
import multiprocessing
import os
import resource
import runpy
import shlex
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Connection
from multiprocessing.connection import wait as wait_for
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from torch.distributed import TCPStore

from tests.helpers import PIPELINE_ENVIRONMENT, ROOT

PATIENCE = 1800.0  # seconds for what takes some, however busy the machine: no more than a way out of a test that hangs
ENVIRONMENT = PIPELINE_ENVIRONMENT | {"OMP_NUM_THREADS": "1"}
_FORKS = multiprocessing.get_context("forkserver")
_FORKS.set_forkserver_preload(["tests.preload"])
_READERS = ThreadPoolExecutor(64)  # of what each process says: two at a time for each
# To start a process is also to collect the exit codes of those that have ended: one thread at a time.
_STARTS = threading.Lock()

# Hands its arguments, folder, variables and streams over, and ends as the process that was forked for it.
_CLIENT = """
import json, os, socket, sys
address, *arguments = sys.argv[1:]
server = socket.socket(socket.AF_UNIX)
server.connect(address)
socket.send_fds(server, [b"."], [1, 2])
server.sendall(json.dumps([arguments, os.getcwd(), dict(os.environ)]).encode() + b"\\n")
sys.exit(int(server.recv(16)) & 255)
"""


class Process:
    """`python *arguments`, beginning with -m or -c; `largest` is what no file of it may grow beyond, in bytes."""

    def __init__(
        self, *arguments: object, cwd: Path = ROOT, env: Mapping[str, str] | None = None, largest: int | None = None
    ):
        pipes = [_FORKS.Pipe(duplex=False) for _ in range(2)]
        writers = [writer for _, writer in pipes]
        program = ([str(a) for a in arguments], str(cwd), dict(env or os.environ), largest)
        self._process = _started(*program, *writers)
        self._said = [_READERS.submit(_read, reader) for reader, _ in pipes]

    @property
    def pid(self) -> int:
        assert self._process.pid is not None
        return self._process.pid

    def poll(self) -> int | None:
        with _STARTS:
            return self._process.exitcode

    def kill(self) -> None:
        self._process.kill()

    def wait(self, timeout: float = PATIENCE) -> subprocess.CompletedProcess[str]:
        """How it ended, and all that it said."""
        wait_for([self._process.sentinel], timeout)
        code = self.poll()
        assert code is not None, f"{self.pid} still runs after {timeout} s"
        output, errors = (text.result() for text in self._said)
        return subprocess.CompletedProcess([], code, output, errors)


class Group(list[Process]):
    """The same program in `count` processes, with the variables that torchrun would set, and a store as it has one."""

    def __init__(self, count: int, *arguments: object, env: Mapping[str, str] = ENVIRONMENT, **options: Any):
        self.store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
        address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(self.store.port), "WORLD_SIZE": str(count)}
        of_torchrun = {"TORCHELASTIC_USE_AGENT_STORE": "True", "TORCHELASTIC_RESTART_COUNT": "0"}
        shared = {**env, **address, **of_torchrun}
        super().__init__(Process(*arguments, env=shared | {"RANK": str(rank)}, **options) for rank in range(count))


def run(
    *arguments: object, cwd: Path = ROOT, env: Mapping[str, str] | None = None, largest: int | None = None
) -> subprocess.CompletedProcess[str]:
    return Process(*arguments, cwd=cwd, env=env, largest=largest).wait()


@functools.cache
def quick_python() -> Path:
    """A program that does as `python -m MODULE` or `python -c CODE` would; but a fork does it, and reads no input."""
    folder = Path(tempfile.mkdtemp())
    atexit.register(shutil.rmtree, folder)
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(folder / "socket"))
    listener.listen()
    threading.Thread(target=_serve, args=(listener,), daemon=True).start()
    (folder / "client.py").write_text(_CLIENT)
    command = shlex.join([sys.executable, "-IS", str(folder / "client.py"), str(folder / "socket")])
    (folder / "python").write_text(f'#!/bin/sh\nexec {command} "$@"\n')
    (folder / "python").chmod(0o755)
    return folder / "python"


def quick_environment() -> dict[str, str]:
    """ENVIRONMENT, in which `python` is the quick one."""
    return ENVIRONMENT | {"PATH": f"{quick_python().parent}{os.pathsep}{ENVIRONMENT['PATH']}"}


def _serve(listener: socket.socket) -> None:
    while True:
        threading.Thread(target=_answer, args=listener.accept()[:1], daemon=True).start()


def _answer(connection: socket.socket) -> None:
    with connection:
        _, streams, _, _ = socket.recv_fds(connection, 1, 2)
        arguments, cwd, env = json.loads(connection.makefile().readline())
        process = _started(arguments, cwd, env, None, *(Connection(stream) for stream in streams))
        if process.sentinel not in wait_for([process.sentinel, connection]):
            process.kill()  # as the client has been
            return
        with _STARTS:
            code = process.exitcode
        connection.sendall(str(code).encode())


def _started(*program: Any) -> BaseProcess:
    """A fork that runs `program`, the arguments of `_run`; the last two, its streams, are closed here."""
    process = _FORKS.Process(target=_run, args=program)
    with _STARTS:
        process.start()
    for stream in program[-2:]:
        stream.close()
    return process


def _read(pipe: Connection) -> str:
    with open(pipe.fileno(), encoding="utf-8", closefd=False) as file:
        return file.read()


def _run(
    arguments: list[str], cwd: str, env: dict[str, str], largest: int | None, output: Connection, errors: Connection
) -> None:
    os.environ.clear()
    os.environ.update(env)
    os.chdir(cwd)
    sys.path.insert(0, cwd)
    for number, pipe in ((1, output), (2, errors)):
        os.dup2(pipe.fileno(), number)
        pipe.close()
    if largest is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (largest, largest))
    kind, what, *sys.argv[1:] = arguments
    if kind == "-m":
        runpy.run_module(what, run_name="__main__", alter_sys=True)
    else:
        exec(compile(what, "<string>", "exec"), {"__name__": "__main__"})

"""Processes of the project that start at once: forked from one that has imported PyTorch and MLflow already.

To the module that runs it is as if `python -m MODULE` or `python -c CODE` had started it, in a process of its own that
can be killed; but importing what every stage imports takes longer than most stages do, and is done once for all tests.
"""

from __future__ import annotations

import multiprocessing
import os
import resource
import runpy
import subprocess
import sys
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from torch.distributed import TCPStore

from tests.helpers import PIPELINE_ENVIRONMENT, ROOT

PATIENCE = 1800.0  # seconds for what takes some, however busy the machine: no more than a way out of a test that hangs
ENVIRONMENT = PIPELINE_ENVIRONMENT | {"OMP_NUM_THREADS": "1"}
_FORKS = multiprocessing.get_context("forkserver")
_FORKS.set_forkserver_preload(["tests.preload"])
_READERS = ThreadPoolExecutor(64)  # of what each process says: two at a time for each


class Process:
    """`python *arguments`, beginning with -m or -c; `largest` is what no file of it may grow beyond, in bytes."""

    def __init__(
        self, *arguments: object, cwd: Path = ROOT, env: Mapping[str, str] | None = None, largest: int | None = None
    ):
        pipes = [_FORKS.Pipe(duplex=False) for _ in range(2)]
        writers = [writer for _, writer in pipes]
        program = ([str(a) for a in arguments], str(cwd), dict(env or os.environ), largest)
        self._process = _FORKS.Process(target=_run, args=(*program, *writers))
        self._process.start()
        for writer in writers:
            writer.close()
        self._said = [_READERS.submit(_read, reader) for reader, _ in pipes]

    @property
    def pid(self) -> int:
        assert self._process.pid is not None
        return self._process.pid

    def poll(self) -> int | None:
        return self._process.exitcode

    def kill(self) -> None:
        self._process.kill()

    def wait(self, timeout: float = PATIENCE) -> subprocess.CompletedProcess[str]:
        """How it ended, and all that it said."""
        self._process.join(timeout)
        code = self._process.exitcode
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

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
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import IO

from tests.helpers import ROOT

_FORKS = multiprocessing.get_context("forkserver")
_FORKS.set_forkserver_preload(["tests.preload"])


class Process:
    """`python *arguments`, beginning with -m or -c; `largest` is what no file of it may grow beyond, in bytes."""

    def __init__(
        self,
        *arguments: object,
        cwd: Path = ROOT,
        env: Mapping[str, str] | None = None,
        largest: int | None = None,
    ):
        self._output, self._errors = tempfile.NamedTemporaryFile("r"), tempfile.NamedTemporaryFile("r")  # noqa: SIM115
        self._process = _FORKS.Process(
            target=_run,
            args=([str(a) for a in arguments], str(cwd), dict(env or os.environ), largest),
            kwargs={"output": self._output.name, "errors": self._errors.name},
        )
        self._process.start()

    @property
    def pid(self) -> int:
        assert self._process.pid is not None
        return self._process.pid

    def poll(self) -> int | None:
        return self._process.exitcode

    def kill(self) -> None:
        self._process.kill()

    def wait(self, timeout: float = 300) -> subprocess.CompletedProcess[str]:
        """How it ended, and all that it said."""
        self._process.join(timeout)
        code = self._process.exitcode
        assert code is not None, f"still running after {timeout} s: {_text(self._errors)}"
        return subprocess.CompletedProcess([], code, _text(self._output), _text(self._errors))


def run(
    *arguments: object, cwd: Path = ROOT, env: Mapping[str, str] | None = None, largest: int | None = None
) -> subprocess.CompletedProcess[str]:
    return Process(*arguments, cwd=cwd, env=env, largest=largest).wait()


def _text(file: IO[str]) -> str:
    file.seek(0)
    return file.read()


def _run(arguments: list[str], cwd: str, env: dict[str, str], largest: int | None, output: str, errors: str) -> None:
    os.environ.clear()
    os.environ.update(env)
    os.chdir(cwd)
    sys.path.insert(0, cwd)
    for number, name in ((1, output), (2, errors)):
        os.dup2(os.open(name, os.O_WRONLY | os.O_APPEND), number)
    if largest is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (largest, largest))
    kind, what, *sys.argv[1:] = arguments
    if kind == "-m":
        runpy.run_module(what, run_name="__main__", alter_sys=True)
    else:
        exec(compile(what, "<string>", "exec"), {"__name__": "__main__"})

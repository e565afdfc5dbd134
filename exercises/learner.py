"""The learner's file: reading it, calling it for a limited time, and saying which of its lines failed."""

from __future__ import annotations

import linecache
import os
import signal
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from custom_transformer.errors import brief, one_line
from custom_transformer.files import read_text
from exercises.cases import Functions, Wrong

SECONDS = 5.0  # after which the learner's code is stopped: a right answer takes a hundredth of one
MAX_BYTES = 1 << 20


class _TooLong(BaseException):
    """No Exception, which the learner's code might catch."""


def shown_path(path: Path) -> str:
    """`path` from the current folder, if it lies in it."""
    return os.path.relpath(path) if path.resolve().is_relative_to(Path.cwd()) else str(path)


def load(path: Path, names: Sequence[str]) -> Functions:
    """The functions `names` of the file. Raises Wrong for a file that does not run or lacks one."""
    try:
        source = read_text(path, MAX_BYTES).removeprefix("\ufeff")  # which some editors write first
        code = compile(source, str(path), "exec")
    except SyntaxError as error:
        raise Wrong(_at(path, error.lineno, f"{type(error).__name__}: {error.msg}")) from None
    except UnicodeDecodeError:
        raise Wrong(f"{shown_path(path)}: no UTF-8 text; save it as UTF-8") from None
    except ValueError as error:
        raise Wrong(f"{shown_path(path)}: {one_line(error)}") from None
    namespace: dict[str, Any] = {"__name__": path.stem, "__file__": str(path)}
    with blamed(path):
        exec(code, namespace)
    for name in names:
        if not callable(namespace.get(name)):
            raise Wrong(f"{shown_path(path)} has no function {name}: write it under this name")
    return {name: namespace[name] for name in names}


@contextmanager
def blamed(path: Path, seconds: float | None = None, about: Callable[[], str] = str) -> Iterator[None]:
    """Turns what the learner's code raises in the block into Wrong, with its line; stops it after some seconds.

    about: words that help with an error, such as the sizes of the tensors
    """
    seconds = SECONDS if seconds is None else seconds
    try:
        with _limited(seconds):
            yield
    except Wrong:
        raise
    except NotImplementedError as error:
        if str(error):
            raise Wrong(_at(path, _line(path, error), brief(error))) from None
        raise Wrong(_at(path, _line(path, error), "here your code is still missing")) from None
    except _TooLong as error:
        raise Wrong(
            _at(path, _line(path, error), f"still running after {seconds:g} seconds; does a loop end?")
        ) from None
    except RecursionError as error:
        raise Wrong(_at(path, _line(path, error), "calls itself without end")) from None
    except SystemExit as error:
        raise Wrong(_at(path, _line(path, error), "ends Python; a function has to return")) from None
    except Exception as error:
        words = f"{type(error).__name__}: {one_line(error)}"
        raise Wrong("\n".join(filter(None, [_at(path, _line(path, error), words), about()]))) from None


@contextmanager
def _limited(seconds: float) -> Iterator[None]:
    """Raises _TooLong in the block after `seconds`, in the main thread of a system that has such an alarm."""
    if not hasattr(signal, "setitimer") or threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(*_: object) -> None:
        raise _TooLong

    before = signal.signal(signal.SIGALRM, stop)
    # Again and again: the learner's code may catch even this exception.
    signal.setitimer(signal.ITIMER_REAL, seconds, 0.1)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _line(path: Path, error: BaseException) -> int | None:
    """The last line of the file that was running when the error was raised."""
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
    return lines[-1] if lines else None


def _at(path: Path, line: int | None, words: str) -> str:
    if line is None:
        return f"{shown_path(path)}: {words}"
    linecache.checkcache(str(path))
    text = linecache.getline(str(path), line).strip()
    return f"{shown_path(path)}, line {line}: {words}" + (f"\n    {text}" if text else "")

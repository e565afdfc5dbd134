"""The one exception that people see, and the one place it is shown."""

from __future__ import annotations

import argparse
import re
import reprlib
import sys
import textwrap
from collections.abc import Callable
from typing import NoReturn


class UserError(Exception):
    """Something the person at the terminal can mend.

    Its text is one line that names what is wrong, where, and what to do.
    """


class ArgumentParser(argparse.ArgumentParser):
    """A parser whose complaint about the command line is one line, like every other."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{self.prog}: {message}; see {self.prog} --help")


def one_line(text: object) -> str:
    """`text` on a single line, control characters escaped, so that it cannot disturb a terminal."""
    folded = " ".join(str(text).split())
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in folded)


def lines_only(text: str) -> str:
    """`text` with line breaks and tabs as they are, and other control characters escaped."""
    return "".join(c if c.isprintable() or c in "\n\t" else ascii(c)[1:-1] for c in text)


_SHORT = reprlib.Repr()
_SHORT.maxlevel = 2
_SHORT.maxstring = _SHORT.maxother = 60


def shown(value: object) -> str:
    """`value` as Python writes it, for a message: on one line and short, however large or often nested it is."""
    try:
        return one_line(_SHORT.repr(value))[:80]
    except (ValueError, RecursionError):  # an integer of thousands of digits, say
        return f"{type(value).__name__} that is too large to show"


def brief(error: BaseException) -> str:
    """The kind and the beginning of a library's error, on one line; an address in it is left out, not cut in half."""
    text = re.sub(r"\S*\w+://\S*", "…", one_line(f"{type(error).__name__}: {error}"))
    return textwrap.shorten(text, 120, placeholder=" …")


def run_main(main: Callable[[], None]) -> NoReturn:
    """Runs a program's `main` and exits: 0 on success, 1 after one line on stderr, 130 on Ctrl-C."""
    try:
        main()
    except UserError as error:
        message = one_line(error)
    except OSError as error:  # disk full, read-only folder, ...: the system's own words name the cause
        where = f"{error.filename}: " if error.filename else ""
        message = one_line(f"{where}{error.strerror or error}")
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
    else:
        sys.exit(0)
    print(f"error: {message}", file=sys.stderr)
    sys.exit(1)

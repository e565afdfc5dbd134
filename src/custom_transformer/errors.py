"""The one exception that people see, and the one place it is shown."""

from __future__ import annotations

import argparse
import contextlib
import io
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


class NoFiles(UserError):
    """Nothing that a parameter's path or glob of files could mean is here."""


class ArgumentParser(argparse.ArgumentParser):
    """A parser whose complaint about the command line is one line, like every other."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{self.prog}: {message}; see {self.prog} --help")


# Control characters; what overrides the direction of the text after it; line and paragraph separators; half surrogate
# pairs. Everything else is text: no-break and ideographic spaces, joiners, variation selectors, characters that are
# newer than this Python.
_DISTURBING = re.compile(r"[\x00-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\u2028\u2029\ud800-\udfff]")


def escaped(text: str, keep: str = "") -> str:
    """`text` with \\xNN or \\uNNNN for each character that could disturb a terminal or page, except those in `keep`."""
    return _DISTURBING.sub(lambda found: found[0] if found[0] in keep else ascii(found[0])[1:-1], text)


def one_line(text: object) -> str:
    """`text` on a single line, so that it cannot disturb a terminal."""
    return escaped(re.sub(r"[ \t\n\r\f\v]+", " ", str(text)).strip(" "))


def lines_only(text: str) -> str:
    """`text` with line breaks and tabs as they are, and what could disturb a terminal or page escaped."""
    return escaped(text.replace("\r\n", "\n"), keep="\n\t")


class _Short(reprlib.Repr):
    """Python's way to write values, but text in it as `escaped` shows it: Python also escapes no-break spaces."""

    def repr_str(self, text: str, level: int) -> str:
        most = self.maxstring
        cut = text if len(text) <= most else f"{text[: most // 2]}...{text[-most // 2 :]}"
        return f"'{escaped(cut)}'"


_SHORT = _Short()
_SHORT.maxlevel = 2
_SHORT.maxstring = _SHORT.maxother = 60


def shown(value: object) -> str:
    """`value` for a message: on one line and short, however large or often nested it is."""
    try:
        return one_line(_SHORT.repr(value))[:80]
    except (ValueError, RecursionError):  # an integer of thousands of digits, say
        return f"{type(value).__name__} that is too large to show"


def brief(error: BaseException) -> str:
    """The kind and the beginning of a library's error, on one line; an address in it is left out, not cut in half."""
    text = re.sub(r"\S*\w+://\S*", "…", one_line(f"{type(error).__name__}: {error}"))
    return textwrap.shorten(text, 120, placeholder=" …")


def run_main(main: Callable[[], None]) -> NoReturn:
    """Runs a program's `main` and exits: 0 on success, 1 after one line on stderr, 130 on Ctrl-C.

    A character that the terminal's encoding lacks is printed as \\uNNNN.
    """
    for stream in (sys.stdout, sys.stderr):
        # Where a pipe has taken the place of a file, the stream is changed and then looks in vain for its position.
        with contextlib.suppress(OSError):
            if isinstance(stream, io.TextIOWrapper):
                stream.reconfigure(errors="backslashreplace")
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

"""Text that people or models wrote, put into Markdown so that it is shown as it is and lays nothing out."""

from __future__ import annotations

import re

from custom_transformer.errors import lines_only, one_line


def fenced(text: str) -> str:
    """`text` as a block of its own."""
    shown = lines_only(text)
    fence = _longer_than_any(shown, at_least=3)
    return f"{fence}text\n{shown}\n{fence}"


def code_span(text: str) -> str:
    """`text` on one line, within a sentence or a heading."""
    shown = one_line(text)
    ticks = _longer_than_any(shown, at_least=1)
    space = " " if shown.startswith("`") or shown.endswith("`") else ""
    return f"{ticks}{space}{shown}{space}{ticks}"


def cell(value: object) -> str:
    """`value` as a cell of a table: text as it is, everything else as Python writes it."""
    return code_span(value).replace("|", "\\|") if isinstance(value, str) else str(value)


def _longer_than_any(text: str, at_least: int) -> str:
    """Backticks, more than there are in a row in `text`."""
    return "`" * max(at_least, *(len(run) + 1 for run in re.findall("`+", text)), 0)

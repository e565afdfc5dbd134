"""The values of a JSON file, one at a time: such a file may be larger than the memory."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from custom_transformer.errors import UserError, one_line
from custom_transformer.text.plain_text import blocks

_BETWEEN = re.compile(r"[\s,]*")


def decoded(text: str) -> Any:
    """The one value in `text`. Integers become floats, which may have any number of digits."""
    return json.loads(text, parse_int=float)


def json_values(path: Path, most: int) -> Iterator[tuple[int, Any]]:
    """Each item of the file's one list, or each of several values one after another, with the line it begins in.

    Raises UserError for what is not JSON, for a list that does not end, and for a value of more than `most` characters.
    """
    decode = json.JSONDecoder(parse_int=float).raw_decode
    more = blocks(path)
    text, at = "", 0  # a part of the file, and how far it has been read
    line, counted = 1, 0  # the line there is at `counted`
    in_list: bool | None = None  # None: before the first value
    closed = False
    while True:
        at = _BETWEEN.match(text, at).end()  # type: ignore[union-attr]  # it matches anywhere
        line, counted = line + text.count("\n", counted, at), at
        if at == len(text):
            if (block := next(more, None)) is None:
                break
            text, at, counted = block, 0, 0
            continue
        if closed:
            raise UserError(f"{path}: line {line} goes on after the end of the list; is it one file?")
        if in_list is None:
            in_list = text[at] == "["
            at += in_list
            continue
        if in_list and text[at] == "]":
            closed = True
            at += 1
            continue
        try:
            value, end = decode(text, at)
        except json.JSONDecodeError as error:
            # At the end of `text`, or in a string that began earlier, only more text tells.
            incomplete = error.pos > len(text) - 16 or error.msg.startswith("Unterminated string")
            if incomplete and len(text) - at > most:
                raise UserError(
                    f"{path}: line {line} begins a value longer than {most >> 20} MiB; break it up"
                ) from None
            if incomplete and (block := next(more, None)) is not None:
                text, at, counted = text[at:] + block, 0, 0
                continue
            line += text.count("\n", at, error.pos)
            raise UserError(f"{path}: line {line} is not JSON: {error.msg}") from None
        except RecursionError as error:
            raise UserError(f"{path}: line {line} is not JSON: {one_line(error)[:100]}") from None
        yield line, value
        at = end
    if in_list and not closed:
        raise UserError(f"{path}: the list does not end; is the file whole?")

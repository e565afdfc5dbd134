"""Text files, decompressed and decoded, in lines or in documents: in pieces, so that memory use is bounded."""

from __future__ import annotations

import codecs
import contextlib
import io
import re
import shlex
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

import pyarrow as pa

from custom_transformer.errors import UserError, one_line
from custom_transformer.text.documents import batches

COMPRESSIONS = {".gz": "gzip", ".bz2": "bz2", ".zst": "zstd"}
# By the bytes that a file begins with. UTF-32's mark begins with UTF-16's.
ENCODINGS = {
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
MAX_DOCUMENT = 1 << 20  # characters of a document in a text file; a longer one is cut into several
LOOK = 64 << 20  # characters that decide what parts a file's documents

# What parts documents. A line break is always "\n" here, and the text begins with one.
END_TOKENS = re.compile(r"<\|(?:end|start)oftext\|>")
BLANK_LINES = re.compile(r"\n(?:[^\S\n]*\n)+")
LINES = re.compile(r"\n")
# At the border of a line, or of a text: a sentence that names the token does not part anything.
_BORDER = re.compile(rf"(?:\n[^\S\n]*|[\w.!?…。！？]){END_TOKENS.pattern}|{END_TOKENS.pattern}[^\S\n]*\n")
_BLANK_THEN_TEXT = re.compile(r"\n[^\S\n]*\n\s*\S")


def pieces(path: Path, most: int, newline: str | None = None) -> Iterator[tuple[int, str]]:
    """Each line with its number, from 1; one of more than `most` characters in several pieces of the same number.

    The encoding is UTF-8, or UTF-16 or UTF-32 where a byte order mark says so. A line ends with "\\n", "\\r" or both;
    newline: None to get each of them as "\\n", "" to get them as they are. Raises UserError for a damaged file, and
    for bytes that are no text.
    """
    number = 1
    with _opened(path) as stream:
        head = stream.peek(4)
        encoding = next((name for mark, name in ENCODINGS.items() if head.startswith(mark)), "utf-8")
        text = io.TextIOWrapper(stream, encoding, newline=newline)
        while True:
            try:
                piece = text.readline(most)
            except UnicodeDecodeError as error:
                before = error.object[: error.start].decode(error.encoding, "replace")  # of what is not yet given out
                line = number + len(re.findall(r"\r\n?|\n", before))
                raise UserError(
                    f"{path}: line {line} is not {encoding.removesuffix('-sig').upper()} text ({error.reason}); "
                    f"convert the file from its encoding, perhaps {_conversion(path, 'WINDOWS-1252')}"
                ) from None
            if not piece:
                return
            if "\0" in piece:
                raise UserError(f"{path}: line {number} holds a zero byte; is it a binary file?{_wide(path, head)}")
            yield number, piece
            number += piece[-1] in "\r\n"


def lines(path: Path, most: int, newline: str | None = None) -> Iterator[tuple[int, str]]:
    """Each line with its number, from 1, as `pieces`; raises UserError for one of more than `most` characters."""
    for number, line in pieces(path, most + 1, newline):
        if len(line) > most:
            raise UserError(f"{path}: line {number} is longer than {most >> 20} MiB; break it up")
        yield number, line


def blocks(path: Path) -> Iterator[str]:
    """The whole text in blocks of about MAX_DOCUMENT characters, each line break as "\\n"."""
    some = batches((piece for _, piece in pieces(path, MAX_DOCUMENT)), len, MAX_DOCUMENT, MAX_DOCUMENT)
    return map("".join, some)


def what_parts(path: Path, alone: bool) -> re.Pattern[str]:
    """What parts the file's documents, by its beginning, which is all of it up to LOOK characters.

    END_TOKENS if one begins or ends a line, or ends a text; else BLANK_LINES; but LINES if there is no blank line
    between two texts and the file is `alone`: one of several may be one document.
    """
    rest, seen, blank = "", 0, False
    for block in chain(blocks(path), "\n"):
        rest = rest + block if rest.strip() else "\n" + block.lstrip()  # blank lines before any text part nothing
        if "oftext|>" in rest and _BORDER.search(rest):
            return END_TOKENS
        blank = blank or _BLANK_THEN_TEXT.search(rest) is not None
        seen += len(block)
        if seen >= LOOK:
            break
        rest = rest[max(0, len(rest.rstrip()) - 20) :][-MAX_DOCUMENT:]  # where a border may have begun
    return BLANK_LINES if blank or not alone else LINES


def documents(path: Path, separator: re.Pattern[str]) -> Iterator[tuple[str, bool]]:
    """The file's documents, without empty ones and without blank lines around; and whether each was cut off.

    One of more than MAX_DOCUMENT characters is cut into several, before white space if there is any.
    """
    around = None if separator is END_TOKENS else "\n"
    rest = "\n"
    for block in chain(blocks(path), "\n"):
        *whole, rest = separator.split(rest + block)
        yield from ((text, False) for text in (document.strip(around) for document in whole) if text.strip())
        if whole:
            rest = "\n" + rest
        while len(rest) > MAX_DOCUMENT + 16:  # its end may be half a separator
            end = len(rest[: max(rest.rfind(" ", 0, MAX_DOCUMENT), rest.rfind("\n", 0, MAX_DOCUMENT)) + 1].rstrip())
            end = end or MAX_DOCUMENT
            if (text := rest[:end].strip("\n")).strip():
                yield text, True
            rest = rest[end:]
    if (text := rest.strip(around)).strip():
        yield text, False


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[io.BufferedReader]:
    """The file's bytes, decompressed if its name says that they are compressed."""
    kind = COMPRESSIONS.get(path.suffix.lower())
    if kind is None:
        with path.open("rb") as file:
            yield file
        return
    try:
        with pa.input_stream(str(path), compression=kind) as stream:
            yield io.BufferedReader(stream)
    except OSError as error:
        if error.errno is not None:
            raise
        raise UserError(f"{path}: damaged, or not compressed as {kind} ({one_line(error)[:100]})") from None


def _conversion(path: Path, encoding: str) -> str:
    before = "decompress it, then " if path.suffix.lower() in COMPRESSIONS else ""
    return f"{before}iconv -f {encoding} -t UTF-8 {shlex.quote(path.name)} > NEW"


def _wide(path: Path, head: bytes) -> str:
    """More to say about zero bytes that are every other byte, at least for a while."""
    for first, encoding in ((1, "UTF-16LE"), (0, "UTF-16BE")):
        if 0 in head[first::2] and 0 not in head[1 - first :: 2]:
            return f" If it is {encoding} without a byte order mark: {_conversion(path, encoding)}"
    return ""

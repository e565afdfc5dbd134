"""Local files: every text arrives as it stands, or one line says what is wrong, where and what to do."""

from __future__ import annotations

import datetime
import json
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from custom_transformer.errors import UserError
from custom_transformer.files import sha256_file
from custom_transformer.text import local_files, plain_text
from custom_transformer.text.datasets import download, open_source
from custom_transformer.text.rows import with_text
from custom_transformer.text.sources import digests_of
from tests.text.making import data, parquet

TEXTS = [f"text number {i}" for i in range(40)]


def read(dataset: Path | str, out: Path, **changes: Any) -> list[str]:
    """The texts of the source in its order, which are those of both splits."""
    params = data(**{"dataset": str(dataset), "val_fraction": 0.1, **changes})
    download(params, 0, out)
    tables = [pq.read_table(out / f"{split}.parquet") for split in ("train", "validation")]
    assert [table.column_names for table in tables] == [["text"], ["text"]]
    texts = [row["text"] for row in with_text(open_source(params, 0, out).train)]
    assert sorted(text for table in tables for text in table["text"].to_pylist()) == sorted(texts)
    return texts


# ------------------------------------------------------------------------------------- columns beside the text


def beside_text(**columns: Any) -> bytes:
    return parquet(text=TEXTS, **columns)


def json_lines(first: str, then: str) -> bytes:
    """Rows whose other columns are of one kind in the first 20 and of another afterwards."""
    return "".join(
        f'{{"text": {json.dumps(text)}, {first if i < 20 else then}}}\n' for i, text in enumerate(TEXTS)
    ).encode()


OTHER_COLUMNS: dict[str, tuple[str, bytes]] = {
    "nulls, then a string": ("a.jsonl", json_lines('"x": null', '"x": "y"')),
    "integers, then fractions": ("a.jsonl", json_lines('"x": 3', '"x": 3.5')),
    "numbers, then strings": ("a.jsonl", json_lines('"x": 3', '"x": "three"')),
    "one object, then another": ("a.jsonl", json_lines('"x": {"a": 1}', '"x": {"b": [null]}')),
    "an empty object": ("a.jsonl", json_lines('"x": {}', '"x": {}')),
    "a column that comes later": ("a.jsonl", json_lines('"y": 1', '"x": 1')),
    "beyond 64 bits": ("a.jsonl", json_lines('"x": 1', f'"x": {2**70}')),
    "5,000 digits": ("a.jsonl", json_lines('"x": 1', f'"x": {"9" * 5000}')),
    "half a character": ("a.jsonl", json_lines('"x": "\\ud800"', '"x": 1')),
    "half a character in a name": ("a.jsonl", json_lines('"\\ud800": 1', '"x": 1')),
    "lists 50 deep": ("a.jsonl", json_lines('"x": ' + "[" * 50 + "]" * 50, '"x": 1')),
    "lists 900 deep": ("a.jsonl", json_lines('"x": ' + "[" * 900 + "]" * 900, '"x": 1')),
    "20,000 columns": ("a.jsonl", json_lines('"x": 1', ", ".join(f'"{i}": 1' for i in range(20_000)))),
    "a column's name of a megabyte": ("a.jsonl", json_lines(f'"{"x" * (1 << 20)}": 1', '"x": 1')),
    "decimals": ("a.parquet", beside_text(x=[Decimal(i) / 4 for i in range(40)])),
    "decimals that grow": ("a.parquet", beside_text(x=[Decimal(10) ** (i % 30) for i in range(40)])),
    "nulls in parquet": ("a.parquet", beside_text(x=pa.array([None] * 39 + ["x"], pa.string()))),
    "a column of null's type": ("a.parquet", beside_text(x=pa.nulls(40))),
    "a date beyond the calendar": ("a.parquet", beside_text(x=pa.array([2**31 - 1] * 40, pa.date32()))),
    "nanoseconds": ("a.parquet", beside_text(x=pa.array([1] * 40, pa.timestamp("ns")))),
    "an unsigned integer of 64 bits": ("a.parquet", beside_text(x=pa.array([2**64 - 1] * 40, pa.uint64()))),
    "a time of day": ("a.parquet", beside_text(x=[datetime.time(1)] * 40)),
    "a map": ("a.parquet", beside_text(x=pa.array([[("a", 1)]] * 40, pa.map_(pa.string(), pa.int8())))),
    "bytes": ("a.parquet", beside_text(x=[b"\xff"] * 40)),
    "a column named as part of the text's": ("a.parquet", beside_text(**{"text.x": [1] * 40, "x": [1] * 40})),
    "a field beside the text": ("a.csv", ("text,x\n" + "".join(f"{text},\n" for text in TEXTS)).encode()),
}


@pytest.mark.parametrize("case", OTHER_COLUMNS)
def test_no_other_column_decides_whether_the_text_is_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], case: str
) -> None:
    name, content = OTHER_COLUMNS[case]
    (tmp_path / name).write_bytes(content)
    assert read(tmp_path / name, tmp_path / "raw") == TEXTS
    assert "only the column text is kept; left out: " in capsys.readouterr().out


def test_files_of_different_columns_are_read_together(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.parquet").write_bytes(beside_text(year=[1] * 40))
    (tmp_path / "b.jsonl").write_text('{"text": "of JSON", "year": "MCMXC", "page": 3}\n')
    (tmp_path / "c.csv").write_text("text\nof CSV\n")
    assert read(tmp_path / "*.*", tmp_path / "raw") == [*TEXTS, "of JSON", "of CSV"]
    assert "left out: year, page\n" in capsys.readouterr().out


def test_another_column_may_be_the_text(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": 3, "body": text}) + "\n" for text in TEXTS))
    assert read(tmp_path / "a.jsonl", tmp_path / "raw", text_column="body") == TEXTS
    assert "left out: text\n" in capsys.readouterr().out


def test_numbers_that_csv_holds_stay_as_they_are_written(tmp_path: Path) -> None:
    texts = ["007", "1e3", "NA", "null", "3.10"]
    (tmp_path / "a.csv").write_text("text\n" + "\n".join(texts) + "\n")
    assert read(tmp_path / "a.csv", tmp_path / "raw") == texts


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.jsonl", b'{"text": "a"}\n{"body": "b"}\n', "a.jsonl, line 2, has no such column; there are body"),
        ("a.jsonl", b'{"text": "a"}\n\n{"text": [1]}\n', "a.jsonl, line 3, holds list, not text"),
        ("a.csv", b"text,text\na,b\n", "names the column text 2 times"),
        ("a.csv", b"body,title\na,b\n", "no such column; there are body, title"),
    ],
)
def test_a_row_without_text_is_named(tmp_path: Path, name: str, content: bytes, words: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError) as error:
        read(tmp_path / name, tmp_path / "raw")
    assert words in str(error.value)


# --------------------------------------------------------------------------------------- which files are meant


def put(path: Path, texts: list[str] = TEXTS) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n\n".join(texts), "utf-8")
    return path


@pytest.mark.parametrize(
    "name", ["corpus[1].txt", "what?.txt", "a*.txt", "[!a].txt", "a[.txt", "x[1]/[2]/a.txt", "**/a.txt"]
)
def test_a_file_whose_name_looks_like_a_pattern(tmp_path: Path, name: str) -> None:
    put(tmp_path / name)
    for other in ("corpus1.txt", "whats.txt", "abc.txt", "b.txt", "x1/2/a.txt", "y/a.txt"):
        put(tmp_path / other, ["another text", "and one more"])
    assert read(tmp_path / name, tmp_path / "raw") == TEXTS


@pytest.mark.parametrize("pattern", ["*.txt", "**/*.txt", "b[0-9].txt", "b?.txt"])
@pytest.mark.parametrize("folder", ["texts [1]", "a*", "c?/d"])
def test_a_pattern_in_a_folder_whose_name_looks_like_one(tmp_path: Path, folder: str, pattern: str) -> None:
    put(tmp_path / folder / "b1.txt")
    put(tmp_path / "ax/b1.txt", ["another text", "and one more"])
    assert read(tmp_path / folder / pattern, tmp_path / "raw") == TEXTS


def test_a_pattern_that_a_folder_happens_to_be_named_like_still_finds_files(tmp_path: Path) -> None:
    (tmp_path / "part[12]").mkdir()
    put(tmp_path / "part1/a.txt", TEXTS[:20])
    put(tmp_path / "part2/a.txt", TEXTS[20:])
    assert read(tmp_path / "part[12]/*.txt", tmp_path / "raw") == TEXTS


@pytest.mark.parametrize("name", ["texts/a[1].txt", "texts/*.txt", "texts/a*.txt"])
def test_files_of_a_repository_in_a_folder_with_brackets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """An experiment in a temporary copy, which does not have the files, finds them in the repository."""
    repository = tmp_path / "clone [v1]"
    put(repository / "texts/a[1].txt")
    copy = repository / ".dvc/tmp/exps/tmp1"
    copy.mkdir(parents=True)
    monkeypatch.setenv("DVC_ROOT", str(repository))
    monkeypatch.chdir(copy)
    assert [path.name for path in local_files.local_files(name)] == ["a[1].txt"]
    monkeypatch.chdir(repository)
    assert [path.name for path in local_files.local_files(name)] == ["a[1].txt"]


# ------------------------------------------------------------------------------- kinds, compression, encodings


def as_json(texts: list[str]) -> bytes:
    return json.dumps([{"text": text, "n": i} for i, text in enumerate(texts)], indent=1).encode()


def as_csv(texts: list[str], delimiter: str = ",") -> bytes:
    return "".join(f'{i}{delimiter}"{text}"\r\n' for i, text in enumerate(["text", *texts])).encode()


def as_json_lines(texts: list[str]) -> bytes:
    return "".join(json.dumps({"text": text}) + "\n" for text in texts).encode()


KINDS: dict[str, bytes] = {
    "txt": "\n\n".join(TEXTS).encode(),
    "TXT": "\n\n".join(TEXTS).encode(),
    "text": "\n\n".join(TEXTS).encode(),
    "md": "\n\n".join(TEXTS).encode(),
    "jsonl": as_json_lines(TEXTS),
    "ndjson": as_json_lines(TEXTS),
    "json": as_json(TEXTS),
    "csv": as_csv(TEXTS),
    "tsv": as_csv(TEXTS, "\t"),
}


def compressed(content: bytes, codec: str) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, codec) as stream:
        stream.write(content)
    return sink.getvalue().to_pybytes()


CODECS = {"": None, ".gz": "gzip", ".zst": "zstd", ".bz2": "bz2", ".GZ": "gzip"}


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("kind", KINDS)
def test_kinds_of_files(tmp_path: Path, kind: str, codec: str) -> None:
    path = tmp_path / f"some.texts.{kind}{codec}"
    path.write_bytes(compressed(KINDS[kind], CODECS[codec]) if codec else KINDS[kind])
    assert read(path, tmp_path / "raw") == TEXTS


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_byte_order_mark_names_the_encoding(tmp_path: Path, kind: str, encoding: str) -> None:
    texts = [f"{text}, naïve 素朴 🙂" for text in TEXTS]
    made = {"json": as_json, "csv": as_csv, "jsonl": as_json_lines, "ndjson": as_json_lines}
    content = (
        made[kind](texts) if kind in made else as_csv(texts, "\t") if kind == "tsv" else "\n\n".join(texts).encode()
    )
    mark = "\ufeff" if encoding.endswith("e") else ""
    (tmp_path / f"a.{kind}").write_bytes((mark + content.decode()).encode(encoding))
    assert read(tmp_path / f"a.{kind}", tmp_path / "raw") == texts


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.txt", "one\n\ntwo".encode("utf-16-le"), "UTF-16LE without a byte order mark: iconv -f UTF-16LE -t UTF-8 "),
        ("a.csv", "text\n1\n2".encode("utf-16-be"), "UTF-16BE without a byte order mark: iconv -f UTF-16BE -t UTF-8 "),
        ("a.jsonl", "один два".encode("utf-16-le"), "UTF-16LE without a byte order mark: iconv"),
        ("a.txt", b"one\n\ntwo\xe9\n", "line 3 is not UTF-8 text"),
        ("a.txt", b"one\rtwo\r\nthree\n" * 9000 + b"caf\xe9", "line 27001 is not UTF-8 text"),
        ("a.jsonl", b'{"text": "a"}\n' * 5000 + b'\n{"text": "caf\xe9"}\n', "line 5002 is not UTF-8 text"),
        ("a.csv", "text\ncafé\n".encode("latin-1"), "line 2 is not UTF-8 text (invalid continuation byte); convert"),
        ("a.txt", "one\n\ntwo".encode("utf-16")[:-1], "line 3 is not UTF-16 text (truncated data)"),
        ("a.txt", b"one\n\0\x01two", "line 2 holds a zero byte; is it a binary file?"),
        ("a.txt.gz", compressed(b"one\n\ntwo", "gzip")[:-4], "damaged, or not compressed as gzip"),
        ("a.jsonl.zst", b'{"text": "a"}\n', "damaged, or not compressed as zstd"),
        ("a.parquet.gz", b"", "cannot be read as text; give .txt, "),
        ("a.json", b'[{"text": "a"}, {"text": "b"}', "the list does not end"),
        ("a.json", b'[{"text": "a"},\n {"text": "b"},\n {"text": c}]', "line 3 is not JSON: Expecting value"),
        ("a.json", b'{"text": "a"}\n{"text": "b"', "line 2 is not JSON"),
        ("a.json", b'[{"text": "a"}]\n[{"text": "b"}]', "line 2 goes on after the end of the list"),
        ("a.json", b'{"data": [{"text": "a"}]}', "has no such column; there are data"),
        ("a.json", b'[["a"], ["b"]]', "line 1 is list, not an object"),
        ("a.json", b"[" * 100_000, "not JSON|is list"),
    ],
)
def test_what_cannot_be_read_says_why(tmp_path: Path, name: str, content: bytes, words: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError) as error:
        read(tmp_path / name, tmp_path / "raw")
    assert any(some in str(error.value) for some in words.split("|"))


def test_json_may_be_larger_than_what_is_read_at_once(tmp_path: Path) -> None:
    texts = [f"{i}: " + 'a "quoted" {brace} [list], é\n' * 40_000 for i in range(6)]
    for name, content in (("a.json", as_json(texts)), ("b.json", as_json_lines(texts)), ("c.json", json.dumps(texts))):
        (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
        assert read(tmp_path / name, tmp_path / "raw") == texts


def test_broken_json_is_found_where_it_is(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('[{"text": "a"},\n{"text" "b"},\n' + '{"text": "c"},\n' * 300_000 + "]")
    with pytest.raises(UserError, match="line 2 is not JSON"):
        read(tmp_path / "a.json", tmp_path / "raw")


def test_all_files_of_a_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "texts"
    put(folder / "a.txt", TEXTS[:10])
    put(folder / "b/c.MD", TEXTS[10:20])
    (folder / "d.jsonl").write_bytes(as_json_lines(TEXTS[20:]))
    put(folder / ".hidden.txt", ["hidden"])
    put(folder / ".git/a.txt", ["hidden"])
    put(folder / "e.pdf", ["%PDF"])
    for name in (folder, f"{folder}/"):
        assert read(name, tmp_path / "raw") == TEXTS
    assert "not read, as they are of other kinds: e.pdf\n" in capsys.readouterr().out  # once per download


@pytest.mark.parametrize("name", ["empty", ".", "..", "/"])
def test_a_folder_without_texts_or_with_the_repository(tmp_path: Path, name: str) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"can be read as text; give|holds the repository"):
        read(tmp_path / name if name == "empty" else name, tmp_path / "raw")


# ---------------------------------------------------------------------------------------- what parts documents

LF = "a\nb\n\nc\n\n\nd\n"
PARTED: dict[str, tuple[str, list[str], str]] = {
    "blank lines": (LF, ["a\nb", "c", "d"], "blank lines and the ends of files part the documents"),
    "carriage returns": (LF.replace("\n", "\r"), ["a\nb", "c", "d"], "sed G FILE > NEW"),
    "both": (LF.replace("\n", "\r\n"), ["a\nb", "c", "d"], "blank lines"),
    "blanks in blank lines": ("\n \n  a\n b \n \t\n\u3000\nc\n  \n", ["  a\n b ", "c"], "blank lines"),
    "one text a line": ("Ann\nBob\nCid\n", ["Ann", "Bob", "Cid"], "each line is a document"),
    "one text a line, by carriage return": ("Ann\rBob\rCid", ["Ann", "Bob", "Cid"], "put blank lines between"),
    "blank lines around": ("\n\nAnn\nBob\n\n\n", ["Ann", "Bob"], "each line is a document"),
    "end tokens": (
        "Once.\n\nMore.\n<|endoftext|>\n\nTwice.\n\n  More.\n\n<|endoftext|>\nThrice.\n",
        ["Once.\n\nMore.", "Twice.\n\n  More.", "Thrice."],
        "<|endoftext|> parts the documents",
    ),
    "end tokens at the ends of lines": (
        "One.<|endoftext|>\nTwo.\nMore.<|endoftext|>",
        ["One.", "Two.\nMore."],
        "parts",
    ),
    "end tokens at the beginnings": ("<|endoftext|>One.\n\nMore.<|endoftext|>Two.", ["One.\n\nMore.", "Two."], "parts"),
    "end tokens between texts": ("One.\n\nMore<|endoftext|>Two.\n\nMore.", ["One.\n\nMore", "Two.\n\nMore."], "parts"),
    "end tokens as a topic": (
        "The token `<|endoftext|>` ends.\n\nA token <|endoftext|> is one.\n\n('<|endoftext|>', \"<|endoftext|>\").",
        ["The token `<|endoftext|>` ends.", "A token <|endoftext|> is one.", "('<|endoftext|>', \"<|endoftext|>\")."],
        "blank lines",
    ),
    "start tokens": (
        "<|startoftext|>\nOne.\n\nMore.\n<|endoftext|>\n<|startoftext|>\nTwo.\n<|endoftext|>\n",
        ["One.\n\nMore.", "Two."],
        "parts",
    ),
}


@pytest.mark.parametrize("case", PARTED)
def test_what_parts_documents_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str], case: str) -> None:
    content, texts, words = PARTED[case]
    (tmp_path / "a.txt").write_bytes(content.encode())
    assert read(tmp_path / "a.txt", tmp_path / "raw") == texts
    said = [line for line in capsys.readouterr().out.splitlines() if line.startswith("a.txt: ")]
    assert len(said) == 1
    assert words in said[0]


def test_one_of_several_files_without_blank_lines_is_a_document(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in "abc":
        (tmp_path / f"{name}.txt").write_text(f"a poem\nof {name}\n")
    assert read(tmp_path / "*.txt", tmp_path / "raw") == [f"a poem\nof {name}" for name in "abc"]
    assert "a.txt and 2 others: blank lines and the ends of files part the documents" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "content", "words", "remedy"),
    [
        ("a.txt", "only this", "1 document(s), 1 of them different, cannot be divided", "; a.txt: each line"),
        ("a.txt", "same\n\nsame\n\nsame", "3 document(s), 1 of them different, cannot be divided", "; a.txt: blank"),
        ("a.jsonl", '{"text": "same"}\n' * 9, "9 document(s), 1 of them different, cannot be divided", "; give more"),
    ],
)
def test_texts_that_cannot_be_divided_say_what_parts_them(
    tmp_path: Path, name: str, content: str, words: str, remedy: str
) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(UserError) as error:
        read(tmp_path / name, tmp_path / "raw")
    assert words in str(error.value)
    assert remedy in str(error.value)


@pytest.mark.parametrize("border", ["\n\n", "\n \n\n", "<|endoftext|>\n"])
@pytest.mark.parametrize("shift", [0, 1, 2, 5, 12, 14])
def test_a_border_where_one_block_ends_and_the_next_begins(tmp_path: Path, border: str, shift: int) -> None:
    first = "x" * (plain_text.MAX_DOCUMENT - shift)
    (tmp_path / "a.txt").write_text(first + border + "y\n" + border + "z" + border)
    assert read(tmp_path / "a.txt", tmp_path / "raw") == [first, "y", "z"]


# ----------------------------------------------------------------------------------------------- long lines


def test_a_long_line_is_read_in_pieces(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Such as the text8 corpus: 100 MB of words in one line."""
    text = "".join(f" anarchism originated {i} times" for i in range(2_200_000))
    assert len(text) > local_files.MAX_LINE_BYTES
    (tmp_path / "a.txt").write_text(text)
    texts = read(tmp_path / "a.txt", tmp_path / "raw", val_fraction=0.05)
    assert "".join(texts) == text
    assert max(map(len, texts)) <= plain_text.MAX_DOCUMENT
    assert all(part.startswith(" ") for part in texts)
    assert f"documents of more than 1,048,576 characters are cut into several, {len(texts) - 1} times" in (
        capsys.readouterr().out
    )


@pytest.mark.parametrize(
    "text", ["a" * 3_000_000, "あ" * 3_000_000, "a line\n" * 400_000, " " + "b" * 3_000_000 + " c"]
)
def test_a_long_document_loses_nothing_where_it_is_cut(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.txt").write_text(f"first\n\n{text}\n\nlast", "utf-8")
    texts = read(tmp_path / "a.txt", tmp_path / "raw")
    assert (texts[0], texts[-1]) == ("first", "last")
    assert 2 < len(texts) < 8
    assert "".join("".join(texts[1:-1]).split()) == "".join(text.split())


# ------------------------------------------------------------------------------------------- lines of CSV files

GOOD = 'text,n\n"first\nof two lines",1\n\n'  # lines 1 to 4


@pytest.mark.parametrize(
    ("end", "words"),
    [
        ("a\n", "line 5 has 1 field where the header has 2"),
        ("a,1,2\n", "line 5 has 3 fields where the header has 2"),
        ('"a\nb"\n', "lines 5 to 6 have 1 field where the header has 2"),
        ('a,1\n"a" b,1\n', "line 6: "),
        ('"a\n" b,1\n', "lines 5 to 6: "),
        ('a,1\n"abc\nd\ne\n', "lines 6 to 8: "),
        ('a,1\n"abc', "line 6: unexpected end of data; is a quote open?"),
        ("a,1\n" * 3 + "b\n", "line 8 has 1 field"),
        ("a,1\n\n\n\nb\n", "line 9 has 1 field"),
        ("a,1\nb,\0\n", "line 6 holds a zero byte"),
    ],
)
@pytest.mark.parametrize("ends", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("suffix", ["csv", "tsv"])
def test_an_error_in_csv_names_its_line(tmp_path: Path, end: str, words: str, ends: str, suffix: str) -> None:
    content = (GOOD + end).replace("\n", ends)
    path = tmp_path / f"a.{suffix}"
    path.write_bytes((content if suffix == "csv" else content.replace(",", "\t")).encode())
    with pytest.raises(UserError) as error:
        read(path, tmp_path / "raw")
    assert f"{path}: {words}" in str(error.value)


def test_a_header_that_cannot_be_read_is_line_1(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text('"text" x,n\na,1\n')
    with pytest.raises(UserError, match=r"a\.csv: line 1: "):
        read(tmp_path / "a.csv", tmp_path / "raw")


def test_line_ends_in_fields_stay_as_they_are(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(b'text\r\n"a\r\nb"\r\n"c\nd"\r\n"e\rf"\r\n')
    assert read(tmp_path / "a.csv", tmp_path / "raw") == ["a\r\nb", "c\nd", "e\rf"]


# --------------------------------------------------------------------------------------------------- digests


@pytest.mark.parametrize("pattern", ["*/a.txt", "**/*.txt", ""])
def test_files_of_equal_name_have_each_their_digest(tmp_path: Path, pattern: str) -> None:
    parts = {"one/a.txt": TEXTS[:20], "two/a.txt": TEXTS[20:]}
    for name, texts in parts.items():
        put(tmp_path / "texts" / name, texts)
    read(tmp_path / "texts" / pattern, tmp_path / "raw")
    source = json.loads((tmp_path / "raw/source.json").read_text())
    assert source["files"] == {name: sha256_file(tmp_path / "texts" / name) for name in parts}


def test_digests_do_not_name_where_the_files_lie(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(tmp_path / "here/texts/a.txt")
    put(tmp_path / "here/texts/b.txt", ["more"])
    monkeypatch.chdir(tmp_path / "here")
    for pattern in ("texts/*.txt", str(tmp_path / "here/texts/*.txt"), "texts", "./texts/../texts/*.txt"):
        assert list(digests_of(local_files.local_files(pattern))) == ["a.txt", "b.txt"]
    assert list(digests_of(local_files.local_files("texts/a.txt"))) == ["a.txt"]

"""Local files: every text arrives as it stands, or one line says what is wrong, where and what to do."""

from __future__ import annotations

import datetime
import io
import json
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from custom_transformer.errors import UserError
from custom_transformer.text.datasets import download
from custom_transformer.text.local_files import local_files
from tests.text.making import data

TEXTS = [f"text number {i}" for i in range(40)]


def read(dataset: Path | str, out: Path, **changes: Any) -> list[str]:
    """The texts of both splits, in order."""
    download(data(**{"dataset": str(dataset), "val_fraction": 0.1, **changes}), 0, out)
    tables = [pq.read_table(out / f"{split}.parquet") for split in ("train", "validation")]
    assert [table.column_names for table in tables] == [["text"], ["text"]]
    return [text for table in tables for text in table["text"].to_pylist()]


# ------------------------------------------------------------------------------------- columns beside the text


def parquet(**columns: Any) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(pa.table({"text": TEXTS} | columns), buffer)
    return buffer.getvalue()


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
    "decimals": ("a.parquet", parquet(x=[Decimal(i) / 4 for i in range(40)])),
    "decimals that grow": ("a.parquet", parquet(x=[Decimal(10) ** (i % 30) for i in range(40)])),
    "nulls in parquet": ("a.parquet", parquet(x=pa.array([None] * 39 + ["x"], pa.string()))),
    "a column of null's type": ("a.parquet", parquet(x=pa.nulls(40))),
    "a date beyond the calendar": ("a.parquet", parquet(x=pa.array([2**31 - 1] * 40, pa.date32()))),
    "nanoseconds": ("a.parquet", parquet(x=pa.array([1] * 40, pa.timestamp("ns")))),
    "an unsigned integer of 64 bits": ("a.parquet", parquet(x=pa.array([2**64 - 1] * 40, pa.uint64()))),
    "a time of day": ("a.parquet", parquet(x=[datetime.time(1)] * 40)),
    "a map": ("a.parquet", parquet(x=pa.array([[("a", 1)]] * 40, pa.map_(pa.string(), pa.int8())))),
    "bytes": ("a.parquet", parquet(x=[b"\xff"] * 40)),
    "a column named as part of the text's": ("a.parquet", parquet(**{"text.x": [1] * 40, "x": [1] * 40})),
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
    (tmp_path / "a.parquet").write_bytes(parquet(year=[1] * 40))
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
    assert [path.name for path in local_files(name)] == ["a[1].txt"]
    monkeypatch.chdir(repository)
    assert [path.name for path in local_files(name)] == ["a[1].txt"]

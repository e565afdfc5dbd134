"""Whatever bytes stand in a file, reading it gives a valid result or one line for the user, in bounded memory."""

from __future__ import annotations

import gzip
import io
import json
import resource
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st

from custom_transformer.config import load_params
from custom_transformer.errors import UserError, one_line
from custom_transformer.runs.checkpoint import load_checkpoint
from custom_transformer.text.datasets import download
from custom_transformer.text.tokens import load_tokens
from tests.faults.originals import META, TOKENS, saved
from tests.helpers import random_model

MEMORY = 1 << 30  # that all examples of a test together may add to the process
PARAMS = Path("params.yaml").read_bytes()
VALUES: Any = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(codec=None)),
    lambda children: st.lists(children, max_size=4) | st.dictionaries(st.text(max_size=8), children, max_size=4),
    max_leaves=12,
)


@pytest.fixture(autouse=True, scope="module")
def bounded_memory() -> Iterator[None]:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    yield
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 < MEMORY


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fuzz")


def reads_or_refuses(read: Callable[[], Any]) -> None:
    try:
        read()
    except UserError as error:
        line = one_line(error)
        assert line.encode()
        assert len(line) < 1000


@st.composite
def damaged(draw: st.DrawFn, original: bytes) -> bytes:
    """`original` with some pieces overwritten, left out, doubled or cut off."""
    content = bytearray(original)
    for _ in range(draw(st.integers(1, 4))):
        start = draw(st.integers(0, len(content)))
        end = min(len(content), start + draw(st.integers(0, 40)))
        content[start:end] = draw(
            st.binary(max_size=40) | st.just(bytes(content[start:end]) * 2) | st.just(b"\0" * (end - start))
        )
    return bytes(content[: draw(st.integers(0, len(content)))] if draw(st.booleans()) else content)


@st.composite
def replaced(draw: st.DrawFn, original: Any) -> Any:
    """`original`, a tree of dictionaries, with one value or one whole branch replaced."""
    if not isinstance(original, dict) or not original or draw(st.integers(0, 3)) == 0:
        return draw(VALUES)
    key = draw(st.sampled_from(sorted(original)) | st.text(max_size=8))
    return original | {key: draw(replaced(original.get(key)))}


# ------------------------------------------------------------------------------------------- parameters


@given(st.one_of(st.binary(), damaged(PARAMS), replaced(yaml.safe_load(PARAMS)).map(lambda c: yaml.dump(c).encode())))
def test_parameters(folder: Path, content: bytes) -> None:
    path = folder / "params.yaml"
    path.write_bytes(content)
    reads_or_refuses(lambda: load_params(path))


# ------------------------------------------------------------------------------------------ checkpoints


def checkpoint() -> bytes:
    buffer = io.BytesIO()
    model = random_model(torch.float32, n_blocks=1, d_model=3, d_ffn=2, vocab_size=5, max_seq_len=4)
    config = model.config.model_dump() | {"dtype": "float32"}
    torch.save({"state_dict": model.state_dict(), "config": config, "metadata": {"step": 3}}, buffer)
    return buffer.getvalue()


CHECKPOINT = checkpoint()
with zipfile.ZipFile(io.BytesIO(CHECKPOINT)) as archive:
    ENTRIES = {name: archive.read(name) for name in archive.namelist()}
PICKLE = next(name for name in ENTRIES if name.endswith("data.pkl"))


def with_pickle(pickled: bytes) -> bytes:
    """The checkpoint with another pickle, its checksums right."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as out:
        for name, content in (ENTRIES | {PICKLE: pickled}).items():
            out.writestr(name, content)
    return buffer.getvalue()


CONTENT = torch.load(io.BytesIO(CHECKPOINT), weights_only=True)


@given(
    st.one_of(
        st.binary(),
        damaged(CHECKPOINT),
        st.one_of(st.binary(), damaged(ENTRIES[PICKLE])).map(with_pickle),
        replaced(CONTENT).map(saved),
    )
)
def test_checkpoints(folder: Path, content: bytes) -> None:
    path = folder / "model.pt"
    path.write_bytes(content)
    reads_or_refuses(lambda: load_checkpoint(path).build_model())


# --------------------------------------------------------------------------------------------- tokens


@given(
    st.one_of(st.binary(), damaged(json.dumps(META).encode()), replaced(META).map(lambda m: json.dumps(m).encode())),
    st.just(TOKENS) | damaged(TOKENS),
)
def test_token_folders(folder: Path, meta: bytes, tokens: bytes) -> None:
    (folder / "meta.json").write_bytes(meta)
    (folder / "train.bin").write_bytes(tokens)
    reads_or_refuses(lambda: load_tokens(folder, "train"))


# ------------------------------------------------------------------------------------------ local data

ROWS = [{"text": "one"}, {"text": "two", "n": 2}, {"text": "three", "list": [1, {"a": None}]}]


def parquet() -> bytes:
    buffer = io.BytesIO()
    pq.write_table(pa.table({"text": ["one", "two", "one"], "n": [1, 2, 3], "list": [[1], [], None]}), buffer)
    return buffer.getvalue()


def json_lines(rows: list[Any]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def json_text(value: Any) -> bytes:
    return json.dumps(value).encode()


FILES = {
    "a.txt": st.binary() | damaged("one\n\ntwo\n\nthrée".encode()) | damaged("one\n\ntwo".encode("utf-16")),
    "a.txt.gz": st.binary() | damaged(gzip.compress(b"one\n\ntwo\n\nthree")),
    "a.jsonl": st.binary() | damaged(json_lines(ROWS)) | st.lists(replaced(ROWS[2]), max_size=4).map(json_lines),
    "a.json": st.binary() | damaged(json.dumps(ROWS).encode()) | st.lists(replaced(ROWS[2])).map(json_text),
    "a.csv": st.binary() | damaged(b'text,n\n"one, two",1\n"three ""3""\n",2\n'),
    "a.parquet": st.binary() | damaged(parquet()),
}


@pytest.mark.parametrize("name", FILES)
def test_local_files(folder: Path, name: str) -> None:
    path, out = folder / name, folder / "raw"
    data = load_params("params.yaml").data.model_copy(update={"dataset": str(path)})

    @given(FILES[name])
    def look(content: bytes) -> None:
        path.write_bytes(content)
        reads_or_refuses(lambda: download(data, 0, out))
        assert not list(out.glob(".*"))

    look()

"""The manifests by which DVC learns of changes in local files."""

from __future__ import annotations

import json
import shutil
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from custom_transformer.errors import UserError
from custom_transformer.text.inputs import write_inputs
from custom_transformer.text.packing import tokenize
from tests.text.making import data, make


def manifests(out: Path, dataset: str = "primer", tokenizer: str = "bpe") -> tuple[bytes, bytes]:
    assert write_inputs(dataset, tokenizer, None, out) == []
    return (out / "dataset.json").read_bytes(), (out / "tokenizer.json").read_bytes()


def files(manifest: bytes) -> list[dict[str, str]]:
    found: list[dict[str, str]] = json.loads(manifest)["files"]
    return found


@pytest.fixture
def texts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two texts in a folder of the current one, which has a tokenizer too."""
    make(tmp_path)
    monkeypatch.delenv("DVC_ROOT", raising=False)
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "texts"
    for name in ("a", "sub/b"):
        (folder / name).with_suffix(".txt").parent.mkdir(parents=True, exist_ok=True)
        (folder / name).with_suffix(".txt").write_text(f"the text of {name}\n\nand more")
    return folder


@pytest.mark.parametrize(
    ("dataset", "tokenizer"), [("primer", "bpe"), ("tinystories", "gpt2"), ("somebody/texts", "somebody/tokenizer")]
)
def test_what_is_not_local_has_no_files(texts: Path, dataset: str, tokenizer: str) -> None:
    assert [files(manifest) for manifest in manifests(texts.parent / "out", dataset, tokenizer)] == [[], []]


def test_content_names_and_order_count_and_nothing_else_does(texts: Path, tmp_path: Path) -> None:
    pattern = "texts/**/*.txt"
    before = manifests(tmp_path / "out", pattern)
    assert files(before[0]) == [
        {"name": name, "sha256": sha256((texts / name).read_bytes()).hexdigest()} for name in ("a.txt", "sub/b.txt")
    ]
    for path in texts.rglob("*.txt"):
        path.touch()
    (texts / "c.md").write_text("not in the pattern")
    assert manifests(tmp_path / "out", pattern) == before
    changed = [before[0]]

    def differs() -> None:
        changed.append(manifests(tmp_path / "out", pattern)[0])
        assert changed.count(changed[-1]) == 1

    (texts / "a.txt").write_text("The text of a\n\nand more")
    differs()
    (texts / "c.txt").write_text("one more")
    differs()
    (texts / "c.txt").rename(texts / "d.txt")
    differs()
    (texts / "sub/b.txt").unlink()
    differs()


def test_the_folder_does_not_count(texts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in the copy that DVC makes for a temporary experiment, or in another clone."""
    before = manifests(tmp_path / "out", "texts/**/*.txt")
    copy = tmp_path / "copy"
    copy.mkdir()
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    monkeypatch.chdir(copy)
    assert manifests(tmp_path / "out", "texts/**/*.txt") == before
    shutil.copytree(texts, copy / "texts")
    assert manifests(tmp_path / "out", "texts/**/*.txt") == before


@pytest.mark.parametrize("name", ["tokenizer", "tokenizer/tokenizer.json"])
def test_a_local_tokenizer_counts_by_its_files(texts: Path, tmp_path: Path, name: str) -> None:
    (tmp_path / "tokenizer/model.safetensors").write_bytes(b"weights, which no tokenizer is read from")
    before = manifests(tmp_path / "out", tokenizer=name)
    assert "tokenizer.json" in [file["name"] for file in files(before[1])]
    assert "model.safetensors" not in [file["name"] for file in files(before[1])]
    definition = tmp_path / "tokenizer/tokenizer.json"
    definition.write_text(definition.read_text() + "\n")
    after = manifests(tmp_path / "out", tokenizer=name)
    assert after[0] == before[0]
    assert after[1] != before[1]


def test_a_checkpoint_counts_by_its_content(texts: Path, tmp_path: Path) -> None:
    out, model = tmp_path / "out", tmp_path / "models/theirs/model.pt"
    manifest = out / "init_from.json"

    def written(init_from: str | None) -> Any:
        assert write_inputs("primer", "bpe", init_from, out) == []
        return json.loads(manifest.read_text("utf-8"))

    assert written(None) == {"training.init_from": None, "files": []}
    with pytest.raises(UserError, match=r"training\.init_from models/theirs/model\.pt: no such file"):
        write_inputs("primer", "bpe", "models/theirs/model.pt", out)
    model.parent.mkdir(parents=True)
    model.write_bytes(b"parameters")
    digest = sha256(b"parameters").hexdigest()
    before = written("models/theirs/model.pt")
    assert before == {"training.init_from": "models/theirs/model.pt", "files": [{"name": "model.pt", "sha256": digest}]}
    model.write_bytes(b"others")
    assert written("models/theirs/model.pt") != before
    changed = manifest.read_bytes()
    model.unlink()
    (line,) = write_inputs("primer", "bpe", "models/theirs/model.pt", out)
    assert line.startswith("training.init_from models/theirs/model.pt: no longer here")
    assert manifest.read_bytes() == changed
    with pytest.raises(UserError, match="models/theirs: not a regular file"):
        write_inputs("primer", "bpe", "models/theirs", out)
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints/best.pt").touch()
    for name in ("checkpoints/best.pt", str(tmp_path / "checkpoints/best.pt")):
        with pytest.raises(UserError, match="the training would replace it; name a copy in another folder"):
            write_inputs("primer", "bpe", name, out)


def test_a_local_tokenizer_is_found_from_a_temporary_copy(
    texts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "copy").mkdir()
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    monkeypatch.chdir(tmp_path / "copy")
    out = Path("data/tokenizer"), Path("data/tokens"), tmp_path / "work"
    meta = tokenize(data(tokenizer="tokenizer"), tmp_path / "raw", *out)
    assert meta["tokenizer"]["name"] == "tokenizer"


def test_files_that_are_not_here_leave_what_was_made_of_them(texts: Path, tmp_path: Path) -> None:
    """As in a clone that has pulled the results of others."""
    wanted: dict[str, Any] = {"dataset": "texts/*.txt", "tokenizer": "tokenizer"}
    out = tmp_path / "out"
    with pytest.raises(UserError, match=r"nothing/\*\.txt: no such file"):
        write_inputs("nothing/*.txt", "bpe", None, out)
    before = manifests(out, **wanted)
    shutil.rmtree(texts)
    shutil.rmtree(tmp_path / "tokenizer")
    lines = write_inputs(**wanted, init_from=None, out=out)
    assert [line.partition(":")[0] for line in lines] == ["data.dataset texts/*.txt", "data.tokenizer tokenizer"]
    assert ((out / "dataset.json").read_bytes(), (out / "tokenizer.json").read_bytes()) == before
    with pytest.raises(UserError, match="no such file"):
        write_inputs("texts/a.txt", "bpe", None, out)


@pytest.mark.parametrize("dataset", ["texts/*", "texts"])
def test_files_that_are_here_and_cannot_be_read_are_named(texts: Path, tmp_path: Path, dataset: str) -> None:
    """What was made of them before does not stay in their place."""
    out = tmp_path / "out"
    shutil.rmtree(texts / "sub")
    manifests(out, dataset)
    (texts / "a.txt").rename(texts / "a.pdf")
    with pytest.raises(UserError, match=r"can be read as text|cannot be read as text"):
        write_inputs(dataset, "bpe", None, out)

"""Text from local files and from the Hub: what arrives is right and whole, or one line says what to do."""

from __future__ import annotations

import gzip
import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from custom_transformer.errors import UserError
from custom_transformer.text.datasets import download
from tests.hub_server import TOKEN, Fault, HubServer
from tests.processes import run
from tests.text.making import card, data, parquet


def texts(path: Path) -> list[str]:
    return pq.read_table(path)["text"].to_pylist()


# ------------------------------------------------------------------------------------------- local files

DOCUMENTS = [f"text number {i}" for i in range(40)]


def write_txt(path: Path) -> None:
    path.write_text("\n\n".join(DOCUMENTS), "utf-8")


def write_jsonl(path: Path) -> None:
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in DOCUMENTS), "utf-8")


def write_csv(path: Path) -> None:
    path.write_text("n,text\n" + "".join(f'{i},"{text}"\n' for i, text in enumerate(DOCUMENTS)), "utf-8")


def write_parquet(path: Path) -> None:
    path.write_bytes(parquet(text=DOCUMENTS))


@pytest.mark.parametrize(
    ("name", "write"),
    [("a.txt", write_txt), ("a.jsonl", write_jsonl), ("a.csv", write_csv), ("a.parquet", write_parquet)],
)
def test_local_files_give_every_document_once(tmp_path: Path, name: str, write: Callable[[Path], None]) -> None:
    write(tmp_path / name)
    facts = download(data(dataset=str(tmp_path / "*"), val_fraction=0.1), 0, tmp_path / "raw")
    train, validation = texts(tmp_path / "raw/train.parquet"), texts(tmp_path / "raw/validation.parquet")
    assert sorted([*train, *validation], key=DOCUMENTS.index) == DOCUMENTS
    assert (train, validation) == (sorted(train, key=DOCUMENTS.index), sorted(validation, key=DOCUMENTS.index))
    assert (facts["train_rows"], facts["validation_rows"]) == (len(train), len(validation))


def divided(folder: Path, documents: list[str], **changes: Any) -> tuple[list[str], list[str]]:
    (folder / "divided.txt").write_text("\n\n".join(documents), "utf-8")
    download(data(dataset=str(folder / "divided.txt"), **changes), 0, folder / "raw")
    return texts(folder / "raw/train.parquet"), texts(folder / "raw/validation.parquet")


MANY = [f"text number {i}" for i in range(1000)]


def test_the_share_is_kept_for_validation(tmp_path: Path) -> None:
    train, validation = divided(tmp_path, MANY, val_fraction=0.1)
    assert len(train) + len(validation) == 1000
    assert 70 < len(validation) < 130


@pytest.mark.parametrize("val_subset_size", [None, 1, 5])
def test_every_subset_is_validated_on_the_same_text(tmp_path: Path, val_subset_size: int | None) -> None:
    sizes = {"val_fraction": 0.05, "val_subset_size": val_subset_size}
    everything, validation = divided(tmp_path, MANY, **sizes)
    for size in (1, 100, 400):
        assert divided(tmp_path, MANY, subset_size=size, **sizes) == (everything[:size], validation)
    assert len(validation) == val_subset_size or val_subset_size is None


@pytest.mark.parametrize("more", [["new", *MANY], MANY + ["new"] * 50, MANY[::-1] + MANY[:7], MANY + DOCUMENTS[:3]])
def test_added_text_moves_no_document_to_the_other_split(tmp_path: Path, more: list[str]) -> None:
    train, validation = map(set, divided(tmp_path, MANY))
    train_now, validation_now = map(set, divided(tmp_path, more))
    assert train <= train_now
    assert validation <= validation_now
    assert not train_now & validation_now


@pytest.mark.parametrize("fraction", [1e-9, 0.5, 1 - 1e-9])
@pytest.mark.parametrize("documents", [["a", "b"], ["a", "a", "b"], DOCUMENTS])
def test_neither_split_is_left_empty(tmp_path: Path, documents: list[str], fraction: float) -> None:
    train, validation = divided(tmp_path, documents, val_fraction=fraction)
    assert {*train, *validation} == set(documents)
    assert len(train) + len(validation) == len(documents)
    assert train and validation
    assert not set(train) & set(validation)


def test_equal_documents_cannot_be_divided(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"3 document\(s\), 1 of them different, cannot be divided"):
        divided(tmp_path, ["same"] * 3)


def test_equal_sources_give_equal_bytes(tmp_path: Path) -> None:
    for out in ("one", "two"):
        download(data(subset_size=1500, val_subset_size=10), 3, tmp_path / out)
    for name in ("train.parquet", "validation.parquet", "source.json"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


BAD_FILES: dict[str, tuple[str, bytes]] = {
    "empty": ("a.txt", b""),
    "one document": ("a.txt", b"only this"),
    "binary": ("a.txt", b"abc\0def\n\nx"),
    "not UTF-8": ("a.txt", b"caf\xe9\n\nx"),
    "broken JSON": ("a.jsonl", b'{"text": "a"}\n{"text": \n'),
    "no object": ("a.jsonl", b'["a"]\n'),
    "missing column": ("a.jsonl", b'{"body": "a"}\n'),
    "no string": ("a.jsonl", b'{"text": 3}\n'),
    "lone surrogate": ("a.jsonl", b'{"text": "\\ud800"}\n{"text": "a"}\n'),
    "ragged CSV": ("a.csv", b"text,n\na,1\nb\n"),
    "truncated parquet": ("a.parquet", parquet(text=DOCUMENTS)[:-20]),
    "unknown kind": ("a.pdf", b"%PDF"),
}


@pytest.mark.parametrize("kind", BAD_FILES)
def test_a_bad_file_is_named_and_what_was_there_stays(tmp_path: Path, kind: str) -> None:
    name, content = BAD_FILES[kind]
    (tmp_path / name).write_bytes(content)
    write_txt(tmp_path / "good.txt")
    out = tmp_path / "raw"
    download(data(dataset=str(tmp_path / "good.txt")), 0, out)
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    with pytest.raises(UserError):
        download(data(dataset=str(tmp_path / name)), 0, out)
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such file"):
        download(data(dataset=str(tmp_path / "nothing.txt")), 0, tmp_path / "raw")


# --------------------------------------------------------------------------------------------------- Hub

NAME = "datasets/nampdn-ai/tiny-textbooks"
FILES = {
    "README.md": card(train="train*", test="test*"),
    "train-0.parquet": parquet(textbook=DOCUMENTS[:20], idx=list(range(20))),
    "train-1.parquet": parquet(textbook=DOCUMENTS[20:30], idx=list(range(10))),
    "test-0.parquet": parquet(textbook=DOCUMENTS[30:], idx=list(range(10))),
}


@pytest.fixture
def hub() -> Any:
    with HubServer({NAME: dict(FILES)}) as server:
        yield server


def fetch(
    hub: HubServer, folder: Path, environment: dict[str, str] | None = None, patience: float = 30, **changes: Any
) -> subprocess.CompletedProcess[str]:
    """The download in a child process, as the Hub's clients read their environment when they are imported."""
    wanted = {"dataset": "tiny-textbooks", "val_split": "test", **changes}
    program = f"""
from pathlib import Path
from types import SimpleNamespace
from custom_transformer.errors import run_main
from custom_transformer.text import hub
from custom_transformer.text.datasets import download
from tests.text.making import data
hub.time = SimpleNamespace(sleep=lambda seconds: None)  # between two attempts
hub.PATIENCE, hub.SILENCE = {patience}, {patience} / 4
run_main(lambda: print(download(data(**{wanted!r}), 0, Path({str(folder / "raw")!r}))["commit"]))
"""
    return run("-c", program, env=environment or hub.environment(folder / "home"))


def succeeded(done: subprocess.CompletedProcess[str], hub: HubServer, folder: Path) -> None:
    assert done.returncode == 0, done.stderr
    assert texts(folder / "raw/train.parquet") == DOCUMENTS[:30]
    assert texts(folder / "raw/validation.parquet") == DOCUMENTS[30:]
    assert done.stdout.split()[-1] == hub.commit(NAME)


def refused(done: subprocess.CompletedProcess[str], folder: Path, words: str) -> None:
    assert done.returncode == 1
    assert words in done.stderr
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    assert "http" not in done.stdout + done.stderr  # addresses of the client's documentation
    assert not list(folder.glob("raw/*"))


@pytest.mark.processes
def test_a_registered_dataset(hub: HubServer, tmp_path: Path) -> None:
    done = fetch(hub, tmp_path)
    succeeded(done, hub, tmp_path)
    assert pq.read_schema(tmp_path / "raw/train.parquet").names == ["text"]
    assert "only the column textbook is kept; left out: idx\n" in done.stdout
    source = json.loads((tmp_path / "raw/source.json").read_text())
    assert source["commit"] == hub.commit(NAME)


def in_format(suffix: str, texts: list[str]) -> bytes:
    """The texts beside a column that is null in the first half and a word afterwards."""
    rows = [{"text": text, "author": None if i < len(texts) / 2 else "Ann"} for i, text in enumerate(texts)]
    if suffix == "json":
        return json.dumps(rows).encode()
    if suffix == "csv":
        return "".join(
            f"{row['text']},{row['author'] or ''}\n" for row in [{"text": "text", "author": "a"}, *rows]
        ).encode()
    if suffix == "txt":
        return "\n".join(texts).encode()
    lines = "".join(json.dumps(row) + "\n" for row in rows).encode()
    return gzip.compress(lines) if suffix.endswith("gz") else lines


@pytest.mark.processes
@pytest.mark.parametrize("suffix", ["jsonl", "jsonl.gz", "json", "csv", "txt"])
def test_a_dataset_in_another_format(tmp_path: Path, suffix: str) -> None:
    splits = {"train": ["NA", "007", *DOCUMENTS[:30]], "test": DOCUMENTS[30:]}
    files = {f"{split}.{suffix}": in_format(suffix, part) for split, part in splits.items()}
    with HubServer({"datasets/some/lines": files}) as hub:
        done = fetch(hub, tmp_path, dataset="some/lines")
    assert done.returncode == 0, done.stderr
    assert texts(tmp_path / "raw/train.parquet") == splits["train"]
    assert texts(tmp_path / "raw/validation.parquet") == splits["test"]


@pytest.mark.processes
@pytest.mark.parametrize(
    "fault",
    [
        Fault("GET /api/datasets/.*", status=503),
        Fault("GET .*train-0.parquet", status=500),
        Fault("GET .*train-0.parquet", cut=200),
        Fault("GET .*train-0.parquet", flip=30),
        Fault("GET .*train-0.parquet", status=403),
        Fault("GET .*README.md", flip=30),
        Fault("POST .*paths-info", status=500),
    ],
    ids=["listing refused", "file refused", "cut short", "bit flipped", "old link", "card altered", "digests refused"],
)
def test_a_passing_fault_is_survived(hub: HubServer, tmp_path: Path, fault: Fault) -> None:
    hub.fault = fault
    succeeded(fetch(hub, tmp_path), hub, tmp_path)


@pytest.mark.processes
def test_altered_bytes_are_never_accepted(hub: HubServer, tmp_path: Path) -> None:
    hub.fault = Fault("GET .*train-0.parquet", times=-1, flip=30)
    refused(fetch(hub, tmp_path), tmp_path, "arrives altered")
    hub.fault = None
    succeeded(fetch(hub, tmp_path), hub, tmp_path)  # and the cache does not keep them


@pytest.mark.processes
@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"dataset": "nobody/nothing"}, "data.dataset nobody/nothing: no such dataset"),
        ({"dataset": "nobody/nothing", "revision": "v9"}, "data.dataset nobody/nothing: no such dataset"),
        ({"dataset": "nobody/nothing", "revision": "0" * 40}, "data.dataset nobody/nothing: no such dataset"),
        ({"revision": "v9"}, "no such branch, tag or commit"),
        ({"revision": "0" * 40}, "no such branch, tag or commit"),
        ({"train_split": "everything"}, "no split everything; it has train, test"),
        ({"text_column": "body"}, "no such column; there are textbook, idx"),
        ({"text_column": "idx"}, "holds int, not text"),
    ],
)
def test_what_the_hub_does_not_have(hub: HubServer, tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    refused(fetch(hub, tmp_path, **changes), tmp_path, words)


@pytest.mark.processes
@pytest.mark.parametrize(
    "match",
    ["GET /api/datasets", "README.md", "POST .*paths-info", "GET .*train-1.parquet", "HEAD .*train-1.parquet"],
    ids=["information", "card", "digests", "file", "about a file"],
)
@pytest.mark.parametrize("fault", [{"status": 503}, {"silent": True}], ids=["503", "silence"])
def test_a_hub_that_never_gives_something_is_waited_for_until_one_deadline_and_said_to_be(
    hub: HubServer, tmp_path: Path, match: str, fault: dict[str, Any]
) -> None:
    hub.fault = Fault(match, times=-1, **fault)
    done = fetch(hub, tmp_path, patience=4)
    refused(done, tmp_path, "the Hub cannot be reached (")
    assert "no answer" in done.stderr or "503 Service Unavailable" in done.stderr
    assert done.stdout.count("waiting for the Hub") == 1
    assert len(hub.requests) < 25


@pytest.mark.processes
@pytest.mark.parametrize("status", [404, 410])
@pytest.mark.parametrize("name", ["README.md", "train-1.parquet"])
def test_a_file_that_is_listed_but_not_there(hub: HubServer, tmp_path: Path, name: str, status: int) -> None:
    hub.fault = Fault(f"(GET|HEAD) .*{name}", times=-1, status=status)
    refused(fetch(hub, tmp_path), tmp_path, f"the Hub answers {status} ")
    assert len(hub.requests) < 15  # it is not asked for again


@pytest.mark.processes
def test_a_slow_file_is_not_given_up(tmp_path: Path) -> None:
    """It takes longer than one waits for an answer, but some of it always comes."""
    long = ["x" * 2**15 for _ in range(18)]
    lines = {
        f"{split}.jsonl": b"".join(json.dumps({"text": t}).encode() + b"\n" for t in part)
        for split, part in (("train", long), ("test", DOCUMENTS))
    }
    with HubServer({"datasets/some/lines": lines}) as hub:
        hub.fault = Fault("GET .*train.jsonl", pause=0.5)
        done = fetch(hub, tmp_path, patience=6, dataset="some/lines")
    assert done.returncode == 0, done.stderr
    assert texts(tmp_path / "raw/train.parquet") == long


@pytest.mark.processes
def test_several_configurations_are_named_without_a_path_of_this_machine(tmp_path: Path) -> None:
    card = b"---\nconfigs:\n- {config_name: a, data_files: a*}\n- {config_name: b, data_files: b*}\n---\n"
    with HubServer({NAME: {"README.md": card, "a.jsonl": b"{}", "b.jsonl": b"{}"}}) as hub:
        done = fetch(hub, tmp_path)
    refused(done, tmp_path, "['a', 'b']; choose another dataset")
    assert "/tmp" not in done.stderr


@pytest.mark.processes
def test_a_gated_dataset_needs_a_token(tmp_path: Path) -> None:
    with HubServer({NAME: dict(FILES)}, gated=(NAME,)) as hub:
        refused(fetch(hub, tmp_path), tmp_path, "gated; accept its terms")
        succeeded(fetch(hub, tmp_path, hub.environment(tmp_path / "home", HF_TOKEN=TOKEN)), hub, tmp_path)
        wrong = hub.environment(tmp_path / "other", HF_TOKEN="hf_wrong")
        refused(fetch(hub, tmp_path / "other", wrong), tmp_path / "other", "refuses the token")


@pytest.mark.processes
def test_a_cache_that_cannot_be_written_is_not_taken_for_a_hub_that_does_not_answer(
    hub: HubServer, tmp_path: Path
) -> None:
    cache = tmp_path / "home/hub"
    cache.parent.mkdir()
    cache.touch()
    refused(fetch(hub, tmp_path), tmp_path, "Not a directory; move away the file")
    cache.unlink()
    succeeded(fetch(hub, tmp_path), hub, tmp_path)


@pytest.mark.processes
def test_offline_a_commit_comes_from_the_cache_and_nothing_else_does(hub: HubServer, tmp_path: Path) -> None:
    fetch(hub, tmp_path)
    offline = hub.environment(tmp_path / "home", HF_HUB_OFFLINE="1")
    again = tmp_path / "again"
    succeeded(fetch(hub, again, offline, revision=hub.commit(NAME)), hub, again)
    other = tmp_path / "other"
    refused(fetch(hub, other, offline, revision="0" * 40), other, "not in the cache")
    refused(fetch(hub, other, offline), other, "cannot be reached")

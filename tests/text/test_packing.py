"""Text encoded in parts: the number of processes, their shares and kills change no byte, nor does streaming."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from custom_transformer.errors import UserError
from custom_transformer.text import datasets, packing, parts
from custom_transformer.text.datasets import download
from custom_transformer.text.packing import Share, tokenize, tokenize_share
from custom_transformer.text.tokens import Joined, load_tokens
from custom_transformer.text.workers import WORKERS
from tests.helpers import ROOT
from tests.hub_server import Fault, HubServer
from tests.processes import Process, run
from tests.text.making import card, data, made, parquet

TEXTS = {
    "train": [f"The {i}th text, naïve and 素朴, of {'many ' * (i % 9)}words." for i in range(200)],
    "validation": [f"A short one, the {i}th." for i in range(30)],
}
PARTS = 10 + 1


@pytest.fixture(autouse=True)
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts, "PART_BYTES", 1)  # so that each row group is one
    monkeypatch.setenv(WORKERS, "1")


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    folder = tmp_path / "raw"
    folder.mkdir()
    for split, texts in TEXTS.items():
        pq.write_table(pa.table({"text": texts}), folder / f"{split}.parquet", row_group_size=20)
    return folder


def packed(raw: Path, out: Path, **changes: Any) -> dict[str, Any]:
    wanted = data(**{"vocab_size": 300, **changes})
    return tokenize(wanted, raw, out / "tokenizer", out / "tokens", raw.parent / "work")


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("[!.]*") if path.is_file()}


def stream(folder: Path, split: str) -> list[int]:
    return [int(token) for token in load_tokens(folder / "tokens", split).tokens[:]]


def test_the_parts_are_the_shards_of_one_stream(raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    meta = packed(raw, tmp_path / "parts")
    monkeypatch.setattr(parts, "PART_BYTES", 2**26)
    whole = packed(raw, tmp_path / "whole")
    for split, count in (("train", 10), ("validation", 1)):
        facts = meta["splits"][split]
        assert [shard["name"] for shard in facts["shards"]] == [f"{split}-{i:05}.bin" for i in range(count)]
        assert stream(tmp_path / "parts", split) == stream(tmp_path / "whole", split)
        for key in ("documents", "tokens", "bytes"):
            assert sum(shard[key] for shard in facts["shards"]) == facts[key] == whole["splits"][split][key]
    for key in ("sha256", "text_sha256"):  # of what is validated on, however the text lies in its file
        assert meta["splits"]["validation"][key] == whole["splits"]["validation"][key]
    assert not [path for path in (tmp_path / "work").iterdir() if path.is_dir()]


@pytest.mark.processes
def test_the_number_of_processes_changes_no_byte(raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = []
    for count in (1, 2, 8):
        monkeypatch.setenv(WORKERS, str(count))
        packed(raw, tmp_path / str(count))
        made.append(contents(tmp_path / str(count)))
    assert made[0] == made[1] == made[2]
    assert len(made[0]) == PARTS + 3


def test_shares_of_several_hosts_are_collected(raw: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    packed(raw, tmp_path / "one")
    capsys.readouterr()
    work = tmp_path / "work"
    done = [tokenize_share(data(vocab_size=300), raw, work, Share.of(f"{i}/5")) for i in range(5)]
    assert done == [(2, PARTS), (2, PARTS), (2, PARTS), (2, PARTS), (3, PARTS)]
    assert "parts of the text are there" not in capsys.readouterr().out
    packed(raw, tmp_path / "shares")
    assert f"{PARTS} of {PARTS} parts of the text are there from before" in capsys.readouterr().out
    assert contents(tmp_path / "one") == contents(tmp_path / "shares")


@pytest.mark.parametrize("text", ["", "3", "1/1", "5/4", "-1/4", "a/b", "1/4/2", "1/99999999999"])
def test_what_is_no_share(text: str) -> None:
    with pytest.raises(UserError, match=r"--share: .* is no share"):
        Share.of(text)


PROGRAM = """
import os, signal
from pathlib import Path
from custom_transformer.text import packing, parts
from tests.text.making import data
parts.PART_BYTES = 1
encode, left = packing.encode, [{after}]
def killed_after(*given):
    if not left[0]:
        os.kill(os.getpid(), signal.SIGKILL)
    left[0] -= 1
    return encode(*given)
packing.encode = killed_after
raw = Path({raw!r})
out = raw.parent / "killed"
packing.tokenize(data(vocab_size=300), raw, out / "tokenizer", out / "tokens", raw.parent / "work")
"""


@pytest.mark.processes
def test_a_killed_run_goes_on_where_it_was(raw: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    packed(raw, tmp_path / "whole")
    for _ in range(2):
        assert run("-c", PROGRAM.format(after=4, raw=str(raw))).returncode == -signal.SIGKILL
        assert not (tmp_path / "killed/tokens").exists()
    damaged = next((tmp_path / "work").glob("*/*/train-00003.bin"))
    damaged.write_bytes(damaged.read_bytes()[::-1])
    capsys.readouterr()
    packed(raw, tmp_path / "killed")
    assert f"7 of {PARTS} parts of the text are there from before" in capsys.readouterr().out
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")


AT_ONCE = """
from pathlib import Path
from custom_transformer.errors import run_main
from custom_transformer.text import packing, parts
from tests.text.making import data
parts.PART_BYTES = 1
raw = Path({raw!r})
out, work = raw.parent / "{out}", raw.parent / "work"
wanted = data(vocab_size=300)
if "{share}":
    run_main(lambda: packing.tokenize_share(wanted, raw, work, packing.Share.of("{share}")))
run_main(lambda: packing.tokenize(wanted, raw, out / "tokenizer", out / "tokens", work))
"""


@pytest.mark.processes
def test_equal_runs_and_shares_at_the_same_time(raw: Path, tmp_path: Path) -> None:
    packed(raw, tmp_path / "alone")

    def begun(share: str = "", out: str = "") -> Process:
        return Process("-c", AT_ONCE.format(raw=str(raw), share=share, out=out))

    shares, runs = [begun(share) for share in ("0/2", "0/2", "1/2", "0/1")], [begun(out="one"), begun(out="two")]
    for process in (*shares, *runs):
        done = process.wait()
        assert (done.returncode, done.stderr) == (0, "")
    assert contents(tmp_path / "one") == contents(tmp_path / "two") == contents(tmp_path / "alone")


def test_what_was_done_for_another_result_is_not_taken(
    raw: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tokenize_share(data(vocab_size=300), raw, tmp_path / "work", Share(0, 1))
    packed(raw, tmp_path / "other", vocab_size=290)
    text = [*TEXTS["validation"][1:], "Another."]
    pq.write_table(pa.table({"text": text}), raw / "validation.parquet", row_group_size=20)
    packed(raw, tmp_path / "other")
    assert "from before" not in capsys.readouterr().out


def test_a_kept_tokenizer_that_is_damaged_is_trained_anew(raw: Path, tmp_path: Path) -> None:
    packed(raw, tmp_path / "whole")
    tokenize_share(data(vocab_size=300), raw, tmp_path / "work", Share(0, 2))
    (kept,) = (tmp_path / "work").glob("*/tokenizer/tokenizer.json")
    kept.unlink()
    kept.write_text("{")
    packed(raw, tmp_path / "again")
    assert contents(tmp_path / "again") == contents(tmp_path / "whole")


def test_a_tokenizer_that_changes_in_place_is_loaded_anew(raw: Path, tmp_path: Path) -> None:
    for vocab_size in (300, 270):
        packed(raw, tmp_path / str(vocab_size), vocab_size=vocab_size)
        shutil.copytree(tmp_path / f"{vocab_size}/tokenizer", tmp_path / "given", dirs_exist_ok=True)
        packed(raw, tmp_path / "by-given", tokenizer=str(tmp_path / "given"))
        for split in TEXTS:
            assert stream(tmp_path / "by-given", split) == stream(tmp_path / str(vocab_size), split)


@pytest.mark.parametrize(
    "source", [{"streamed": ["a"]}, {"streamed": ["a"], "files": []}, {"streamed": 3, "files": {}}, []]
)
def test_a_damaged_record_of_the_source(raw: Path, tmp_path: Path, source: Any) -> None:
    (raw / "source.json").write_text(json.dumps(source))
    with pytest.raises(UserError, match=r"source\.json: .*run dvc repro --force download"):
        packed(raw, tmp_path / "out")


@pytest.mark.processes
def test_more_shards_than_open_files_are_allowed(raw: Path, tmp_path: Path) -> None:
    packed(raw, tmp_path)
    program = f"""
import resource
from custom_transformer.text import tokens
tokens.OTHER_FILES = 200
resource.setrlimit(resource.RLIMIT_NOFILE, (64, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
splits = [tokens.load_tokens({str(tmp_path / "tokens")!r}, "train") for _ in range(8)]
print(splits[-1].n_tokens)
"""
    done = run("-c", program)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) == len(stream(tmp_path, "train"))


# ------------------------------------------------------------------------------------------ processes

KILLED = """
import os, sys, time
from custom_transformer.errors import run_main
from custom_transformer.text.workers import shared_out
from tests.text.worker_tasks import {task}
run_main(lambda: print(sorted(shared_out({task}, range(5)))))
"""


@pytest.mark.processes
@pytest.mark.parametrize(
    ("task", "words"),
    [("killed", "a process that encoded text was killed"), ("refused", "the text number 3 is refused")],
)
def test_a_process_that_ends_ends_all_with_one_line(task: str, words: str) -> None:
    done = run("-c", KILLED.format(task=task), env=os.environ | {WORKERS: "2"})
    assert done.returncode == 1
    assert words in done.stderr
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1


FED_SLOWLY = """
import threading, time
from joblib.externals.loky.backend.queues import Queue
from custom_transformer.text.workers import shared_out
from tests.text.worker_tasks import same
feed = Queue._feed
def slow(*arguments):
    feed(*arguments)
    time.sleep(1)
Queue._feed = staticmethod(slow)
assert sorted(shared_out(same, range(5))) == [0, 1, 2, 3, 4]
print([thread.name for thread in threading.enumerate()])
"""


@pytest.mark.processes
def test_no_thread_is_left_that_holds_what_the_processes_shared() -> None:
    done = run("-c", FED_SLOWLY, env=os.environ | {WORKERS: "2"})
    assert (done.returncode, done.stdout, done.stderr) == (0, "['MainThread']\n", "")


@pytest.mark.processes
def test_no_process_outlives_the_one_that_started_it() -> None:
    command = [sys.executable, "-c", KILLED.format(task="slow")]
    with subprocess.Popen(command, cwd=ROOT, env=os.environ | {WORKERS: "2"}, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"begun\n"
        children = psutil.Process(process.pid).children()
        assert len(children) >= 2
        process.kill()
    assert not psutil.wait_procs(children, timeout=60)[1]


@pytest.mark.parametrize("count", ["0", "-1", "two", "1024", "1e1"])
def test_a_number_of_processes_that_is_none(
    raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, count: str
) -> None:
    monkeypatch.setenv(WORKERS, count)
    with pytest.raises(UserError, match=f"{WORKERS}: .* is not a number of processes"):
        packed(raw, tmp_path / "out")


# ------------------------------------------------------------------------------------------ streaming


def local_texts(folder: Path) -> str:
    """Files of three kinds, one of them with nothing but a text to validate on, and one without text."""
    folder.mkdir()
    texts = [*TEXTS["train"], *TEXTS["validation"]]
    (folder / "a.txt").write_text("\n\n".join(texts[:90]))
    (folder / "b.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts[90:150]))
    pq.write_table(pa.table({"text": texts[150:]}), folder / "c.parquet")
    (folder / "d.jsonl").write_text('{"text": ""}\n')
    return str(folder)


def assert_the_same(one: Path, other: Path) -> None:
    assert contents(one / "tokenizer") == contents(other / "tokenizer")
    for split in TEXTS:
        assert stream(one, split) == stream(other, split)


@pytest.mark.parametrize("sample", [2**30, 2000])
def test_streamed_files_give_the_same_tokens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sample: int) -> None:
    dataset = local_texts(tmp_path / "texts")
    for module in (datasets, packing):
        monkeypatch.setattr(module, "TOKENIZER_BYTES", sample)
    made(tmp_path / "copied", dataset=dataset)
    meta = made(tmp_path / "streamed", dataset=dataset, streaming=True)
    assert_the_same(tmp_path / "copied", tmp_path / "streamed")
    assert len(meta["splits"]["train"]["shards"]) == 3
    texts = pq.read_table(tmp_path / "streamed/raw/train.parquet")["text"].to_pylist()
    sizes = [len(text.encode()) for text in texts]
    assert sum(sizes[:-1]) < sample
    assert sum(sizes) >= sample or sample == 2**30
    assert sorted(path.name for path in (tmp_path / "streamed/raw").iterdir()) == [
        "source.json", "train.parquet", "validation.parquet"
    ]  # fmt: skip


def test_a_streamed_file_that_changes_meanwhile(tmp_path: Path) -> None:
    folder = Path(local_texts(tmp_path / "texts"))
    wanted = data(dataset=str(folder), streaming=True, val_subset_size=8, vocab_size=300)
    download(wanted, 0, tmp_path / "raw")
    out = [tmp_path / name for name in ("raw", "tokenizer", "tokens", "work")]
    (folder / "b.jsonl").write_text('{"text": "Another."}\n')
    with pytest.raises(UserError, match=r"b\.jsonl: has changed since the stage download read it; run dvc repro"):
        tokenize(wanted, *out)
    (folder / "b.jsonl").unlink()
    with pytest.raises(UserError, match="has other files than the stage download found; run dvc repro"):
        tokenize(wanted, *out)
    assert not (tmp_path / "tokens").exists()


def test_what_cannot_be_streamed(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="the primer has no files to read"):
        download(data(streaming=True, val_subset_size=8), 0, tmp_path / "raw")
    for changes in ({"subset_size": 5, "val_subset_size": 8}, {"val_subset_size": None}):
        with pytest.raises(ValueError, match="set subset_size to null and val_subset_size to a number"):
            data(streaming=True, **changes)


NAME = "datasets/some/texts"


@pytest.fixture
def hub() -> Iterator[HubServer]:
    files = {f"train-{i}.parquet": parquet(text=TEXTS["train"][i::4]) for i in range(4)}
    held_out = {f"held-out-{i}.parquet": parquet(text=TEXTS["validation"][i::2]) for i in range(2)}
    with HubServer({NAME: {"README.md": card(train="train*", validation="held-out*"), **files, **held_out}}) as server:
        yield server


def from_hub(hub: HubServer, out: Path, **changes: Any) -> subprocess.CompletedProcess[str]:
    wanted = {"dataset": "some/texts", **changes}
    program = f"""
from pathlib import Path
from types import SimpleNamespace
from custom_transformer.errors import run_main
from custom_transformer.text import hub
from tests.text.making import made
hub.time = SimpleNamespace(sleep=lambda seconds: None)  # between two attempts
hub.PATIENCE = 4
run_main(lambda: made(Path({str(out)!r}), **{wanted!r}))
"""
    return run("-c", program, env=hub.environment(out / "home", CUSTOM_TRANSFORMER_WORKERS="2"))


@pytest.mark.processes
@pytest.mark.parametrize("val_split", [None, "validation"])
def test_files_of_the_hub_are_here_only_while_they_are_read(
    hub: HubServer, tmp_path: Path, val_split: str | None
) -> None:
    for name, streaming in (("copied", False), ("streamed", True)):
        done = from_hub(hub, tmp_path / name, val_split=val_split, streaming=streaming)
        assert (done.returncode, done.stderr) == (0, "")
    assert_the_same(tmp_path / "copied", tmp_path / "streamed")
    fetched = {path.resolve().name for path in (tmp_path / "copied/home").rglob("*.parquet")}
    assert len(fetched) == (4 if val_split is None else 6)
    assert not [path for path in (tmp_path / "streamed").rglob("*") if path.name in fetched]
    assert not [*(tmp_path / "streamed/home").rglob("train-*")]
    source = json.loads((tmp_path / "streamed/raw/source.json").read_text())
    assert source["streamed"] == [f"train-{i}.parquet" for i in range(4)]


@pytest.mark.processes
def test_an_altered_file_of_the_hub_is_refused_when_it_is_streamed(hub: HubServer, tmp_path: Path) -> None:
    hub.fault = Fault("GET .*train-3.parquet", times=-1, flip=300)
    done = from_hub(hub, tmp_path, streaming=True, val_split="validation")
    assert done.returncode == 1
    assert "error: data.dataset some/texts: train-3.parquet arrives altered" in done.stderr
    assert not (tmp_path / "tokens").exists()


# ------------------------------------------------------------------------------------------ shards as one


@given(st.lists(st.lists(st.integers(0, 2**16 - 1), min_size=1), min_size=1, max_size=5), st.data())
def test_joined_arrays_are_read_as_one(rows: list[list[int]], given_: st.DataObject) -> None:
    arrays = [np.array(row, "<u2") for row in rows]
    joined, whole = Joined(arrays), np.concatenate(arrays)
    assert len(joined) == len(whole)
    chosen = given_.draw(st.slices(len(whole)))
    assert np.array_equal(joined[chosen], whole[chosen])
    places = given_.draw(st.lists(st.lists(st.integers(0, len(whole) - 1), min_size=3, max_size=3)))
    indices = np.array(places, np.int64).reshape(-1, 3)
    assert np.array_equal(joined[indices], whole[indices])
    assert joined[indices].dtype == whole.dtype
    for outside in (-1, len(whole)):
        with pytest.raises(IndexError):
            joined[np.array([0, outside])]

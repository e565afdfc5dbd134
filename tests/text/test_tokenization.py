"""Tokenizers and packed tokens: nothing is lost, nothing is double, the same bytes each time."""

from __future__ import annotations

import dataclasses
import json
import subprocess
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import AutoTokenizer

from custom_transformer.errors import UserError
from custom_transformer.text.manifest import token_dtype
from custom_transformer.text.saved_tokenizer import load_tokenizer
from custom_transformer.text.tokenization import build_tokenizer
from custom_transformer.text.tokens import epoch_order, eval_windows, load_tokens
from tests.hub_server import Fault, HubServer
from tests.processes import run
from tests.text.making import TEXTS, data, make


def test_every_text_comes_back_between_end_tokens(tmp_path: Path) -> None:
    meta = make(tmp_path)
    tokenizer = load_tokenizer(tmp_path / "tokenizer")
    for split, texts in TEXTS.items():
        tokens = load_tokens(tmp_path / "tokens", split).tokens
        ends = np.flatnonzero(tokens == tokenizer.eos_token_id)
        documents = [tokenizer.decode(tokens[a + 1 : b]) for a, b in pairwise(ends)]
        assert documents == texts
        assert ends[0] == 0
        assert ends[-1] == len(tokens) - 1
        facts = meta["splits"][split]
        assert facts["bytes"] == sum(len(t.encode()) for t in texts)
        assert (facts["tokens"], facts["documents"]) == (len(tokens), len(texts))
    assert meta["tokenizer"]["vocab_size"] <= 400


def test_the_tokenizer_loads_in_transformers_and_gives_the_same_tokens(tmp_path: Path) -> None:
    make(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "tokenizer")
    text = "A new text: Ünïcödé 🙂 <|endoftext|>"
    ids = tokenizer.encode(text, add_special_tokens=False)
    assert tokenizer.decode(ids) == text
    assert tokenizer.eos_token_id not in ids


def test_equal_texts_give_equal_bytes(tmp_path: Path) -> None:
    for out in ("one", "two"):
        make(tmp_path / out)
    files = [path.relative_to(tmp_path / "one") for path in (tmp_path / "one").rglob("*") if path.is_file()]
    assert len(files) >= 6
    for file in files:
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()


def test_the_texts_digest_is_theirs_whatever_the_tokenizer(tmp_path: Path) -> None:
    splits = make(tmp_path / "one")["splits"], make(tmp_path / "two", vocab_size=270)["splits"]
    assert splits[0]["train"]["sha256"] != splits[1]["train"]["sha256"]
    for split, texts in TEXTS.items():
        assert splits[0][split]["text_sha256"] == splits[1][split]["text_sha256"]
        joined = make(tmp_path / split, TEXTS | {split: ["".join(texts)]})["splits"][split]
        assert joined["text_sha256"] != splits[0][split]["text_sha256"]


@pytest.mark.parametrize("value", [-3.5, float("nan"), "unknown", None, 7])
@pytest.mark.parametrize("source", [None, {"kind": "files"}, {"kind": "hub"}])
def test_a_column_called_log2_prob_makes_no_floor(tmp_path: Path, value: Any, source: dict[str, Any] | None) -> None:
    make(tmp_path, columns={"log2_prob": value}, source=source)
    for split in TEXTS:
        assert "log2_prob" not in load_tokens(tmp_path / "tokens", split).meta


def test_the_primers_probabilities_are_added_up(tmp_path: Path) -> None:
    make(tmp_path, columns={"log2_prob": -3.5}, source={"kind": "primer"})
    for split, texts in TEXTS.items():
        assert load_tokens(tmp_path / "tokens", split).meta["log2_prob"] == -3.5 * len(texts)


def test_a_large_vocabulary_is_stored_in_four_bytes(tmp_path: Path) -> None:
    assert make(tmp_path)["dtype"] == "uint16"
    assert token_dtype(65536).str == "<u2"
    assert token_dtype(65537).str == "<u4"


@pytest.mark.processes
def test_a_tokenizer_from_the_hub_or_a_folder(tmp_path: Path) -> None:
    make(tmp_path / "first")
    folder = tmp_path / "first/tokenizer"
    by_folder = make(tmp_path / "folder", tokenizer=str(folder))
    files = {path.name: path.read_bytes() for path in folder.iterdir()} | {"config.json": b"{}"}
    program = f"""
from pathlib import Path
from custom_transformer.errors import run_main
from tests.text.making import make
run_main(lambda: print(make(Path({str(tmp_path / "hub")!r}), tokenizer="some/tokenizer")["splits"]["train"]["sha256"]))
"""
    with HubServer({"models/some/tokenizer": files}) as hub:
        done = run("-c", program, env=hub.environment(tmp_path / "home"))
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[-1] == by_folder["splits"]["train"]["sha256"]


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, bytes], str]:
    """A tokenizer's files for a Hub, and the digest of the training tokens that it makes."""
    folder = tmp_path_factory.mktemp("published")
    make(folder)
    files = {path.name: path.read_bytes() for path in (folder / "tokenizer").iterdir()}
    sha256 = make(folder / "again", tokenizer=str(folder / "tokenizer"))["splits"]["train"]["sha256"]
    return files | {"config.json": b"{}", "model.safetensors": b"not fetched", "onnx/tokenizer.json": b"{"}, sha256


def by_the_hub(hub: HubServer, folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    program = f"""
from pathlib import Path
from types import SimpleNamespace
from custom_transformer.errors import run_main
from custom_transformer.text import hub
from tests.text.making import make
hub.time = SimpleNamespace(sleep=lambda seconds: None)  # between two attempts
hub.PATIENCE = 4
meta = lambda: make(Path({str(folder)!r}), tokenizer="some/tokenizer")
run_main(lambda: print(meta()["splits"]["train"]["sha256"]))
"""
    return run("-c", program, env=hub.environment(folder.parent / "home", **environment))


@pytest.mark.processes
@pytest.mark.parametrize(
    "fault",
    [
        Fault("GET /api/models", status=503),
        Fault("POST .*paths-info", status=500),
        Fault("GET .*tokenizer.json", status=500),
        Fault("GET .*tokenizer.json", cut=2000, reset=True),
        Fault("GET .*tokenizer.json", cut=2000),
        Fault("GET .*tokenizer.json", flip=3000),
        Fault("GET .*tokenizer_config.json", flip=10),
    ],
    ids=["listing refused", "digests refused", "file refused", "reset", "cut short", "bit flipped", "another's bit"],
)
def test_a_passing_fault_of_the_hub_is_survived(
    published: tuple[dict[str, bytes], str], tmp_path: Path, fault: Fault
) -> None:
    with HubServer({"models/some/tokenizer": published[0]}) as hub:
        hub.fault = dataclasses.replace(fault)
        done = by_the_hub(hub, tmp_path / "made")
        assert done.returncode == 0, done.stderr
        assert done.stdout.split()[-1] == published[1]
        assert not [request for request in hub.requests if "safetensors" in request or "onnx" in request]


@pytest.mark.processes
@pytest.mark.parametrize(
    ("fault", "words"),
    [
        (Fault("GET .*tokenizer.json", times=-1, flip=3000), "tokenizer.json arrives altered"),
        (Fault("(GET|HEAD) .*tokenizer.json", times=-1, status=404), "answers 404 Not Found for tokenizer.json"),
        (Fault("GET .*tokenizer.json", times=-1, status=500), "cannot be reached (tokenizer.json: 500 Internal"),
        (Fault("GET /api/models", times=-1, silent=True), "cannot be reached (its list of files"),
    ],
    ids=["altered", "not there", "refused", "silence"],
)
def test_a_fault_of_the_hub_that_stays_is_one_line(
    published: tuple[dict[str, bytes], str], tmp_path: Path, fault: Fault, words: str
) -> None:
    with HubServer({"models/some/tokenizer": published[0]}) as hub:
        hub.fault = dataclasses.replace(fault)
        done = by_the_hub(hub, tmp_path / "made")
    assert done.returncode == 1
    assert done.stderr.startswith("error: data.tokenizer some/tokenizer: ")
    assert words in done.stderr
    assert done.stderr.count("\n") == 1
    assert "http" not in done.stdout + done.stderr
    assert not (tmp_path / "made/tokens").exists()


@pytest.mark.processes
def test_without_the_hub_a_tokenizer_comes_from_the_cache_if_it_is_intact(
    published: tuple[dict[str, bytes], str], tmp_path: Path
) -> None:
    with HubServer({"models/some/tokenizer": published[0]}) as hub:
        assert by_the_hub(hub, tmp_path / "online").returncode == 0
        asked = len(hub.requests)
        done = by_the_hub(hub, tmp_path / "offline", HF_HUB_OFFLINE="1")
        assert done.stdout.split()[-1] == published[1]
        assert len(hub.requests) == asked
        hub.fault = Fault(".", times=-1, status=503)
        done = by_the_hub(hub, tmp_path / "refused")
        assert done.stdout.split()[-1] == published[1]
        assert "its files in the cache are used" in done.stdout
        (cached,) = (tmp_path / "home").glob("hub/*/snapshots/*/tokenizer.json")
        content = bytearray(cached.read_bytes())
        content[3000] ^= 1
        cached.resolve().write_bytes(content)
        done = by_the_hub(hub, tmp_path / "damaged")
        assert "tokenizer.json in the cache is damaged" in done.stderr
        hub.fault = None
        done = by_the_hub(hub, tmp_path / "mended")  # the Hub tells that it is damaged, and has it anew
        assert done.stdout.split()[-1] == published[1]


def test_a_tokenizer_whose_entries_share_an_id_is_damaged(tmp_path: Path) -> None:
    make(tmp_path / "made")
    definition = json.loads((tmp_path / "made/tokenizer/tokenizer.json").read_text())
    vocabulary, path = definition["model"]["vocab"], tmp_path / "changed.json"
    for other in vocabulary.keys() - {"t"}:
        changed = vocabulary | {"t": vocabulary[other]}
        path.write_text(json.dumps(definition | {"model": definition["model"] | {"vocab": changed}}))
        with pytest.raises(UserError, match="damaged"):
            build_tokenizer(data(tokenizer=str(path)), [])


@pytest.mark.parametrize("name", ["no/such/path", "./nothing.json", "bad name"])
def test_a_tokenizer_that_is_not_there(tmp_path: Path, name: str) -> None:
    with pytest.raises(UserError, match=r"data\.tokenizer"):
        make(tmp_path, tokenizer=name)
    assert not (tmp_path / "tokens").exists()


def test_a_failed_run_leaves_what_was_there(tmp_path: Path) -> None:
    make(tmp_path)
    before = {path: path.read_bytes() for path in (tmp_path / "tokens").iterdir()}
    with pytest.raises(UserError, match="no text"):
        make(tmp_path, {"train": ["a text"], "validation": [""]})
    assert {path: path.read_bytes() for path in (tmp_path / "tokens").iterdir()} == before


# ---------------------------------------------------------------------------------------------- windows


def test_every_token_is_a_label_once_at_evaluation(tmp_path: Path) -> None:
    make(tmp_path)
    split = load_tokens(tmp_path / "tokens", "train")
    labels, inputs = [], []
    for input_ids, label_ids in eval_windows(split, 7, 4):
        inputs += input_ids.flatten().tolist()
        labels += label_ids.flatten().tolist()
    assert labels == split.tokens[1:].tolist()
    assert inputs == split.tokens[:-1].tolist()


def test_each_epoch_has_every_window_once_in_an_order_of_its_own() -> None:
    orders = [epoch_order(101, seed, epoch) for seed, epoch in ((1, 0), (1, 1), (2, 0))]
    for order in orders:
        assert sorted(order.tolist()) == list(range(101))
    assert len({tuple(order) for order in orders}) == 3
    assert (epoch_order(101, 1, 0) == orders[0]).all()


def test_tokens_are_read_memory_mapped(tmp_path: Path) -> None:
    make(tmp_path)
    assert isinstance(load_tokens(tmp_path / "tokens", "train").tokens, np.memmap)


def damage_array(folder: Path) -> None:
    (folder / "train-00000.bin").write_bytes((folder / "train-00000.bin").read_bytes()[:-2])


def damage_id(folder: Path, to: int = 9999) -> None:
    tokens = np.fromfile(folder / "train-00000.bin", "<u2")
    tokens[5] = to
    tokens.tofile(folder / "train-00000.bin")


def change_id(folder: Path) -> None:
    tokens = np.fromfile(folder / "train-00000.bin", "<u2")
    damage_id(folder, to=(tokens[5] + 1) % 300)


def name_another_end(folder: Path) -> None:
    meta = json.loads((folder / "meta.json").read_text())
    meta["tokenizer"]["end_token_id"] += 1
    (folder / "meta.json").write_text(json.dumps(meta))


def damage_meta(folder: Path) -> None:
    (folder / "meta.json").write_text("{")


def damage_dtype(folder: Path) -> None:
    meta = json.loads((folder / "meta.json").read_text())
    (folder / "meta.json").write_text(json.dumps(meta | {"dtype": "uint32"}))


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (damage_array, "where meta.json says"),
        (damage_id, "token id 9999 at position 5 is outside the vocabulary"),
        (name_another_end, "does not begin and end with the end token, 1"),
        (change_id, "changed since it was made"),
        (damage_meta, "damaged"),
        (damage_dtype, "not stored as uint32"),
    ],
)
def test_damaged_tokens_are_named(tmp_path: Path, damage: Any, words: str) -> None:
    make(tmp_path)
    damage(tmp_path / "tokens")
    with pytest.raises(UserError, match=words):
        load_tokens(tmp_path / "tokens", "train")

"""A model's name on the Hub, against a stand-in on loopback; and what is neither a path nor a name."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
import torch

from custom_transformer.errors import UserError
from custom_transformer.interchange import export_huggingface
from custom_transformer.interchange.imported import CHECKPOINT
from custom_transformer.interchange.sources import import_model
from custom_transformer.runs.checkpoint import load_checkpoint
from custom_transformer.text.saved_tokenizer import load_tokenizer
from tests.helpers import random_model, random_tokens
from tests.hub_server import Fault, HubServer
from tests.processes import run
from tests.text.making import make

NAME = "some/model"


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """A model's files for a Hub, with others that are not to be fetched."""
    folder = tmp_path_factory.mktemp("published")
    make(folder)
    tokenizer = load_tokenizer(folder / "tokenizer")
    model = random_model(torch.float32, vocab_size=len(tokenizer))
    export_huggingface(model, tokenizer, folder / "model", "# A card\n")
    files = {path.name: path.read_bytes() for path in (folder / "model").iterdir()}
    return files | {"pytorch_model.bin": b"not fetched", "onnx/config.json": b"{", "model.gguf": b"not fetched"}


def taken_over(
    hub: HubServer, folder: Path, *arguments: str, name: str = NAME, **environment: str
) -> subprocess.CompletedProcess[str]:
    program = """
from types import SimpleNamespace
from custom_transformer.__main__ import main
from custom_transformer.errors import run_main
from custom_transformer.text import hub
hub.time = SimpleNamespace(sleep=lambda seconds: None)  # between two attempts
hub.PATIENCE = 4
run_main(main)
"""
    environment = hub.environment(folder.parent / "home", **environment)
    return run("-c", program, "import", name, "--to", folder, *arguments, cwd=folder.parent, env=environment)


@pytest.mark.processes
def test_a_model_on_the_hub_is_taken_over_by_name_and_later_from_the_cache(
    published: dict[str, bytes], tmp_path: Path
) -> None:
    with HubServer({f"models/{NAME}": published}) as hub:
        commit = hub.commit(f"models/{NAME}")
        hub.fault = Fault("GET .*model.safetensors", flip=3000)  # once
        done = taken_over(hub, tmp_path / "here")
        assert done.returncode == 0, done.stderr
        asked = " ".join(hub.requests)
        assert "pytorch_model.bin" not in asked
        assert "model.gguf" not in asked
        hub.fault = Fault(".*", times=-1, status=503)
        again = taken_over(hub, tmp_path / "again")
        assert again.returncode == 0, again.stderr
        assert f"import {NAME}: the Hub cannot be reached; its files in the cache are used" in again.stdout
        pinned = taken_over(hub, tmp_path / "pinned", "--revision", commit, HF_HUB_OFFLINE="1")
        assert pinned.returncode == 0, pinned.stderr
    expected = random_model(torch.float32, vocab_size=load_checkpoint(tmp_path / "here" / CHECKPOINT).config.vocab_size)
    tokens = random_tokens()
    for folder in ("here", "again", "pinned"):
        checkpoint = load_checkpoint(tmp_path / folder / CHECKPOINT)
        assert checkpoint.metadata["source"] == f"{NAME}@{commit}"
        torch.testing.assert_close(checkpoint.build_model().forward(tokens), expected.forward(tokens))


@pytest.mark.processes
@pytest.mark.parametrize(
    ("name", "arguments", "fault", "words"),
    [
        ("nobody/nothing", (), None, "import nobody/nothing: no such model on the Hub"),
        (NAME, ("--revision", "v9"), None, f"--revision v9: {NAME} has no such branch, tag or commit"),
        ("some/gated", (), None, "import some/gated: gated; accept its terms"),
        ("some/files", (), None, "import some/files: has no config.json on the Hub; download a.gguf and give its path"),
        (NAME, (), Fault("GET .*model.safetensors", times=-1, flip=3000), "model.safetensors arrives altered"),
        (NAME, (), Fault("GET .*/config.json", times=-1, status=500), "cannot be reached (config.json: 500 Internal"),
        (NAME, (), Fault("GET /api/models", times=-1, silent=True), "or give a folder or a GGUF file"),
    ],
    ids=["no model", "no revision", "gated", "no configuration", "altered", "refused", "silence"],
)
def test_what_the_hub_does_not_give_is_one_line(
    published: dict[str, bytes], tmp_path: Path, name: str, arguments: tuple[str, ...], fault: Fault | None, words: str
) -> None:
    repositories = {f"models/{NAME}": published, "models/some/gated": published, "models/some/files": {"a.gguf": b""}}
    with HubServer(repositories, gated=("models/some/gated",)) as hub:
        hub.fault = fault
        done = taken_over(hub, tmp_path / "here", *arguments, name=name)
    assert done.returncode == 1
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    assert words in done.stderr
    assert not (tmp_path / "here").exists()


@pytest.mark.parametrize("source", ["nowhere/at/all", "./nowhere", "/nowhere", "nowhere.gguf", "a b"])
def test_what_is_neither_a_path_nor_a_name_is_refused_without_a_network(source: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such file or folder"):
        import_model(source, tmp_path / "here")


def test_a_folder_has_no_revision(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="leave the revision out"):
        import_model(str(tmp_path), tmp_path / "here", "main")

"""Checkpoints: what is written comes back, equal contents are equal bytes, and nothing hostile gets in."""

from __future__ import annotations

import pickle
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from custom_transformer import CustomTransformerWrapper
from custom_transformer.errors import UserError
from custom_transformer.files import StorageError
from custom_transformer.runs.checkpoint import load_checkpoint, save_checkpoint
from tests.helpers import checkpoint_content, largest_file, random_model, random_tokens


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("tie_embeddings", [True, False])
def test_a_checkpoint_comes_back_whole(tmp_path: Path, dtype: torch.dtype, tie_embeddings: bool) -> None:
    model, tokens = random_model(dtype, tie_embeddings=tie_embeddings, bias=False), random_tokens()
    save_checkpoint(tmp_path / "model.pt", model, {"epoch": 3})
    checkpoint = load_checkpoint(tmp_path / "model.pt")
    again = checkpoint.build_model()
    assert checkpoint.metadata == {"epoch": 3}
    assert again.config == model.config
    assert torch.equal(again.forward(tokens), model.forward(tokens))


def test_a_model_of_another_architecture_is_not_written(tmp_path: Path) -> None:
    model = random_model()
    model.architecture = replace(model.architecture, name="another")
    with pytest.raises(ValueError, match="another is no architecture of this project"):
        save_checkpoint(tmp_path / "model.pt", model, {})
    assert list(tmp_path.iterdir()) == []


def test_the_format_is_plain_tensors_and_values(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "model.pt", random_model(), {"epoch": 3})
    content = torch.load(tmp_path / "model.pt", weights_only=True)
    assert sorted(content) == ["config", "metadata", "state_dict"]
    assert content["config"]["d_model"] == 15


def test_equal_contents_are_equal_bytes_under_any_name(tmp_path: Path) -> None:
    for name in ("best.pt", "custom_transformer_epoch_1.pt"):
        save_checkpoint(tmp_path / name, random_model(), {"epoch": 1})
    assert (tmp_path / "best.pt").read_bytes() == (tmp_path / "custom_transformer_epoch_1.pt").read_bytes()


def test_a_failed_save_leaves_the_earlier_file(tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    save_checkpoint(path, random_model(), {})
    before = path.read_bytes()
    with pytest.raises(ValueError, match=r"metadata\.bad is of type function"):
        save_checkpoint(path, random_model(seed=2), {"bad": lambda: None})
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_a_disk_that_fills_up_at_any_byte_leaves_the_earlier_file(tmp_path: Path) -> None:
    """Closing its archive after a failed write, PyTorch hides what happened behind an error of its own."""
    path = tmp_path / "model.pt"
    save_checkpoint(path, random_model(), {})
    before = path.read_bytes()
    for size in range(0, len(before), 397):
        with pytest.raises(StorageError, match="File too large") as error, largest_file(size):
            save_checkpoint(path, random_model(seed=2), {})
        assert error.value.filename == str(path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


class Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return (Path("executed").touch, ())


def edit(change: Callable[[dict[str, Any]], None]) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        edited = checkpoint_content()
        change(edited)
        torch.save(edited, path)

    return write


def set_in(part: str, key: str, value: Any) -> Callable[[Path], None]:
    return edit(lambda c: c[part].__setitem__(key, value))


def truncated(path: Path) -> None:
    torch.save(checkpoint_content(), path)
    path.write_bytes(path.read_bytes()[:-2000])


def flipped(path: Path) -> None:
    torch.save(checkpoint_content(), path)
    with zipfile.ZipFile(path) as archive:
        largest = max(archive.infolist(), key=lambda entry: entry.file_size)
    data = bytearray(path.read_bytes())
    data[largest.header_offset + 200 + largest.file_size // 2] ^= 1
    path.write_bytes(data)


def compressed(path: Path) -> None:
    torch.save(checkpoint_content(), path)
    with zipfile.ZipFile(path) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in entries.items():
            archive.writestr(name, data)


HOSTILE: dict[str, tuple[Callable[[Path], None], str]] = {
    "missing": (lambda path: None, "no such checkpoint"),
    "empty": (lambda path: path.write_bytes(b""), "damaged"),
    "text": (lambda path: path.write_text("hello"), "damaged"),
    "truncated": (truncated, "damaged"),
    "a flipped bit": (flipped, "checksum"),
    "compressed": (compressed, "compressed"),
    "bare pickle": (lambda path: path.write_bytes(pickle.dumps(Evil())), "damaged"),
    "pickle inside": (set_in("metadata", "evil", Evil()), "more than tensors"),
    "no state": (edit(lambda c: c.pop("state_dict")), "needs state_dict"),
    "a list": (lambda path: torch.save([1, 2], path), "needs state_dict"),
    "another shape": (set_in("state_dict", "final_norm.weight", torch.ones(7)), "final_norm.weight"),
    "integers": (set_in("state_dict", "final_norm.weight", torch.ones(15).long()), "final_norm.weight"),
    "not a tensor": (set_in("state_dict", "final_norm.weight", 5), "final_norm.weight"),
    "NaN": (set_in("state_dict", "final_norm.weight", torch.full((15,), torch.nan)), "NaN"),
    "missing tensor": (edit(lambda c: c["state_dict"].pop("final_norm.weight")), "final_norm.weight is missing"),
    "unknown tensor": (set_in("state_dict", "more", torch.ones(1)), "more is unknown"),
    "wrong size in config": (set_in("config", "d_ffn", 23), "blocks.0"),
    "heads": (set_in("config", "n_heads", 4), "multiple of n_heads"),
    "unknown key in config": (set_in("config", "rope", True), "rope"),
    "unknown dtype": (set_in("config", "dtype", "int8"), "int8"),
    "a billion blocks": (set_in("config", "n_blocks", 10**9), "blocks"),
    "huge vocabulary": (set_in("config", "vocab_size", 10**9), "token_embedding"),
    "stretched tensor": (
        edit(
            lambda c: (
                c["config"].update(vocab_size=10**9),
                c["state_dict"].update(token_embedding=torch.zeros(1, 1).expand(10**9, 15)),
            )
        ),
        "more numbers than the file holds",
    ),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_damaged_and_hostile_files_are_refused_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: str
) -> None:
    monkeypatch.chdir(tmp_path)
    write, message = HOSTILE[case]
    write(tmp_path / "model.pt")
    with pytest.raises(UserError, match=message) as error:
        load_checkpoint(tmp_path / "model.pt")
    assert "model.pt" in str(error.value)
    assert "\n" not in str(error.value)
    assert not Path("executed").exists()


def test_loading_a_checkpoint_of_another_shape_changes_nothing(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "model.pt", random_model(torch.float32, d_ffn=29), {})
    wrapper = CustomTransformerWrapper(vocab_size=37, max_seq_len=13, n_blocks=2, n_heads=3, d_model=15, d_ffn=22)
    before = wrapper.model.state_dict()
    with pytest.raises(ValueError, match="shape"):
        wrapper.load_checkpoint(tmp_path / "model.pt")
    assert all(torch.equal(p, before[n]) for n, p in wrapper.model.parameters.items())


def test_a_checkpoint_of_other_heads_is_another_shape(tmp_path: Path) -> None:
    """Although every tensor has the same shape."""
    save_checkpoint(tmp_path / "model.pt", random_model(torch.float32, n_heads=5), {})
    wrapper = CustomTransformerWrapper(vocab_size=37, max_seq_len=13, n_blocks=2, n_heads=3, d_model=15, d_ffn=22)
    with pytest.raises(ValueError, match="n_heads is 5, this model's is 3"):
        wrapper.load_checkpoint(tmp_path / "model.pt")


@pytest.mark.parametrize("value", [Path("x"), {"a": [1, torch.ones(1)]}, np.float64(1.5), {1.5: {2, 3}}])
def test_metadata_that_could_not_be_loaded_is_not_saved(tmp_path: Path, value: object) -> None:
    with pytest.raises(ValueError, match=r"metadata\.x.* is of type"):
        save_checkpoint(tmp_path / "model.pt", random_model(), {"x": value})
    assert not list(tmp_path.iterdir())

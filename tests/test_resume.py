"""The work folder: the newest undamaged state, one process at a time, checkpoints that replace older ones."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from custom_transformer.config import Params, load_params
from custom_transformer.errors import UserError
from custom_transformer.fast.engine import EAGER, NATIVE
from custom_transformer.resume import WorkFolder
from stages.train import training_key


def test_the_newest_state_comes_back(tmp_path: Path) -> None:
    with WorkFolder(tmp_path, "k") as folder:
        assert folder.load() is None
        for step in (5, 10, 15):
            folder.save(step, {"x": torch.full((3,), float(step)), "step": step})
    with WorkFolder(tmp_path, "k") as folder:
        state = folder.load()
        assert state is not None
        assert state["step"] == 15
        assert len(list(folder.path.glob("state-*.pt"))) == 2


@pytest.mark.parametrize("damage", ["cut", "flipped"])
def test_a_damaged_state_is_passed_over(tmp_path: Path, damage: str) -> None:
    with WorkFolder(tmp_path, "k") as folder:
        for step in (5, 10):
            folder.save(step, {"x": torch.zeros(300), "step": step})
        newest = max(folder.path.glob("state-*.pt"))
        content = newest.read_bytes()
        middle = len(content) // 2
        newest.write_bytes(content[:middle] if damage == "cut" else content[:middle] + b"\xff" + content[middle + 1 :])
        state = folder.load()
        assert state is not None
        assert state["step"] == 5


def test_a_second_process_is_turned_away(tmp_path: Path) -> None:
    with (
        WorkFolder(tmp_path, "k"),
        pytest.raises(UserError, match="is running"),
        WorkFolder(tmp_path, "k"),
    ):
        pass


def test_publishing_replaces_an_earlier_runs_checkpoints(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "custom_transformer_epoch_9.pt").write_bytes(b"old")
    with WorkFolder(tmp_path / "work", "k") as folder:
        (folder.checkpoints / "best.pt").write_bytes(b"new")
        folder.publish(out)
        folder.remove()
        assert not folder.path.exists()
    assert [path.name for path in out.iterdir()] == ["best.pt"]


@pytest.mark.parametrize(
    ("section", "key", "value", "decides"),
    [
        (None, "seed", 8, True),
        ("data", "max_length", 32, True),
        ("model", "d_ffn", 65, True),
        ("training", "learning_rate", 0.5, True),
        ("generation", "temperature", 0.5, False),
        ("tracking", "experiment", "other", False),
    ],
)
def test_what_decides_a_result_decides_its_key(section: str | None, key: str, value: object, decides: bool) -> None:
    params = load_params("configs/smoke.yaml")
    content = params.model_dump()
    (content[section] if section else content)[key] = value
    other = Params.model_validate(content)
    tokens = {"splits": {"train": {"sha256": "0"}}}
    assert (training_key(other, tokens, EAGER) != training_key(params, tokens, EAGER)) is decides
    assert training_key(params, tokens, EAGER) != training_key(params, {}, EAGER)
    assert training_key(params, tokens, EAGER) != training_key(params, tokens, NATIVE)

"""params.yaml: what is shipped is valid, and each mistake is named in one line."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from custom_transformer.config import load_params
from custom_transformer.errors import UserError
from tests.ground.wrong import WRONG, with_change


@pytest.mark.parametrize("path", ["params.yaml", *map(str, Path("configs").glob("*.yaml"))])
def test_every_shipped_configuration_is_valid(path: str) -> None:
    load_params(path)


@pytest.mark.parametrize(
    "written", "3e-05 1.5e-05 0.00003 3.0e-5 3e-4 3E-4 +3e-4 1e3 1E+3 .5e1 5.e-1 .5 5. 1 +2".split()
)
def test_every_way_to_write_a_number(tmp_path: Path, written: str) -> None:
    path = tmp_path / "params.yaml"
    path.write_text(re.sub(r"learning_rate: 0\.005\b", f"learning_rate: {written}", Path("params.yaml").read_text()))
    assert load_params(path).training.learning_rate == float(written)


# What takes two keys to see, or what JSON does not have: a schema lets it pass.
WRONG_WHEN_LOADED = [
    ("training.learning_rate", float("nan"), "finite"),
    ("training.min_learning_rate", 1.0, "must not be above"),
    ("training.batch_size", 1e3, "integer, not 1000.0; write 1000"),
    ("model.d_model", 130, "multiple of n_heads"),
    ("data.max_length", 4096, "must not be above model.max_seq_len"),
    ("generation.prompts", ["\ud800"], "not valid Unicode"),
]


@pytest.mark.parametrize(("key", "value", "message"), WRONG + WRONG_WHEN_LOADED)
def test_a_wrong_value_is_refused_by_name(tmp_path: Path, key: str, value: Any, message: str) -> None:
    path = tmp_path / "params.yaml"
    path.write_text(yaml.safe_dump(with_change(key, value)))
    with pytest.raises(UserError, match=message) as error:
        load_params(path)
    assert str(error.value).startswith(f"{path}: ")
    assert "\n" not in str(error.value)
    assert key.split(".")[0] in str(error.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "expected sections"),
        (b"- a\n- b\n", "expected sections"),
        (b"seed: 1\nseed: 2\n", "stands twice"),
        (b"model: {d_model: [}\n", "not valid YAML"),
        (b"seed: !!python/object/apply:os.system ['true']\n", "not valid YAML"),
        (b"\xff\xfe\x00\x01", "not UTF-8"),
        (b"a: &x [*x]\n", "stands for more than a word"),
        (b"[" * 5000, "not valid YAML"),
    ],
)
def test_a_file_that_is_no_parameters_is_refused(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "params.yaml"
    path.write_bytes(content)
    with pytest.raises(UserError, match=message):
        load_params(path)


def test_a_missing_file_is_named() -> None:
    with pytest.raises(UserError, match=r"nowhere\.yaml: no such file"):
        load_params("nowhere.yaml")


def test_parameters_cannot_be_changed() -> None:
    params = load_params("params.yaml")
    with pytest.raises(ValueError, match="frozen"):
        params.training.batch_size = 3  # type: ignore[misc]

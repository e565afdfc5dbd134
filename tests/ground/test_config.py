"""params.yaml: what is shipped is valid, and each mistake is named in one line."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from dvc.utils.hydra import apply_overrides
from dvc.utils.serialize import dumps_yaml
from hypothesis import given
from hypothesis import strategies as st
from ruamel.yaml import YAML

from custom_transformer.config import CustomTransformerConfig, load_params
from custom_transformer.errors import UserError
from custom_transformer.plain_yaml import load_yaml
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


# As people and DVC write text: YAML 1.1 would make false, 90 or 8 of some of it.
WORDS = ["No", "yes", "on", "off", "y", "1:30", "1:30:15.5", "no way", "0b12", "0o8", "~a", "nullable", "True story"]


@pytest.mark.parametrize("word", WORDS)
def test_a_word_is_text(tmp_path: Path, word: str) -> None:
    path = tmp_path / "params.yaml"
    path.write_text(re.sub(r"prompts: .*", f"prompts: [{word}]", Path("params.yaml").read_text()))
    assert load_params(path).generation.prompts == [word]


# DVC writes U+0085 as a line break, and itself reads a space there.
TEXTS = st.text(st.characters(codec="utf-8", exclude_characters="\x85"))


@given(st.lists(TEXTS | st.sampled_from([*WORDS, "0123456", "1e3", "1_0", "null", "~", "2024-01-01", "=", "<<"])))
def test_what_dvc_writes_is_read_as_it_was_meant(prompts: list[str]) -> None:
    written = dumps_yaml({"prompts": prompts, "seed": 10, "rate": 3e-4, "bias": False, "none": None})
    assert load_yaml(written) == {"prompts": prompts, "seed": 10, "rate": 3e-4, "bias": False, "none": None}


def test_dvc_s_settings_are_read_as_they_were_meant(tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    shutil.copy("params.yaml", path)
    apply_overrides(
        path, ['generation.prompts=["No","1:30"]', "data.revision='0123456'", "seed=17", "model.tie_embeddings=false"]
    )
    params = load_params(path)
    assert (params.generation.prompts, params.data.revision) == (["No", "1:30"], "0123456")
    assert (params.seed, params.model.tie_embeddings) == (17, False)


def test_an_architecture_is_one_setting_with_keys_of_its_own(tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    shutil.copy("params.yaml", path)
    apply_overrides(path, ["model.architecture=llama"])
    model = load_params(path).model
    assert (model.kv_heads, model.rope_base, model.norm_eps) == (model.n_heads, 10_000.0, 1e-5)
    apply_overrides(path, ["+model.n_kv_heads=2"])
    assert load_params(path).model.kv_heads == 2
    apply_overrides(path, ["model.architecture=gpt2"])
    with pytest.raises(UserError, match="model: n_kv_heads is a key of llama and modern, not of 'gpt2'; remove it"):
        load_params(path)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"architecture": "llama", "bias": False}, "bias is a key of gpt2, not of 'llama'; remove it"),
        ({"rope_base": 1e4}, "rope_base is a key of llama and modern, not of 'gpt2'; remove it"),
        ({"architecture": "mamba"}, "architecture: input should be 'gpt2', 'llama' or 'modern', not 'mamba'"),
        ({"architecture": "llama", "n_heads": 4, "n_kv_heads": 3}, "must be a multiple of n_kv_heads"),
        ({"architecture": "llama", "d_model": 20, "n_heads": 4}, "must be even"),
        ({"architecture": "llama", "norm_eps": 0}, "norm_eps"),
        ({"architecture": "llama", "rope_base": 1}, "rope_base"),
    ],
)
def test_keys_of_architectures_are_checked(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=re.escape(words)):
        CustomTransformerConfig.from_mapping({"vocab_size": 9} | changes)


def test_a_configuration_s_values_make_it_again() -> None:
    for own in ({}, {"bias": False}, {"architecture": "llama", "n_kv_heads": 2}):
        config = CustomTransformerConfig(vocab_size=9, **own)
        assert CustomTransformerConfig(**config.model_dump()) == config


@pytest.mark.parametrize(("written", "value"), [("010", 10), ("0x10", 16), ("0o17", 15), ("1_000", 1000), ("+7", 7)])
def test_whole_numbers_are_those_of_dvc(tmp_path: Path, written: str, value: int) -> None:
    path = tmp_path / "params.yaml"
    path.write_text(re.sub(r"seed: .*", f"seed: {written}", Path("params.yaml").read_text(), count=1))
    assert load_params(path).seed == value == YAML(typ="safe").load(f"seed: {written}")["seed"]


@pytest.mark.parametrize(
    ("written", "message"),
    [
        ("revision: 0123456", "data.revision: input should be a valid string, not 123456; put quotes around it"),
        ("revision: 1234e5", "not 123400000.0; put quotes around it"),
        ("revision: true", "not true; put quotes around it"),
        ("revision: 2024-01-01", "not 2024-01-01; put quotes around it"),
        ("train_split:", "not null, which is what an empty value means too; write a text"),
        ("seed: 1:30", "seed: input should be a valid integer, not '1:30'"),
        ("tie_embeddings: yes", "not 'yes'; write true or false"),
    ],
)
def test_what_is_read_as_another_kind_is_refused_with_the_remedy(tmp_path: Path, written: str, message: str) -> None:
    path = tmp_path / "params.yaml"
    key = written.partition(":")[0]
    path.write_text(re.sub(rf"\b{key}: .*", written, Path("params.yaml").read_text(), count=1))
    with pytest.raises(UserError, match=re.escape(message)):
        load_params(path)


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
        (b"a: !!int ''\n", "not valid YAML"),
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

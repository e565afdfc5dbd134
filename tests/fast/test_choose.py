"""Which engine and which device compute."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from custom_transformer.config import load_params
from custom_transformer.errors import UserError
from custom_transformer.fast.choose import NATIVE, NATIVE_WITH_LIBRARIES, choose_device, choose_engine, prepare
from custom_transformer.maths.engine import READABLE


def test_the_choice_follows_the_parameter_and_the_length_of_the_run(capsys: pytest.CaptureFixture[str]) -> None:
    cpu = torch.device("cpu")
    assert choose_engine(False, cpu, 1e20) is READABLE
    assert choose_engine("auto", torch.device("mps"), 1e20) is READABLE
    assert choose_engine("auto", cpu, 0) is NATIVE
    assert choose_engine(True, cpu, 0) is NATIVE
    assert choose_engine("auto", cpu, 1e9, portable=False) is READABLE
    assert choose_engine("auto", cpu, 1e20, portable=False) is NATIVE_WITH_LIBRARIES
    assert choose_engine(True, cpu, 0, portable=False) is NATIVE_WITH_LIBRARIES
    assert choose_engine(True, torch.device("cuda"), 0).name == "compiled"
    assert choose_engine("auto", torch.device("cuda"), 1e12) is READABLE
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("choice", "gpu", "device", "line"),
    [
        ("auto", None, "cpu", "training.device: auto takes the processor, since PyTorch finds no NVIDIA GPU\n"),
        ("auto", "A GPU", "cuda", "training.device: auto takes A GPU\n"),
        ("cpu", None, "cpu", ""),
        ("cpu", "A GPU", "cpu", ""),
        ("cuda", "A GPU", "cuda", ""),
    ],
)
def test_the_device_follows_the_parameter_and_auto_says_what_it_took(
    choice: Any,
    gpu: str | None,
    device: str,
    line: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu is not None)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: gpu)
    assert choose_device(choice) == torch.device(device)
    assert capsys.readouterr() == ("", line)


def test_a_gpu_that_is_not_there_is_refused_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match=r"^training\.device: cuda: .*no NVIDIA GPU.*set it to cpu or auto$"):
        choose_device("cuda")


def test_a_process_is_prepared_for_the_parameters(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Device and engine together, and deterministic from here on."""
    noted: list[str] = []
    monkeypatch.setattr(torch, "set_deterministic_debug_mode", noted.append)
    monkeypatch.setattr(torch.utils.deterministic, "fill_uninitialized_memory", True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    training = load_params("configs/smoke.yaml").training
    for compile, portable, engine in (
        (False, True, READABLE),
        (True, True, NATIVE),
        ("auto", True, NATIVE),
        ("auto", False, READABLE),
    ):
        chosen = training.model_copy(update={"device": "cpu", "compile": compile, "portable": portable})
        assert prepare(chosen, 0.0) == (torch.device("cpu"), engine)
        said = capsys.readouterr().err
        assert ("training.portable cannot be kept: the readable engine computes" in said) == (
            portable and engine is READABLE
        )
    assert noted == ["error"] * 4
    assert torch.utils.deterministic.fill_uninitialized_memory is False
    with pytest.raises(UserError, match=r"training\.device"):
        prepare(training.model_copy(update={"device": "cuda"}), 1e20)


@pytest.mark.parametrize(
    ("precision", "units", "portable", "said"),
    [
        ("bfloat16", True, True, True),
        ("bfloat16", False, True, False),
        ("float32", True, True, False),
        ("bfloat16", True, False, False),
    ],
)
def test_matrix_units_that_are_not_used_are_told_of(
    precision: str,
    units: bool,
    portable: bool,
    said: bool,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: units)
    changes = {"precision": precision, "portable": portable, "device": "cpu"}
    prepare(load_params().training.model_copy(update=changes), 1e20)
    assert ("training.portable: false uses them" in capsys.readouterr().err) is said

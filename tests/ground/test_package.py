"""The package's public names, and modules that need no PyTorch."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

import custom_transformer


def test_every_public_name_is_there() -> None:
    assert {name: getattr(custom_transformer, name).__name__ for name in custom_transformer.__all__} == {
        name: name
        for name in (
            "CustomTransformer",
            "CustomTransformerConfig",
            "CustomTransformerWrapper",
            "from_huggingface",
            "to_huggingface",
        )
    }
    with pytest.raises(AttributeError, match="'custom_transformer' has no attribute 'Transformer'"):
        _ = custom_transformer.Transformer


def test_the_ground_floor_does_without_pytorch() -> None:
    modules = ("errors", "paths", "progress", "plain_yaml", "files", "config", "schema")
    imports = "; ".join(f"import custom_transformer.{name}" for name in modules)
    program = f"import sys; {imports}; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


@pytest.mark.parametrize("package", ["custom_transformer", "stages"])
@pytest.mark.parametrize(
    ("chosen", "count"), [({}, "1000"), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "ACTIVE"}, "None")]
)
def test_idle_threads_wait_shortly_unless_the_user_has_chosen(package: str, chosen: dict[str, str], count: str) -> None:
    """The library reads the variable when PyTorch loads it, so PyTorch comes later."""
    program = f"import os, sys, {package}; print(os.environ.get('GOMP_SPINCOUNT'), 'torch' in sys.modules)"
    unset = {name: value for name, value in os.environ.items() if name not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")}
    done = subprocess.run(
        [sys.executable, "-c", program], env=unset | chosen, capture_output=True, text=True, check=True
    )
    assert done.stdout == f"{count} False\n"


def test_no_stage_waits_for_the_compiler_of_graphs() -> None:
    """torch.compile's modules take more than a second to import, and only a GPU needs them."""
    program = """
import sys
import stages.evaluate, stages.export, stages.generate, stages.report, stages.train
from custom_transformer.config import load_params
from custom_transformer.fast.choose import prepare
prepare(load_params("configs/smoke.yaml").training, 0.0)
print("torch._dynamo" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"

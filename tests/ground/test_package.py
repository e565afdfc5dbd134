"""The package's public names, and modules that need no PyTorch."""

from __future__ import annotations

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

"""A decoder-only transformer trained by hand-derived backpropagation."""

from __future__ import annotations

import importlib
import os
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from custom_transformer.config import CustomTransformerConfig
    from custom_transformer.interchange import from_huggingface, to_huggingface
    from custom_transformer.maths.model import CustomTransformer
    from custom_transformer.wrapper import CustomTransformerWrapper

# Threads of OpenMP that wait for the next parallel region burn their core meanwhile. By GNU's default they do so for
# milliseconds, which takes the core from whoever works on it: another training, a browser, this process's other thread.
# The library reads its settings when PyTorch loads it.
if "torch" not in sys.modules and "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")

__all__ = [
    "CustomTransformer",
    "CustomTransformerConfig",
    "CustomTransformerWrapper",
    "from_huggingface",
    "to_huggingface",
]


def __getattr__(name: str) -> Any:
    """Imports a public name when it is first used: PyTorch takes seconds, which errors and config do not need."""
    homes = dict(zip(__all__, ("maths.model", "config", "wrapper", "interchange", "interchange"), strict=True))
    if name not in homes:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{homes[name]}"), name)

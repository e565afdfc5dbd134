"""The project's code as the book shows, runs and links it."""

from __future__ import annotations

import inspect
import math
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any, NamedTuple

import torch

from custom_transformer.maths import gpt2, llama, modern, muon, ops, optim, turns

ROOT = Path(__file__).parents[1]
MODULES: dict[str, ModuleType] = {
    "ops": ops,
    "optim": optim,
    "muon": muon,
    "turns": turns,
    "gpt2": gpt2,
    "llama": llama,
    "modern": modern,
}


class Source(NamedTuple):
    path: str  # from the repository's root
    text: str
    first: int
    last: int


def function(name: str) -> FunctionType:
    """By its name in ops.py, or as "optim.adamw_update". Raises AttributeError for one that does not exist."""
    module, _, rest = name.rpartition(".")
    return getattr(MODULES[module or "ops"], rest)


def source(name: str) -> Source:
    lines, first = inspect.getsourcelines(function(name))
    path = Path(inspect.getfile(function(name))).relative_to(ROOT).as_posix()
    return Source(path, "".join(lines), first, first + len(lines) - 1)


def namespace() -> dict[str, Any]:
    """What an example can name: torch, math, and the project's modules. Numbers are float64."""

    def tensor(rows: Any) -> torch.Tensor:
        return torch.tensor(rows, dtype=torch.float64)

    return {"torch": torch, "math": math, "tensor": tensor, **MODULES}

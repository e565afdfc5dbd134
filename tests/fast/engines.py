"""The engines by their names."""

from __future__ import annotations

import functools
from collections.abc import Callable

import pytest
import torch

from custom_transformer.fast.choose import FUSED, NATIVE
from custom_transformer.fast.compiled import compiled_engine
from custom_transformer.maths.engine import READABLE, Engine


@functools.cache
def whole_graphs(backend: str = "inductor") -> Engine:
    """The compiled engine, which raises an error where the graph of a block would be cut in two."""
    torch._dynamo.reset()  # it counts how often each function is compiled, for all engines together, up to a limit
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "compile", functools.partial(torch.compile, backend=backend, fullgraph=True))
        return compiled_engine.__wrapped__()


def captured_engine() -> Engine:
    """torch.compile's graphs without its generated code, which takes long to make; test_stacks.py has the whole."""
    return whole_graphs("eager")


ENGINES: dict[str, Callable[[], Engine]] = {
    "readable": lambda: READABLE,
    "fused": lambda: FUSED,
    "native": lambda: NATIVE,
    "compiled": captured_engine,
}

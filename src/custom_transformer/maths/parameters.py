"""What a parameter is for: its role decides how it begins, whether it decays, and in which dtype products read it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Literal, NamedTuple

import torch
from torch import Tensor

Role = Literal["table", "matrix", "into_stream", "gain", "bias"]


class Parameter(NamedTuple):
    """role: "table" has one row per token or position; "matrix" is multiplied with; "into_stream" is a matrix whose
    product is added to the residual stream; "gain" scales a norm's result; "bias" is added."""

    shape: tuple[int, ...]
    role: Role


Table = dict[str, Parameter]
Tensors = dict[str, Tensor]

INIT_STD = 0.02  # Radford et al. 2018, section 4.1

# One row per role. Weight decay shrinks matrices towards 0; a gain near 1 and a bias have no reason to shrink.
DECAYS: dict[Role, bool] = {"table": True, "matrix": True, "into_stream": True, "gain": False, "bias": False}
IN_PRODUCTS: dict[Role, bool] = {"table": False, "matrix": True, "into_stream": True, "gain": False, "bias": False}


def layer(name: str, bias: bool, shape: tuple[int, ...], role: Role) -> Table:
    """The parameters of one layer: its weight and, with `bias`, a bias as wide as its result."""
    table = {f"{name}.weight": Parameter(shape, role)}
    return table | {f"{name}.bias": Parameter(shape[-1:], "bias")} if bias else table


def count(table: Mapping[str, Parameter]) -> int:
    """The number of scalars in all parameters."""
    return sum(math.prod(shape) for shape, _ in table.values())


def initial(table: Mapping[str, Parameter], n_blocks: int, seed: int) -> Tensors:
    """GPT-2's initialisation, float32 on the CPU: tables and matrices from N(0, 0.02²), gains 1, biases 0.

    The two matrices of a block that write into the residual stream are scaled by 1/√(2 n_blocks), so that the
    stream's variance does not grow with depth (Radford et al. 2019, section 2.3).
    """
    generator = torch.Generator().manual_seed(seed)
    deviation: dict[Role, float] = dict.fromkeys(("table", "matrix"), INIT_STD)
    deviation["into_stream"] = INIT_STD / math.sqrt(2 * n_blocks)
    constant: dict[Role, float] = {"gain": 1.0, "bias": 0.0}
    return {
        name: torch.full(shape, constant[role], dtype=torch.float32, device="cpu")
        if role in constant
        else torch.randn(shape, generator=generator, dtype=torch.float32, device="cpu") * deviation[role]
        for name, (shape, role) in table.items()
    }


def decays(table: Mapping[str, Parameter], weight_decay: float) -> dict[str, float]:
    """The weight decay of each parameter."""
    return {name: weight_decay if DECAYS[role] else 0.0 for name, (_, role) in table.items()}


class InProducts(Mapping[str, Tensor]):
    """Parameters as products read them: matrices in `dtype`, cast at each look-up, so that no cast outlives its use."""

    def __init__(self, parameters: Mapping[str, Tensor], table: Mapping[str, Parameter], dtype: torch.dtype):
        self._parameters, self._table, self._dtype = parameters, table, dtype

    def __getitem__(self, name: str) -> Tensor:
        parameter = self._parameters[name]
        return parameter.to(self._dtype) if IN_PRODUCTS[self._table[name].role] else parameter

    def __iter__(self) -> Iterator[str]:
        return iter(self._parameters)

    def __len__(self) -> int:
        return len(self._parameters)

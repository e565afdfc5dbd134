"""What a parameter is for: its role decides how it begins, whether it decays, and in which dtype products read it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

Role = Literal["table", "matrix", "into_heads", "into_stream", "zero_into_stream", "gain", "bias"]


class Parameter(NamedTuple):
    """role: "table" has one row per token or position; "matrix" is multiplied with; "into_heads" is a
    matrix whose columns are those of heads, one head after another; "into_stream" is a matrix whose product is added to
    the residual stream, and "zero_into_stream" one that begins as 0; "gain" scales a norm's result; "bias" is added."""

    shape: tuple[int, ...]
    role: Role


Table = dict[str, Parameter]
Tensors = dict[str, Tensor]

INIT_STD = 0.02  # Radford et al. 2018, section 4.1
DRAWN_AT_ONCE = 2**14  # numbers, so that their integers stay in the processor's cache
_TWO_OF_FOUR = np.uint64(0x0000FFFF0000FFFF)

# One row per role. Weight decay shrinks matrices towards 0; a gain near 1 and a bias have no reason to shrink.
DECAYS: dict[Role, bool] = {
    "table": True,
    "matrix": True,
    "into_heads": True,
    "into_stream": True,
    "zero_into_stream": True,
    "gain": False,
    "bias": False,
}
IN_PRODUCTS: dict[Role, bool] = DECAYS | {"table": False}


def layer(name: str, bias: bool, shape: tuple[int, ...], role: Role) -> Table:
    """The parameters of one layer: its weight and, with `bias`, a bias as wide as its result."""
    table = {f"{name}.weight": Parameter(shape, role)}
    return table | {f"{name}.bias": Parameter(shape[-1:], "bias")} if bias else table


def count(table: Mapping[str, Parameter]) -> int:
    """The number of scalars in all parameters."""
    return sum(math.prod(shape) for shape, _ in table.values())


def initial(table: Mapping[str, Parameter], n_blocks: int, seed: int) -> Tensors:
    """GPT-2's initialisation, float32 on the CPU: tables and matrices nearly from N(0, 0.02²), gains 1, biases 0.

    "Nearly": the numbers are `nearly_normal`. The two matrices of a block that write into the residual stream are
    scaled by 1/√(2 n_blocks), so that the stream's variance does not grow with depth (Radford et al. 2019, section
    2.3).
    """
    bits = np.random.PCG64(np.random.SeedSequence(seed % 2**64))
    deviation: dict[Role, float] = dict.fromkeys(("table", "matrix", "into_heads"), INIT_STD)
    deviation["into_stream"] = INIT_STD / math.sqrt(2 * n_blocks)
    constant: dict[Role, float] = {"gain": 1.0, "bias": 0.0, "zero_into_stream": 0.0}
    return {
        name: torch.full(shape, constant[role], dtype=torch.float32, device="cpu")
        if role in constant
        else nearly_normal(bits, math.prod(shape), deviation[role]).view(shape)
        for name, (shape, role) in table.items()
    }


def nearly_normal(bits: np.random.PCG64, count: int, deviation: float) -> Tensor:
    """`count` independent float32 of mean 0 and the given standard deviation: sums of twelve uniform integers.

        x = (u₁ + … + u₁₂ − 6 · (2¹⁶ − 1)) · deviation / √(2³² − 1),    uᵢ from 0 … 2¹⁶ − 1

    A uᵢ has the mean (2¹⁶ − 1)/2 and the variance (2³² − 1)/12. The sum of twelve is close to normal (Irwin 1927 and
    Hall 1927; with excess kurtosis −0.1), and no |x| is above 6 deviations. Its sum is exact and its product rounded
    twice, so that it has the same bits everywhere; those of a normal distribution's own generator depend on the
    processor. NumPy guarantees the raw stream of a bit generator.
    """
    scale = deviation / math.sqrt(2**32 - 1)
    values = torch.empty(count, dtype=torch.float32, device="cpu")
    for first in range(0, count, DRAWN_AT_ONCE):
        part = values[first : first + DRAWN_AT_ONCE].numpy()
        words = bits.random_raw(3 * len(part))  # of 64 bits: three per number, four integers in each
        pairs = (words & _TWO_OF_FOUR) + (words >> np.uint64(16) & _TWO_OF_FOUR)
        sixes = pairs[0::3] + pairs[1::3] + pairs[2::3]
        sums = (sixes & np.uint64(2**32 - 1)) + (sixes >> np.uint64(32))
        part[:] = (sums.astype(np.int64) - 6 * (2**16 - 1)) * scale
    return values


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

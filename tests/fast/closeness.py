"""How close the fast functions' results must be to the readable ones'."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

# Relative to the norm of the right result. float64 and float32: some thousand roundings of 2⁻⁵³ and 2⁻²⁴ in sums whose
# terms partly cancel. bfloat16: either path rounds each product's operands to 2⁻⁹ and neither rounds where the other
# does; over the twenty products of two blocks such errors add up like a random walk, √20 · 2⁻⁹ · √2 ≈ 1.2%, and up to
# four times that where terms cancel.
BOUNDS = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 5e-2}


def wide(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


def distance(a: Tensor, b: Tensor) -> Tensor:
    """Relative to the norm of b."""
    return (a.double() - b.double()).norm() / b.double().norm().clamp(min=1e-30)


def assert_close(
    actual: Mapping[str, Tensor],
    expected: Mapping[str, Tensor],
    bound: float,
    exact: Mapping[str, Tensor] | None = None,
) -> None:
    """exact: the results in float64. What is no farther from them than the expected is close too: kernels that round
    less often are farther from the readable functions than those are from the truth."""
    assert actual.keys() == expected.keys()
    for name, right in expected.items():
        got = actual[name]
        assert got.shape == right.shape, name
        error = distance(got, right)
        better = exact is not None and distance(got, exact[name]) <= distance(right, exact[name])
        assert error < bound or better, f"{name}: {error}"

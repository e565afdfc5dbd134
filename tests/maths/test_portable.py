"""Functions of arrays against mpmath's, sums against fsum's, and turns against the formula."""

from __future__ import annotations

import math
from collections.abc import Callable

import mpmath
import numpy as np
import pytest
import torch

from custom_transformer.maths import portable
from custom_transformer.maths.turns import turns

RNG = np.random.default_rng(0)


def error(found: portable.Array, function: Callable[[mpmath.mpf], mpmath.mpf], x: portable.Array) -> float:
    """The largest error, in units of the last place of the true value."""
    with mpmath.workprec(200):
        true = [function(mpmath.mpf(v)) for v in x.tolist()]
        return max(
            float(abs(mpmath.mpf(f) - t)) / math.ulp(float(t)) for f, t in zip(found.tolist(), true, strict=True)
        )


def test_exp_and_log_are_near_the_last_place() -> None:
    x = np.concatenate([RNG.uniform(-708, 709, 800), RNG.uniform(-1, 1, 300), [0.0, -708.0, 709.0]])
    assert error(portable.exp(x), mpmath.exp, x) < 1.5
    x = np.concatenate(
        [10 ** RNG.uniform(-320, 308, 500), RNG.uniform(0.3, 2, 500), 1 + 10 ** RNG.uniform(-15, -2, 99)]
    )
    assert error(portable.log(x), mpmath.log, x) < 3
    assert portable.exp(np.array([-np.inf, -1e9, -709.0])).tolist() == [0.0, 0.0, 0.0]
    assert portable.log(np.ones(2)).tolist() == [0.0, 0.0]


def test_cos_and_sin_are_near_the_last_place_of_1() -> None:
    x = np.concatenate(
        [RNG.uniform(-1, 1, 200), RNG.uniform(-1e5, 1e5, 500), RNG.uniform(0, 2**31, 300), np.arange(99.0)]
    )
    for found, function in zip(portable.cos_sin(x), (mpmath.cos, mpmath.sin), strict=True):
        with mpmath.workprec(200):
            errors = [
                abs(float(mpmath.mpf(f) - function(mpmath.mpf(v)))) for f, v in zip(found, x.tolist(), strict=True)
            ]
        assert max(errors) < 2**-52


@pytest.mark.parametrize("count", [0, 1, 2, 3, 7, 64, 1001])
def test_a_total_is_the_sum_over_the_first_axis_and_leaves_its_argument_alone(count: int) -> None:
    x = RNG.normal(size=(count, 3))
    before = x.copy()
    assert portable.total(x).tolist() == pytest.approx([math.fsum(column) for column in x.T], rel=1e-12, abs=1e-13)
    assert np.array_equal(x, before)


def test_the_order_of_a_total_is_the_halves() -> None:
    x = np.array([1.0, 1e16, -1e16, 3.0, 5.0])
    assert portable.total(x) == ((1.0 + 3.0) + -1e16) + (1e16 + 5.0)


def test_long_arrays_are_as_their_parts() -> None:
    x = RNG.uniform(0.1, 2, (3, portable.BLOCK + 5))
    for function in (portable.exp, portable.log):
        assert np.array_equal(function(x)[2, -7:], function(x[2, -7:]))
        assert np.array_equal(function(x.T), function(x).T)


def test_turns_are_those_of_the_formula_and_begin_anywhere() -> None:
    cpu = torch.device("cpu")
    cos, sin = turns(0, 3000, 16, 10_000.0, torch.float64, cpu)
    angles = torch.outer(torch.arange(3000).double(), 10_000.0 ** (-torch.arange(16).double() / 16))
    torch.testing.assert_close(cos, angles.cos(), rtol=0, atol=1e-12)
    torch.testing.assert_close(sin, angles.sin(), rtol=0, atol=1e-12)
    late = turns(2990, 10, 16, 10_000.0, torch.float64, cpu)
    assert torch.equal(late[0], cos[2990:])
    assert torch.equal(late[1], sin[2990:])


def test_turns_made_in_inference_mode_serve_outside_of_it() -> None:
    with torch.inference_mode():
        cos, _ = turns(0, 5, 3, 77.0, torch.float32, torch.device("cpu"))
    x = torch.ones(5, 3, requires_grad=True)
    (x * cos).sum().backward()
    assert torch.equal(x.grad, cos)  # type: ignore[arg-type]

"""Correctly rounded functions against mpmath's, of which hundreds of bits are computed."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from fractions import Fraction

import mpmath
import pytest

from custom_transformer.maths import exact

RANDOM = random.Random(0)
ANGLES = [0.0, 1e-300, math.pi / 2, -3 * math.pi / 2, 1e22, 1.7e308, *(RANDOM.uniform(-1e4, 1e4) for _ in range(200))]
EXPONENTS = [0.0, -0.0, 5e-324, 1.0, 709.78, -744.0, -745.1, *(RANDOM.uniform(-745, 709) for _ in range(200))]
POSITIVE = [1.0, 1 + 2**-52, 1 - 2**-53, 5e-324, 1.7e308, *(math.ldexp(RANDOM.random(), n) for n in range(-99, 99))]
WHOLE = [2**1500, 3**1000, *(RANDOM.randrange(1, 10 ** (1 + n % 40)) for n in range(200))]


def check(found: Callable[..., float], expected: Callable[..., mpmath.mpf], *arguments: float) -> None:
    with mpmath.workprec(1600):
        value = float(expected(*map(mpmath.mpf, arguments)))
    assert found(*arguments) == value, arguments


@pytest.mark.parametrize(
    ("found", "expected", "arguments"),
    [
        (exact.exp, mpmath.exp, EXPONENTS),
        (exact.log, mpmath.log, POSITIVE),
        (exact.log2, lambda x: mpmath.log(x, 2), POSITIVE + WHOLE),
        (exact.cos, mpmath.cos, ANGLES),
    ],
)
def test_functions_are_correctly_rounded(
    found: Callable[[float], float], expected: Callable[[mpmath.mpf], mpmath.mpf], arguments: list[float]
) -> None:
    for x in arguments:
        check(found, expected, x)


def test_powers_are_correctly_rounded() -> None:
    for n in [0, 1, 2, 3, 34, *(RANDOM.randrange(10**6) for _ in range(50))]:
        for x in (0.9, 0.99, 0.999, 3.0, RANDOM.random()):
            if x < 1 or n < 600:
                check(lambda x, n: exact.power(x, int(n)), mpmath.power, x, n)
        check(lambda x, n: exact.power(x, -int(n), 64), lambda x, n: x ** (-n / 64), 1e4, n % 64)


def test_a_power_between_two_floats_is_the_even_one() -> None:
    x = (2**27 - 1) / 2**27  # its square has 54 bits, the last of them 1
    assert exact.power(x, 2) == float(Fraction(x) ** 2)
    assert exact.power(3.0, 34) == float(3**34)
    assert exact.power(0.5, 1074) == 5e-324


def test_what_no_float_holds_is_as_the_standard_has_it() -> None:
    assert [exact.exp(x) for x in (1e9, math.inf, -1e9, -math.inf)] == [math.inf, math.inf, 0.0, 0.0]
    assert exact.log(math.inf) == exact.log2(math.inf) == math.inf
    assert all(math.isnan(function(math.nan)) for function in (exact.exp, exact.log, exact.log2, exact.cos))
    assert exact.power(0.0, 3) == 0.0


@pytest.mark.parametrize(
    ("function", "arguments"),
    [
        (exact.log, (0.0,)),
        (exact.log2, (-1.0,)),
        (exact.cos, (math.inf,)),
        (exact.power, (-1.0, 2)),
        (exact.power, (0.0, 0)),
        (exact.power, (4.0, 1, 2)),
        (exact.power, (0.25, -1, 2)),
    ],
)
def test_what_has_no_value_is_refused(function: Callable[..., float], arguments: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match=r"domain|positive|here"):
        function(*arguments)

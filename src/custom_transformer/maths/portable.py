"""exp, log, cos, sin and sums of float64 arrays with the same bits on every machine.

How NumPy's and PyTorch's own functions round depends on the processor's vector instructions, and so does the order of
their sums. Here everything is made of NumPy's elementwise +, −, × and ÷, each of which IEEE 754 rounds in one way, and
of steps that are exact: rounding to a whole number, and taking a number's exponent from it or giving it one. Each is a
call of its own, so no compiler joins a product and a sum into one rounding. The results are within three units in the
last place.

exact.py has correctly rounded functions of single numbers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]
BLOCK = 2**14  # numbers of a part, see _in_blocks

# log 2 and π/2 in parts. The first parts have so few bits that their products with the whole numbers below are exact
# (Cody & Waite 1980, "Software Manual for the Elementary Functions").
_LOG_2 = tuple(map(float.fromhex, ("0x1.62e42feep-1", "0x1.a39ef35793c76p-33")))
_HALF_PI = tuple(map(float.fromhex, ("0x1.921fbp+0", "0x1.5110bp-22", "0x1.1846980p-44", "0x1.3198a2e037073p-69")))

_EXP = [1 / math.factorial(k) for k in range(14)]
_SIN = [(-1) ** k / math.factorial(2 * k + 1) for k in range(10)]
_COS = [(-1) ** k / math.factorial(2 * k) for k in range(11)]
_ARTANH = [2 / (2 * k + 1) for k in range(13)]


def exp(x: Array) -> Array:
    """eˣ, but 0 below −708, where floats begin to lose bits; for x ≤ 709

    eˣ = 2ᵏ eʳ with k whole and |r| ≤ ½ log 2, and eʳ by its series.
    """
    return _in_blocks(_exp, x)


def log(x: Array) -> Array:
    """The natural logarithm of finite x > 0

    log (2ᵏ m) = k log 2 + 2 artanh s with ½√2 ≤ m < √2 and s = (m − 1) / (m + 1), and artanh by its series.
    """
    return _in_blocks(_log, x)


def _exp(x: Array) -> Array:
    inside = np.maximum(x, -708.0)
    k = np.rint(inside * (1 / sum(_LOG_2)))
    value = _polynomial(_less(inside, k, _LOG_2), _EXP)
    value *= ((k.astype(np.int64) + 1023) << 52).view(np.float64)  # 2ᵏ: k is the exponent, biased
    value[x < -708.0] = 0.0
    return value


def _log(x: Array) -> Array:
    m, exponent = np.frexp(x)
    small = m < math.sqrt(0.5)
    m, k = np.where(small, m + m, m), exponent.astype(np.float64) - small
    s = (m - 1.0) / (m + 1.0)
    return k * _LOG_2[0] + (s * _polynomial(s * s, _ARTANH) + k * _LOG_2[1])


def _in_blocks(function: Callable[[Array], Array], x: Array) -> Array:
    """function(x), a part after another, so that what it computes on the way stays in the processor's cache"""
    flat = np.ascontiguousarray(x).reshape(-1)
    values = np.empty_like(flat)
    for first in range(0, len(flat), BLOCK):
        values[first : first + BLOCK] = function(flat[first : first + BLOCK])
    return values.reshape(x.shape)


def cos_sin(x: Array) -> tuple[Array, Array]:
    """cos x and sin x for |x| < 2³¹, to within about 2⁻⁵³

    x = n π/2 + r with n whole and |r| ≤ π/4, whose cosine and sine come from their series; a quarter of a turn makes
    one the other.
    """
    n = np.rint(x * (2 / math.pi))
    r = _less(x, n, _HALF_PI)
    square = r * r
    cos, sin = _polynomial(square, _COS), r * _polynomial(square, _SIN)
    quarter = n.astype(np.int64) % 4
    odd = quarter % 2 == 1
    cos, sin = np.where(odd, sin, cos), np.where(odd, cos, sin)
    return np.where((quarter == 1) | (quarter == 2), -cos, cos), np.where(quarter >= 2, -sin, sin)


def total(x: Array) -> Array:
    """The sum over the first axis: the later half is added to the earlier one until a single row is left

    With an odd number the middle row waits. (N, ...) -> (...); 0 where N is 0.
    """
    if not len(x):
        return np.zeros(x.shape[1:])
    while (n := len(x)) > 1:
        half = (n + 1) // 2
        front = x[:half].copy()
        front[: n - half] += x[half:]
        x = front
    return x[0]


def _less(x: Array, n: Array, parts: Sequence[float]) -> Array:
    """x − n Σ parts, part by part"""
    for part in parts:
        x = x - n * part
    return x


def _polynomial(x: Array, coefficients: Sequence[float]) -> Array:
    """c₀ + c₁ x + c₂ x² + …"""
    value = np.full_like(x, coefficients[-1])
    for coefficient in reversed(coefficients[:-1]):
        value *= x
        value += coefficient
    return value

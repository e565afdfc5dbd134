"""Correctly rounded exp, log, log2, cos and powers of floats: the same bits on every machine.

Python's `math` and `**` call the system's libm, which may be off by one unit in the last place, and each system's in
other places. Here a function is computed to 40 digits by the standard library's `decimal`, which computes with integers
and whose exp and ln are correctly rounded. If the error of that leaves open which float is nearest, it is computed
again with twice as many digits (Ziv 1991, "Fast evaluation of elementary mathematical functions with correctly rounded
last bit"). A call takes some ten microseconds: this is for single numbers; portable.py has functions of arrays.

`math.sqrt` and `math.fsum` need no substitute: IEEE 754 demands a correctly rounded root, and fsum is exactly rounded.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from decimal import ROUND_HALF_EVEN, Context, Decimal, Inexact

DIGITS = 40  # at first; the hardest floats known for exp, log and cos need 36


def exp(x: float) -> float:
    """eˣ, infinite where no float is as large"""
    if not -800 < x < 800:  # beyond the floats on either side, or NaN
        return math.inf if x > 0 else math.exp(x)
    return _nearest(lambda context: _relative(context, context.exp(Decimal(x))))


def log(x: float) -> float:
    """The natural logarithm. Raises ValueError unless x > 0."""
    if not 0 < x < math.inf:
        return math.log(x)  # infinity, NaN, or the error
    return _nearest(lambda context: _relative(context, context.ln(Decimal(x))))


@functools.lru_cache(maxsize=4096)
def log2(x: float) -> float:
    """The binary logarithm, also of an integer that no float can hold. Raises ValueError unless x > 0."""
    if not 0 < x < math.inf:
        return math.log2(x)
    return _nearest(lambda context: _relative(context, context.divide(context.ln(Decimal(x)), context.ln(Decimal(2)))))


def cos(x: float) -> float:
    """The cosine of an angle in radians. Raises ValueError for infinity."""
    if not math.isfinite(x):
        return math.cos(x)
    return _nearest(lambda context: _cos(context, Decimal(x)))


@functools.lru_cache(maxsize=4096)
def power(x: float, n: int, d: int = 1) -> float:
    """x^(n/d) for x ≥ 0. Raises ValueError for other x, for 0 with n ≤ 0, and for d ≠ 1 unless x ≥ 1 and n ≤ 0 < d.

    Integer powers may lie exactly between two floats, but then they are found exactly, and the even float is taken. A
    root could lie there without being found exactly. Within these bounds it cannot: a root that is a finite binary
    fraction, of a float of at least 1 with a negative exponent, is a power of 2.
    """
    if not 0 <= x < math.inf or (x == 0 and n <= 0) or (d != 1 and not (x >= 1 and n <= 0 < d)):
        raise ValueError(f"no {x}^({n}/{d}) here: it needs x ≥ 0, and x ≥ 1 and n ≤ 0 < d where d is not 1")

    def approximate(context: Context) -> tuple[Decimal, Decimal]:
        value = context.power(Decimal(x), n)
        if d != 1:
            value = context.exp(context.divide(context.multiply(context.ln(Decimal(x)), n), d))
        return _relative(context, value) if context.flags[Inexact] else (value, Decimal(0))

    return _nearest(approximate)


def _nearest(approximate: Callable[[Context], tuple[Decimal, Decimal]]) -> float:
    """The float nearest to a number, of which `approximate` computes a value and a bound on the value's error."""
    digits = DIGITS
    while True:
        value, error = approximate(Context(digits, ROUND_HALF_EVEN, traps=[]))
        wide = Context(digits + 5, ROUND_HALF_EVEN, traps=[])
        low, high = float(wide.subtract(value, error)), float(wide.add(value, error))
        if low == high:
            return low
        digits *= 2


def _relative(context: Context, value: Decimal) -> tuple[Decimal, Decimal]:
    """A value after a few operations, each rounded to the context's digits: ten units in the last place are enough."""
    return value, value.copy_abs().scaleb(2 - context.prec, Context(traps=[]))


def _cos(context: Context, x: Decimal) -> tuple[Decimal, Decimal]:
    """1 − r²/2! + r⁴/4! − …, where r is x less the nearest multiple of 2π, so |r| ≤ π and no term exceeds 5"""
    digits = context.prec
    whole = max(0, x.adjusted() + 1)  # digits that the multiple of 2π takes away
    wide = Context(digits + whole + 5, ROUND_HALF_EVEN, traps=[])
    r = wide.remainder_near(x, wide.multiply(2, _pi(digits + whole + 5)))
    square, term, value, k = context.multiply(r, r), Decimal(1), Decimal(1), 0
    least = Decimal(1).scaleb(-digits)
    while term.copy_abs() > least:
        k += 2
        term = context.divide(context.multiply(term, square), -k * (k - 1))
        value = context.add(value, term)
    return value, Decimal(1).scaleb(4 - digits)


@functools.lru_cache(maxsize=16)
def _pi(digits: int) -> Decimal:
    """π = 16 arctan ⅕ − 4 arctan 1/239 (Machin 1706), with ten digits to spare"""
    scale = 10 ** (digits + 10)

    def arctan_of_inverse(n: int) -> int:
        total, term, k = 0, scale // n, 1
        while term:
            total += (term if k % 4 == 1 else -term) // k
            term, k = term // n**2, k + 2
        return total

    return Decimal(16 * arctan_of_inverse(5) - 4 * arctan_of_inverse(239)).scaleb(-digits - 10, Context(digits + 20))

"""Which element of a result is off, and what the deviations have in common, in words."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor

from custom_transformer.errors import shown
from exercises.cases import Case, Functions, Right, Wrong, tensors

# What the commonest factors between found and right are called.
_FACTORS = {-1.0: "the sign is the wrong way round", 2.0: "twice too large", 0.5: "half of it", -2.0: "minus twice it"}


def check(
    cases: Iterable[Case],
    functions: Functions,
    calling: Callable[[Case], AbstractContextManager[None]] = lambda case: nullcontext(),
) -> None:
    """Raises Wrong, which says what is off, for the first case that the functions get wrong.

    calling: a context in which they are called
    """
    for case in cases:
        right = case.right
        given = [(name, t, t.clone()) for name, value in case.given.items() for t in tensors(value)]
        try:
            with calling(case):
                results = case.run(functions)
                faults = {name: _fault(name, results[name], right, case.given) for name in right}
        finally:
            written = [name for name, t, before in given if not torch.equal(t, before)]
            for _, t, before in given:
                t.copy_(before)
        if written:
            raise Wrong(f"your code writes into {written[0]}, which is needed again: make a new tensor in its place")
        off = [name for name, fault in faults.items() if fault]
        if off:
            others = _others(off[1:], [name for name in faults if name not in off])
            raise Wrong(f"{faults[off[0]]}{others}\n{described(case)}")


def described(case: Case) -> str:
    """What is special about the case, and the shapes or values of what the answer is given."""

    def size(value: Any) -> str:
        if isinstance(value, Mapping):
            return "{" + ", ".join(f"{name}: {size(part)}" for name, part in value.items()) + "}"
        return str(tuple(value.shape)) if isinstance(value, Tensor) else shown(value)

    given = [f"{name} {size(value)}" for name, value in case.given.items() if not callable(value)]
    return f"The case: {case.title}. Given: {', '.join(given)}."


def _others(off: list[str], right: list[str]) -> str:
    words = [f"{how}: {', '.join(names)}." for how, names in (("Off too", off), ("Right", right)) if names]
    return "\n" + " ".join(words) if words else ""


def _fault(name: str, found: Any, rights: Mapping[str, Right], given: Mapping[str, Any]) -> str | None:
    """What is wrong with one result; None if nothing is."""
    value, known_by, tolerance = rights[name]
    if value is None:
        return None if found is None else f"{name} has to be None: there is no such gradient here."
    if not isinstance(found, Tensor):
        return f"{name} is {shown(found)}, it has to be a tensor of shape {tuple(value.shape)}."
    if found.shape != value.shape:
        wanted = f"{tuple(value.shape)}{_same(name, found, rights, given)}."
        return f"{name} has the shape {tuple(found.shape)}, it has to have {wanted}"
    if found.dtype != value.dtype:
        return f"{name} is {found.dtype}, it has to be {value.dtype} as what it belongs to."
    error = (found - value).abs()
    off = ~(error <= tolerance * (value.abs().max().item() or 1.0))  # NaN is off
    if not off.any():
        return None
    worst = torch.where(error.isnan(), torch.inf, error).masked_fill(~off, -1).argmax()
    a, b = found.flatten()[worst].item(), value.flatten()[worst].item()
    if abs(b) <= tolerance * value.abs().max().item():
        b = 0.0  # as near as it is known
    at = ", ".join(str(int(i)) for i in torch.unravel_index(worst, found.shape))
    where = f"{name}[{at}]" if at else name
    relation = _same(name, found, rights, given) or _relation(found, value, off)
    return f"{where} is {_number(a, b)}, {known_by} {_number(b, a)}{relation}.{_how_many(name, off)}"


def _number(value: float, other: float) -> str:
    """With enough digits to tell it from `other`."""
    return next((f"{value:.{n}g}" for n in (3, 5, 8, 12) if f"{value:.{n}g}" != f"{other:.{n}g}"), repr(value))


def _relation(found: Tensor, right: Tensor, off: Tensor) -> str:
    """What all deviations have in common, after a colon; "" for nothing simple."""
    if not found.isfinite().all():
        return ""
    if not found[off].any():
        return ": yours is zero wherever it is off"
    if _close(found, right):
        return ": so near that something seems to be computed in float32"
    ratios = found[off] / right[off]
    if _close(ratios, ratios[0]) and (words := _factor(ratios[0].item(), several=len(ratios) > 1)):
        return f": {words}" + (", and so is every element that is off" if len(ratios) > 1 else "")
    deviation = found - right
    if found.ndim and found.shape[-1] > 1 and _close(deviation, deviation[..., :1].expand_as(deviation)):
        return ": in each row all elements are off by the same amount, as if a sum or mean over the row were wrong"
    if found.ndim > 1 and found.shape[0] > 1 and _close(deviation, deviation[:1].expand_as(deviation)):
        return ": all rows are off by the same amounts"
    return ""


def _factor(factor: float, several: bool) -> str:
    """What a common factor is called; "" for one element's that is not simple."""
    for known, words in _FACTORS.items():
        if abs(factor - known) < 1e-6:
            return words
    near = Fraction(factor).limit_denominator(12)
    simple = abs(factor - near) < 1e-6
    if not (simple or several):
        return ""
    return f"{near if simple else f'{factor:.4g}'} {'times' if abs(factor) > 1 else 'of'} it"


def _close(a: Tensor, b: Tensor) -> bool:
    return bool(((a - b).abs().max() <= 1e-6 * b.abs().max()).item())


def _same(own: str, found: Tensor, rights: Mapping[str, Right], given: Mapping[str, Any]) -> str:
    """Says so if a result is another one's right value, or a transpose, or what was given."""
    for name, value in given.items():
        if isinstance(value, Tensor) and found.shape == value.shape and found.ndim and torch.equal(found, value):
            return ": it is as it was" if name == own else f": yours is {name}"
    for name, (value, *_) in rights.items():
        if value is not None and value.numel() == found.numel() > 1 and found.isfinite().all():
            if name != own and value.shape == found.shape and _close(found, value):
                return f": yours is {name}"
            if found.ndim == 2 and value.shape == found.T.shape and _close(found.T, value):
                return f": yours is {'its transpose' if name == own else f'the transpose of {name}'}"
    return ""


def _ranges(numbers: list[int]) -> str:
    """Rising numbers, those that follow one another as a range: 0–3, 5"""
    starts = [n for n in numbers if n - 1 not in numbers]
    ends = [n for n in numbers if n + 1 not in numbers]
    return ", ".join(str(a) if a == b else f"{a}–{b}" for a, b in zip(starts, ends, strict=True))


def _how_many(name: str, off: Tensor) -> str:
    """How many elements are off, and which part of the tensor they fill."""
    total, count = off.numel(), int(off.sum())
    if total == 1:
        return ""
    if count == total:
        return f" All {total} elements of {name} are off."
    for axis in range(off.ndim):
        places = off.any(dim=tuple(a for a in range(off.ndim) if a != axis)) if off.ndim > 1 else off
        indices = places.nonzero().flatten().tolist()
        if off.shape[axis] > 1 and len(indices) < off.shape[axis]:
            part = ", ".join([*(":" * axis), "i", *([":"] * (off.ndim - 1 - axis))])
            only = f"i = {_ranges(indices)}"
            return f" {count} of the {total} elements of {name} are off, all in {name}[{part}] with {only}."
    return f" {count} of the {total} elements of {name} {'is' if count == 1 else 'are'} off."

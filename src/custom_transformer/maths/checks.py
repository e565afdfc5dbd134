"""What callers hand to a model, checked before anything is computed, and in the same way whichever engine computes.

Each function raises ValueError that names the argument, what it is, and what it should be.

Shapes: B batch, T time.
"""

from __future__ import annotations

import math
from numbers import Integral, Real

import torch
from torch import Tensor

from custom_transformer.errors import one_line, shown
from custom_transformer.maths.ops import IGNORE_INDEX

LARGEST = torch.finfo(torch.float32).max


def usable_device(device: torch.device | str | int) -> torch.device:
    """The device of this name, if PyTorch can compute and draw random numbers on it here."""
    try:
        found = torch.device(device)
        torch.empty(1, device=found)
        torch.Generator(found)
    except (RuntimeError, AssertionError, TypeError, NotImplementedError) as error:
        reason = one_line(str(error).partition("\n")[0])[:120]
        raise ValueError(f"device {shown(str(device))}: PyTorch cannot use it here ({reason}); give another") from None
    return found


def check_ids(name: str, ids: Tensor, device: torch.device | None = None) -> None:
    """(B, T) int64, neither of them 0, and on `device` if one is given."""
    check_tensor(name, ids, "(B, T) int64", device)
    if ids.ndim != 2 or ids.dtype != torch.int64:
        raise ValueError(f"{name} must be (B, T) int64, not {tuple(ids.shape)} {ids.dtype}")
    if not ids.numel():
        raise ValueError(f"{name} must have at least 1 row of at least 1 token, not the shape {tuple(ids.shape)}")


def check_tensor(name: str, tensor: Tensor, needed: str, device: torch.device | None = None) -> None:
    """An ordinary tensor, on `device` if one is given. `needed` names its shape and dtype."""
    if not isinstance(tensor, Tensor):
        raise ValueError(f"{name} must be a tensor {needed}, not {type(tensor).__name__}")
    if tensor.layout != torch.strided or tensor.is_nested:
        raise ValueError(f"{name} must be a dense tensor {needed}, not one of layout {tensor.layout} or nested")
    if device is not None and tensor.device != device:
        raise ValueError(f"{name} must be on {device} as the model is, not on {tensor.device}")
    if tensor.is_meta:
        raise ValueError(f"{name} must have numbers, which a tensor on meta has not")


def check_same_shape(name: str, tensor: Tensor, of: str, other: Tensor) -> None:
    """For instance labels as `name`, and the tokens that they are the labels `of`."""
    if tensor.shape != other.shape:
        raise ValueError(
            f"{name} must have the shape of {of}, which is {tuple(other.shape)}, not {tuple(tensor.shape)}"
        )


def check_tokens_in_vocabulary(tokens: Tensor, vocab_size: int) -> None:
    low, high = (int(bound) for bound in torch.aminmax(tokens))
    if low < 0 or high >= vocab_size:
        wrong = low if low < 0 else high
        raise ValueError(f"token id {wrong} is outside the vocabulary of {vocab_size}")


def check_labels_in_vocabulary(labels: Tensor, vocab_size: int) -> None:
    """Labels may also be IGNORE_INDEX."""
    low, high = (int(bound) for bound in torch.aminmax(labels))
    if high < vocab_size and low >= 0:
        return
    outside = (labels != IGNORE_INDEX) & ((labels < 0) | (labels >= vocab_size))
    if outside.any():
        wrong = int(labels[outside][0])
        raise ValueError(f"label {wrong} is neither in the vocabulary of {vocab_size} nor {IGNORE_INDEX}")


def check_number(name: str, value: float, low: float, high: float = math.inf, *, above: bool = False) -> float:
    """`value` as a float: at least `low`, or above it, and at most `high`."""
    if isinstance(value, Real) and (value > low if above else value >= low) and value <= high:
        return float(value)
    bounds = f"{'>' if above else '≥'} {low:.6g}" + (f" and ≤ {high:.6g}" if high < math.inf else "")
    raise ValueError(f"{name} must be a number {bounds}, not {shown(value)}")


def check_count(name: str, value: int, low: int, high: int | None = None) -> int:
    """`value` as an int: a whole number from `low` on, and below `high` if one is given."""
    if isinstance(value, Integral) and low <= value and (high is None or value < high):
        return int(value)
    bounds = f"≥ {low}" + ("" if high is None else f" and < {high}")
    raise ValueError(f"{name} must be a whole number {bounds}, not {shown(value)}")


def check_learning_rate(value: float) -> float:
    """0 or more, and finite in float32 too."""
    return check_number("learning_rate", value, 0, LARGEST)


def check_max_grad_norm(value: float | None) -> float | None:
    """Above 0; infinity and None clip nothing."""
    return None if value is None else check_number("max_grad_norm", value, 0, above=True)

"""Right answers of another form than the project's: another order, another formula, sums written out, recomputed."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, einsum

from custom_transformer.maths import ops
from exercises.__main__ import SEED
from exercises.all import EXERCISES
from exercises.cases import Draw
from exercises.verdict import check

Saved = tuple[Any, ...]


def product_by_einsum(dy: Tensor, saved: Saved) -> tuple[Tensor, Tensor]:
    x, weight = saved
    return einsum("nj,ij->ni", dy, weight), einsum("nj,ni->ij", dy, x)


def product_by_sums(dy: Tensor, saved: Saved) -> list[Tensor]:
    """Element by element, in a list in place of a tuple."""
    x, weight = saved
    dx, dweight = torch.zeros_like(x), torch.zeros_like(weight)
    for n in range(len(x)):
        for i in range(x.shape[1]):
            for j in range(weight.shape[1]):
                dx[n, i] += dy[n, j] * weight[i, j]
                dweight[i, j] += dy[n, j] * x[n, i]
    return [dx, dweight]


def linear_by_tensordot(dy: Tensor, saved: Saved) -> tuple[Tensor, Tensor, Tensor | None]:
    x, weight, bias, _ = saved
    axes = list(range(dy.ndim - 1))
    dbias = None if bias is None else dy.sum(axes)
    return einsum("...j,ij->...i", dy, weight), torch.tensordot(x, dy, dims=(axes, axes)), dbias


def gain_by_einsum(dy: Tensor, saved: Saved) -> tuple[Tensor, Tensor]:
    x, weight = saved
    return weight * dy, einsum("...d,...d->d", x, dy)


def mean_by_repeat(dy: Tensor, saved: Saved) -> Tensor:
    (x,) = saved
    return dy[..., None].repeat_interleave(x.shape[-1], -1) / x.shape[-1]


def relu_forward_saving_y(x: Tensor) -> tuple[Tensor, Saved]:
    y = (x + x.abs()) / 2
    return y, (y,)


def relu_backward_from_y(dy: Tensor, saved: Saved) -> Tensor:
    return torch.where(saved[0] == 0, 0.0, dy)


def sigmoid_from_logits(dy: Tensor, saved: Saved) -> Tensor:
    """Recomputes x from what was saved."""
    x = torch.logit(saved[0])
    return dy * torch.exp(-x) / (1 + torch.exp(-x)) ** 2


def gelu_by_sigmoid(dy: Tensor, saved: Saved) -> Tensor:
    """½ (1 + tanh u) = σ(2u)"""
    (x,) = saved
    scale = 2 * math.sqrt(2 / math.pi)
    s = torch.sigmoid(scale * (x + 0.044715 * x**3))
    return dy * (s + x * s * (1 - s) * scale * (1 + 0.134145 * x * x))


def swiglu_in_place(dy: Tensor, saved: Saved) -> Tensor:
    """Writes halves into a new tensor; σ + y (1 − σ) with y = a σ."""
    (x,) = saved
    a, b = x.chunk(2, -1)
    s, dx = torch.sigmoid(a), torch.empty_like(x)
    half = a.shape[-1]
    dx[..., :half] = dy * b * (s + F.silu(a) * (1 - s))
    dx[..., half:] = F.silu(a) * dy
    return dx


def lookup_by_onehot(dx: Tensor, saved: Saved) -> tuple[None, Tensor]:
    input_ids, table = saved
    onehot = F.one_hot(input_ids, len(table)).to(table.dtype)
    return None, einsum("btv,btd->vd", onehot, dx)


def positions_by_slices(dy: Tensor, saved: Saved) -> tuple[Tensor, Tensor]:
    table, start, time = saved
    d_table = torch.zeros_like(table)
    for t in range(time):
        d_table[start + t] = dy[:, t].sum(0)
    return dy.clone(), d_table


def rms_norm_by_its_jacobian(dy: Tensor, saved: Saved) -> tuple[Tensor, Tensor]:
    x, weight, r = saved
    eye, size = torch.eye(x.shape[-1], dtype=x.dtype), x.shape[-1]
    jacobian = r[..., None] * eye - r[..., None] ** 3 * x[..., :, None] * x[..., None, :] / size
    return einsum("...i,...ij->...j", dy * weight, jacobian), (dy * x * r).flatten(0, -2).sum(0)


def layer_norm_in_two_steps(dy: Tensor, saved: Saved) -> tuple[Tensor, Tensor, Tensor | None]:
    """First through the scale, then through the mean; x̂ from new statistics."""
    x, weight, bias, _, rstd = saved
    centred = x - x.mean(-1, keepdim=True)
    rows = tuple(range(x.ndim - 1))
    d_centred = rstd * dy * weight - rstd**3 * centred * (dy * weight * centred).mean(-1, keepdim=True)
    dx = d_centred - d_centred.mean(-1, keepdim=True)
    return dx, (dy * centred * rstd).sum(rows), None if bias is None else dy.sum(rows)


def logsumexp_by_softmax(d_lse: Tensor, saved: Saved) -> Tensor:
    return torch.softmax(saved[0], -1) * d_lse


def softmax_forward_saving_logs(x: Tensor) -> tuple[Tensor, Saved]:
    log_p = x - torch.logsumexp(x, -1, keepdim=True)
    return log_p.exp(), (log_p,)


def softmax_backward_by_its_jacobian(dp: Tensor, saved: Saved) -> Tensor:
    p = saved[0].exp()
    return einsum("...i,...ij->...j", dp, torch.diag_embed(p) - p[..., :, None] * p[..., None, :])


def cross_entropy_by_onehot(dloss: Tensor, saved: Saved) -> Tensor:
    logits, labels, _, _ = saved
    counted = labels != -100
    onehot = F.one_hot(labels.clamp(min=0), logits.shape[-1])
    return (torch.softmax(logits, -1) - onehot) * counted[..., None] * dloss / counted.sum()


def linear_cross_entropy_at_once(dloss: Tensor, saved: Saved) -> tuple[Tensor, Tensor]:
    x, weight, labels, lse, count, _, input_shape, _ = saved
    dz = cross_entropy_by_onehot(dloss, (x @ weight.T, labels, lse, count))
    return (dz @ weight).view(input_shape), dz.T @ x


def split_heads_by_cat(dq: Tensor, dk: Tensor, dv: Tensor) -> Tensor:
    return torch.cat([d.transpose(1, 2).flatten(2) for d in (dq, dk, dv)], -1)


def scores_by_einsum(d_scores: Tensor, saved: Saved) -> tuple[Tensor, Tensor]:
    q, k = saved
    scale = q.shape[-1] ** -0.5
    return einsum("bhqs,bhsk->bhqk", d_scores, k) * scale, einsum("bhqs,bhqk->bhsk", d_scores * scale, q)


def attention_by_dy_and_y(dy: Tensor, saved: Saved) -> Tensor:
    """Σ_keys dP ∘ P = Σ dY ∘ Y, as Dao et al. 2022 have it; P by softmax in place of lse."""
    qkv, _, n_heads, keep, dropout = saved
    q, k, v = ops.split_heads(qkv, n_heads)
    dy = dy.unflatten(-1, (n_heads, -1)).transpose(1, 2)
    p = torch.softmax(ops.attention_scores(q, k), -1)
    mask = torch.ones_like(p) if keep is None else keep.to(p.dtype) / (1 - dropout)
    y = (p * mask) @ v
    ds = p * (einsum("bhqk,bhsk->bhqs", dy, v) * mask - (dy * y).sum(-1, keepdim=True)) * q.shape[-1] ** -0.5
    return ops.merge_heads(ds @ k, ds.mT @ q, (p * mask).mT @ dy)


def rotate_by_complex_numbers(dy: Tensor, saved: Saved) -> Tensor:
    start, base = saved
    half, time = dy.shape[-1] // 2, dy.shape[-2]
    rates = base ** (-torch.arange(half, dtype=torch.float64) / half)
    angles = torch.outer(torch.arange(start, start + time, dtype=torch.float64), rates)
    z = torch.complex(dy[..., :half], dy[..., half:]) * torch.polar(torch.ones_like(angles), -angles)
    return torch.cat([z.real, z.imag], -1)


def shared_keys_by_view(dy: Tensor, saved: Saved) -> Tensor:
    heads, groups = saved
    batch, _, time, size = dy.shape
    return einsum("bgrtk->bgtk", dy.reshape(batch, groups, heads // groups, time, size))


def sgd_at_once(parameter: Tensor, gradient: Tensor, scale: float, lr: float, weight_decay: float) -> None:
    parameter[:] = parameter - lr * (scale * gradient + weight_decay * parameter)


def norm_of_all(gradients: dict[str, Tensor]) -> Tensor:
    return torch.cat([g.flatten() for g in gradients.values()]).norm()


def scale_by_min(norm: float, max_norm: float | None) -> float:
    return min(1, (max_norm or math.inf) / norm)


def adamw_at_once(
    parameter: Tensor,
    gradient: Tensor,
    m: Tensor,
    v: Tensor,
    t: int,
    scale: float,
    lr: float,
    betas: tuple[float, float],
    weight_decay: float,
    eps: float,
) -> None:
    m += (1 - betas[0]) * (scale * gradient - m)
    v += (1 - betas[1]) * ((scale * gradient) ** 2 - v)
    direction = m / (1 - betas[0] ** t) / ((v / (1 - betas[1] ** t)) ** 0.5 + eps)
    parameter -= lr * (direction + weight_decay * parameter)


def newton_schulz_on_the_other_side(g: Tensor, steps: int) -> Tensor:
    """X (a + b B + c B²) with B = Xᵀ X"""
    x, eye = g / (g * g).sum().sqrt(), torch.eye(g.shape[1], dtype=g.dtype)
    for _ in range(steps):
        b = x.T @ x
        x = x @ (3.4445 * eye - 4.7750 * b + 2.0315 * b @ b)
    return x


def newton_schulz_backward_by_autograd(dy: Tensor, saved: Saved) -> Tensor:
    with torch.enable_grad():
        x = saved[0].clone().requires_grad_()
        a = x @ x.T
        y = 3.4445 * x - 4.7750 * a @ x + 2.0315 * a @ a @ x
        (dx,) = torch.autograd.grad(y, x, dy)
    return dx


VARIANTS: list[tuple[str, list[Callable[..., Any]]]] = [
    ("product", [product_by_einsum]),
    ("product", [product_by_sums]),
    ("linear", [linear_by_tensordot]),
    ("gain", [gain_by_einsum]),
    ("mean", [mean_by_repeat]),
    ("relu", [relu_forward_saving_y, relu_backward_from_y]),
    ("sigmoid", [sigmoid_from_logits]),
    ("gelu", [gelu_by_sigmoid]),
    ("swiglu", [swiglu_in_place]),
    ("lookup", [lookup_by_onehot]),
    ("positions", [positions_by_slices]),
    ("rms_norm", [rms_norm_by_its_jacobian]),
    ("layer_norm", [layer_norm_in_two_steps]),
    ("logsumexp", [logsumexp_by_softmax]),
    ("softmax", [softmax_forward_saving_logs, softmax_backward_by_its_jacobian]),
    ("cross_entropy", [cross_entropy_by_onehot]),
    ("linear_cross_entropy", [linear_cross_entropy_at_once]),
    ("split_heads", [split_heads_by_cat]),
    ("scores", [scores_by_einsum]),
    ("causal_attention", [attention_by_dy_and_y]),
    ("rotate", [rotate_by_complex_numbers]),
    ("shared_keys", [shared_keys_by_view]),
    ("sgd", [sgd_at_once]),
    ("clip", [norm_of_all, scale_by_min]),
    ("adamw", [adamw_at_once]),
    ("newton_schulz", [newton_schulz_on_the_other_side]),
    ("newton_schulz_backward", [newton_schulz_backward_by_autograd]),
]


@pytest.mark.parametrize(("name", "variant"), VARIANTS, ids=[variant[-1].__name__ for _, variant in VARIANTS])
def test_a_right_answer_of_another_form_is_taken(name: str, variant: list[Callable[..., Any]]) -> None:
    exercise = EXERCISES[name]
    functions = dict(zip(exercise.answers, variant, strict=True))
    with torch.no_grad():
        check(exercise.cases(Draw(SEED)), functions)

"""The head and the loss in kernels.

The head never holds more of the logits than `ROWS` rows. A tile of them becomes exp(z − top) while it is in the
processor's cache, top being the largest logit of the row so far, and is multiplied with the head's matrix at once; what
was added up under an earlier top is scaled to the new one. The one-hot of the labels is added sparsely.

Shapes: B batch, T time, D d_model, V vocabulary, N = B·T rows.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from custom_transformer.fast.kernels import kernel
from custom_transformer.fast.products import matmul, weight_gradient
from custom_transformer.fast.rows import add_rows, column_sums
from custom_transformer.maths.ops import IGNORE_INDEX, in_places
from custom_transformer.maths.scope import Saved

ROWS = 1024  # rows of logits held at once
TILE = 2048  # columns of a logits tile: with its rows, some megabytes


def linear_cross_entropy_forward(x: Tensor, weight: Tensor, labels: Tensor) -> tuple[Tensor, Saved]:
    """As ops.linear_cross_entropy_forward; the gradients for dL = 1 are made on the way and are what is saved."""
    x_rows, label_rows = x.reshape(-1, x.shape[-1]), labels.reshape(-1).contiguous()
    x_cast = x_rows.to(weight.dtype)
    counted = label_rows != IGNORE_INDEX
    count = counted.sum().to(x.dtype)
    share = counted.to(x.dtype) / count  # dL / d(row's loss)
    losses, dx = torch.empty_like(share), torch.empty_like(x_rows)
    dweight = torch.empty_like(weight, dtype=x.dtype)
    for first in range(0, len(x_rows), ROWS):
        part = slice(first, first + ROWS)
        losses[part], dx[part] = _chunk(
            x_cast[part], weight, label_rows[part], share[part], dweight, is_first=first == 0
        )
    # −onehot(label), of dweight
    add_rows(x_cast, label_rows.clamp(min=0), -share, dweight)
    return column_sums(losses.unsqueeze(1)).squeeze() / count, (dx.view(x.shape), dweight)


def _chunk(
    x: Tensor, weight: Tensor, labels: Tensor, share: Tensor, dweight: Tensor, is_first: bool
) -> tuple[Tensor, Tensor]:
    """Losses (rows,) and dx (rows, D) of some rows; Σ_rows softmax · x · share is written into dweight, or added."""
    rows, d = x.shape
    vocab, dtype = weight.shape[0], x.dtype
    top = torch.full_like(share, -math.inf)
    total, label_logit = torch.zeros_like(share), torch.zeros_like(share)
    rescale = torch.empty_like(share)
    dx = torch.zeros(rows, d, dtype=share.dtype, device=x.device)
    tiles = []
    for start in range(0, vocab, TILE):
        tile_weight = weight[start : start + TILE]
        exponentials = matmul(x, tile_weight.T)
        tile_top = torch.empty_like(share)
        kernel("loss_tile", dtype)(
            exponentials, labels, rows, len(tile_weight), start, top, total, rescale, tile_top, label_logit
        )
        kernel("rescale_add", dtype)(dx, rescale, matmul(exponentials, tile_weight), rows, d)
        tiles.append((start, exponentials, tile_top))
    for start, exponentials, tile_top in tiles:
        scaled = torch.empty_like(x)
        kernel("scale_rows", dtype)(x, tile_top, top, total, share, rows, d, scaled)
        part = dweight[start : start + exponentials.shape[1]]
        if is_first:
            weight_gradient(exponentials, scaled, out=part)
        else:
            part += weight_gradient(exponentials, scaled)
    losses = torch.empty_like(share)
    kernel("finish_rows", dtype)(top, total, label_logit, share, labels, weight, rows, vocab, d, losses, dx)
    return losses, dx


def linear_cross_entropy_backward(dloss: Tensor | float, saved: Saved) -> tuple[Tensor, Tensor]:
    """As ops.linear_cross_entropy_backward, but dE float32 or wider; `saved` is used up"""
    dx, dweight = saved
    if isinstance(dloss, float) and dloss == 1.0:
        return dx, dweight
    return dx.mul_(dloss), dweight.mul_(dloss)


def linear_cross_entropy_scores(x: Tensor, weight: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """As ops.linear_cross_entropy_scores"""
    counted = labels != IGNORE_INDEX
    x_rows, label_rows = x.to(weight.dtype)[counted], labels[counted]
    losses, predicted = torch.empty(len(x_rows), dtype=x.dtype, device="cpu"), torch.empty_like(label_rows)
    for first in range(0, len(x_rows), ROWS):
        part = slice(first, first + ROWS)
        logits = matmul(x_rows[part], weight.T)
        kernel("score_rows", weight.dtype)(logits, label_rows[part], *logits.shape, losses[part], predicted[part])
    return in_places(losses, counted), in_places(predicted, counted)

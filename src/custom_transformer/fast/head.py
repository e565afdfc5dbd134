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
from custom_transformer.fast.products import matmul
from custom_transformer.maths.ops import IGNORE_INDEX
from custom_transformer.maths.scope import Saved

ROWS = 1024  # rows of logits held at once
TILE = 2048  # columns of a logits tile: with its rows, some megabytes


def linear_cross_entropy_forward(x: Tensor, weight: Tensor, labels: Tensor) -> tuple[Tensor, Saved]:
    """As ops.linear_cross_entropy_forward; the gradients for dL = 1 are made on the way and are what is saved."""
    x_rows, label_rows = x.reshape(-1, x.shape[-1]), labels.reshape(-1).contiguous()
    x_cast = x_rows.to(weight.dtype)
    counted = label_rows != IGNORE_INDEX
    share = counted.to(x.dtype) / counted.sum()  # dL / d(row's loss)
    losses, dx = torch.empty_like(share), torch.empty_like(x_rows)
    dweight = torch.empty_like(weight, dtype=x.dtype)
    for first in range(0, len(x_rows), ROWS):
        part = slice(first, first + ROWS)
        losses[part], dx[part] = _chunk(
            x_cast[part], weight, label_rows[part], share[part], dweight, is_first=first == 0
        )
    # −onehot(label), of dx and of dweight
    rows = label_rows.clamp(min=0)
    dx -= share.unsqueeze(1) * weight[rows]
    dweight.index_add_(0, rows, x_cast.to(x.dtype) * -share.unsqueeze(1))
    loss = torch.where(counted, losses, 0.0).sum() / counted.sum()
    return loss, (dx.view(x.shape), dweight)


def _chunk(
    x: Tensor, weight: Tensor, labels: Tensor, share: Tensor, dweight: Tensor, is_first: bool
) -> tuple[Tensor, Tensor]:
    """Losses (rows,) and Σ_v softmax · weight · share (rows, D) of some rows; dweight is written, or added to."""
    rows, d = x.shape
    vocab = weight.shape[0]
    top = torch.full_like(share, -math.inf)
    total, label_logit = torch.zeros_like(share), torch.zeros_like(share)
    rescale = torch.empty_like(share)
    dx = torch.zeros(rows, d, dtype=share.dtype, device=x.device)
    tiles = []
    for start in range(0, vocab, TILE):
        tile_weight = weight[start : start + TILE]
        exponentials = matmul(x, tile_weight.T)
        tile_top = torch.empty_like(share)
        kernel("loss_tile", x.dtype)(
            exponentials, labels, rows, len(tile_weight), start, top, total, rescale, tile_top, label_logit
        )
        kernel("rescale_add", x.dtype)(dx, rescale, matmul(exponentials, tile_weight), rows, d)
        tiles.append((start, tile_weight.shape[0], exponentials, tile_top))
    losses = top + total.log() - label_logit
    for start, width, exponentials, tile_top in tiles:
        factor = torch.exp(tile_top - top) / total * share
        scaled = torch.empty_like(x)
        kernel("scale_rows", x.dtype)(x, factor, rows, d, scaled)
        product = matmul(exponentials.T, scaled)
        if is_first:
            dweight[start : start + width] = product
        else:
            dweight[start : start + width] += product
    return losses, dx * (share / total).unsqueeze(1)


def linear_cross_entropy_backward(dloss: Tensor | float, saved: Saved) -> tuple[Tensor, Tensor]:
    """As ops.linear_cross_entropy_backward, but dE float32 or wider; `saved` is used up"""
    dx, dweight = saved
    if isinstance(dloss, float) and dloss == 1.0:
        return dx, dweight
    return dx.mul_(dloss), dweight.mul_(dloss)

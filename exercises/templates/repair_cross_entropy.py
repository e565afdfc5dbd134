"""Repair the cross-entropy.

forward     L = 1/n Σ (log Σ_v exp z_v − z_label)       the mean over the n rows whose label is not −100
            logits z (..., V), labels (...) of integers -> a scalar
saved       logits, labels, lse = log Σ_v exp z_v (...), count = n
backward    dloss (a scalar) -> dlogits (..., V)
"""

import torch


def cross_entropy_backward(dloss, saved):
    logits, labels, lse, count = saved
    counted = (labels != -100).unsqueeze(-1)
    probabilities = torch.exp(logits - lse.unsqueeze(-1))
    onehot = torch.zeros_like(logits).scatter(-1, labels.clamp(min=0).unsqueeze(-1), 1.0)
    return dloss / labels.numel() * counted * (probabilities - onehot)

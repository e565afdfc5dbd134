"""Newton–Schulz: all singular values towards 1.

Muon does not step along the gradient G = U Σ Vᵀ but along U Vᵀ, nearly: all directions of the matrix at one speed.
These steps come near it by products alone, without singular values:

    X ← G / ‖G‖                     ‖G‖ = √(Σ G²)
    X ← a X + (b A + c A²) X        A = X Xᵀ        `steps` times (Jordan et al. 2024)

    g (rows, columns), steps -> X (rows, columns)
"""

import torch

A, B, C = 3.4445, -4.7750, 2.0315


def newton_schulz(g, steps):
    raise NotImplementedError  # put your lines here

"""Muon: orthogonalised momentum, in place.

    m ← β m + (1 − β) g
    u = orthogonalise(β m + (1 − β) g)                      with the new m (Nesterov's look ahead)
    θ ← (1 − η λ) θ − η √max(1, rows / columns) u

θ is parameter (rows, columns), g gradient, η lr, β beta, λ weight_decay; orthogonalise is a function like the
newton_schulz of the exercise before, which is handed in. parameter and m are changed in place; nothing is returned.
"""

import math


def muon_update(parameter, gradient, m, lr, beta, weight_decay, orthogonalise):
    raise NotImplementedError  # put your lines here

"""A scaling law fitted to the losses of trained models, and its uncertainty.

    L(N, D) = E + A / N^α + B / D^β

for N parameters trained on D tokens (Hoffmann et al. 2022, "Training compute-optimal large language models", eq. 2):
the entropy, the loss due to the limited size, and the loss due to the limited data.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import least_squares

from custom_transformer.errors import UserError

Array = NDArray[np.float64]

HUBER_DELTA = 1e-3  # Hoffmann et al.: larger residuals of log L count linearly, not squared
_START_EXPONENTS = (0.25, 0.5, 1.0)
_START_FLOORS = (0.5, 0.9)  # shares of the lowest loss, if E is unknown
_EXPONENTS = (1e-3, 10.0)  # bounds of the exponents
_DIFFERENT = 3  # distinct sizes, and token counts, that a power law needs
_CONFIDENCE = 0.9


@dataclass(frozen=True)
class Law:
    """Its coefficients in the unit of the losses; `compute_exponent` is Hoffmann et al.'s a of N_opt ∝ C^a (eq. 4)."""

    E: float
    A: float
    alpha: float
    B: float
    beta: float

    def loss(self, parameters: Array | float, tokens: Array | float) -> Array:
        return np.asarray(self.E + self.A / parameters**self.alpha + self.B / tokens**self.beta)

    @property
    def compute_exponent(self) -> float:
        return self.beta / (self.alpha + self.beta)


@dataclass(frozen=True)
class Fit:
    """intervals: by coefficient, the 5th and 95th percentile over resamples of the runs; error: the root mean square
    of log(fitted / measured)."""

    law: Law
    intervals: dict[str, tuple[float, float]]
    error: float


def fit_law(
    parameters: Sequence[float],
    tokens: Sequence[float],
    losses: Sequence[float],
    floor: float | None = None,
    resamples: int = 300,
) -> Fit:
    """The law that minimises the Huber loss of log(fitted / measured), with E = `floor` if that is known.

    Its uncertainty is a bootstrap: the fit is repeated on as many runs drawn with replacement. It shows run-to-run
    variation, not whether the law has the right form; `error` and a picture show that. Raises UserError if the runs
    do not determine the coefficients.
    """
    n, d, measured = (np.asarray(values, dtype=np.float64) for values in (parameters, tokens, losses))
    _check(n, d, measured, floor)
    # Centred at the means of log N and log D, the coefficients are least correlated.
    mean_n, mean_d = np.log(n).mean(), np.log(d).mean()
    data = np.stack([np.log(n) - mean_n, np.log(d) - mean_d, np.log(measured)])
    log_floor = None if floor is None else float(np.log(floor))

    def law(x: Array) -> Law:
        A, B = np.exp(x[0] + x[1] * mean_n), np.exp(x[2] + x[3] * mean_d)
        return Law(floor or float(np.exp(x[4])), float(A), float(x[1]), float(B), float(x[3]))

    best = _descend(data, log_floor, _starts(measured, floor))
    random = np.random.default_rng(0)
    drawn: list[Law] = []
    while len(drawn) < resamples:
        rows = random.integers(len(n), size=len(n))
        if min(len(np.unique(n[rows])), len(np.unique(d[rows]))) >= _DIFFERENT:
            drawn.append(law(_descend(data[:, rows], log_floor, [best])))
    names = ("E", "A", "alpha", "B", "beta", "compute_exponent")
    intervals = {name: _interval([getattr(other, name) for other in drawn]) for name in names}
    error = float(np.sqrt(np.mean(np.log(law(best).loss(n, d) / measured) ** 2)))
    return Fit(law(best), intervals, error)


def _interval(values: Sequence[float]) -> tuple[float, float]:
    low, high = np.percentile(values, [50 * (1 - _CONFIDENCE), 50 * (1 + _CONFIDENCE)])
    return float(low), float(high)


def _check(n: Array, d: Array, measured: Array, floor: float | None) -> None:
    if not len(n) == len(d) == len(measured):
        raise UserError(f"scaling law: {len(n)} sizes, {len(d)} token counts and {len(measured)} losses do not pair up")
    if not all(np.isfinite(values).all() and (values > 0).all() for values in (n, d, measured)):
        raise UserError("scaling law: every size, token count and loss must be a finite number above 0")
    unknown = 5 if floor is None else 4
    if len(n) <= unknown:
        raise UserError(f"scaling law: {len(n)} runs cannot tell its {unknown} coefficients; train more of them")
    for values, name in ((n, "model sizes"), (d, "token budgets")):
        if len(np.unique(values)) < _DIFFERENT:
            raise UserError(f"scaling law: fewer than {_DIFFERENT} different {name}; a power law needs more of them")
    if np.ptp(measured) == 0:
        raise UserError("scaling law: all runs have the same loss; choose sizes and budgets that differ more")
    if floor is not None and not 0 < floor < measured.max():
        raise UserError(f"scaling law: the floor of {floor:g} must be above 0 and below the highest loss")


def _starts(measured: Array, floor: float | None) -> list[Array]:
    """Starting points of the descents: several, because there are local minima."""
    starts = []
    for share in _START_FLOORS if floor is None else (1.0,):
        E = share * float(measured.min()) if floor is None else floor
        half = np.log(max(float(np.median(measured)) - E, 1e-3 * E) / 2)
        for alpha, beta in product(_START_EXPONENTS, repeat=2):
            starts.append(np.array([half, alpha, half, beta, np.log(E)][: 5 if floor is None else 4]))
    return starts


def _descend(data: Array, log_floor: float | None, starts: Sequence[Array]) -> Array:
    """The best minimum found from `starts`: log A', α, log B', β and, if it is unknown, log E.

    data (3, runs): log N and log D, both centred, and log L. A' and B' are the terms at the means of log N and log D.
    """
    log_n, log_d, log_loss = data

    def terms(x: Array) -> Array:
        log_e = x[4] if log_floor is None else log_floor
        return np.stack([x[0] - x[1] * log_n, x[2] - x[3] * log_d, np.full_like(log_n, log_e)])

    def residuals(x: Array) -> Array:
        return np.asarray(np.logaddexp.reduce(terms(x)) - log_loss)

    def jacobian(x: Array) -> Array:
        logs = terms(x)
        of_n, of_d, of_e = np.exp(logs - np.logaddexp.reduce(logs))  # each term's share of the loss
        return np.stack([of_n, -of_n * log_n, of_d, -of_d * log_d, of_e][: len(x)], axis=1)

    low, high = np.array([(-np.inf, np.inf), _EXPONENTS, (-np.inf, np.inf), _EXPONENTS, (-np.inf, np.inf)]).T
    found = [
        least_squares(residuals, x, jacobian, (low[: len(x)], high[: len(x)]), loss="huber", f_scale=HUBER_DELTA)
        for x in starts
    ]
    return np.asarray(min(found, key=lambda result: result.cost).x)

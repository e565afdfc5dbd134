"""The study as a picture: the losses with the law between them, and what they stand above its E."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
from matplotlib.figure import Figure

from custom_transformer.files import atomic_write
from custom_transformer.pages.pictures import BLANK, PLAIN, RoundNumbers
from studies.law import Fit

COLOURS = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9")  # Okabe & Ito's, for every eye
MARKERS = "osD^vP"


class Measured(Protocol):
    @property
    def width(self) -> int: ...
    @property
    def parameters(self) -> int: ...
    @property
    def tokens(self) -> int: ...
    @property
    def loss(self) -> float: ...


def save_plot(points: Sequence[Measured], fit: Fit, floor: float | None, path: Path) -> None:
    """Points are runs, lines the fitted law; a colour and a marker for each size of model."""
    figure = Figure(figsize=(11, 4.6), layout="constrained")
    loss, excess = figure.subplots(1, 2)
    everything = np.array([point.tokens for point in points], dtype=float)
    tokens = np.geomspace(everything.min(), everything.max(), 100)
    for i, width in enumerate(sorted({point.width for point in points})):
        runs = [point for point in points if point.width == width]
        n, style = runs[0].parameters, dict(color=COLOURS[i % len(COLOURS)])
        fitted = fit.law.loss(n, tokens)
        for axes, shift in ((loss, 0.0), (excess, fit.law.E)):
            axes.plot(tokens, fitted - shift, **style)
            axes.plot(
                [run.tokens for run in runs],
                [run.loss - shift for run in runs],
                linestyle="none",
                marker=MARKERS[i % len(MARKERS)],
                label=f"{n:,} parameters (width {width})",
                **style,
            )
    name = "the grammar's entropy" if floor else "E, as fitted"
    loss.axhline(fit.law.E, color="black", linestyle="dashed", label=name)
    loss.set(title="Loss", ylabel="loss (nats per token)", xscale="log", ylim=(0, None))
    law = fit.law
    excess.set(
        title=f"above E: {law.A:.3g} / N^{law.alpha:.2f} + {law.B:.3g} / D^{law.beta:.2f}",
        ylabel=f"loss − {law.E:.3f} (nats per token)",
        xscale="log",
        yscale="log",
    )
    for axes in (loss, excess):
        axes.set_xlabel("D (tokens trained on)")
        axes.grid(alpha=0.3, which="both")
        for axis in (axes.xaxis, axes.yaxis):
            if axis.get_scale() == "log":
                axis.set(major_locator=RoundNumbers(), major_formatter=PLAIN, minor_formatter=BLANK)
    loss.legend(fontsize=8)
    with atomic_write(path) as file:
        figure.savefig(file, format="png", dpi=120)

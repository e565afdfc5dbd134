"""The comparison as a picture: each contestant's step time divided by ours."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from matplotlib.figure import Figure


class Measured(Protocol):
    @property
    def workload(self) -> str: ...
    @property
    def name(self) -> str: ...
    @property
    def tuned(self) -> bool: ...
    @property
    def seconds(self) -> float: ...
    @property
    def against(self) -> float: ...


COLOURS = {"ours": "#1b7f5c", "floor": "#9aa5ad", "twin": "#c2571a", "transformers": "#5b4b8a"}


def save_plot(results: Sequence[Measured], path: Path) -> None:
    """One panel per workload, one bar per contestant; the line at 1 is ours, fast."""
    workloads = list(dict.fromkeys(r.workload for r in results))
    columns = min(2, len(workloads))
    rows = -(-len(workloads) // columns)
    figure = Figure(figsize=(6.5 * columns, 3.2 * rows), layout="constrained")
    for place, workload in enumerate(workloads, start=1):
        axes = figure.add_subplot(rows, columns, place)
        bars = {}
        for r in results:
            if r.workload == workload:
                bars[f"{r.name}{', tuned' if r.tuned and r.name != 'floor' else ''}"] = r.seconds / r.against
        ordered = sorted(bars.items(), key=lambda bar: -bar[1])
        names, ratios = [name for name, _ in ordered], [ratio for _, ratio in ordered]
        drawn = axes.barh(names, ratios, color=[COLOURS.get(name.split(",")[0], COLOURS["ours"]) for name in names])
        axes.bar_label(drawn, fmt="%.2f", padding=3, fontsize=8)
        axes.axvline(1, color="black", linewidth=0.8)
        axes.set_title(workload, fontsize=10)
        axes.set_xlim(0, max(ratios) * 1.12)
        axes.tick_params(labelsize=8)
        axes.set_xlabel("time of a training step, in times ours", fontsize=8)
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=120)

"""Figures and tables for people: the evaluation as a table, the training curves as a picture."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from pathlib import Path

from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table

MEANINGS = {
    "loss": "nats a token",
    "perplexity": "exp(loss)",
    "bits_per_byte": "of the text, end of text included",
    "bits_per_byte_floor": "what the grammar itself would need",
    "accuracy": "next token right",
    "tokens": "predicted, each once",
    "held_out_accuracy": "facts that no text states",
}


def print_metrics(metrics: Mapping[str, float | int]) -> None:
    """metrics/eval.json as a table, each figure with what it means."""
    table = Table("evaluation", "", "", show_header=True)
    table.columns[1].justify = "right"
    for name, value in metrics.items():
        shown = f"{value:,}" if isinstance(value, int) else f"{value:.4f}"
        table.add_row(name, shown, MEANINGS.get(name, ""))
    Console().print(table)


def training_figure(metrics: Path) -> Figure:
    """The loss, learning rate and gradient norm of a run, from its curves' CSV files in `metrics`."""
    train = _columns(metrics / "training_curve.csv")
    validation = _columns(metrics / "validation_curve.csv")
    figure = Figure(figsize=(9, 6), layout="constrained")
    loss, rate, norm = figure.subplot_mosaic([["loss", "loss"], ["rate", "norm"]], height_ratios=[2, 1]).values()
    loss.plot(train["step"], train["train_loss"], color="#0072B2", label="training")
    loss.plot(validation["step"], validation["validation_loss"], color="#D55E00", marker="o", label="validation")
    loss.set(ylabel="loss (nats per token)", xlabel="step", ylim=(0, None))
    loss.legend()
    rate.plot(train["step"], train["learning_rate"], color="#009E73")
    rate.set(ylabel="learning rate", xlabel="step")
    norm.plot(train["step"], train["grad_norm"], color="#CC79A7")
    norm.set(ylabel="gradient norm", xlabel="step", yscale="log")
    for axes in (loss, rate, norm):
        axes.grid(alpha=0.3)
    return figure


def _columns(path: Path) -> dict[str, list[float]]:
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    return {name: [float(row[name]) for row in rows] for name in rows[0]}

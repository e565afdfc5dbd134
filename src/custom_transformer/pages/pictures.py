"""Pictures of a run, from the files in metrics/: its training, the inside of its model, its results.

Lines have the colours of Okabe and Ito (2008) or steps of viridis, and maps are viridis: colour-blind readers can tell
them apart, also in print. Equal files give equal bytes, whatever matplotlib's style is elsewhere.
"""

from __future__ import annotations

import csv
import io
import json
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib.style
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm, PowerNorm
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator
from rich.cells import cell_len

from custom_transformer.pages.fonts import families_for

BLUE, ORANGE, GREEN, PURPLE, GREY = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#555555"
MARKERS = "osD^vPX"
WIDTH = 9.6  # inches: 960 pixels of a page
DPI = 200
MOST_TICKS = 10
BLANK = FuncFormatter(lambda *_: "")

STYLE: dict[str, Any] = {
    "axes.axisbelow": True,
    "axes.grid": True,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlesize": 11,
    "axes.titlelocation": "left",
    "figure.constrained_layout.use": True,
    "font.size": 10,
    "grid.alpha": 0.3,
    "image.cmap": "viridis",
    "legend.frameon": False,
    "text.parse_math": False,  # a token may hold dollar signs
}


@FuncFormatter
def PLAIN(value: float, _: int) -> str:
    """0.5 or 1e+06; with more digits only where neighbours need them."""
    return short if math.isclose(float(short := f"{value:g}"), value, rel_tol=1e-12) else f"{value:.12g}"


class RoundNumbers(LogLocator):
    """Two to ten round numbers on a logarithmic axis, however short or long it is."""

    def tick_values(self, low: float, high: float) -> list[float]:
        exponents = range(math.floor(math.log10(low)), min(math.ceil(math.log10(high)), 308) + 1)
        for digits in ((1, 2, 3, 5), (1, 3), (1,)):
            ticks = [digit * 10.0**e for e in exponents for digit in digits if low <= digit * 10.0**e <= high]
            if len(ticks) <= MOST_TICKS:
                break
        if len(ticks) < 3:  # not even 1, 2, 3 or 2, 3, 5: the axis is so short that it is nearly linear
            even = MaxNLocator(nbins=8, steps=[1, 2, 5, 10]).tick_values(low, high)
            ticks = [tick for tick in even if low <= tick <= high]
        return ticks[:: math.ceil(len(ticks) / MOST_TICKS) or 1]


class Powers(RoundNumbers):
    """1, 2, 4, 8, … on a logarithmic axis of lengths."""

    def tick_values(self, low: float, high: float) -> list[float]:
        exponents = range(max(0, math.ceil(math.log2(low))), math.floor(math.log2(high)) + 1)
        ticks = [2.0**e for e in exponents][:: math.ceil(len(exponents) / MOST_TICKS) or 1]
        return ticks if len(ticks) > 1 else super().tick_values(low, high)


# Of a large model, only some blocks and heads are drawn, and only some rows are labelled.
MOST_BLOCKS, MOST_HEADS, MOST_ROWS = 4, 4, 60


@dataclass(frozen=True)
class Attention:
    """Where each token of a text looks, in each block and head."""

    tokens: Sequence[str]  # T of them
    probabilities: Sequence[np.ndarray]  # one (H, T, T) per block; rows are the tokens that look


def pictures(metrics: Path, attention: Attention) -> dict[str, bytes]:
    """Every picture of a run as a PNG, by its name. Raises FileNotFoundError if a file is not in `metrics` yet."""
    drawings: dict[str, Callable[[], Figure]] = {
        "training_curve": lambda: training_figure(metrics),
        "gradient_norms": lambda: gradient_figure(metrics),
        "activations": lambda: activation_figure(metrics),
        "loss_by_position": lambda: position_figure(metrics),
        "attention": lambda: attention_figure(attention),
    }
    return {name: png(draw) for name, draw in drawings.items()}


def png(draw: Callable[[], Figure]) -> bytes:
    """The figure of `draw` as a PNG in this module's style, without metadata of program or time."""
    with matplotlib.style.context(["default", STYLE]), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph")  # a token in a script that no font has shows as a box
        buffer = io.BytesIO()
        draw().savefig(buffer, format="png", dpi=DPI, metadata={"Software": None})
    return buffer.getvalue()


# ----------------------------------------------------------------------------------------------- training


def training_figure(metrics: Path) -> Figure:
    """Loss on a logarithmic scale, learning rate and gradient norm over the steps."""
    train, validation = _columns(metrics / "training_curve.csv"), _columns(metrics / "validation_curve.csv")
    figure = Figure(figsize=(WIDTH, 6.4))
    loss, rate, norm = figure.subplot_mosaic([["loss", "loss"], ["rate", "norm"]], height_ratios=[2, 1]).values()
    loss.plot(train["step"], train["train_loss"], color=BLUE, lw=1.2, label="training")
    loss.plot(validation["step"], validation["validation_loss"], "o-", color=ORANGE, ms=4, label="validation")
    if (floor := _stream_floor(metrics)) is not None:
        loss.axhline(floor, color=GREY, ls="--", lw=1.2, label=f"what the grammar itself would need: {floor:.4g}")
    loss.set(title="Loss", ylabel="nats per token", yscale="log")
    _plain_ticks(loss)
    loss.legend()
    rate.plot(train["step"], train["learning_rate"], color=GREEN)
    rate.set(title="Learning rate", ylabel="learning rate", ylim=(0, None))
    norm.plot(train["step"], train["grad_norm"], color=PURPLE, lw=1)
    norm.set(title="Gradient", ylabel="norm before clipping", yscale="log")
    _plain_ticks(norm)
    for axes in (loss, rate, norm):
        _over_steps(axes)
    return figure


def _stream_floor(metrics: Path) -> float | None:
    """What the grammar itself would need per token of the stream, if it is known: the ends of texts cost it nothing."""
    result = json.loads((metrics / "eval.json").read_text("utf-8"))
    if (floor := result.get("loss_floor")) is None:
        return None
    return float(floor * result["tokens"] / (result["tokens"] + result.get("texts", 0)))


def gradient_figure(metrics: Path) -> Figure:
    """The norm of each parameter's gradient as a map over the steps, with a logarithmic colour scale."""
    columns = _columns(metrics / "gradient_norms.csv", text=("parameter",))
    steps, names = list(dict.fromkeys(columns["step"])), list(dict.fromkeys(columns["parameter"]))
    norms = np.array(columns["gradient_norm"]).reshape(len(steps), len(names)).T
    figure = Figure(figsize=(WIDTH, 1.2 + 0.19 * min(len(names), MOST_ROWS)))
    axes = figure.add_subplot()
    shown = norms[(norms > 0) & np.isfinite(norms)]
    scale = LogNorm(*_apart(*np.quantile(shown, [0.005, 0.995]))) if len(shown) else None
    image = axes.pcolormesh(_edges(steps), np.arange(len(names) + 1), norms, norm=scale)
    every = math.ceil(len(names) / MOST_ROWS)
    axes.set_yticks(np.arange(len(names))[::every] + 0.5, names[::every], fontsize=8)
    axes.invert_yaxis()
    axes.tick_params(axis="y", length=0)
    axes.grid(False)
    for row in range(1, len(names)):
        if _room(names[row]) != _room(names[row - 1]):
            axes.axhline(row, color="white", lw=1.5)
    _over_steps(axes)
    ticks = RoundNumbers() if scale else None
    bar = figure.colorbar(image, ax=axes, extend="both", pad=0.01, aspect=40, ticks=ticks, format=PLAIN)
    bar.set_label("gradient norm before clipping")
    return figure


def _room(name: str) -> str:
    """The block that a parameter belongs to; "" for what stands before and after the blocks."""
    return ".".join(name.split(".")[:2]) if name.startswith("blocks.") else ""


def activation_figure(metrics: Path) -> Figure:
    """Statistics of each block's activations, over the steps."""
    columns = _columns(metrics / "activations.csv")
    blocks = sorted({int(block) for block in columns["block"]})
    units = next(name.removesuffix("_off") for name in columns if name.endswith("_off"))
    shown = {"gelu": "GELU", "silu": "SiLU", "relu_squared": "squared ReLU"}.get(units, units)
    panels = {
        "residual_rms": ("Residual stream after the block", "root mean square"),
        "attention_entropy": ("Entropy of the attention", "nats"),
        f"{units}_off": (f"{shown} off", "% of all activations"),
        f"{units}_dead": (f"{shown} off at every token", "% of units"),
    }
    figure = Figure(figsize=(WIDTH, 6.0))
    grid = figure.subplots(2, 2).flat
    colours = matplotlib.colormaps["viridis"](np.linspace(0, 0.85, len(blocks)))
    step, block = np.array(columns["step"]), np.array(columns["block"])
    for axes, (name, (title, unit)) in zip(grid, panels.items(), strict=True):
        values = np.array(columns[name]) * (100 if unit.startswith("%") else 1)
        for i, colour in zip(blocks, colours, strict=True):
            line = f"{MARKERS[i % len(MARKERS)]}-"
            axes.plot(step[block == i], values[block == i], line, color=colour, ms=4, lw=1.4, label=f"blocks.{i}")
        axes.set(title=title, ylabel=unit)
        axes.set_ylim(0, max(axes.get_ylim()[1], 1 if unit.startswith("%") else 0))
        _over_steps(axes)
    handles, labels = axes.get_legend_handles_labels()
    chosen = _spread(len(blocks), 12)
    figure.legend(
        [handles[i] for i in chosen], [labels[i] for i in chosen], loc="outside upper center", ncols=min(len(chosen), 6)
    )
    return figure


# ------------------------------------------------------------------------------------------------- result


def position_figure(metrics: Path) -> Figure:
    """The loss of each position in the validation texts, and the mean of all their tokens."""
    columns = _columns(metrics / "loss_by_position.csv")
    mean = json.loads((metrics / "eval.json").read_text("utf-8"))["loss"]
    figure = Figure(figsize=(WIDTH, 3.6))
    axes = figure.add_subplot()
    context = np.array(columns["position"]) + 1
    axes.plot(context, columns["loss"], ".-", color=BLUE, lw=1.2, ms=4, label="after so many tokens")
    axes.axhline(mean, color=ORANGE, ls="--", lw=1.2, label=f"mean: {mean:.4g}")
    axes.set(xlabel="tokens of context", ylabel="loss (nats per token)", yscale="log", xscale="log")
    _plain_ticks(axes)
    axes.xaxis.set_major_locator(Powers())
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(PLAIN)
    axes.legend()
    return figure


def attention_figure(attention: Attention) -> Figure:
    """Each head's attention over one text: a row is the token that looks, a column the one that is looked at."""
    blocks = _spread(len(attention.probabilities), MOST_BLOCKS)
    heads = _spread(len(attention.probabilities[0]), MOST_HEADS)
    time = len(attention.tokens)
    size = min((WIDTH - 1.8) / len(heads), 3.0)  # of a map, in inches
    font = max(3.5, min(8.0, 60 * size / time))
    labels = max(map(cell_len, attention.tokens)) * font / 120
    text: dict[str, Any] = {"fontsize": font, "fontfamily": families_for("".join(attention.tokens))}
    figure = Figure(figsize=(WIDTH, labels + 0.1 + len(blocks) * (size + 0.27)), layout="compressed")
    grid = figure.subplots(len(blocks), len(heads), squeeze=False)
    future = np.triu(np.ones((time, time), dtype=bool), 1)
    for i, block in enumerate(blocks):
        for j, head in enumerate(heads):
            axes = grid[i, j]
            shown = np.ma.masked_array(attention.probabilities[block][head], future)
            image = axes.imshow(shown, norm=PowerNorm(0.5, vmin=0, vmax=1), aspect="equal", interpolation="nearest")
            axes.grid(False)
            axes.set_title(f"blocks.{block}, head {head}", fontsize=9)
            axes.set_xticks(range(time), attention.tokens if i == len(blocks) - 1 else [], rotation=90, **text)
            axes.set_yticks(range(time), attention.tokens if j == 0 else [], **text)
            axes.tick_params(length=0, pad=1)
    bar = figure.colorbar(image, ax=grid, pad=0.01, aspect=30, shrink=0.8, ticks=[0, 0.05, 0.2, 0.5, 1])
    bar.ax.set_yticklabels(["0", "5%", "20%", "50%", "100%"])
    bar.set_label("share of the attention")
    return figure


# ------------------------------------------------------------------------------------------------- helpers


def _columns(path: Path, text: Sequence[str] = ()) -> dict[str, list]:
    """A CSV's columns, as numbers except those named in `text`."""
    with path.open(encoding="utf-8", newline="") as file:
        rows: list[Mapping[str, str]] = list(csv.DictReader(file))
    return {name: [row[name] if name in text else float(row[name]) for row in rows] for name in rows[0]}


def _edges(steps: Sequence[float]) -> np.ndarray:
    """Where the columns of a map begin and end, each around its step."""
    centres = np.array(steps)
    middles = (centres[1:] + centres[:-1]) / 2
    first, last = (middles[0], middles[-1]) if len(middles) else (centres[0] + 1, centres[0] - 1)
    return np.array([2 * centres[0] - first, *middles, 2 * centres[-1] - last])


def _spread(n: int, most: int) -> list[int]:
    """Up to `most` of the first n numbers, including the first and the last."""
    return sorted({round(i) for i in np.linspace(0, n - 1, min(n, most))})


def _apart(low: float, high: float) -> tuple[float, float]:
    """The ends of a logarithmic axis, far enough from each other that numbers between them differ."""
    return (low, high) if high > low * (1 + 1e-6) else (low * (1 - 1e-6), high * (1 + 1e-6))


def _over_steps(axes: Axes) -> None:
    axes.set_xlabel("step")
    low, high = axes.get_xlim()
    if math.floor(high) <= math.ceil(low):  # a run of one step: room for the numbers beside it
        axes.set_xlim(math.floor(low) - 0.5, math.ceil(high) + 0.5)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=8))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:,.0f}"))


def _plain_ticks(axes: Axes) -> None:
    """0.5, 1, 2 on a logarithmic y axis, instead of powers of ten."""
    axes.set_ylim(_apart(*axes.get_ylim()))
    axes.yaxis.set_major_locator(RoundNumbers())
    axes.yaxis.set_major_formatter(PLAIN)
    axes.yaxis.set_minor_formatter(BLANK)

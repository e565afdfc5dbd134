"""One step of several processes as a picture: what each computes and exchanges, and when."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch.distributed as dist
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from torch import Tensor

from custom_transformer import CustomTransformer
from custom_transformer.maths.optim import Optimizer
from custom_transformer.runs.distributed import Exchange, Shares

Kind = Literal["forward", "backward", "norm", "update", "wait", "gradients", "parameters"]

COLOURS: dict[str, str] = {
    "forward": "#5b4b8a",
    "backward": "#1b7f5c",
    "norm": "#d9a514",
    "update": "#c2571a",
    "wait": "#d5dade",
    "gradients": "#4c9be8",
    "parameters": "#1f4e79",
}
MEANING = {
    "backward": "backward, by blocks",
    "wait": "waiting, adding, copying",
    "gradients": "a bucket's gradients on their way",
    "parameters": "a bucket's parameters on their way",
    "norm": "sums over all processes",
}


class Span(NamedTuple):
    """begin, end: seconds on a clock that all processes of this machine share; label: the part of the model."""

    kind: Kind
    label: str
    begin: float
    end: float


class Recorder:
    """Notes the spans of a process's steps, from outside: by functions around those that a step calls.

    A backward's span ends as the last gradient of a block, or of what is outside the blocks, arrives; an exchange ends
    when the library says so, whether or not anybody waits for it.
    """

    def __init__(self, model: CustomTransformer, optimizer: Optimizer, shares: Shares):
        self._spans: list[Span] = []
        self._on_their_way: list[Any] = []
        self._gathering = False
        model.loss = self._noted(model.loss, "forward")  # type: ignore[method-assign]
        shares.squares = self._noted(shares.squares, "norm")  # type: ignore[method-assign]
        optimizer.update = self._noted(optimizer.update, "update")  # type: ignore[method-assign]
        shares.send_parameters = self._gathered(shares.send_parameters)  # type: ignore[method-assign]
        dist.all_to_all_single = self._exchanged(dist.all_to_all_single)
        model.loss_backward = self._backward(model.loss_backward)  # type: ignore[method-assign]
        shares.sums = self._summed(shares.sums)  # type: ignore[method-assign]

    def taken(self) -> list[Span]:
        """The spans since the last call, once all exchanges have ended."""
        for future in self._on_their_way:
            future.wait()
        spans, self._spans, self._on_their_way = self._spans, [], []
        return spans

    def _note(self, kind: Kind, begin: float, label: str = "") -> None:
        self._spans.append(Span(kind, label, begin, time.perf_counter()))

    def _noted(self, function: Callable[..., Any], kind: Kind) -> Callable[..., Any]:
        def noted(*arguments: Any) -> Any:
            begin = time.perf_counter()
            result = function(*arguments)
            self._note(kind, begin)
            return result

        return noted

    def _gathered(self, function: Callable[..., None]) -> Callable[..., None]:
        def gathered(parameters: dict[str, Tensor]) -> None:
            begin, self._gathering = time.perf_counter(), True
            function(parameters)
            self._gathering = False
            self._note("wait", begin)

        return gathered

    def _exchanged(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def exchanged(*arguments: Any, **options: Any) -> Any:
            kind: Kind = "parameters" if self._gathering else "gradients"
            begin = time.perf_counter()
            work = function(*arguments, **options)
            self._on_their_way.append(work.get_future().then(lambda _: self._note(kind, begin)))
            return work

        return exchanged

    def _backward(self, function: Callable[..., None]) -> Callable[..., None]:
        def backward(share: float, sums: Any) -> None:
            self._part, self._begin, self._last = "", time.perf_counter(), time.perf_counter()
            function(share, sums)
            self._note("backward", self._begin, self._part)

        return backward

    def _summed(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def summed(*arguments: Any) -> Any:
            sums = function(*arguments)
            if isinstance(sums, Exchange):
                sums.arrived = self._arrived(sums.arrived)  # type: ignore[method-assign]
                sums.finish = self._noted(sums.finish, "wait")  # type: ignore[method-assign]
            return sums

        return summed

    def _arrived(self, function: Callable[..., None]) -> Callable[..., None]:
        def arrived(name: str, total: Tensor) -> None:
            block = re.match(r"blocks\.(\d+)\.", name)
            part = block[1] if block else ""
            if part != self._part:
                if self._last > self._begin:
                    self._spans.append(Span("backward", self._part, self._begin, self._last))
                self._part, self._begin = part, self._last
            function(name, total)
            self._last = time.perf_counter()

        return arrived


def save_timeline(of_each: Sequence[Sequence[Span]], title: str, path: Path) -> None:
    """One row of panels per process: what it computes on top, one line per bucket on its way below.

    The right panels show the end of the step again, from the time the first backward has ended.
    """
    start = min(span.begin for spans in of_each for span in spans)
    end = max(span.end for spans in of_each for span in spans) - start
    tail = min(max(span.end for span in spans if span.kind == "backward") for spans in of_each) - start
    figure = Figure(figsize=(12, 2.2 * len(of_each) + 1), layout="constrained")
    panels = figure.subplots(len(of_each), 2, sharex="col", squeeze=False, width_ratios=(3, 2))
    for rank, (row, spans) in enumerate(zip(panels, of_each, strict=True)):
        for axes, left in zip(row, (0.0, tail), strict=True):
            buckets = _draw(axes, spans, start)
            axes.set_xlim(left * 1e3, end * 1e3)
            axes.invert_yaxis()
            axes.set_yticks([0.5, 1.4 + 0.175 * (buckets + 1)], ["computes", "exchanges"] if left == 0 else ["", ""])
            axes.tick_params(axis="y", length=0)
            axes.tick_params(labelsize=8)
            axes.spines[["top", "right", "left"]].set_visible(False)
        row[0].set_title(f"process {rank}", fontsize=9, loc="left")
        row[1].set_title("its end", fontsize=9, loc="left")
    for axes in panels[-1]:
        axes.set_xlabel("milliseconds", fontsize=8)
    names = [Patch(color=colour, label=MEANING.get(kind, kind)) for kind, colour in COLOURS.items()]
    figure.legend(handles=names, loc="outside lower center", ncols=4, fontsize=8, frameon=False)
    figure.suptitle(title, fontsize=10)
    figure.savefig(path, dpi=110)


def _draw(axes: Any, spans: Sequence[Span], start: float) -> int:
    """All spans, in milliseconds since `start`; returns how many of them are exchanges."""
    buckets = 0
    for kind, label, begin, end in sorted(spans, key=lambda span: span.begin):
        exchanged = kind in ("gradients", "parameters")
        buckets += exchanged
        row, height = (1.4 + 0.35 * buckets, 0.28) if exchanged else (0.5, 1.0)
        left, width = (begin - start) * 1e3, (end - begin) * 1e3
        edge = COLOURS[kind] if exchanged else "white"  # an exchange may be too short to be seen without
        axes.barh(row, width, height, left=left, color=COLOURS[kind], edgecolor=edge, linewidth=0.6)
        axes.text(left + width / 2, row, label, ha="center", va="center", fontsize=7, color="white", clip_on=True)
    return buckets

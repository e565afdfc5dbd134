"""No axis is without numbers, whatever a run measured."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import vl_convert
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.axis import Axis
from matplotlib.figure import Figure

from custom_transformer.files import write_csv, write_json
from custom_transformer.pages import pictures
from custom_transformer.pages.pictures import PLAIN, Powers, RoundNumbers


def numbers(axis: Axis) -> list[str]:
    """The labels that can be seen, major and minor."""
    low, high = sorted(axis.get_view_interval())
    ticks = [*axis.get_major_ticks(), *axis.get_minor_ticks()]
    texts = [tick.label1.get_text() for tick in ticks if low <= tick.get_loc() <= high]
    return [text for text in texts if text]


@given(st.floats(-12, 12), st.floats(-4, 1.4), st.sampled_from([RoundNumbers, Powers]))
def test_a_logarithmic_axis_has_at_least_two_numbers(start: float, width: float, locator: Callable[[], Any]) -> None:
    """From a hundredth of a percent to 25 decades."""
    low, high = 10**start, 10 ** (start + 10**width)
    ticks = locator().tick_values(low, high)
    assert all(low <= tick <= high for tick in ticks)
    assert 2 <= len({PLAIN(tick, 0) for tick in ticks}) <= 10
    assert len({PLAIN(tick, 0) for tick in ticks}) == len(ticks)
    for tick in ticks:
        assert math.isclose(float(PLAIN(tick, 0)), tick, rel_tol=1e-9)


def write_run(folder: Path, steps: list[int], losses: list[float], norms: list[float]) -> Path:
    """The files of a run; `losses` are those of the training and of the positions, `norms` the gradients'."""
    write_csv(
        folder / "training_curve.csv",
        [
            {"step": s, "train_loss": loss, "learning_rate": 3e-4, "grad_norm": norms[0]}
            for s, loss in zip(steps, losses, strict=False)
        ],
    )
    write_csv(folder / "validation_curve.csv", [{"step": steps[-1], "validation_loss": losses[-1]}])
    rows = [{"step": s, "parameter": f"p{i}", "gradient_norm": n} for s in steps for i, n in enumerate(norms)]
    write_csv(folder / "gradient_norms.csv", rows)
    statistics = {"residual_rms": 1.5, "attention_entropy": 0.0, "gelu_off": 0.1, "gelu_dead": 0.0}
    write_csv(folder / "activations.csv", [{"step": steps[-1], "block": 0, **statistics}])
    write_csv(folder / "loss_by_position.csv", [{"position": i, "loss": loss} for i, loss in enumerate(losses)])
    write_json(folder / "eval.json", {"loss": losses[0]})
    return folder


RUNS = {
    "early": ([10, 20, 30], [4.8, 4.4, 4.1], [0.2, 0.9]),
    "hardly any fall": ([10, 20, 30], [4.45, 4.4, 4.37], [0.31, 0.39]),
    "one step": ([1], [2.3], [0.5]),
    "the tenth step": ([10], [2.3], [0.5]),
    "two steps": ([1, 2], [9.4, 8.2], [1.1, 1.9]),
    "the same loss": ([1, 2, 3], [2.0, 2.0, 2.0], [1.0, 1.0]),
    "nothing left to learn": ([1, 2, 3], [0.0, 0.0, 0.0], [0.0, 0.0]),
    "many decades": ([1, 100_000], [20.0, 1e-7], [1e-9, 0.0, 1e4]),
    "infinite": ([1, 2, 3], [2.0, 1.9, math.inf], [0.5, math.inf, math.nan]),
    "the end of float64": ([1, 2], [1e308, 1e-320], [1e308, 1e-300]),
    "a long context": (list(range(1, 2049)), [9.0 - i / 1000 for i in range(2048)], [0.1]),
}
FIGURES = [
    pictures.training_figure, pictures.gradient_figure, pictures.activation_figure, pictures.position_figure
]  # fmt: skip


@pytest.mark.filterwarnings("ignore:Data has no positive values", "ignore:overflow encountered")
@pytest.mark.parametrize("run", RUNS)
@pytest.mark.parametrize("draw", FIGURES, ids=[draw.__name__ for draw in FIGURES])
def test_every_axis_has_at_least_two_numbers(tmp_path: Path, draw: Callable[[Path], Figure], run: str) -> None:
    figure = draw(write_run(tmp_path, *RUNS[run]))
    figure.draw_without_rendering()
    for axes in figure.axes:
        scales = [axes.xaxis] if axes.get_xlabel() else []
        scales += [axes.yaxis] if axes.get_ylabel() else []  # beside a map stand names
        assert scales
        for axis in scales:
            assert len(set(numbers(axis))) >= 2, f"{axes.get_title()} {axis.axis_name}: {numbers(axis)}"


def drawn_by_vega(template: str, rows: list[dict[str, Any]]) -> list[list[str]]:
    """The texts of each axis and legend of a plot of DVC's."""
    plot = json.loads(Path(f".dvc/plots/{template}.json").read_text("utf-8"))
    plot["data"]["values"] = [{"rev": "workspace", **row} for row in rows]
    parts = re.split(r'aria-roledescription="(?:axis|legend)"', vl_convert.vegalite_to_svg(plot))[1:]
    return [re.findall(r"<text[^>]*>(-?[\d.][^<]*)</text>", part) for part in parts]


@pytest.mark.parametrize("steps", [[1], [300], [300, 600]])
@pytest.mark.parametrize("value", [0.0, 0.3, 7.5])
def test_the_statistics_of_blocks_have_numbers_on_each_axis(steps: list[int], value: float) -> None:
    names = ("residual_rms", "attention_entropy", "gelu_off", "gelu_dead")
    rows = [{"step": step, "block": 0, **dict.fromkeys(names, value)} for step in steps]
    axes = drawn_by_vega("activations", rows)[:8]
    assert len(axes) == 8
    for texts in axes:
        assert len(set(texts)) >= 2


@pytest.mark.parametrize("norms", [[0.2, 0.9], [0.31, 0.39], [1.1, 1.9], [1e-7, 1e3], [0.0, 0.5, 2.0]])
def test_the_map_of_gradients_has_numbers_beside_its_colours(norms: list[float]) -> None:
    rows = [{"step": s, "parameter": f"p{i}", "gradient_norm": n} for s in (1, 20) for i, n in enumerate(norms)]
    *_, legend = drawn_by_vega("gradient_norms", rows)
    assert len(set(legend)) >= 2

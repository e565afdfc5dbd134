"""The page needs no other file, shows what it is given and nothing more, and is the same each time."""

from __future__ import annotations

import json
import math
import shutil
from html.parser import HTMLParser
from pathlib import Path

import matplotlib
import numpy as np
import pytest

from custom_transformer.config import Params, load_params
from custom_transformer.files import write_csv, write_json
from custom_transformer.pages.pictures import Attention, pictures, position_figure
from custom_transformer.pages.report import PICTURES, page, shown
from stages.report import token_labels
from stages.show import print_metrics

HOSTILE = "</blockquote><script>alert(1)</script><img src=http://x/y.png onerror=alert(2)> $lead ${x} & \x1b[31m\u202e"


@pytest.fixture(scope="module")
def metrics(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a short run: 3 rows a curve, 2 blocks, one gradient that is 0."""
    folder = tmp_path_factory.mktemp("metrics")
    steps = (10, 20, 25)
    names = ("token_embedding", "blocks.0.up.weight", "blocks.1.up.weight", "final_norm.weight")
    write_csv(
        folder / "training_curve.csv",
        [{"step": s, "epoch": 1, "train_loss": 50 / s, "learning_rate": s / 9, "grad_norm": 0.3} for s in steps],
    )
    write_csv(folder / "validation_curve.csv", [{"step": s, "epoch": 1, "validation_loss": 60 / s} for s in steps])
    write_csv(
        folder / "gradient_norms.csv",
        [{"step": s, "parameter": n, "gradient_norm": i / s} for s in steps for i, n in enumerate(names)],
    )
    statistics = {"residual_rms": 1.5, "attention_entropy": 2.0, "gelu_off": 0.1, "gelu_dead": 0.0}
    write_csv(folder / "activations.csv", [{"step": s, "block": b, **statistics} for s in steps for b in (0, 1)])
    write_csv(folder / "loss_by_position.csv", [{"position": i, "loss": 3 / (i + 1)} for i in range(9)])
    write_json(folder / "train.json", {"parameters": 12345, "steps": 25, "tokens": 6789})
    bits = {"bits_per_byte": 0.8, "bits_per_byte_floor": 0.2}
    write_json(folder / "eval.json", {"loss": 2.0, "loss_floor": 0.5, **bits, "tokens": 4000})
    sample = {"prompt": HOSTILE[:20], "text": HOSTILE, "new_tokens": 3, "ended": False}
    (folder / "samples.jsonl").write_text(json.dumps(sample) + "\n", "utf-8")
    return folder


@pytest.fixture(scope="module")
def attention() -> Attention:
    probabilities = np.tril(np.ones((3, 5, 5))) / np.arange(1, 6)[:, None]
    return Attention(["$x^", "<b>", "中", "\\frac{", "·the"], [probabilities] * 2)


@pytest.fixture(scope="module")
def drawn(metrics: Path, attention: Attention) -> dict[str, bytes]:
    return pictures(metrics, attention)


@pytest.fixture(scope="module")
def params() -> Params:
    params = load_params("configs/smoke.yaml")
    return params.model_copy(
        update={
            "data": params.data.model_copy(update={"dataset": HOSTILE}),
            "tracking": params.tracking.model_copy(update={"uri": "https://me:password@server"}),
        }
    )


class Page(HTMLParser):
    """The page's tags with their attributes, and its visible text."""

    def __init__(self, html: str):
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


def test_the_page_needs_no_other_file(metrics: Path, params: Params, drawn: dict[str, bytes]) -> None:
    html = page(params, metrics, drawn)
    tags = Page(html).tags
    images = [attributes["src"] for tag, attributes in tags if tag == "img"]
    assert len(images) == len(PICTURES)
    assert all(str(source).startswith("data:image/png;base64,") for source in images)
    assert {tag for tag, _ in tags}.isdisjoint({"script", "link", "iframe", "object", "base", "form"})
    for _, attributes in tags:
        assert not any(name.startswith("on") for name in attributes)
        href = str(attributes.get("href", "#"))
        assert href.startswith("#") or href == "explorer.html"  # which stands beside it
    style = html[html.index("<style>") : html.index("</style>")]
    assert "url(" not in style
    assert "@import" not in style
    assert "default-src 'none'; img-src data:" in html


def test_hostile_texts_are_shown_as_they_are(metrics: Path, params: Params, drawn: dict[str, bytes]) -> None:
    text = Page(page(params, metrics, drawn)).text
    assert HOSTILE.replace("\x1b", "\\x1b").replace("\u202e", "\\u202e") + " …" in text
    assert "12,345 parameters" in text
    assert "0.8000" in text
    assert "password" not in text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        *((0.41903, "0.4190"), (1.5205, "1.5205"), (50257.123, "50257.1230"), (0.0, "0.0000"), (-2.5, "-2.5000")),
        *((math.exp(700), "1.0142e+304"), (1e7, "1.0000e+07"), (-3e20, "-3.0000e+20"), (4.2e-5, "4.2000e-05")),
        *((61268, "61,268"), (0, "0"), (10**15, "1.0000e+15"), (10**300, "1.0000e+300")),
        *((math.inf, "inf"), (math.nan, "nan")),
    ],
)
def test_a_figure_of_any_size_is_short(value: float | int, text: str) -> None:
    assert shown(value) == text


def test_a_perplexity_of_hundreds_of_digits_leaves_the_table_in_sight(
    metrics: Path, params: Params, drawn: dict[str, bytes], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(metrics, tmp_path, dirs_exist_ok=True)
    result: dict[str, float | int] = {"loss": 1e20, "perplexity": math.exp(700), "accuracy": 1e-9, "tokens": 260}
    write_json(tmp_path / "eval.json", result)
    print_metrics(result)
    table, text = capsys.readouterr().out, Page(page(params, tmp_path, drawn)).text
    for figure in ("1.0000e+20", "1.0142e+304", "1.0000e-09", "260"):
        assert figure in table
        assert figure in text
    assert max(map(len, table.splitlines())) <= 80
    label = position_figure(tmp_path).axes[0].get_legend_handles_labels()[1][1]
    assert label == "mean: 1e+20"


def test_each_sample_has_its_own_direction(metrics: Path, params: Params, drawn: dict[str, bytes]) -> None:
    boxes = [attributes for tag, attributes in Page(page(params, metrics, drawn)).tags if tag == "blockquote"]
    assert boxes == [{"dir": "auto"}]


def test_equal_files_give_equal_bytes(
    metrics: Path, attention: Attention, params: Params, drawn: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever else in this process has told matplotlib."""
    monkeypatch.setitem(matplotlib.rcParams, "font.size", 20)
    monkeypatch.setitem(matplotlib.rcParams, "axes.facecolor", "red")
    again = pictures(metrics, attention)
    assert again == drawn
    assert matplotlib.rcParams["font.size"] == 20
    assert page(params, metrics, again) == page(params, metrics, drawn)


def test_the_floor_of_the_loss_is_drawn_where_there_is_one(
    metrics: Path, attention: Attention, drawn: dict[str, bytes], tmp_path: Path
) -> None:
    shutil.copytree(metrics, tmp_path, dirs_exist_ok=True)
    write_json(tmp_path / "eval.json", {"loss": 2.0, "bits_per_byte": 0.8})
    without = pictures(tmp_path, attention)
    assert [name for name in drawn if without[name] != drawn[name]] == ["training_curve"]


class Pieces:
    """A tokenizer, as far as labels need one."""

    texts = (
        *(" the", "\n\x1b", "<|endoftext|>", "unbelievableness"),
        *("\u00a0»", "می\u200cخوا", "\u3000", "👩\u200d👧", "やうやう白くなりゆく山ぎは"),
    )

    def decode(self, tokens: list[int]) -> str:
        return self.texts[tokens[0]]


def test_a_token_becomes_a_short_printable_label() -> None:
    labels = token_labels(Pieces(), list(range(9)))  # type: ignore[arg-type]
    assert labels[:4] == ["·the", "\\n\\x1b", "<|endoftext|>", "unbelievable…"]
    assert labels[4:] == ["·»", "می\u200cخوا", "·", "👩\u200d👧", "やうやう白く…"]


def test_the_plots_of_dvc_read_columns_that_there_are(metrics: Path) -> None:
    for name in ("gradient_norms", "activations"):
        template = json.loads(Path(f".dvc/plots/{name}.json").read_text("utf-8"))
        with (metrics / f"{name}.csv").open() as file:
            columns = set(file.readline().strip().split(","))
        assert set(template["data"]["format"]["parse"]) <= columns


def test_a_run_of_one_row_and_one_of_many_blocks_can_be_drawn(metrics: Path, tmp_path: Path) -> None:
    for path in metrics.iterdir():
        header, first, *_ = path.read_text("utf-8").split("\n") if path.suffix == ".csv" else [path.read_text(), ""]
        (tmp_path / path.name).write_text(f"{header}\n{first}\n" if first else header, "utf-8")
    assert pictures(tmp_path, Attention(["a"], [np.ones((1, 1, 1))])).keys() == PICTURES.keys()
    names = [f"blocks.{b}.{name}" for b in range(40) for name in ("up.weight", "down.weight")]
    rows = [{"step": s, "parameter": n, "gradient_norm": 1.0} for s in (1, 2) for n in names]
    write_csv(tmp_path / "gradient_norms.csv", rows)
    statistics = {"residual_rms": 1.5, "attention_entropy": 2.0, "gelu_off": 0.1, "gelu_dead": 0.0}
    write_csv(tmp_path / "activations.csv", [{"step": 1, "block": b, **statistics} for b in range(40)])
    pictures(tmp_path, Attention(list("abcdefghij"), [np.full((20, 10, 10), 0.1)] * 40))

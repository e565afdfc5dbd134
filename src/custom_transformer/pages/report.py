"""The results of a run, for people: the evaluation as a table in the terminal, and everything as one page."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from string import Template
from typing import Any

from custom_transformer.config import Params
from custom_transformer.errors import lines_only, one_line
from custom_transformer.pages.samples import read_samples

TEMPLATE = Path(__file__).with_name("report.html")

MEANINGS = {
    "loss": "nats per token of the texts",
    "perplexity": "exp(loss)",
    "bits_per_byte": "of the texts, each from its start",
    "lossy_bits_per_byte": "of tokens that lose text: not comparable",
    "accuracy": "next token right",
    "tokens": "predicted, each once",
    "texts": "read to their ends",
    "end_loss": "nats per end of a text",
    "bytes_lost": "share of the text that the tokenizer loses",
    "bits_per_byte_floor": "what the grammar itself would need",
    "loss_floor": "the same, in nats per token",
    "held_out_accuracy": "facts that no text states",
}

# The pictures in the order of the page: the title, and how to read it.
PICTURES = {
    "training_curve": (
        "Training",
        "In a healthy run both losses fall together and flatten out. If the validation loss rises while the training "
        "loss falls, the model memorises. The loss axis is logarithmic. The dashed line, if there is one, is the loss "
        "of the grammar itself; a model can be below it only by chance. The learning rate first rises, because early "
        "gradients are large and vary much, and then falls, so that the weights settle. A gradient norm that jumps by "
        "powers of ten, or keeps growing, means that the learning rate is too high. The last step of an epoch may have "
        "few texts, so its norm may stand out by chance.",
    ),
    "gradient_norms": (
        "Gradient of each parameter",
        "Each row is one parameter, from the input at the top to the output at the bottom. Each column is a step. The "
        "colour is the norm of the parameter's gradient before clipping, on a logarithmic scale. Rows of the same name "
        "should have similar colours in all blocks. If rows get darker towards the top, the gradient vanishes on its "
        "way back to the input; if they get brighter, it explodes. A single dark row is a parameter that learns "
        "nothing. A bright column is a step with unusual texts. Larger matrices have larger norms.",
    ),
    "activations": (
        "Activations",
        "Measured at each validation, on the same few validation texts. Residual stream: the root mean square of its "
        "values. It grows from block to block and with training, but should level off. Attention entropy: the mean "
        "over tokens and heads. It is 0 if each token attends to one token only, and ln n if it attends to n tokens "
        "equally. It falls as heads specialise; at 0 they no longer learn. GELU (or SiLU) off: the share of "
        "activations with an input so low that almost no value and no gradient passes. Some are off because units "
        "specialise. A unit that is off at every token is dead and no longer learns.",
    ),
    "loss_by_position": (
        "Loss by context",
        "The more of a text the model has seen, the better it predicts. The fall of the curve is what context gains. "
        "Where the curve is flat, more context does not help. Texts that are all built alike show their parts, too. "
        "Fewer texts reach further to the right, so the curve varies more there. Both axes are logarithmic.",
    ),
    "attention": (
        "Attention",
        "The attention of each head in each block, at the beginning of the validation texts. A row is a query, a "
        "column is a key. Each row adds up to 100%, and no token attends to a later one. · is a space. A diagonal is a "
        "head that attends to the token itself or, one step to the left, to the one before. A bright first column is a "
        "head that has found nothing and attends to the start. A single bright spot is one important word.",
    ),
}


def shown(value: float | int) -> str:
    """A figure as people read it; in scientific notation where digits would fill the line, or none would be left."""
    if isinstance(value, int) and abs(value) < 10**15:
        return f"{value:,}"
    plain = isinstance(value, float) and (value == 0 or 1e-3 <= abs(value) < 1e7)
    return f"{value:.4f}" if plain else f"{value:.4e}"


def page(params: Params, metrics: Path, pictures: Mapping[str, bytes]) -> str:
    """The run as one HTML page that needs no other file: metrics, samples, pictures (PNGs by name), parameters.

    metrics: the folder of the earlier stages' files. Raises FileNotFoundError if one is missing. The tracking
    parameters are left out: they say where results go, not what they are.
    """
    train, result = (json.loads((metrics / f"{name}.json").read_text("utf-8")) for name in ("train", "eval"))
    lead = (
        f"A transformer of {train['parameters']:,} parameters, trained for {train['steps']:,} steps on "
        f"{train['tokens']:,} tokens of {one_line(params.data.dataset)}, by gradients derived by hand."
    )
    return Template(TEMPLATE.read_text("utf-8")).substitute(
        title="Report of a training run",
        lead=escape(lead),
        evaluation=_table([(name, shown(value), MEANINGS.get(name, "")) for name, value in result.items()]),
        samples="\n".join(_samples(read_samples(metrics))),
        pictures="\n".join(_figure(*PICTURES[name], pictures[name]) for name in PICTURES),
        parameters="\n".join(_sections(params.model_dump(mode="json", exclude={"tracking"}))),
    )


def _table(rows: Sequence[tuple[str, str, str]]) -> str:
    lines = [
        f'<tr><td><code>{escape(name)}</code></td><td class="number">{escape(value)}</td>'
        f'<td class="soft">{escape(meaning)}</td></tr>'
        for name, value, meaning in rows
    ]
    return "\n".join(["<table>", *lines, "</table>"])


def _samples(samples: Sequence[Mapping[str, Any]]) -> list[str]:
    """Each text in a box, its prompt in bold."""
    lines = []
    for sample in samples:
        prompt, text = sample["prompt"], sample["text"] + ("" if sample["ended"] else " …")
        parts = [escape(lines_only(part)) for part in (text[: len(prompt)], text[len(prompt) :])]
        lines.append('<blockquote dir="auto"><b>{}</b>{}</blockquote>'.format(*parts))
    return lines


def _figure(title: str, reading: str, png: bytes) -> str:
    source = f"data:image/png;base64,{base64.b64encode(png).decode('ascii')}"
    return (
        f'<figure>\n<h3>{escape(title)}</h3>\n<img alt="{escape(title)}" src="{source}">\n'
        f"<figcaption>{escape(reading)}</figcaption>\n</figure>"
    )


def _sections(params: Mapping[str, Any]) -> list[str]:
    """One small table per section; parameters outside of sections come first, as "general"."""
    sections = {"general": {name: value for name, value in params.items() if not isinstance(value, dict)}}
    sections |= {name: value for name, value in params.items() if isinstance(value, dict)}
    lines = []
    for title, section in sections.items():
        values = {name: one_line(json.dumps(value, ensure_ascii=False)) for name, value in section.items()}
        rows = [f'<tr><td><code>{escape(n)}</code></td><td dir="auto">{escape(v)}</td></tr>' for n, v in values.items()]
        lines += [f"<section>\n<h3>{escape(title)}</h3>\n<table>", *rows, "</table>\n</section>"]
    return lines

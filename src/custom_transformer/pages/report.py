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
    "loss": "nats per token",
    "perplexity": "exp(loss)",
    "bits_per_byte": "of the text, end of text included",
    "lossy_bits_per_byte": "of tokens that lose text: not comparable",
    "bytes_lost": "share of the text that the tokenizer loses",
    "bits_per_byte_floor": "what the grammar itself would need",
    "loss_floor": "the same, in nats per token",
    "accuracy": "next token right",
    "tokens": "predicted, each once",
    "held_out_accuracy": "facts that no text states",
}

# The pictures in the order of the page: the title, and how to read it.
PICTURES = {
    "training_curve": (
        "Training",
        "A run is healthy where both losses fall together and flatten out; a validation loss that turns upwards while "
        "the training loss falls on means memorising. The loss axis is logarithmic, so that the last part of the way "
        "shows as well as the first. The dashed line, where the corpus has one, is the loss of the grammar itself, "
        "below which no model gets but by luck. The learning rate first rises, since early gradients are large and "
        "point astray, and then falls, so that the weights settle. A gradient norm that jumps by powers of ten, or "
        "keeps growing, announces a learning rate that is too high; the last step of an epoch may hold few texts, and "
        "then stands out by chance.",
    ),
    "gradient_norms": (
        "Gradient of each parameter",
        "Each row is one parameter, from the input at the top to the output at the bottom; each column a step; colour "
        "is the length of the loss's gradient, on a logarithmic scale, before clipping. Compare the blocks: rows of "
        "the same name should have like colours in each. Rows that darken towards the top say that the gradient "
        "vanishes on its way back to the input, rows that brighten that it explodes. A single dark row is a parameter "
        "that learns nothing; a bright column is a step with unusual texts. Larger matrices have larger norms.",
    ),
    "activations": (
        "Activations",
        "Measured at each validation, on the same few validation texts. Residual stream: how large the numbers are "
        "that run through the model; it grows from block to block, and with training, but should level off. Entropy of "
        "the attention, the mean over tokens and heads: 0 where each token looks at one only, the logarithm of n where "
        "it looks at n alike; it falls as heads find what to look for, and a fall to 0 means that they are stuck. GELU "
        "off: the share of activations whose input is below −3, where neither value nor gradient passes. Some of that "
        "is good, for it lets units specialise; a unit that is off at every token is dead, and learns nothing more.",
    ),
    "loss_by_position": (
        "Loss by context",
        "The more text the model has seen in its window, the better it predicts; how far the curve falls is what it "
        "gains from looking back. Where it is flat, more context does not help. Both axes are logarithmic.",
    ),
    "attention": (
        "Attention",
        "The beginning of the validation texts, as each head of each block sees it. A row is the token that looks, a "
        "column one that it looks at; each row adds up to 100%, and nothing looks ahead. · is a space. A diagonal is a "
        "head that looks at the token itself or, one step to the left, at the one before; a bright first column is a "
        "head that finds nothing to look for and rests on the start; single bright spots pick out a word.",
    ),
}


def shown(value: float | int) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:.4f}"


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
        lines.append("<blockquote><b>{}</b>{}</blockquote>".format(*parts))
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
        rows = [f"<tr><td><code>{escape(n)}</code></td><td>{escape(v)}</td></tr>" for n, v in values.items()]
        lines += [f"<section>\n<h3>{escape(title)}</h3>\n<table>", *rows, "</table>\n</section>"]
    return lines

"""The generated samples: written as a page to read, and read again."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from custom_transformer.config import GenerationParams
from custom_transformer.errors import one_line
from custom_transformer.pages.markdown import code_span, fenced
from custom_transformer.runs.generation import Sample


def read_samples(metrics: Path) -> list[dict[str, Any]]:
    """The generated texts; raises FileNotFoundError if there are none yet."""
    lines = (metrics / "samples.jsonl").read_text("utf-8").split("\n")
    return [json.loads(line) for line in lines if line]


def samples_markdown(samples: Sequence[Sample], params: GenerationParams) -> str:
    """The samples as a page to read, grouped by prompt; … marks a text that was cut at max_new_tokens."""
    settings = f"Temperature {params.temperature:g}"
    settings += f", top-k {params.top_k}" if params.top_k is not None else ""
    settings += f", top-p {params.top_p:g}" if params.top_p is not None else ""
    lines = ["# Samples", "", f"{settings}, at most {params.max_new_tokens} tokens after the prompt."]
    for prompt in dict.fromkeys(sample.prompt for sample in samples):
        lines += ["", f"## {code_span(prompt) if one_line(prompt) else '(no prompt)'}"]
        for sample in samples:
            if sample.prompt == prompt:
                lines += ["", fenced(sample.text + ("" if sample.ended else " …"))]
    return "\n".join(lines) + "\n"

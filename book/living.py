"""The explorer's pages in the site, in which models run, and the links from the chapters' functions to them.

The page of the last run is explore.html there, if there has been a run. Its model is of one architecture. So a small
model of each other architecture, with random weights and the run's tokenizer, has a page beside it.
"""

from __future__ import annotations

import json
import re
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import torch

from book.code import ROOT
from custom_transformer.config import CustomTransformerConfig
from custom_transformer.maths.architecture import ARCHITECTURES, architecture_of
from custom_transformer.maths.parameters import initial
from custom_transformer.pages.explorer import TEXT, page_with
from custom_transformer.runs.checkpoint import Checkpoint

EXPLORER = ROOT / "metrics" / "explorer.html"
# What the page calls the place of a function; only one architecture has some of them.
_ANYWHERE = {
    "lookup_forward": "lookup",
    "lookup_backward": "lookup",
    "linear_forward": "linear",
    "linear_backward": "linear",
    "cross_entropy_forward": "cross_entropy",
    "cross_entropy_backward": "cross_entropy",
    "linear_cross_entropy_forward": "head",
    "linear_cross_entropy_backward": "head",
    "optim.sgd_update": "update",
    "optim.adamw_update": "update",
}
_ONLY = {
    "gpt2": ("positions", "layer_norm", "gelu", "causal_attention"),
    "llama": ("rms_norm", "swiglu", "rotary_attention"),
    "modern": ("qk_norm", "relu_squared"),
}
_SMALL = {"max_seq_len": 64, "n_blocks": 2, "n_heads": 4, "d_model": 32, "d_ffn": 64}
_OWN = {"gpt2": {}, "llama": {"n_kv_heads": 2}, "modern": {"n_kv_heads": 2}}


class Run(NamedTuple):
    """The last run's page. tokenizer: as the page has it."""

    page: str
    architecture: str
    tokenizer: dict[str, Any]


@cache
def last_run(path: Path = EXPLORER) -> Run | None:
    """None if nothing has run, or the page only says why there is none."""
    page = path.read_text("utf-8") if path.exists() else ""
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)
    if found is None:
        return None
    data = json.loads(found[1])
    return Run(page, data["config"]["architecture"], data["tokenizer"])


def name_of(architecture: str, run: Run) -> str:
    return "explore.html" if architecture == run.architecture else f"explore_{architecture}.html"


def place_of(function: str, run: Run) -> str | None:
    """Where the site shows it at work: a page and the place there."""
    if function in _ANYWHERE:
        return f"explore.html#{_ANYWHERE[function]}"
    for architecture, operations in _ONLY.items():
        operation = function.removesuffix("_forward").removesuffix("_backward")
        if operation in operations:
            return f"{name_of(architecture, run)}#{operation}"
        if function in (f"{architecture}.block_forward", f"{architecture}.block_backward"):
            return f"{name_of(architecture, run)}#residual"
    return None


def write(folder: Path, run: Run | None) -> None:
    """Puts the pages into the site, whose other pages they then link to."""
    if run is None:
        return
    pages = {name_of(one, run): _small_page(one, run) for one in ARCHITECTURES if one != run.architecture}
    for name, page in {"explore.html": run.page, **pages}.items():
        (folder / name).write_text(page.replace('<html lang="en">', '<html lang="en" data-site="">', 1), "utf-8")


def _small_page(architecture: str, run: Run) -> str:
    sizes = {**_SMALL, **_OWN[architecture], "architecture": architecture, "vocab_size": len(run.tokenizer["entries"])}
    config = CustomTransformerConfig.from_mapping(sizes)
    # What begins as 0 is drawn, too: through zeros no gradient would come back.
    table = {
        name: parameter._replace(role="into_stream") if parameter.role == "zero_into_stream" else parameter
        for name, parameter in architecture_of(config).parameters(config).items()
    }
    state = initial(table, config.n_blocks, seed=0)
    return page_with(Checkpoint(state, config, torch.float32, {"step": 0}), run.tokenizer, TEXT)

"""Draws the run's pictures into metrics/plots/, puts them, the metrics and the samples on one page, report.html, and
makes explorer.html, in which the model runs."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from rich.cells import cell_len, set_cell_size

from custom_transformer.config import Params
from custom_transformer.errors import UserError, escaped, run_main
from custom_transformer.files import atomic_write
from custom_transformer.pages.explorer import explorer_page, reason_page, run_checkpoints
from custom_transformer.pages.pictures import Attention, pictures
from custom_transformer.pages.report import page
from custom_transformer.paths import BEST, EXPLORER, METRICS, TOKENIZER, TOKENS
from custom_transformer.runs.checkpoint import Checkpoint, load_checkpoint
from custom_transformer.runs.observe import views
from custom_transformer.text.saved_tokenizer import load_tokenizer
from custom_transformer.text.tokens import load_tokens
from custom_transformer.tracking import checkpoint_run
from stages.cli import parameters

if TYPE_CHECKING:  # transformers takes a second to import
    from transformers import PreTrainedTokenizerFast

SPACES = "[ \u00a0\u1680\u2000-\u200a\u202f\u205f\u3000]"  # of every width, also those at which no line may break
WIDEST = 13  # label, in columns of a terminal: an ideograph takes two
TOKENS_SHOWN = 16  # of the text whose attention is drawn: as many as can be read beside a map
TOKENS_EXPLORED = 24  # of the text with which the explorer begins


def main() -> None:
    params = parameters(__doc__)
    checkpoint = load_checkpoint(BEST)
    attention = attention_of_sample(checkpoint, params)
    try:
        drawn = pictures(METRICS, attention)
        html = page(params, METRICS, drawn)
    except FileNotFoundError as error:
        raise UserError(f"{error.filename}: not there yet; run dvc repro first") from None
    for name, png in drawn.items():
        with atomic_write(METRICS / "plots" / f"{name}.png") as file:
            file.write(png)
    with atomic_write(METRICS / "report.html", "w") as file:
        file.write(html)
    with atomic_write(EXPLORER, "w") as file:
        file.write(explorer(checkpoint))
    with checkpoint_run(params, BEST, stage="report") as run:
        run.log_artifact(METRICS / "plots")
        run.log_artifact(METRICS / "report.html")
        run.log_artifact(EXPLORER)


def explorer(checkpoint: Checkpoint) -> str:
    """The page that begins with the validation texts' first words; for a model that it cannot run, one that says so."""
    tokenizer = load_tokenizer(TOKENIZER, checkpoint.metadata.get("tokenizer"))
    tokens = load_tokens(TOKENS, "validation").tokens[1 : 1 + TOKENS_EXPLORED].tolist()  # the first is the end token
    first = tokens[: tokens.index(tokenizer.eos_token_id)] if tokenizer.eos_token_id in tokens else tokens
    try:
        return explorer_page(checkpoint, tokenizer, str(tokenizer.decode(first)), run_checkpoints(BEST))
    except UserError as error:
        return reason_page(str(error).removeprefix("explore: "))


def attention_of_sample(checkpoint: Checkpoint, params: Params) -> Attention:
    """Where each token looks at the beginning of the validation texts, which stays the same from run to run."""
    tokenizer = load_tokenizer(TOKENIZER, checkpoint.metadata.get("tokenizer"))
    model = checkpoint.model_for(params.training, TOKENS_SHOWN)
    split = load_tokens(TOKENS, "validation")
    tokens = split.tokens[: min(TOKENS_SHOWN, model.config.max_seq_len)].tolist()
    probabilities = [
        view.attention[0].double().cpu().numpy() for view in views(model, torch.tensor([tokens], device=model.device))
    ]
    return Attention(token_labels(tokenizer, tokens), probabilities)


def token_labels(tokenizer: PreTrainedTokenizerFast, tokens: Sequence[int]) -> list[str]:
    """Each token's text with · for a space, short and on one line."""
    texts = [re.sub(SPACES, "·", escaped(str(tokenizer.decode([token])))) for token in tokens]
    return [text if cell_len(text) <= WIDEST else set_cell_size(text, WIDEST - 1).rstrip() + "…" for text in texts]


if __name__ == "__main__":
    run_main(main)

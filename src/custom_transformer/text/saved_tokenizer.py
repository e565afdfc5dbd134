"""The tokenizer that `tokenize` saved, as every later stage loads it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from custom_transformer.errors import UserError
from custom_transformer.files import sha256_file
from custom_transformer.paths import TOKENIZER

if TYPE_CHECKING:  # transformers takes seconds to import
    from transformers import PreTrainedTokenizerFast


def load_tokenizer(folder: Path | str, sha256: str | None = None) -> PreTrainedTokenizerFast:
    """The tokenizer that `tokenize` saved; raises UserError if it is missing, damaged, or not the one whose
    tokenizer.json has the digest `sha256`."""
    from transformers import PreTrainedTokenizerFast

    if not (Path(folder) / "tokenizer.json").exists():
        raise UserError(f"{folder}: no tokenizer there; run dvc repro tokenize")
    if sha256 not in (None, sha256_file(Path(folder) / "tokenizer.json")):
        raise UserError(
            f"{folder}: not the tokenizer that the checkpoint was trained with; run python -m stages.tokenize with the "
            "checkpoint's configuration"
        )
    try:
        tokenizer = PreTrainedTokenizerFast.from_pretrained(folder, local_files_only=True)
        if tokenizer.eos_token_id is None:
            raise ValueError("it has no end token")
    except Exception as error:  # a damaged file may raise anything, even the Rust library's bare Exception
        raise UserError(f"{folder}: damaged tokenizer ({error}); run dvc repro --force tokenize") from None
    return tokenizer


def tokenizer_of(checkpoint: Path) -> Path:
    """The tokenizer beside an imported or a registered checkpoint, else the pipeline's."""
    beside = checkpoint.parent / TOKENIZER.name
    return beside if beside.exists() else TOKENIZER


def vocabulary_size(tokenizer: PreTrainedTokenizerFast) -> int:
    """One more than the largest id, which is the number of entries unless the ids have gaps."""
    return max(tokenizer.get_vocab().values()) + 1

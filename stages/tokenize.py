"""Trains or loads a tokenizer and packs the text in data/raw; writes data/tokenizer/ and data/tokens/."""

from __future__ import annotations

from custom_transformer.errors import run_main
from custom_transformer.paths import RAW, TOKENIZER, TOKENS
from custom_transformer.text.round_trip import share
from custom_transformer.text.tokenization import tokenize
from stages.cli import parameters


def main() -> None:
    params = parameters(__doc__)
    meta = tokenize(params.data, RAW, TOKENIZER, TOKENS)
    splits = meta["splits"].values()
    documents, tokens, n_bytes = (sum(split[key] for split in splits) for key in ("documents", "tokens", "bytes"))
    print(
        f"{documents:,} documents, {tokens:,} tokens of a vocabulary of {meta['tokenizer']['vocab_size']:,}, "
        f"{n_bytes / tokens:.2f} bytes per token"
    )
    if "lost" in meta:
        print(
            f"data.tokenizer {params.data.tokenizer}: loses {share(meta['lost'])} of the bytes, so this run has no "
            "bits_per_byte and never becomes the registry's best"
        )


if __name__ == "__main__":
    run_main(main)

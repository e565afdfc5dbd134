"""Trains or loads a tokenizer and packs the text in data/raw; writes data/tokenizer/ and data/tokens/."""

from __future__ import annotations

from typing import Any

from custom_transformer.config import load_params
from custom_transformer.errors import run_main
from custom_transformer.paths import ENCODED, RAW, TOKENIZER, TOKENS, project_root
from custom_transformer.text.packing import Share, tokenize, tokenize_share
from custom_transformer.text.round_trip import share
from stages.cli import parser


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument(
        "--share", metavar="I/N", help="only encode share I (from 0) of N equal ones, for a later run without --share"
    )
    given = arguments.parse_args()
    data, work = load_params(given.config).data, project_root() / ENCODED
    if given.share is None:
        _print(tokenize(data, RAW, TOKENIZER, TOKENS, work), data.tokenizer)
    else:
        own, all_of_them = tokenize_share(data, RAW, work, Share.of(given.share))
        print(f"{own:,} of the text's {all_of_them:,} parts are encoded; dvc repro tokenize collects them")


def _print(meta: dict[str, Any], tokenizer: str) -> None:
    splits = meta["splits"].values()
    documents, tokens, n_bytes = (sum(split[key] for split in splits) for key in ("documents", "tokens", "bytes"))
    print(
        f"{documents:,} documents, {tokens:,} tokens of a vocabulary of {meta['tokenizer']['vocab_size']:,}, "
        f"{n_bytes / tokens:.2f} bytes per token"
    )
    if "lost" in meta:
        print(
            f"data.tokenizer {tokenizer}: loses {share(meta['lost'])} of the bytes, so this run has no "
            "bits_per_byte and never becomes the registry's best"
        )


if __name__ == "__main__":
    run_main(main)

"""Fetches the configured text; writes data/raw/train.parquet, validation.parquet and source.json."""

from __future__ import annotations

from custom_transformer.errors import run_main
from custom_transformer.paths import RAW
from custom_transformer.text.datasets import download
from stages.cli import parameters


def main() -> None:
    params = parameters(__doc__)
    facts = download(params.data, params.seed, RAW)
    purpose = "for the tokenizer" if params.data.streaming else "to train on"
    print(f"{facts['dataset']}: {facts['train_rows']:,} documents {purpose}, {facts['validation_rows']:,} to validate")


if __name__ == "__main__":
    run_main(main)

"""Writes data/inputs/: the digests of the local files that data.dataset and data.tokenizer name."""

from __future__ import annotations

from custom_transformer.errors import run_main
from custom_transformer.paths import INPUTS
from custom_transformer.text.inputs import write_inputs
from stages.cli import parameters


def main() -> None:
    data = parameters(__doc__).data
    for line in write_inputs(data.dataset, data.tokenizer, INPUTS):
        print(line)


if __name__ == "__main__":
    run_main(main)

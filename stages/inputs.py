"""Writes data/inputs/: the digests of the local files that data.dataset, data.tokenizer, training.init_from name."""

from __future__ import annotations

from custom_transformer.errors import run_main
from custom_transformer.paths import INPUTS
from custom_transformer.text.inputs import write_inputs
from stages.cli import parameters


def main() -> None:
    params = parameters(__doc__)
    data = params.data
    for line in write_inputs(data.dataset, data.tokenizer, params.training.init_from, INPUTS, data.streaming):
        print(line)


if __name__ == "__main__":
    run_main(main)

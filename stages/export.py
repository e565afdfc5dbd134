"""Writes checkpoints/best.pt as other tools read it, with a card and tasks for lm-evaluation-harness."""

from __future__ import annotations

from custom_transformer.errors import run_main
from custom_transformer.interchange.export import export_checkpoint
from custom_transformer.paths import BEST, EXPORTED
from stages.cli import parameters


def main() -> None:
    model = export_checkpoint(BEST, EXPORTED, parameters(__doc__))
    print(f"{model.count_parameters():,} parameters; {EXPORTED}")


if __name__ == "__main__":
    run_main(main)

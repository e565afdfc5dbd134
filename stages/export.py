"""Writes checkpoints/best.pt as other tools read it, with a card and tasks for lm-evaluation-harness."""

from __future__ import annotations

from custom_transformer.errors import run_main
from custom_transformer.files import staged_folders
from custom_transformer.interchange.export import export_checkpoint
from custom_transformer.interchange.forms import FORMS
from custom_transformer.paths import BEST, EXPORTED
from stages.cli import parameters


def main() -> None:
    params = parameters(__doc__)
    if (architecture := params.model.architecture) not in FORMS:
        words = f"no other tool has the architecture {architecture}; the model is {BEST}"
        with staged_folders(EXPORTED) as (folder,):
            (folder / "README.md").write_text(f"Nothing is exported: {words}.\n", "utf-8")
        print(f"nothing is exported: {words}")
        return
    model = export_checkpoint(BEST, EXPORTED, params)
    print(f"{model.count_parameters():,} parameters; {EXPORTED}")


if __name__ == "__main__":
    run_main(main)

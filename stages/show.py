"""Shows what the last run came to: the evaluation, two samples, and where to look next."""

from __future__ import annotations

import json
from collections.abc import Mapping

from rich.console import Console
from rich.table import Table
from rich.text import Text

from custom_transformer.errors import UserError, lines_only, run_main
from custom_transformer.pages.report import MEANINGS, shown
from custom_transformer.pages.samples import read_samples
from custom_transformer.paths import EXPLORER, EXPORTED, METRICS
from custom_transformer.progress import AS_IS

SAMPLES_SHOWN = 2


def main() -> None:
    try:
        metrics = json.loads((METRICS / "eval.json").read_text(encoding="utf-8"))
        samples = read_samples(METRICS)
    except FileNotFoundError as error:
        raise UserError(f"{error.filename}: not there yet; run dvc repro first") from None
    print_metrics(metrics)
    console = Console(**AS_IS)
    one_a_prompt = list({sample["prompt"]: sample for sample in samples}.values())
    for sample in one_a_prompt[:SAMPLES_SHOWN]:
        prompt, rest = sample["prompt"], sample["text"][len(sample["prompt"]) :]
        end = "" if sample["ended"] else " …"
        console.print(Text.assemble("\n", (lines_only(prompt), "bold"), lines_only(rest) + end))
    console.print(
        f"\nthe whole report {METRICS}/report.html, in a browser"
        f"\nexplorer         {EXPLORER}, in a browser"
        f"\nall samples      {METRICS}/samples.md"
        f"\nthe model        {EXPORTED}, for transformers and what reads its format"
        "\ncompare runs     dvc plots diff, then open dvc_plots/index.html"
        "\nruns             make ui, then open http://127.0.0.1:5000"
        "\na first change   dvc exp run -S model.d_model=192, then dvc exp show"
    )


def print_metrics(metrics: Mapping[str, float | int]) -> None:
    """metrics/eval.json as a table, each figure with its meaning."""
    table = Table("evaluation", "", "", show_header=True)
    table.columns[1].justify = "right"
    for name, value in metrics.items():
        table.add_row(name, shown(value), MEANINGS.get(name, ""))
    Console(**AS_IS).print(table)


if __name__ == "__main__":
    run_main(main)

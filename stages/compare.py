"""Compares the results in the working tree with another revision's; writes a folder of report.md and its pictures.

The tables are those of `dvc metrics diff` and `dvc params diff`, the pictures those of `dvc plots diff`. What DVC
keeps of the other revision comes from its cache or a remote; what is in neither is named and left out.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from html import escape
from pathlib import Path
from typing import Any

import vl_convert

from custom_transformer.errors import ArgumentParser, run_main
from custom_transformer.files import atomic_write
from custom_transformer.pages.markdown import cell, code_span
from stages.dvc import run_dvc

PICTURE_WIDTH = 420  # pixels as shown: two beside each other in a comment on GitHub


def main() -> None:
    parser = ArgumentParser(prog="python -m stages.compare", description=__doc__)
    parser.add_argument("base", help="a branch, tag, commit or DVC experiment")
    parser.add_argument("--out", type=Path, default=Path("comparison"), help="folder to write (default: comparison)")
    arguments = parser.parse_args()
    base, out = arguments.base, arguments.out

    metrics = run_dvc("metrics", "diff", "--md", base)
    params = json.loads(run_dvc("params", "diff", "--json", base).stdout)
    plots = json.loads(run_dvc("plots", "diff", "--json", "--out", str(out), base).stdout)
    sections = [
        f"### The workspace against {code_span(base)}",
        table_or(metrics.stdout.strip(), "No metric differs."),
        "\n".join(parameters(params, base)) or "No parameter differs.",
        *drawn(plots.get("data", {}), out),
        unread(metrics.stderr.strip(), plots.get("errors", [])),
    ]
    with atomic_write(out / "report.md", "w") as file:
        file.write("\n\n".join(filter(None, sections)) + "\n")
    print(out / "report.md")


def table_or(markdown: str, otherwise: str) -> str:
    """A table of DVC's, which has a head of two lines whether or not something follows."""
    return markdown if markdown.count("\n") > 1 else otherwise


def parameters(diff: dict[str, dict[str, Any]], base: str) -> Iterator[str]:
    """The lines of a table like DVC's, whose own puts values into Markdown as they are: prompts lay out the page."""
    if diff:
        yield f"| Path | Param | {cell(base)} | workspace |"
        yield "|---|---|---|---|"
    for path, changes in diff.items():
        for name, change in sorted(changes.items()):
            values = ("-" if change.get(side) is None else cell(change[side]) for side in ("old", "new"))
            yield f"| {path} | {name} | {' | '.join(values)} |"


def drawn(plots: dict[str, list[dict[str, Any]]], out: Path) -> Iterator[str]:
    """Draws DVC's plots, both revisions in each, into `out`; the pictures as Markdown, and then the ready-made ones."""
    curves, ready_made = [], []
    for name, parts in plots.items():
        for part in reversed(parts):  # the base first, as in the tables
            if part["type"] == "vega":
                file = out / f"{re.sub(r'[^a-z0-9]+', '-', name.lower()).strip('-')}.png"
                with atomic_write(file) as png:
                    png.write(vl_convert.vegalite_to_png(part["content"], scale=1.5))
                curves.append(picture(name, file))
            else:  # an image among the pipeline's outputs, of which dvc has put a copy into `out`
                title = f"{name}, {part['revisions'][0]}"
                ready_made.append(f"{title}\n\n{picture(title, Path(part['url']))}")
    yield "\n".join(curves)
    yield from ready_made


def picture(title: str, file: Path) -> str:
    return f'<img alt="{escape(title)}" src="{escape(file.name)}" width="{PICTURE_WIDTH}">'


def unread(problems: str, errors: list[dict[str, str]]) -> str:
    """A line for each thing that DVC could not read of a revision."""
    lines = problems.splitlines()
    for error in errors:
        missing = error["type"] == "FileNotFoundError"
        reason = "not in git, nor in DVC's cache or a remote" if missing else error["msg"]
        lines.append(f"{error.get('source', 'plots')} of {error['rev']}: {reason}")
    return "\n".join(f"- {line}" for line in dict.fromkeys(lines))


if __name__ == "__main__":
    run_main(main)

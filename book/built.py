"""Looks at the finished site: `python -m book.built FOLDER`.

Every link inside the site leads somewhere; nothing is loaded from elsewhere; and every formula that stands in a line of
its own, read back from the page, holds.
"""

from __future__ import annotations

import argparse
import re
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

from book import reading, scalars, tensors
from book.expressions import FormulaError
from book.page import FORMULAS, Block, blocks_of, chapters
from custom_transformer.errors import UserError, run_main

LOADING = {"script": "src", "img": "src", "link": "href", "iframe": "src", "source": "src", "object": "data"}
FORMULA = re.compile(r'<div class="formula \w+" id="([^"]+)">(<math.*?</math>)', re.DOTALL)
IN_STYLES = re.compile(r"url\(\s*['\"]?(?!data:)([^'\")]+)|@import\s+['\"]([^'\"]+)")


class _Html(HTMLParser):
    """links: targets that are followed or loaded; loads: those that are loaded; ids: what a link can lead to."""

    def __init__(self, text: str):
        super().__init__()
        self.links: list[str] = []
        self.loads: list[str] = []
        self.ids: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attrs}
        self.ids |= {values[name] for name in ("id", "name") if name in values}
        if tag == "a" and "href" in values:
            self.links.append(values["href"])
        if tag in LOADING and LOADING[tag] in values:
            self.links.append(values[LOADING[tag]])
            self.loads.append(values[LOADING[tag]])


def problems(site: Path) -> list[str]:
    """What is wrong with the site, in one line each."""
    pages = {path: _Html(path.read_text("utf-8")) for path in sorted(site.rglob("*.html"))}
    found = []
    for path, page in pages.items():
        name = path.relative_to(site)
        found += [f"{name}: loads {link}" for link in page.loads if _elsewhere(link)]
        found += [f"{name}: {link} leads nowhere" for link in page.links if not _leads(link, path, pages)]
    for path in site.rglob("*.css"):
        loads = [a or b for a, b in IN_STYLES.findall(path.read_text("utf-8"))]
        found += [f"{path.relative_to(site)}: loads {link}" for link in loads if _elsewhere(link)]
    for chapter in chapters():
        found += _formula_problems(chapter, site / "book" / f"{chapter.stem}.html")
    return found


def _elsewhere(link: str) -> bool:
    parts = urlsplit(link)
    return bool(parts.netloc) or parts.scheme not in ("", "data")


def _leads(link: str, path: Path, pages: dict[Path, _Html]) -> bool:
    """Links to other sites are not followed."""
    parts = urlsplit(link)
    if parts.scheme or parts.netloc:
        return True
    target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
    if parts.fragment and target in pages and not target.name.startswith("explore"):  # whose places its script makes
        return unquote(parts.fragment) in pages[target].ids
    return target.exists()


def _formula_problems(chapter: Path, page: Path) -> list[str]:
    blocks = {block.name: block for block in blocks_of(chapter.read_text("utf-8")) if block.kind in FORMULAS}
    shown = dict(FORMULA.findall(page.read_text("utf-8")))
    found = [f"{page.name}: the formula {name} is not shown" for name in blocks.keys() - shown.keys()]
    for name, math in shown.items():
        try:
            check_shown(math, blocks[name])
        except FormulaError as error:
            found.append(f"{page.name}: {name}, as it is shown: {error}")
    return found


def check_shown(math: str, block: Block) -> None:
    """Raises FormulaError unless the formula of this <math> element can be read, and holds."""
    sides = reading.sides_of(math, block.derivation.is_factor)
    if block.kind == "scalar" or not block.derivation.symbols:
        scalars.check_equal(sides, scalars.Scalars(block.derivation.definitions))
    else:
        tensors.check_equal(sides, block.derivation.tensors)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m book.built", description="Looks at the finished site.")
    parser.add_argument("site", type=Path, help="the folder that holds it")
    site = parser.parse_args().site.resolve()
    if not (site / "index.html").exists():
        raise UserError(f"{site}: no site is there; build it with make docs")
    if found := problems(site):
        print(*found, sep="\n", file=sys.stderr)
        raise UserError(f"{site}: {len(found)} problems, each named above")


if __name__ == "__main__":
    run_main(main)

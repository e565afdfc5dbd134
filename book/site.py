"""The Sphinx extension: our blocks as nodes of a document, and pages of source code that links lead to.

A block that fails is a warning, which the strict build makes an error.
"""

from __future__ import annotations

import html
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from docutils import nodes
from docutils.parsers.rst.states import Inliner
from pygments import highlight
from pygments.formatters import HtmlFormatter
from pygments.lexers import TextLexer, get_lexer_for_filename
from pygments.util import ClassNotFound
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.util import logging
from sphinx.util.docutils import SphinxDirective

from book import code, living, mathml
from book.carry_out import Page
from book.page import KINDS, SIZES, Block
from book.show import matrices

logger = logging.getLogger(__name__)
SOURCE = "source"  # where the pages of source code lie in the site
CHAPTER = re.compile(r"docs/(book/\w+)\.md")


class _OurBlock(SphinxDirective):
    """The block as `book.page` carried it out."""

    has_content = True
    optional_arguments = 1
    final_argument_whitespace = True

    def run(self) -> list[nodes.Node]:
        page = _page(self.env.docname, Path(self.env.doc2path(self.env.docname)))
        block = page.find(self.name, self.arguments[0] if self.arguments else "", "\n".join(self.content))
        if block.error:
            logger.warning("%s %s: %s", block.kind, block.name, block.error, location=self.get_location())
            return []
        return list(getattr(self, f"_{block.kind}")(block))

    def _symbols(self, block: Block) -> Iterator[nodes.Node]:
        rows = []
        for s in block.derivation.symbols:
            shape = html.escape(_shape(s.shape_words))
            cells = [f"<th scope='row'>{_inline(mathml.symbol(s.name))}</th>", f"<td>{shape}</td>"]
            cells += [f"<td><code>{html.escape(s.in_code)}</code></td>", f"<td>{html.escape(s.meaning)}</td>"]
            rows.append(f"<tr>{''.join(cells)}</tr>")
        head = "".join(
            f"<th scope='col'>{title}</th>" for title in ("symbol", "shape or value", "in the code", "meaning")
        )
        table = f"<table class='docutils'><thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table>"
        yield _raw(f"<div class='table-wrapper'>{table}</div>")

    def _formula(self, block: Block) -> Iterator[nodes.Node]:
        drawn = mathml.formula(block.sides, block.derivation.is_factor, long="\n" in block.text.strip())
        label = html.escape(block.name)
        yield _raw(
            f'<div class="formula {block.kind}" id="{label}">{drawn}'
            f'<a class="headerlink" href="#{label}" title="Link to this formula">¶</a></div>'
        )

    _definition = _identity = _scalar = _formula

    def _agreement(self, block: Block) -> Iterator[nodes.Node]:
        yield _code(block.text, "python")
        names = ", ".join(_inline(mathml.symbol(name)) for name in block.output)
        yield _raw(f'<p class="verdict right">The code gives the same {names}, to twelve digits.</p>')

    def _mistake(self, block: Block) -> Iterator[nodes.Node]:
        yield from self._verdicts(block, mathml.symbol)

    def _model_mistake(self, block: Block) -> Iterator[nodes.Node]:
        yield from self._verdicts(block, None)

    def _verdicts(self, block: Block, drawn: Callable[[str], str] | None) -> Iterator[nodes.Node]:
        """drawn: how names are drawn; None for names of parameters, which are code."""
        yield _code(block.text, "diff")
        rows = []
        for verdict in block.output:
            word = "right" if verdict.ok else "wrong"
            error = (
                "another shape"
                if verdict.error == float("inf")
                else f"{verdict.error:.0e}"
                if verdict.ok
                else f"{verdict.error:.2g}"
            )
            name = _inline(drawn(verdict.name)) if drawn else f"<code>{verdict.name}</code>"
            rows.append(f"<tr class='{word}'><th scope='row'>{name}</th><td>{error}</td><td>{word}</td></tr>")
        head = "".join(f"<th scope='col'>{title}</th>" for title in (self.checked(block), "largest error", "verdict"))
        caption = f"The check of the changed <code>{html.escape(block.name)}</code>"
        yield _raw(
            f"<div class='table-wrapper'><table class='docutils mistake'><caption>{caption}</caption>"
            f"<thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table></div>"
        )

    def checked(self, block: Block) -> str:
        return "gradient" if block.kind == "model_mistake" or block.derivation.tensors.seeds else "result"

    def _run(self, block: Block) -> Iterator[nodes.Node]:
        yield _code(block.text, "python")
        for output in block.output:
            if isinstance(output, str):
                yield _code(output, "text", "output")
            else:
                yield _raw(f'<div class="matrices">{matrices(output)}</div>')

    def _source(self, block: Block) -> Iterator[nodes.Node]:
        (source,) = block.output
        place = nodes.paragraph(classes=["place"])
        place += _to_source(self.env, source.path, f"{source.path}, lines {source.first}–{source.last}", source.first)
        if (run := living.last_run()) and (shown := living.place_of(block.name, run)):
            up = os.path.relpath(shown, Path(self.env.docname).parent)
            place += nodes.Text(" · ")
            place += nodes.reference("", "see it in the explorer", internal=True, refuri=up)
        yield _code(source.text, "python")
        yield place


def _shape(words: list[str]) -> str:
    """N × D; N × D, kept or not; 0.1; one number"""
    if words[0].startswith("size "):
        return "one number"
    sizes = [word for word in words if word in SIZES]
    return ", ".join([" × ".join(sizes)] * bool(sizes) + words[len(sizes) :])


def _raw(text: str) -> nodes.raw:
    return nodes.raw("", text, format="html")


def _code(text: str, language: str, *classes: str) -> nodes.literal_block:
    return nodes.literal_block(text.rstrip(), text.rstrip(), language=language, classes=list(classes))


def _inline(drawn: str) -> str:
    return f'<math xmlns="http://www.w3.org/1998/Math/MathML"><mrow>{drawn}</mrow></math>'


def _formula_role(
    role: str, raw: str, text: str, line: int, inliner: Inliner, options: Any = None, content: Any = None
) -> tuple[list[nodes.Node], list[nodes.system_message]]:
    env = inliner.document.settings.env
    block = _page(env.docname, Path(env.doc2path(env.docname))).find(role, "", text)
    if block.error:
        logger.warning("%s: %s", text, block.error, location=(env.docname, line))
        return [], []
    if role == "value":
        return [nodes.Text(block.output[0])], []
    return [_raw(mathml.formula(block.sides, block.derivation.is_factor, display=False))], []


_pages: dict[str, tuple[float, Page]] = {}


def _page(name: str, path: Path) -> Page:
    changed = path.stat().st_mtime
    if name not in _pages or _pages[name][0] != changed:
        _pages[name] = (changed, Page.of(path))
    return _pages[name][1]


# ------------------------------------------------------------------------------------------ pages of source code


def _to_source(env: Any, path: str, text: str, line: int | None = None) -> nodes.reference:
    """A link to the site's page of a file or folder of the repository, which is made for it."""
    if not hasattr(env, "book_sources"):
        env.book_sources = set()
    env.book_sources.add(path)
    up = os.path.relpath(f"{SOURCE}/{path}.html", Path(env.docname).parent)
    return nodes.reference("", text, internal=True, refuri=up + (f"#line-{line}" if line else ""))


def _link_sources(app: Sphinx, document: nodes.document) -> None:
    """Links to files and folders of the repository lead to their pages. MyST offers files as downloads, and folders
    are unknown to it."""
    links = [*document.findall(addnodes.download_reference), *document.findall(addnodes.pending_xref)]
    for node in links:
        path = (Path(app.srcdir) / Path(app.env.docname).parent / node["reftarget"]).resolve()
        is_source = path.is_file() if isinstance(node, addnodes.download_reference) else path.is_dir()
        if is_source and path.is_relative_to(code.ROOT):
            node.replace_self(_to_source(app.env, path.relative_to(code.ROOT).as_posix(), node.astext()))


def _source_pages(app: Sphinx) -> Iterator[tuple[str, dict[str, Any], str]]:
    waiting, done = sorted(getattr(app.env, "book_sources", set())), set()
    while waiting:
        path = waiting.pop(0)
        if path in done:
            continue
        done.add(path)
        file = code.ROOT / path
        if file.is_dir():
            inside = sorted(f for f in file.iterdir() if f.is_file() and f.suffix in (".py", ".cpp", ".html"))
            waiting += [f.relative_to(code.ROOT).as_posix() for f in inside]
            links = "".join(f'<li><a href="{file.name}/{f.name}.html"><code>{f.name}</code></a></li>' for f in inside)
            body = f"<ul>{links}</ul>"
        else:
            body = _highlighted(path, file.read_text("utf-8"))
        title = f"<h1 class='path'>{html.escape(path)}</h1>"
        yield f"{SOURCE}/{path}", {"title": path, "body": title + body}, "page.html"


def _highlighted(path: str, text: str) -> str:
    try:
        lexer = get_lexer_for_filename(path, stripnl=False)
    except ClassNotFound:
        lexer = TextLexer(stripnl=False)
    formatter = HtmlFormatter(lineanchors="line", anchorlinenos=True, linenos="inline", cssclass="highlight source")
    up = "../" * (path.count("/") + 1)
    return CHAPTER.sub(lambda match: f'<a href="{up}{match[1]}.html">{match[0]}</a>', highlight(text, lexer, formatter))


def setup(app: Sphinx) -> dict[str, Any]:
    for kind in KINDS:
        app.add_directive(kind, _OurBlock)
    app.add_role("m", _formula_role)
    app.add_role("value", _formula_role)
    app.connect("doctree-read", _link_sources, priority=100)  # before downloads are collected
    app.connect("html-collect-pages", _source_pages)
    app.connect("build-finished", lambda app, _: living.write(Path(app.outdir), living.last_run()))
    return {"parallel_read_safe": False}

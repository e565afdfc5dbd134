"""The book's pages hold: formulas, as they are written and as they are shown; examples; mistakes; links to code."""

from __future__ import annotations

import ast
import contextlib
import dataclasses
import functools
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from book import built, code, living, mathml
from book.carry_out import Page, carry_out
from book.expressions import FormulaError
from book.page import FORMULAS, Block, Derivation, chapters
from custom_transformer.maths import ops
from custom_transformer.maths.model import CustomTransformer
from custom_transformer.maths.scope import Op
from custom_transformer.pages.explorer import page_with, reason_page
from custom_transformer.runs.checkpoint import Checkpoint
from tests.book.mutations import other_slips, wrong_signs
from tests.helpers import ROOT

CHAPTERS = {path.stem: path for path in chapters()}
OPS = ROOT / "src/custom_transformer/maths/ops.py"
MINUS = "<mo>−</mo>"


@functools.cache
def page(name: str) -> Page:
    return Page.of(CHAPTERS[name])


def formulas(name: str) -> Iterator[Block]:
    return (block for block in page(name).blocks if block.kind in FORMULAS)


def shown(block: Block) -> str:
    return mathml.formula(block.sides, block.derivation.is_factor)


def holds(block: Block) -> bool:
    """Whether the block can be carried out. A formula whose shapes no longer fit does not hold, either."""
    try:
        carry_out(block, {})
    except (FormulaError, RuntimeError, IndexError, TypeError, AttributeError):
        return False
    return True


def slips(block: Block) -> Iterator[Block]:
    """The block with a mistake in one of its sides; of a definition in its right side."""
    for i, side in enumerate(block.sides):
        if block.kind == "definition" and i == 0:
            continue
        for wrong in (*wrong_signs(side), *other_slips(side)):
            yield dataclasses.replace(block, sides=[*block.sides[:i], wrong, *block.sides[i + 1 :]], output=[])


@pytest.mark.parametrize("name", CHAPTERS)
def test_everything_on_the_page_holds(name: str) -> None:
    assert page(name).errors == []


@pytest.mark.parametrize("name", CHAPTERS)
def test_a_planted_slip_in_a_formula_is_noticed(name: str) -> None:
    blocks = [block for block in formulas(name) if block.kind != "definition"]
    missed = [[ast.unparse(side) for side in slip.sides] for block in blocks for slip in slips(block) if holds(slip)]
    assert missed == []


@pytest.mark.parametrize("name", CHAPTERS)
def test_a_planted_slip_in_a_definition_is_noticed_by_what_follows_from_it(name: str) -> None:
    missed = []
    for block in formulas(name):
        if block.kind != "definition":
            continue
        (defined, _), old = block.sides, block.derivation
        assert isinstance(defined, ast.Name)
        following = [
            b for b in page(name).blocks if b.derivation is old and b.kind in ("identity", "scalar", "agreement")
        ]
        for slip in slips(block):
            changed = Derivation(old.symbols, old.definitions | {defined.id: slip.sides[1]}, old.agreement)
            if all(holds(dataclasses.replace(b, derivation=changed, output=[])) for b in following):
                missed.append(ast.unparse(slip.sides[1]))
    assert missed == []


@pytest.mark.parametrize("name", CHAPTERS)
def test_what_the_browser_is_given_reads_as_what_was_checked(name: str) -> None:
    """Another program reads it, which knows nothing of how it was drawn; and each wrong sign in it is noticed."""
    for block in formulas(name):
        drawn = shown(block)
        built.check_shown(drawn, block)
        signs = [match.start() for match in re.finditer(r"<mo>[−+]</mo>", drawn)]
        for start in signs if block.kind != "definition" else []:
            other = "<mo>+</mo>" if drawn.startswith(MINUS, start) else MINUS
            wrong = drawn[:start] + other + drawn[start + len(MINUS) :]
            with pytest.raises(FormulaError):
                built.check_shown(wrong, block)


def test_different_formulas_look_different() -> None:
    for name in CHAPTERS:
        for block in formulas(name):
            for slip in slips(block):
                with contextlib.suppress(RuntimeError, IndexError):  # shapes that no longer fit
                    assert shown(slip) != shown(block), ast.unparse(slip.sides[-1])


def test_a_wrong_page_is_reported_with_its_line() -> None:
    text = CHAPTERS["linear"].read_text("utf-8")
    for right, wrong in (
        ("dx = dy @ W.T", "dx = -dy @ W.T"),
        ("ops.linear_backward(dy, saved)\n```\n\n## By hand", "ops.linear_backward(-dy, saved)\n```\n\n## By hand"),
        ("+ dweight = x_rows.flip(0).T @ dy_rows", "+ dweight = (dy_rows.T @ x_rows).T"),
        ("{source} linear_forward", "{source} linear_forwards"),
        ("{m}`dy`", "{m}`dy = dx`"),
    ):
        assert text.count(right) >= 1
        (error,) = Page(text.replace(right, wrong, 1)).errors
        line = text[: text.index(right)].count("\n") + 1
        found = re.match(r"line (\d+)", error)
        assert found is not None
        assert 0 <= line - int(found[1]) <= 3, error


# ------------------------------------------------------------------------------------------ the book and the code


def sections() -> Iterator[tuple[str, str]]:
    """The chapter's file that a section of ops.py names, and the section's text."""
    parts = re.split(r"^# -{20,} (.+)$", OPS.read_text("utf-8"), flags=re.MULTILINE)
    yield from zip(parts[1::2], parts[2::2], strict=True)


def test_every_operation_is_derived_in_the_chapters_that_its_section_names() -> None:
    derived = set()
    for title, text in sections():
        files = re.findall(r"docs/book/(\w+)\.md", text)
        for function in re.findall(r"^def (\w+)_forward", text, re.MULTILINE):
            assert files, title
            blocks = [block for file in files for block in page(file).blocks]
            sources = {block.name for block in blocks if block.kind == "source"}
            agreements = " ".join(block.text for block in blocks if block.kind == "agreement")
            for half in (f"{function}_forward", f"{function}_backward"):
                assert half in sources, f"{half} is not shown in {files}"
                assert f"ops.{half}(" in agreements, f"{half} is not compared with its derivation in {files}"
            derived.add(function)
    assert {name for name, value in vars(ops).items() if isinstance(value, Op)} | {"cross_entropy"} == derived


def test_every_operation_has_its_picture_in_the_explorer_which_names_its_chapter() -> None:
    words = (ROOT / "src/custom_transformer/pages/explorer/words.js").read_text("utf-8")
    chapter_of = dict(re.findall(r'^  (\w+): \{\n    title: .*? chapter: "(\w+)"', words, re.MULTILINE))
    run = living.Run("", "gpt2", {})
    for title, text in sections():
        for half in re.findall(r"^def (\w+_(?:forward|backward))\(", text, re.MULTILINE):
            if half.startswith(("_", "dropout")):  # the page never drops
                continue
            place = living.place_of(half, run)
            assert place is not None, half
            assert chapter_of[place.partition("#")[2]] in re.findall(r"docs/book/(\w+)\.md", text), (title, half)


def test_the_site_has_a_page_of_each_architecture(tmp_path: Path) -> None:
    tokenizer = {"entries": ["<|endoftext|>", "a", "b"], "merges": [], "end": 0}
    sizes = {"vocab_size": 3, "max_seq_len": 8, "n_blocks": 1, "n_heads": 1, "d_model": 4, "d_ffn": 4}
    model = CustomTransformer(sizes)
    page = page_with(Checkpoint(model.state_dict(), model.config, torch.float32, {}), tokenizer, "a")
    (tmp_path / "metrics.html").write_text(page, "utf-8")
    run = living.last_run(tmp_path / "metrics.html")
    assert run is not None and run.tokenizer == tokenizer
    living.write(tmp_path, run)
    pages = {"explore.html": "gpt2", "explore_llama.html": "llama", "explore_modern.html": "modern"}
    for name, architecture in pages.items():
        content = (tmp_path / name).read_text("utf-8")
        assert '<html lang="en" data-site="">' in content
        assert f'"architecture":"{architecture}"' in content
    (tmp_path / "none.html").write_text(reason_page("none"), "utf-8")
    assert living.last_run(tmp_path / "none.html") is None


def test_every_chapter_of_an_operation_has_an_example_and_mistakes() -> None:
    for name in CHAPTERS:
        kinds = [block.kind for block in page(name).blocks]
        if "agreement" in kinds:
            assert "run" in kinds, name
            assert "mistake" in kinds, name


def test_numbers_of_an_example_are_computed() -> None:
    """In the words of an example a decimal number is a value of the page's, or stands in the example's code."""
    typed = []
    for name, path in CHAPTERS.items():
        for example in re.findall(r"^#+ By hand\n(.*?)(?=^##|\Z)", path.read_text("utf-8"), re.MULTILINE | re.DOTALL):
            words = re.sub(r"^```.*?^```$|`[^`]*`", "", example, flags=re.MULTILINE | re.DOTALL)
            given = " ".join(re.findall(r"^```\{run\}(.*?)^```$", example, re.MULTILINE | re.DOTALL))
            typed += [(name, number) for number in re.findall(r"\d+\.\d+", words) if number not in given]
    assert typed == []


def test_the_symbols_stand_in_the_code_that_the_chapter_shows() -> None:
    for name in CHAPTERS:
        for block in page(name).blocks:
            if block.kind == "symbols":
                parts = [b for b in page(name).blocks if b.kind == "source"]
                text = "".join(code.source(b.name).text for b in parts)
                for symbol in block.derivation.symbols:
                    words = re.findall(r"[A-Za-z_]\w*", symbol.in_code) if text else []
                    assert all(re.search(rf"\b{word}\b", text) for word in words), (name, symbol)


# ----------------------------------------------------------------------------------------------- the finished site


def test_broken_links_and_loads_from_elsewhere_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(built, "chapters", list)
    (tmp_path / "a.html").write_text(
        '<h1 id="here"></h1><a href="#here">1</a><a href="b.html#there">2</a><a href="b.html#missing">3</a>'
        '<a href="c.html">4</a><a href="https://example.org/">5</a><script src="https://example.org/x.js"></script>',
        "utf-8",
    )
    (tmp_path / "b.html").write_text('<h1 id="there"></h1>', "utf-8")
    (tmp_path / "a.css").write_text(
        '@import "//example.org/a.css"; p { background: url(data:image/png;base64,) }', "utf-8"
    )
    assert built.problems(tmp_path) == [
        "a.html: loads https://example.org/x.js",
        "a.html: b.html#missing leads nowhere",
        "a.html: c.html leads nowhere",
        "a.css: loads //example.org/a.css",
    ]


def test_a_wrong_sign_in_a_finished_page_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(built, "chapters", lambda: [CHAPTERS["swiglu"]])
    divs = [f'<div class="formula {b.kind}" id="{b.name}">{shown(b)}</div>' for b in formulas("swiglu")]
    chapter = tmp_path / "book/swiglu.html"
    chapter.parent.mkdir()
    chapter.write_text("".join(divs), "utf-8")
    assert built.problems(tmp_path) == []
    chapter.write_text("".join(divs).replace(MINUS, "<mo>+</mo>", 1), "utf-8")
    (problem,) = built.problems(tmp_path)
    assert problem.startswith("swiglu.html: swiglu-sigmoid, as it is shown: ")
    chapter.write_text("".join(divs[1:]), "utf-8")
    assert built.problems(tmp_path) == ["swiglu.html: the formula swiglu-s is not shown"]

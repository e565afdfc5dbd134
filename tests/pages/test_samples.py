"""What a model writes is shown as text, in the terminal and in Markdown, whatever markup it looks like."""

from __future__ import annotations

import json
from html.parser import HTMLParser
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from rich.console import Console

from custom_transformer.config import load_params
from custom_transformer.errors import lines_only, one_line
from custom_transformer.pages.markdown import cell
from custom_transformer.pages.samples import samples_markdown
from custom_transformer.progress import ProgressBar
from custom_transformer.runs.generation import Sample
from stages import show

GENERATION = load_params("params.yaml").generation
MARKUP = [
    "<!-- TODO -- a comment that the model did not close",
    "*x* 1 < 2 and <b>bold</b> a_b_c # no\n# head\n    code\n- item\n\n> quote\n***\n1. one",
    "```\ncode\n``` and ````\n~~~",
    "`",
    "``",
    "a | b\n|---|\n| &amp; &lt; \\* \\",
    "[link](http://x/y) ![](z.png) <https://x> https://y",
    ":rocket: :100: [bold]x[/bold] [red] [/] C:\\new\\",
    "\\[bold] \\\\",
    "$x^2$ $$y$$",
    "---\ntitle: x\n---",
    " leading and trailing ",
]
BLANK = ["", " \n", "\x85", "\u00a0"]  # to Python; but what is no space is shown
PIECES = st.sampled_from(["\n", " ", "\t", *"` ``` ~~~ <!-- --> <b> # > - | \\ &lt; ]".split()])
TEXTS = st.one_of(st.text(), st.lists(PIECES | st.text(max_size=3), max_size=12).map("".join))


class Html(HTMLParser):
    """The tags of a page, and the text of each `code` element."""

    def __init__(self, html: str):
        super().__init__()
        self.tags: list[str] = []
        self.codes: list[str] = []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag == "code":
            self.codes.append("")

    def handle_data(self, data: str) -> None:
        if self.tags and self.tags[-1] == "code":
            self.codes[-1] += data

    def handle_endtag(self, tag: str) -> None:
        self.tags.append(f"/{tag}")


def check_markdown(text: str) -> None:
    page = samples_markdown([Sample(text, text, 9, True), Sample("next", "next", 9, True)], GENERATION)
    seen = Html(MarkdownIt("commonmark", {"html": True}).render(page))
    prompt, sample, *following = seen.codes if one_line(text) else ["", *seen.codes]
    assert prompt.strip(" ") == one_line(text)
    assert sample == lines_only(text) + "\n"
    assert following == ["next", "next\n"]
    assert set(seen.tags) <= {f"{end}{tag}" for tag in ("h1", "h2", "p", "pre", "code") for end in ("", "/")}
    assert seen.tags.count("h2") == 2


@pytest.mark.parametrize("text", MARKUP + BLANK)
def test_markdown_shows_samples_as_text(text: str) -> None:
    check_markdown(text)


@given(TEXTS)
def test_markdown_shows_any_sample_as_text(text: str) -> None:
    check_markdown(text)


@given(TEXTS)
def test_a_cell_of_a_table_shows_text(text: str) -> None:
    table = MarkdownIt("commonmark", {"html": True}).enable("table")
    seen = Html(table.render(f"| a | b |\n|---|---|\n| {cell(text)} | {cell('next')} |"))
    if one_line(text):
        assert [code.strip(" ") for code in seen.codes] == [one_line(text), "next"]


@pytest.mark.parametrize("text", MARKUP)
def test_the_terminal_shows_samples_as_text(
    text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(show, "METRICS", tmp_path)
    monkeypatch.setattr(show, "Console", lambda **kwargs: Console(force_terminal=False, width=300, **kwargs))
    (tmp_path / "eval.json").write_text('{"loss": 1.0}')
    sample = Sample("[red]", f"[red]{text}|", 3, True)
    (tmp_path / "samples.jsonl").write_text(json.dumps(sample.as_dict()))
    show.main()
    assert f"\n[red]{text}|\n" in capsys.readouterr().out


def test_notes_are_shown_as_text(capsys: pytest.CaptureFixture[str]) -> None:
    with ProgressBar("[b]:rocket:[/b]", 1, ":100:") as progress:
        progress.note(MARKUP[7])
        progress.update(1, "[red]")
    assert capsys.readouterr().out.splitlines() == [MARKUP[7], "[b]:rocket:[/b]: 1 of 1 :100:  [red]  0 s left"]

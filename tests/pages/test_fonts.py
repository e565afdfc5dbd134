"""Scripts that matplotlib's own font lacks are drawn in fonts that are installed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen
from matplotlib import font_manager

from custom_transformer.pages.fonts import OWN, families_for
from custom_transformer.pages.pictures import Attention, attention_figure, png


def make_font(path: Path, family: str, characters: str) -> None:
    """A font in which each of `characters` is a triangle."""
    pen = TTGlyphPen(None)
    pen.moveTo((0, 0))
    pen.lineTo((1000, 0))
    pen.lineTo((500, 1000))
    pen.closePath()
    triangle = pen.glyph()
    names = [f"u{ord(character):X}" for character in characters]
    builder = FontBuilder(1000, isTTF=True)
    builder.setupGlyphOrder([".notdef", *names])
    builder.setupCharacterMap({ord(character): f"u{ord(character):X}" for character in characters})
    builder.setupGlyf(dict.fromkeys([".notdef", *names], triangle))
    builder.setupHorizontalMetrics(dict.fromkeys([".notdef", *names], (1000, 0)))
    builder.setupHorizontalHeader(ascent=1000, descent=0)
    builder.setupNameTable({"familyName": family, "styleName": "Regular"})
    builder.setupOS2()
    builder.setupPost()
    builder.save(path)


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of fonts that the system finds, beside matplotlib's own, which matplotlib has not listed yet."""
    manager = font_manager.fontManager
    own = [entry for entry in manager.ttflist if "mpl-data" in entry.fname]
    monkeypatch.setattr(manager, "ttflist", own)
    monkeypatch.setattr(font_manager, "findSystemFonts", lambda: [str(path) for path in tmp_path.iterdir()])
    return tmp_path


def picture(*tokens: str) -> bytes:
    return png(lambda: attention_figure(Attention(tokens, [np.tril(np.ones((1, len(tokens), len(tokens))))])))


def test_an_installed_font_draws_what_the_own_font_lacks(installed: Path) -> None:
    boxes = picture("the", "中", "文")
    make_font(installed / "b.ttf", "Test Han", "中文")
    make_font(installed / "a.ttf", "Test Middle", "中")
    make_font(installed / "c.ttf", "Test Han Too", "中文")
    assert families_for("the 中文") == [OWN, "Test Han"]
    drawn = picture("the", "中", "文")
    assert drawn != boxes
    assert picture("the", "中", "文") == drawn


def test_several_fonts_draw_several_scripts(installed: Path) -> None:
    make_font(installed / "a.ttf", "Test Han", "中文")
    make_font(installed / "b.ttf", "Test Kana", "かなは")
    assert families_for("かなは中文") == [OWN, "Test Kana", "Test Han"]


def test_without_such_a_font_the_own_one_serves(installed: Path) -> None:
    (installed / "damaged.ttf").write_bytes(b"\0\1\0\0" + bytes(100))
    assert families_for("the 中文") == families_for("the") == families_for("") == [OWN]


def test_a_picture_in_latin_does_not_depend_on_fonts(installed: Path) -> None:
    without = picture("the", "é", "Ж", "·x")
    make_font(installed / "a.ttf", "A Test", "theéЖ·x中")
    assert picture("the", "é", "Ж", "·x") == without

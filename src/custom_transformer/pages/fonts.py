"""Installed fonts for scripts that matplotlib's own font lacks."""

from __future__ import annotations

import contextlib

from matplotlib import font_manager
from matplotlib.ft2font import FT2Font

OWN = "DejaVu Sans"  # comes with matplotlib: the same letters on every machine


def families_for(text: str) -> list[str]:
    """Names of fonts that together draw `text`: matplotlib's own, and as few others as possible.

    Others are chosen by how much of the rest they draw, then by name, so the choice is the same for the same fonts. A
    character that no font has is drawn as a box.
    """
    characters = set(map(ord, text))
    missing = characters - _drawn_by(font_manager.findfont(OWN), 0, characters)
    others = _installed() if missing else {}
    chosen = [OWN]
    while missing and others:
        drawn = {family: _drawn_by(entry.fname, entry.index, missing) for family, entry in others.items()}
        best = max(others, key=lambda family: len(drawn[family]))  # the first of equals
        if not drawn[best]:
            break
        chosen.append(best)
        missing -= drawn[best]
    return chosen


def _installed() -> dict[str, font_manager.FontEntry]:
    """The regular font of each family, by name, also those that are newer than matplotlib's own list of fonts."""
    manager = font_manager.fontManager
    known = {entry.fname for entry in manager.ttflist}
    for path in sorted(set(font_manager.findSystemFonts()) - known):
        with contextlib.suppress(Exception):  # damaged, or of bitmaps, which cannot be drawn at every size
            manager.addfont(path)
    regular = [entry for entry in manager.ttflist if entry.style == "normal" and entry.weight in (400, "normal")]
    families: dict[str, font_manager.FontEntry] = {}
    for entry in [*regular, *manager.ttflist]:
        families.setdefault(entry.name, entry)
    return {name: families[name] for name in sorted(families) if "last resort" not in name.lower()}


def _drawn_by(path: str, face: int, characters: set[int]) -> set[int]:
    try:
        font = FT2Font(path, face_index=face)
    except (OSError, RuntimeError):  # removed since it was listed, or damaged
        return set()
    return {character for character in characters if font.get_char_index(character)}

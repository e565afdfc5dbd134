"""What is shown to people: text of every script as it is, and nothing that could disturb a terminal or a page."""

from __future__ import annotations

import unicodedata

import pytest

from custom_transformer.config import Params, load_params, validated
from custom_transformer.errors import UserError, escaped, lines_only, one_line, shown
from custom_transformer.pages.samples import samples_markdown
from custom_transformer.runs.generation import Sample
from tests.ground.wrong import with_change

TEXTS = {
    "no-break spaces": "«\u00a0Bonjour\u00a0», dit-il\u202f! co\u00adop",
    "joiners": "می\u200cخواهم क्\u200dष नमस्ते",
    "ideographic space": "第一章\u3000春はあけぼの。",
    "emoji": "👩\u200d👩\u200d👧 ❤\ufe0f 1\ufe0f\u20e3 🏴\U000e0067\U000e0062\U000e007f",
    "marks of direction": "שלום\u200f! \u200eabc \u061c",
    "no width": "a\u200bb\ufeffc\u2060d",
    "not assigned yet, private": "\U0003fffd\ue000\u0378",
    "combining": "e\u0301\u0323 ก็",
    "backslashes": "C:\\new\\ 'quoted' \"twice\"",
}
DISTURBING = [chr(c) for c in range(0x110000) if unicodedata.category(chr(c)) in ("Cc", "Cs", "Zl", "Zp")]
DISTURBING += [*"\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"]


@pytest.mark.parametrize("kind", TEXTS)
def test_text_is_shown_as_it_is(kind: str) -> None:
    text = TEXTS[kind]
    assert one_line(text) == lines_only(text) == text
    assert shown(text) == f"'{text}'"
    generation = load_params("params.yaml").generation
    assert samples_markdown([Sample(text, text, 3, True)], generation).count(text) == 2


def test_only_what_disturbs_is_escaped() -> None:
    for character in DISTURBING:
        assert escaped(character) == ascii(character)[1:-1]
    disturbing = set(DISTURBING)
    others = "".join(chr(c) for c in range(0x110000) if chr(c) not in disturbing)
    assert escaped(others) == others


def test_lines_stay_lines_or_become_one() -> None:
    text = "a\tb\r\nc\nd\re\u2028f\x85g"
    assert lines_only(text) == "a\tb\nc\nd\\re\\u2028f\\x85g"
    assert one_line(f" {text}\n") == "a b c d e\\u2028f\\x85g"


@pytest.mark.parametrize("character", ["\x1b", "\x00", "\t", "\x9b", "\u202e", "\u2066", "\u2028"])
def test_a_name_of_what_cannot_be_seen_is_refused(character: str) -> None:
    changed = with_change("data.dataset", f"a{character}b")
    with pytest.raises(UserError, match="control characters") as error:
        validated(Params, changed, "params.yaml")
    assert f"'a{ascii(character)[1:-1]}b'" in str(error.value)


@pytest.mark.parametrize("kind", TEXTS)
def test_a_name_in_any_script_is_taken(kind: str) -> None:
    assert validated(Params, with_change("data.dataset", TEXTS[kind]), "params.yaml").data.dataset == TEXTS[kind]

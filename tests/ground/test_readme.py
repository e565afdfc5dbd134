"""README's Python example runs as written."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.helpers import ROOT


def test_the_python_example_learns_its_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    section = (ROOT / "README.md").read_text("utf-8").partition("## In Python\n")[2]
    example = re.search(r"```python\n(.*?)```", section, re.DOTALL)
    assert example is not None
    monkeypatch.chdir(tmp_path)
    exec(example[1], {})
    assert capsys.readouterr().out.endswith("the quick brown fox jumps over the lazy dog\n")
    assert (tmp_path / "model.pt").exists()

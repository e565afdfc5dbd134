"""Each test module stands alone: what two of them need lies in a conftest.py or a module of helpers."""

from __future__ import annotations

import re

from tests.helpers import ROOT

IMPORT = re.compile(r"^\s*(from|import) tests[\w.]*(\.| import .*\b)test_", re.MULTILINE)


def test_no_module_imports_a_test_module() -> None:
    assert [str(path) for path in (ROOT / "tests").rglob("*.py") if IMPORT.search(path.read_text("utf-8"))] == []

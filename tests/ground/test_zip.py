"""A download without .git is told what it lacks before anything else happens."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.helpers import ROOT

pytestmark = pytest.mark.processes


@pytest.mark.parametrize("target", ["repro", "test"])
def test_a_download_without_git_gets_one_line(tmp_path: Path, target: str) -> None:
    shutil.copy(ROOT / "Makefile", tmp_path)
    environment = os.environ | {"GIT_CEILING_DIRECTORIES": str(tmp_path.parent)}
    done = subprocess.run(["make", target], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    (line,) = [line for line in done.stderr.splitlines() if not line.startswith("make")]
    assert line.startswith(f"error: {tmp_path}: not a git repository")
    assert "git clone" in line
    assert "git init" in line
    assert [path.name for path in tmp_path.iterdir()] == ["Makefile"]

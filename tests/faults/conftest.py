"""What the tests of faults share: a copy of the repository with its tokens made, to be copied from."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers import PIPELINE_ENVIRONMENT, copy_repository


@pytest.fixture(scope="session")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = copy_repository(tmp_path_factory.mktemp("prepared") / "repository")
    for stage in ("download", "tokenize"):
        subprocess.run([sys.executable, "-m", f"stages.{stage}"], cwd=folder, env=PIPELINE_ENVIRONMENT, check=True)
    return folder

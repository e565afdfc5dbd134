"""What the tests of faults share: a copy of the repository with its tokens made, and how long the fuzz tests look.

With --hypothesis-profile=long they try new examples, else the same few every time.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from tests.helpers import PIPELINE_ENVIRONMENT, copy_repository

EVERYTHING = list(HealthCheck)
settings.register_profile("quick", derandomize=True, max_examples=150, deadline=None, suppress_health_check=EVERYTHING)
settings.register_profile("long", max_examples=10_000, deadline=None, suppress_health_check=EVERYTHING)
settings.load_profile("quick")


@pytest.fixture(scope="session")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = copy_repository(tmp_path_factory.mktemp("prepared") / "repository")
    for stage in ("download", "tokenize"):
        subprocess.run([sys.executable, "-m", f"stages.{stage}"], cwd=folder, env=PIPELINE_ENVIRONMENT, check=True)
    return folder

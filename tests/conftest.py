"""What the wings share: a free port, an MLflow server, and a copy of the repository with its tokens made."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import servers
from tests.helpers import PIPELINE_ENVIRONMENT, copy_repository
from tests.processes import run


@pytest.fixture
def free_port() -> int:
    return servers.free_port()


@pytest.fixture(scope="session")
def mlflow_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[servers.MlflowServer]:
    """One for all tests; whoever stops it starts it again."""
    server = servers.MlflowServer(tmp_path_factory.mktemp("server"))
    yield server
    server.kill()


@pytest.fixture(scope="session")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The repository with the smoke configuration, downloaded and tokenized; to be copied, not changed."""
    folder = copy_repository(tmp_path_factory.mktemp("prepared") / "repository")
    for stage in ("download", "tokenize"):
        done = run("-m", f"stages.{stage}", cwd=folder, env=PIPELINE_ENVIRONMENT)
        assert done.returncode == 0, done.stderr
    return folder


def pytest_collection_finish() -> None:
    """What is imported by now stays: the garbage collector need not look through it again and again."""
    gc.set_threshold(10_000)
    gc.collect()
    gc.freeze()

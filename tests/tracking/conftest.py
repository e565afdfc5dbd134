"""The project root of the tests that track something."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from custom_transformer.tracking.store import open_store


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database with MLflow's tables, which take a second to make."""
    path = tmp_path_factory.mktemp("store") / "mlflow.db"
    open_store(f"sqlite:///{path}")
    return path


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, empty_store: Path) -> Path:
    """As in a DVC stage that runs in a temporary copy elsewhere, in no experiment, and with patience for its store."""
    shutil.copy(empty_store, tmp_path)
    for name in ("MLFLOW_TRACKING_URI", "DVC_EXP_NAME", "DVC_EXP_BASELINE_REV", "DVC_STAGE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    for limit in ("_OPENING_SECONDS", "_CLOSING_SECONDS", "_CLOSING_SECONDS_OF_A_FILE"):  # on a busy machine too
        monkeypatch.setattr(f"custom_transformer.tracking.courier.{limit}", 60.0)
    return tmp_path

"""MLflow: what is logged arrives in a real store, processes share it, and no store ends a training."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from custom_transformer.checkpoint import save_checkpoint
from custom_transformer.config import Params, load_params
from custom_transformer.errors import UserError
from custom_transformer.tracking import DatasetVersion, checkpoint_run, store_uri, training_run
from tests.helpers import random_model

PARAMS = load_params("params.yaml")
DATASETS = {"train": DatasetVersion("primer", "ab" * 32, "primer")}


@pytest.fixture(autouse=True)
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The project root, as in a DVC stage that runs in a temporary copy elsewhere."""
    for name in ("MLFLOW_TRACKING_URI", "DVC_EXP_NAME", "DVC_STAGE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    return tmp_path


def params(uri: str | None = None) -> Params:
    return PARAMS.model_copy(update={"tracking": PARAMS.tracking.model_copy(update={"uri": uri})})


def runs(uri: str) -> list[Any]:
    client = MlflowClient(uri)
    return list(client.search_runs([e.experiment_id for e in client.search_experiments()]))


def test_a_training_is_one_run_to_which_evaluation_adds(root: Path) -> None:
    save_checkpoint(root / "best.pt", random_model(), {})
    with training_run(params(), datasets=DATASETS, key="k") as run:
        for step in range(1, 2501):  # more than MLflow takes in one request
            run.log_metrics({"train_loss": 1 / step}, step)
        run.log_metrics({"broken": float("inf")}, 1)
        run.log_checkpoint(root / "best.pt")
    with checkpoint_run(params(), root / "best.pt", stage="evaluate") as again:
        again.log_metrics({"eval_loss": 0.5}, 2500)
    uri = f"sqlite:///{root / 'mlflow.db'}"
    (found,) = runs(uri)
    assert found.info.status == "FINISHED"
    assert found.data.params["model.d_model"] == str(PARAMS.model.d_model)
    assert len(found.data.params) == sum(len(v) if isinstance(v, dict) else 1 for v in PARAMS.model_dump().values())
    assert found.data.metrics["eval_loss"] == 0.5
    assert found.inputs.dataset_inputs[0].dataset.digest == ("ab" * 32)[:36]
    client = MlflowClient(uri)
    history = client.get_metric_history(found.info.run_id, "train_loss")
    assert sorted(m.step for m in history) == list(range(1, 2501))
    stored = client.download_artifacts(found.info.run_id, "checkpoints/best.pt", str(root))
    assert Path(stored).read_bytes() == (root / "best.pt").read_bytes()
    assert (root / "mlartifacts").is_dir()


def test_a_checkpoint_from_elsewhere_gets_a_run_of_its_own(root: Path) -> None:
    save_checkpoint(root / "best.pt", random_model(), {})
    ids = []
    for stage in ("evaluate", "generate"):
        with checkpoint_run(params(), root / "best.pt", stage=stage) as run:
            ids.append(run.run_id)
    assert ids[0] == ids[1] is not None


def test_a_failed_training_says_so_and_a_resumed_one_goes_on_with_its_run(root: Path) -> None:
    with pytest.raises(ZeroDivisionError), training_run(params(), datasets=DATASETS, key="k") as run:
        first = run.run_id
        raise ZeroDivisionError
    uri = f"sqlite:///{root / 'mlflow.db'}"
    assert [r.info.status for r in runs(uri)] == ["FAILED"]
    with training_run(params(), datasets=DATASETS, key="k", resumed=True) as run:
        assert run.run_id == first
    assert [r.info.status for r in runs(uri)] == ["FINISHED"]


PROGRAM = """
from tests.test_tracking import DATASETS, params, training_run
with training_run(params(), datasets=DATASETS, key="k") as run:
    for step in range(50):
        run.log_metrics({"train_loss": 1.0}, step)
"""


def test_processes_that_begin_at_once_share_a_fresh_store(root: Path) -> None:
    processes = [subprocess.Popen([sys.executable, "-c", PROGRAM], stderr=subprocess.PIPE) for _ in range(4)]
    errors = [p.communicate(timeout=180)[1].decode() for p in processes]
    assert all("warning" not in error for error in errors), errors
    found = runs(f"sqlite:///{root / 'mlflow.db'}")
    assert [r.info.status for r in found] == ["FINISHED"] * 4


@pytest.fixture
def server(root: Path) -> Iterator[str]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    folder = root / "server"
    folder.mkdir()
    store = ["--backend-store-uri", f"sqlite:///{folder}/s.db", "--artifacts-destination", str(folder / "artifacts")]
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(command + store, stdout=log, stderr=log)
    try:
        for _ in range(240):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.5)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(30)


def test_a_server_gets_the_same(root: Path, server: str) -> None:
    save_checkpoint(root / "best.pt", random_model(), {})
    with training_run(params(server), datasets=DATASETS, key="k") as run:
        run.log_metrics({"train_loss": 1.0}, 1)
        run.log_checkpoint(root / "best.pt")
    (found,) = runs(server)
    assert found.data.metrics["train_loss"] == 1.0
    stored = MlflowClient(server).download_artifacts(found.info.run_id, "checkpoints/best.pt", str(root / "server"))
    assert Path(stored).read_bytes() == (root / "best.pt").read_bytes()


def test_without_a_server_the_work_goes_on(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        nobody = f"http://127.0.0.1:{probe.getsockname()[1]}"
    started = time.monotonic()
    with training_run(params(nobody), datasets=DATASETS, key="k") as run:
        for step in range(2000):
            run.log_metrics({"train_loss": 1.0}, step)
    assert time.monotonic() - started < 20
    assert capsys.readouterr().err.count("MLflow tracking is off") == 1


@pytest.mark.parametrize("uri", ["file:///tmp/x", "sqlite://", "sqlite:///", "http://", "nonsense", "sqlite:///a/"])
def test_an_address_that_is_none(uri: str) -> None:
    with pytest.raises(UserError, match=r"tracking\.uri"):
        store_uri(params(uri).tracking)


def test_a_relative_store_lies_at_the_root(root: Path) -> None:
    assert store_uri(params("sqlite:///some/runs.db").tracking) == f"sqlite:///{root}/some/runs.db"

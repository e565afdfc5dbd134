"""A clone that is moved, renamed or copied, or has an odd name, has its runs and models where it is."""

from __future__ import annotations

import shutil
from collections import OrderedDict
from pathlib import Path

import pytest
from mlflow import MlflowClient
from mlflow.artifacts import download_artifacts
from mlflow.tracking._tracking_service import utils

from custom_transformer.runs.checkpoint import save_checkpoint
from custom_transformer.tracking import checkpoint_run, sync
from custom_transformer.tracking.addresses import database_of, for_mlflow
from custom_transformer.tracking.registry import deliver_model
from custom_transformer.tracking.spool import Header, Spool, spool_root, unattended
from custom_transformer.tracking.store import open_store, store_uri
from tests.helpers import random_model
from tests.tracking.making import params, training

NAMES = ["what?", "v1%20b", "50%", "%3F", "a b#c", "naïve;b&c=d", "a:b@c", "a'b\"c", "a\\b[x]{y}"]


@pytest.fixture
def clone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, empty_store: Path) -> Path:
    """A clone with a run that has a checkpoint and a registered model."""
    folder = tmp_path / "clone"
    folder.mkdir()
    shutil.copy(empty_store, folder)
    there(folder, monkeypatch)
    save_checkpoint(folder / "best.pt", random_model(), {})
    with training(folder) as run:
        run.log_metrics({"train_loss": 1.0}, 1)
        run.log_checkpoints([folder / "best.pt"])
    (folder / "model").mkdir()
    (folder / "model/MLmodel").write_text("flavors: {}\nrun_id: none\n")
    register(folder, run.run_id)
    return folder


def there(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("DVC_ROOT", str(folder))
    monkeypatch.setattr(utils, "_artifact_repos_cache", OrderedDict())  # as in a process that begins there
    for limit in ("_OPENING_SECONDS", "_CLOSING_SECONDS", "_CLOSING_SECONDS_OF_A_FILE"):
        monkeypatch.setattr(f"custom_transformer.tracking.courier.{limit}", 60.0)


def register(folder: Path, run_id: str | None, content: str = "c") -> None:
    assert run_id is not None
    uri = store_uri(params().tracking)
    measured = {"time": 1, "step": 1, "metrics": {"eval_bits_per_byte": 1.5}}
    facts = {"content": content, "validation": "v", "registered_model": "tested", "measured": measured}
    header = Header(uri, params().tracking.experiment, "x", 1, {}, {})
    deliver_model(open_store(uri), header, run_id, folder / "model", facts)


def files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def has_all(folder: Path, monkeypatch: pytest.MonkeyPatch, runs: int = 1) -> None:
    """The store of the clone in `folder` has its artifacts, and takes more, in `folder` alone."""
    uri = store_uri(params().tracking)
    assert database_of(uri) == folder / "mlflow.db"
    client = open_store(uri)
    found = client.search_runs([e.experiment_id for e in client.search_experiments()])
    trained = [run for run in found if "train_loss" in run.data.metrics]
    assert len(trained) == runs
    for run in trained:
        assert run.info.artifact_uri.startswith(folder.as_uri() + "/")
        stored = Path(client.download_artifacts(run.info.run_id, "checkpoints/best.pt"))
        assert stored.read_bytes() == (folder / "best.pt").read_bytes()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", for_mlflow(uri))  # as in `mlflow models serve`
    model = Path(download_artifacts("models:/tested@best"))
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    assert (model / "MLmodel").exists()
    with checkpoint_run(params(), folder / "best.pt", stage="evaluate") as again:
        again.log_artifact(folder / "best.pt", "more")
    assert again.run_id in [run.info.run_id for run in trained]
    assert (folder / f"mlartifacts/{again.run_id}/artifacts/more/best.pt").exists()
    register(folder, again.run_id, content="another")
    assert client.get_model_version("tested", "2").source.startswith("models:/")


@pytest.mark.parametrize("by", ["a stage", "sync"])
def test_a_moved_clone(clone: Path, monkeypatch: pytest.MonkeyPatch, by: str) -> None:
    moved = clone.rename(clone.with_name("renamed"))
    there(moved, monkeypatch)
    if by == "sync":
        assert sync().delivered == 0
    has_all(moved, monkeypatch)
    assert not clone.exists()


def test_a_copied_clone_leaves_the_first_alone(clone: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = files(clone)
    copy = Path(shutil.copytree(clone, clone.with_name("copy")))
    there(copy, monkeypatch)
    has_all(copy, monkeypatch)
    assert files(clone) == before
    there(clone, monkeypatch)
    has_all(clone, monkeypatch)


def test_a_clone_moved_twice_with_a_run_that_waits(clone: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    moved = clone.rename(clone.with_name("moved"))
    there(moved, monkeypatch)
    with monkeypatch.context() as patch:
        patch.setattr("custom_transformer.tracking.delivery.open_store", lambda uri: 1 / 0)
        with training(moved / "two") as run:
            run.log_metrics({"train_loss": 1.0}, 1)
            run.log_checkpoints([moved / "best.pt"])
    again = moved.rename(clone.with_name("again"))
    there(again, monkeypatch)
    (spool,) = [Spool(path) for path in spool_root().glob("[!.]*")]
    assert spool.header().uri == f"sqlite:///{again}/mlflow.db"
    assert spool.header().work == f"{again}/two/work/train/k"
    shutil.rmtree(again / "two")  # as a training does at its end
    assert sync().delivered == 1
    has_all(again, monkeypatch, runs=2)
    assert not clone.exists()
    assert not moved.exists()


def test_what_was_written_to_the_old_folder_is_still_found(clone: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A version that knew nothing of this wrote there, and made it anew."""
    moved = clone.rename(clone.with_name("moved"))
    client = MlflowClient(f"sqlite:///{moved}/mlflow.db")
    run = client.create_run(client.create_experiment("other", (clone / "mlartifacts").as_uri()))
    client.log_text(run.info.run_id, "found", "notes.txt")
    there(moved, monkeypatch)
    has_all(moved, monkeypatch)
    assert Path(client.download_artifacts(run.info.run_id, "notes.txt")).read_text() == "found"
    new = client.create_run(run.info.experiment_id)
    assert new.info.artifact_uri == (moved / f"mlartifacts/{new.info.run_id}/artifacts").as_uri()


def test_artifacts_lie_beside_their_store_wherever_it_is(clone: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here, there_now = clone.parent / "here", clone.parent / "there"
    for folder, stored in ((here, 1), (there_now, 2)):
        with training(clone / folder.name, f"sqlite:///{folder}/team.db") as run:
            run.log_checkpoints([clone / "best.pt"])
        assert len(list((folder / "mlartifacts").rglob("best.pt"))) == stored
        if folder == here:
            here.rename(there_now)
    assert not here.exists()


@pytest.mark.parametrize("name", NAMES)
def test_an_odd_name(clone: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Moved there, and a store made there; nothing appears beside it."""
    beside = clone.parent / "beside"
    folder = beside / name
    folder.parent.mkdir(parents=True)
    clone.rename(folder)
    there(folder, monkeypatch)
    has_all(folder, monkeypatch)
    for path in [*folder.glob("mlflow.db*")]:
        path.unlink()
    with training(folder) as run:
        run.log_metrics({"train_loss": 1.0}, 1)
        run.log_artifact(folder / "best.pt", "checkpoints")
    assert (folder / f"mlartifacts/{run.run_id}/artifacts/checkpoints/best.pt").exists()
    assert (folder / "mlflow.db").exists()
    assert not list(unattended())
    top = folder.relative_to(beside).parts[0]
    assert [path.name for path in beside.iterdir()] == [top]
    assert [path.name for path in clone.parent.iterdir()] == ["beside"]

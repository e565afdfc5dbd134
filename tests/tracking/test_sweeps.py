"""Experiments in MLflow: sweeps under one parent, and runs whose training DVC restored."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from custom_transformer.config import Params, load_params, validated
from custom_transformer.errors import UserError
from custom_transformer.runs.checkpoint import save_checkpoint
from custom_transformer.tracking import checkpoint_run, sweep_runs, training_run
from custom_transformer.tracking.delivery import Delivery
from custom_transformer.tracking.spool import Header, Progress, Spool, new_name
from custom_transformer.tracking.store import experiment_id, open_store
from custom_transformer.tracking.sweep import join_sweep
from tests.helpers import random_model

PARAMS = load_params("params.yaml")
pytestmark = pytest.mark.usefixtures("root")


def in_sweep(sweep: str | None) -> Params:
    return PARAMS.model_copy(update={"tracking": PARAMS.tracking.model_copy(update={"sweep": sweep})})


def train(root: Path, sweep: str | None = None, checkpoint: Path | None = None, loss: float = 1.0) -> None:
    work = root / "work/train/k"
    work.mkdir(parents=True, exist_ok=True)
    (work / "spool").unlink(missing_ok=True)
    with training_run(in_sweep(sweep), datasets={}, work=work, tags={"fingerprint": "f"}) as run:
        run.log_metrics({"train_loss": loss}, 7)
        run.note_metrics({"system/cpu": 50.0}, 1)
        if checkpoint:
            run.log_checkpoints([checkpoint])


def evaluate(checkpoint: Path, sweep: str | None = None, stage: str = "evaluate") -> str:
    with checkpoint_run(in_sweep(sweep), checkpoint, stage=stage) as run:
        run.log_metrics({f"{stage}_loss": 0.5}, 7)
    assert run.run_id is not None
    return run.run_id


def runs(root: Path) -> dict[str, list[Any]]:
    """By their parent's name; those at the top under ""."""
    client = MlflowClient(f"sqlite:///{root / 'mlflow.db'}")
    found = list(client.search_runs([e.experiment_id for e in client.search_experiments()]))
    names = {run.info.run_id: run.info.run_name for run in found}
    grouped: dict[str, list[Any]] = {}
    for run in found:
        parent = run.data.tags.get("mlflow.parentRunId")
        grouped.setdefault(names[parent] if parent else "", []).append(run)
    return grouped


def test_a_sweep_is_a_run_that_holds_its_runs(root: Path) -> None:
    for sweep, loss in (("widths", 1.0), ("widths", 2.0), ("rates", 3.0), (None, 4.0)):
        train(root, sweep, loss=loss)
    found = runs(root)
    assert {name: len(children) for name, children in found.items()} == {"": 3, "widths": 2, "rates": 1}
    assert {run.info.status for children in found.values() for run in children} == {"FINISHED"}
    asked = sweep_runs(in_sweep("widths").tracking)
    assert [run.metrics["train_loss"] for run in asked] == [2.0, 1.0]
    assert asked[0].params["model.d_model"] == str(PARAMS.model.d_model)
    assert sweep_runs(in_sweep("none such").tracking) == []


@pytest.mark.parametrize("locked", [True, False])  # a SQLite store, and a server, which has no lock
def test_processes_that_race_end_up_under_one_parent(root: Path, monkeypatch: pytest.MonkeyPatch, locked: bool) -> None:
    uri = f"sqlite:///{root / 'mlflow.db'}"
    experiment = experiment_id(open_store(uri), "races", uri)
    if not locked:
        monkeypatch.setattr("custom_transformer.tracking.sweep.one_at_a_time", lambda uri: nullcontext())

    def work(_: int) -> None:
        client = MlflowClient(uri)
        child = client.create_run(experiment, tags={"sweep": "s", "stage": "train"})
        join_sweep(client, uri, experiment, child.info.run_id, "s")

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(16)))
    found = runs(root)
    assert [run.data.tags["stage"] for run in found.pop("")] == ["sweep"]
    assert {name: len(children) for name, children in found.items()} == {"s": 16}


def test_a_parent_whose_maker_was_killed_is_adopted_and_a_deleted_one_replaced(root: Path) -> None:
    uri = f"sqlite:///{root / 'mlflow.db'}"
    client = open_store(uri)
    experiment = experiment_id(client, PARAMS.tracking.experiment, uri)
    half_made = client.create_run(experiment, run_name="s", tags={"sweep": "s", "stage": "sweep"})
    train(root, "s")
    (parent,) = runs(root)[""]
    assert (parent.info.run_id, parent.info.status) == (half_made.info.run_id, "FINISHED")
    client.delete_run(parent.info.run_id)
    train(root, "s")
    (parent,) = runs(root)[""]
    assert len(runs(root)["s"]) == 2


def test_an_interrupted_training_that_a_sweep_takes_up_is_in_the_sweep(root: Path) -> None:
    work = root / "work/train/k"
    work.mkdir(parents=True)
    with pytest.raises(ZeroDivisionError), training_run(PARAMS, datasets={}, work=work, tags={}):
        raise ZeroDivisionError
    with training_run(in_sweep("s"), datasets={}, work=work, tags={}):
        pass
    assert [run.info.status for run in runs(root)["s"]] == ["FINISHED"]


def test_an_experiment_whose_training_dvc_restored_has_a_run_that_names_the_original(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = root / "best.pt"
    save_checkpoint(checkpoint, random_model(), {})
    monkeypatch.setenv("DVC_EXP_NAME", "first")
    train(root, checkpoint=checkpoint)
    original = evaluate(checkpoint)
    monkeypatch.setenv("DVC_EXP_NAME", "second")
    copy = evaluate(checkpoint, "s")
    assert evaluate(checkpoint, "s", stage="generate") == copy != original
    monkeypatch.setenv("DVC_EXP_BASELINE_REV", "c0ffee")  # the same name at another commit
    third = evaluate(checkpoint)
    monkeypatch.delenv("DVC_EXP_NAME")
    assert evaluate(checkpoint) == original

    found = runs(root)
    assert {run.info.run_id for run in found[""] if run.data.tags["stage"] != "sweep"} == {original, third}
    (run,) = found["s"]
    assert (run.info.run_name, run.info.status) == ("second", "FINISHED")
    assert (run.data.tags["original_run_id"], run.data.tags["fingerprint"]) == (original, "f")
    assert f"runs/{original})" in run.data.tags["mlflow.note.content"]
    assert run.data.params["model.d_model"] == str(PARAMS.model.d_model)
    assert run.data.metrics == {"train_loss": 1.0, "evaluate_loss": 0.5, "generate_loss": 0.5}
    assert {r.data.tags["original_run_id"] for r in (run, *(r for r in found[""] if r.info.run_id == third))} == {
        original
    }


def test_a_restored_run_that_is_delivered_twice_is_one(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = root / "best.pt"
    save_checkpoint(checkpoint, random_model(), {})
    train(root, checkpoint=checkpoint)
    monkeypatch.setenv("DVC_EXP_NAME", "second")
    ended: list[Spool] = []
    monkeypatch.setattr(Spool, "remove", lambda spool: ended.append(spool))
    evaluate(checkpoint, "s")
    before = runs(root)
    (spool,) = ended
    spool.save_progress(Progress())  # a kill before anything of it was noted
    Delivery(spool).send()
    assert {name: len(children) for name, children in runs(root).items()} == {"": 2, "s": 1}
    assert runs(root)["s"][0].data.metrics == before["s"][0].data.metrics


def test_what_follows_waits_for_what_the_same_experiment_told_before(root: Path) -> None:
    uri = f"sqlite:///{root / 'mlflow.db'}"
    digest = "ab" * 32
    header = Header(uri, "e", "second", 1, {}, {"DVC_EXP_NAME": "second"}, checkpoint=digest)
    of_others = Header(uri, "e", "another", 1, {}, {}, checkpoint=digest)
    elsewhere = Header("http://127.0.0.1:9", "e", "second", 1, {}, {}, checkpoint=digest)
    earlier, later = (Spool.create(header, f"{i:013d}-{new_name(header)[-8:]}") for i in (2, 4))
    for other in (of_others, elsewhere):
        Spool.create(other, f"{3:013d}-{new_name(other)[-8:]}")
    assert later.others_with(digest)
    assert not earlier.others_with(digest)
    earlier.remove()
    assert not later.others_with(digest)


@pytest.mark.parametrize("name", ["", "it's", "a b", "a/b", 7])
def test_a_name_that_is_none(name: object) -> None:
    content = PARAMS.model_dump() | {"tracking": PARAMS.tracking.model_dump() | {"sweep": name}}
    with pytest.raises(UserError, match=r"tracking\.sweep"):
        validated(Params, content, "params.yaml")

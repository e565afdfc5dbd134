"""MLflow: what is logged arrives in a real store once, processes share it, and no store ends or delays a training."""

from __future__ import annotations

import json
import math
import os
import shutil
import signal
import socket
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from markdown_it import MarkdownIt
from mlflow import MlflowClient

from custom_transformer.__main__ import main
from custom_transformer.errors import UserError
from custom_transformer.files import sha256_file
from custom_transformer.runs.checkpoint import save_checkpoint
from custom_transformer.tracking import checkpoint_run, store_uri, sync, training_run
from custom_transformer.tracking.delivery import _pointing_to
from custom_transformer.tracking.spool import Progress, Spool, spool_root
from custom_transformer.tracking.store import patience, without_password
from tests.helpers import random_model
from tests.processes import Process
from tests.servers import MlflowServer
from tests.tracking.making import PARAMS, params, training

pytestmark = pytest.mark.usefixtures("root")


def spools() -> list[Path]:
    return sorted(spool_root().glob("*"))


def history(uri: str, run: Any, key: str = "train_loss") -> list[tuple[int, float, int]]:
    return sorted((m.step, m.value, m.timestamp) for m in MlflowClient(uri).get_metric_history(run.info.run_id, key))


def runs(uri: str, experiment: str | None = None) -> list[Any]:
    """Those of one experiment, or all."""
    client = MlflowClient(uri)
    found = [e for e in client.search_experiments() if experiment in (None, e.name)]
    return list(client.search_runs([e.experiment_id for e in found]))


def test_threads_put_the_environment_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """One begins while the other is at it, and ends after it."""
    monkeypatch.delenv("MLFLOW_HTTP_REQUEST_TIMEOUT", raising=False)
    begun, ended = threading.Event(), threading.Event()

    def second() -> None:
        with patience():
            begun.set()
            ended.wait(10)

    with patience():
        thread = threading.Thread(target=second)
        thread.start()
        begun.wait(0.3)  # it need not come so far
    ended.set()
    thread.join()
    assert "MLFLOW_HTTP_REQUEST_TIMEOUT" not in os.environ


def test_a_metric_of_any_size_arrives_as_it_is(root: Path) -> None:
    sizes = {"perplexity": math.exp(700), "tiny": 1e-300, "loss": -1e20}
    with training(root) as run:
        run.log_metrics(sizes, 1)
    (found,) = runs(f"sqlite:///{root / 'mlflow.db'}")
    assert sizes.items() <= found.data.metrics.items()


def test_the_note_of_a_copy_shows_its_original_s_name_as_text() -> None:
    info = SimpleNamespace(run_name="corpus[1]*.txt-d128 <!-- `_a_`", experiment_id="0", run_id="ab")
    original: Any = SimpleNamespace(info=info, data=SimpleNamespace(tags={}))
    note = _pointing_to(original)["mlflow.note.content"]
    name = "corpus[1]*.txt-d128 &lt;!-- `_a_`"
    assert f'<a href="#/experiments/0/runs/ab">{name}</a>' in MarkdownIt("commonmark", {"html": True}).render(note)


def test_a_training_is_one_run_to_which_evaluation_adds(root: Path) -> None:
    save_checkpoint(root / "best.pt", random_model(), {})
    with training(root) as run:
        for step in range(1, 2501):  # more than MLflow takes in one request
            run.log_metrics({"train_loss": 1 / step}, step)
        run.log_metrics({"broken": float("inf")}, 2501)
        run.log_checkpoints([root / "best.pt"])
    with checkpoint_run(params(), root / "best.pt", stage="evaluate") as again:
        again.log_metrics({"eval_loss": 0.5}, 2500)
    uri = f"sqlite:///{root / 'mlflow.db'}"
    (found,) = runs(uri)
    assert found.info.status == "FINISHED"
    assert found.data.params["model.d_model"] == str(PARAMS.model.d_model)
    assert len(found.data.params) == sum(len(v) if isinstance(v, dict) else 1 for v in PARAMS.model_dump().values())
    assert found.data.metrics["eval_loss"] == 0.5
    assert found.inputs.dataset_inputs[0].dataset.digest == ("ab" * 32)[:36]
    assert [step for step, _, _ in history(uri, found)] == list(range(1, 2501))
    assert found.data.tags["fingerprint"] == "f"
    client = MlflowClient(uri)
    stored = client.download_artifacts(found.info.run_id, "checkpoints/best.pt", str(root))
    assert Path(stored).read_bytes() == (root / "best.pt").read_bytes()
    assert (root / "mlartifacts").is_dir()
    assert not spools()


def test_a_checkpoint_from_elsewhere_gets_a_run_of_its_own(root: Path) -> None:
    save_checkpoint(root / "best.pt", random_model(), {})
    ids = []
    for stage in ("evaluate", "generate"):
        with checkpoint_run(params(), root / "best.pt", stage=stage) as run:
            pass
        ids.append(run.run_id)  # by now the store has told it, however slow it was
    assert ids[0] == ids[1] is not None


def test_a_resumed_training_goes_on_with_its_run_and_logs_each_step_once(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ZeroDivisionError), training(root) as run:
        for step in range(1, 8):
            run.log_metrics({"train_loss": float(step)}, step)
        raise ZeroDivisionError
    uri = f"sqlite:///{root / 'mlflow.db'}"
    (failed,) = runs(uri)
    assert failed.info.status == "FAILED"
    monkeypatch.setenv("DVC_EXP_NAME", "again")
    with training(root) as run:  # from a state saved after step 5
        for step in range(6, 11):
            run.log_metrics({"train_loss": float(step)}, step)
    (found,) = runs(uri)
    assert (found.info.run_id, found.info.status) == (failed.info.run_id, "FINISHED")
    assert (found.info.run_name, found.data.tags["DVC_EXP_NAME"]) == ("again", "again")
    assert [step for step, _, _ in history(uri, found)] == list(range(1, 11))
    assert not spools()


def test_a_training_that_starts_afresh_is_a_run_of_its_own(root: Path) -> None:
    for _ in range(2):
        with pytest.raises(ZeroDivisionError), training(root):
            raise ZeroDivisionError
        (root / "work/train/k/spool").unlink()  # as when its work folder is discarded
    with training(root):
        pass
    assert sorted(r.info.status for r in runs(f"sqlite:///{root / 'mlflow.db'}")) == ["FAILED", "FAILED", "FINISHED"]
    assert not spools()


KILLED = """
import os, pathlib, signal, sys
from tests.tracking.making import training
with training(pathlib.Path(sys.argv[1]), sys.argv[2]) as run:
    for step in range(1, 51):
        run.log_metrics({"train_loss": 1 / step}, step)
    run.log_artifact("dvc.yaml")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def killed(root: Path, uri: str) -> None:
    assert Process("-c", KILLED, root, uri).wait().returncode == -signal.SIGKILL


@pytest.mark.processes
def test_what_a_killed_process_logged_is_delivered_by_the_next(root: Path) -> None:
    uri = f"sqlite:///{root / 'mlflow.db'}"
    killed(root, uri)
    (spool,) = spools()
    with (spool / "events.jsonl").open("ab") as file:
        file.write(b'{"time": 1, "step": 51, "metr')  # the power went
    assert sync().delivered == 1
    (found,) = runs(uri)
    assert found.info.status == "KILLED"
    points = history(uri, found)
    assert [step for step, _, _ in points] == list(range(1, 51))
    logged = [json.loads(line) for line in (spool / "events.jsonl").read_bytes().splitlines()[:50]]
    assert [time for _, _, time in points] == [event["time"] for event in logged]
    (spool / "delivered.json").write_text("{")  # all of it once more
    with training(root) as run:
        run.log_metrics({"train_loss": 1 / 51}, 51)
    (again,) = runs(uri)
    assert (again.info.run_id, again.info.status) == (found.info.run_id, "FINISHED")
    assert history(uri, again)[:50] == points
    assert len(history(uri, again)) == 51
    assert [a.path for a in MlflowClient(uri).list_artifacts(again.info.run_id)] == ["dvc.yaml"]


TRAINING = """
import pathlib, sys
from tests.tracking.making import training
with training(pathlib.Path(sys.argv[1])) as run:
    for step in range(1, 51):
        run.log_metrics({"train_loss": 1.0}, step)
"""


@pytest.mark.processes
def test_processes_that_begin_at_once_share_a_fresh_store(root: Path) -> None:
    (root / "mlflow.db").unlink()
    processes = [Process("-c", TRAINING, root / str(i)) for i in range(4)]
    errors = [process.wait().stderr for process in processes]
    assert all("warning" not in error for error in errors), errors
    found = runs(f"sqlite:///{root / 'mlflow.db'}")
    assert [r.info.status for r in found] == ["FINISHED"] * 4


@pytest.mark.processes
def test_a_server_gets_the_same(root: Path, mlflow_server: MlflowServer) -> None:
    server, experiment = mlflow_server.uri, root.name
    save_checkpoint(root / "best.pt", random_model(), {})
    with training(root, server, experiment=experiment) as run:
        run.log_metrics({"train_loss": 1.0}, 1)
        run.log_checkpoints([root / "best.pt"])
    tokenizer = root / "tokenizer"
    tokenizer.mkdir()
    for bits in (1.5, 1.4, 1.6):
        with checkpoint_run(params(server, experiment=experiment), root / "best.pt", stage="evaluate") as run:
            (tokenizer / "tokenizer.json").write_text(str(bits))
            run.log_model(
                root / "best.pt",
                tokenizer,
                defaults=PARAMS.generation,
                metrics={"eval_bits_per_byte": bits},
                step=1,
                validation="v",
                registered_model="model",
            )
    assert not sync().waiting
    client = MlflowClient(server)
    assert sorted(v.tags["bits_per_byte"] for v in client.search_model_versions("name = 'model'")) == [
        "1.4",
        "1.5",
        "1.6",
    ]
    best = client.get_model_version_by_alias("model", "best")
    assert (best.version, best.tags["bits_per_byte"]) == ("2", "1.4")
    (found,) = runs(server, experiment)
    assert len(found.outputs.model_outputs) == 3
    assert found.data.metrics["train_loss"] == 1.0
    (root / "stored").mkdir()
    stored = MlflowClient(server).download_artifacts(found.info.run_id, "checkpoints/best.pt", str(root / "stored"))
    assert Path(stored).read_bytes() == (root / "best.pt").read_bytes()


def test_a_model_that_cannot_be_made_costs_a_line(
    root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*_: Any) -> str:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("custom_transformer.tracking.run.save_model", full)
    with training(root) as run:
        run.log_model(
            root / "best.pt",
            root,
            defaults=PARAMS.generation,
            metrics={"eval_loss": 2.0},
            step=1,
            validation="v",
            registered_model="model",
        )
    (found,) = runs(f"sqlite:///{root / 'mlflow.db'}")
    assert found.data.metrics["eval_loss"] == 2.0
    assert capsys.readouterr().err.count("No space left on device; the work goes on, a part is not logged") == 1


def test_without_a_server_the_work_goes_on_and_nothing_is_lost(
    root: Path, free_port: int, capsys: pytest.CaptureFixture[str]
) -> None:
    nobody = f"http://127.0.0.1:{free_port}"
    started = time.monotonic()
    with training(root, nobody) as run:
        for step in range(2000):
            run.log_metrics({"train_loss": 1.0}, step + 1)
    assert time.monotonic() - started < 15
    (line,) = capsys.readouterr().err.splitlines()
    assert "Connection refused" in line
    assert "python -m custom_transformer sync" in line
    (spool,) = spools()
    assert Spool(spool).last_step() == 2000
    assert [name for name, _ in sync().waiting] == [run._header.name]


def test_a_store_that_was_emptied_gets_it_all_again(root: Path) -> None:
    uri = f"sqlite:///{root / 'mlflow.db'}"
    with pytest.raises(ZeroDivisionError), training(root) as run:
        run.log_metrics({"train_loss": 1.0}, 1)
        raise ZeroDivisionError
    for path in root.glob("mlflow.db*"):
        path.unlink()
    with training(root) as run:
        run.log_metrics({"train_loss": 2.0}, 2)
    (found,) = runs(uri)
    assert [value for _, value, _ in history(uri, found)] == [1.0, 2.0]


@pytest.mark.processes
def test_a_run_that_somebody_deleted_holds_up_no_other(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    uri = f"sqlite:///{root / 'mlflow.db'}"
    killed(root / "one", uri)
    sync()
    (first,) = runs(uri)
    MlflowClient(uri).delete_run(first.info.run_id)
    spool = Spool(spools()[0])
    spool.save_progress(replace(spool.progress(), closed=False))  # its end has not been told yet
    with training(root / "two") as run:
        run.log_metrics({"train_loss": 1.0}, 1)
    assert [r.info.status for r in runs(uri)] == ["FINISHED"]
    assert "warning" not in capsys.readouterr().err
    with training(root / "one") as run:  # the deleted one goes on: made anew, with all its steps
        run.log_metrics({"train_loss": 1 / 51}, 51)
    (anew,) = [r for r in runs(uri) if r.data.metrics["train_loss"] != 1.0]
    assert [step for step, _, _ in history(uri, anew)] == list(range(1, 52))
    assert not spools()


@pytest.mark.processes
def test_a_deleted_experiment_holds_up_no_other(root: Path) -> None:
    uri = f"sqlite:///{root / 'mlflow.db'}"
    killed(root / "one", uri)
    sync()
    client = MlflowClient(uri)
    client.delete_experiment(client.get_experiment_by_name(PARAMS.tracking.experiment).experiment_id)
    Spool(spools()[0]).save_progress(Progress())
    other = PARAMS.model_copy(update={"tracking": PARAMS.tracking.model_copy(update={"experiment": "other"})})
    work = root / "work/train/other"
    work.mkdir(parents=True)
    with training_run(other, datasets={}, work=work, tags={}) as run:
        run.log_metrics({"train_loss": 1.0}, 1)
    assert [r.info.status for r in runs(uri)] == ["FINISHED"]
    assert len(spools()) == 1


@pytest.mark.processes
def test_what_a_power_cut_took_back_is_logged_again(root: Path) -> None:
    uri = f"sqlite:///{root / 'mlflow.db'}"
    killed(root, uri)
    sync()
    events = spools()[0] / "events.jsonl"
    events.write_bytes(b"".join(events.read_bytes().splitlines(keepends=True)[:30]))
    with training(root) as run:  # from a state saved after step 30
        for step in range(31, 61):
            run.log_metrics({"train_loss": 1 / step}, step)
    (found,) = runs(uri)
    assert {step for step, _, _ in history(uri, found)} == set(range(1, 61))


@pytest.mark.processes
def test_a_run_whose_spool_is_gone_is_found_again(root: Path) -> None:
    uri = f"sqlite:///{root / 'mlflow.db'}"
    killed(root, uri)
    sync()
    shutil.rmtree(spools()[0])
    with training(root):
        pass
    assert [r.info.status for r in runs(uri)] == ["FINISHED"]


@pytest.mark.processes
def test_an_evaluation_waits_for_its_training_to_be_delivered(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_checkpoint(root / "best.pt", random_model(), {})
    uri = f"sqlite:///{root / 'mlflow.db'}"
    monkeypatch.setenv("DVC_ROOT", str(root / "another"))
    with training(root / "another", uri) as run:  # a clone that has computed the same bytes
        run.log_checkpoints([root / "best.pt"])
    monkeypatch.setenv("DVC_ROOT", str(root))
    killed(root, uri)
    spool = Spool(spools()[0])
    with (spool.path / "events.jsonl").open("a") as file:
        file.write(json.dumps({"tags": {"checkpoints": f"{sha256_file(root / 'best.pt')}  best.pt\n"}}) + "\n")
    with spool._lock, checkpoint_run(params(), root / "best.pt", stage="evaluate") as run:  # another delivers it
        run.log_metrics({"eval_loss": 0.5}, 50)
    assert run.run_id is None
    sync()
    (found,) = [r for r in runs(uri) if r.data.tags["checkout"].endswith(f":{root}")]
    assert (found.data.metrics["eval_loss"], len(history(uri, found))) == (0.5, 50)


def test_clones_that_compute_the_same_bytes_keep_their_runs_apart(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    uri = f"sqlite:///{root / 'shared.db'}"
    clones = [root / "ann", root / "bob"]
    for clone in clones:
        clone.mkdir()
        monkeypatch.setenv("DVC_ROOT", str(clone))
        save_checkpoint(clone / "best.pt", random_model(), {})
        with training(clone, uri) as run:
            run.log_checkpoints([clone / "best.pt"])
    for loss, clone in enumerate(clones):
        monkeypatch.setenv("DVC_ROOT", str(clone))
        with checkpoint_run(params(uri), clone / "best.pt", stage="evaluate") as again:
            again.log_metrics({"eval_loss": float(loss)}, 1)
    found = [(run.data.tags.get("checkout"), run.data.metrics.get("eval_loss")) for run in runs(uri)]
    assert sorted(found) == [(f"{socket.gethostname()}:{clone}", float(loss)) for loss, clone in enumerate(clones)]


def test_what_was_only_restored_is_not_taken_for_the_training(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ann trains; Bob's experiments x and y get her checkpoint, and then he evaluates it by hand."""
    uri = f"sqlite:///{root / 'shared.db'}"
    save_checkpoint(root / "best.pt", random_model(), {})
    for clone in ("ann", "bob"):
        (root / clone).mkdir()
    monkeypatch.setenv("DVC_ROOT", str(root / "ann"))
    with training(root / "ann", uri) as run:
        run.log_checkpoints([root / "best.pt"])
    monkeypatch.setenv("DVC_ROOT", str(root / "bob"))
    for experiment in ("x", "y", None):
        if experiment:
            monkeypatch.setenv("DVC_EXP_NAME", experiment)
        else:
            monkeypatch.delenv("DVC_EXP_NAME")
        with checkpoint_run(params(uri), root / "best.pt", stage="evaluate") as again:
            again.log_metrics({f"loss_of_{experiment}": 1.0}, 1)
    found = {run.data.tags.get("DVC_EXP_NAME"): run for run in runs(uri)}
    assert set(found) == {"x", "y", None}
    trained = found[None].info.run_id
    assert [found[name].data.tags["original_run_id"] for name in ("x", "y")] == [trained, trained]
    assert "loss_of_None" in found[None].data.metrics


@pytest.mark.parametrize(
    ("uri", "shown"),
    [
        ("http://ann:s3@cret@host:9/x?token=s", "http://***@host:9/x"),
        ("http://ann:s3/cret@host", "http://***@host"),
        ("ann:secret@host", "***@host"),
        ("http://host:9", "http://host:9"),
    ],
)
def test_no_password_is_shown(root: Path, uri: str, shown: str) -> None:
    assert without_password(uri) == shown


def test_no_password_is_logged(root: Path, free_port: int) -> None:
    with training(root, f"http://ann:secret@127.0.0.1:{free_port}"):
        pass
    assert Spool(spools()[0]).header().params["tracking.uri"] == f"http://***@127.0.0.1:{free_port}"


def test_what_the_store_never_takes_is_said_and_the_rest_arrives(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with training(root) as run:
        run.log_metrics({"a name with a ? in it": 1.0}, 1)
        run._spool.append({"tags": {"t": "between"}})  # type: ignore[union-attr]
        run.log_metrics({"train_loss": 1.0}, 2)
    (found,) = runs(f"sqlite:///{root / 'mlflow.db'}")
    assert (found.info.status, found.data.metrics["train_loss"]) == ("FINISHED", 1.0)
    (line,) = [text for text in capsys.readouterr().err.splitlines() if text.startswith("warning")]
    assert "takes the rest, and this part never" in line
    assert not spools()


def test_a_run_that_no_store_will_take_is_told_of_once_and_lends_its_reason_to_none(
    root: Path, capsys: pytest.CaptureFixture[str], free_port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    with training(root / "bad", experiment="x" * 501) as run:
        run.log_metrics({"train_loss": 1.0}, 1)
    (line,) = capsys.readouterr().err.splitlines()
    assert "MLflow never takes this run" in line
    (kept,) = (root / "work/tracking-refused").iterdir()
    assert Spool(kept).last_step() == 1
    # As a version that knew nothing of this left it.
    kept.rename(spool_root() / kept.name)
    with training(root / "waits", f"http://127.0.0.1:{free_port}", experiment="another") as waits:
        waits.log_metrics({"train_loss": 1.0}, 1)
    capsys.readouterr()
    result = sync()
    assert result.delivered == 0
    assert [name for name, _ in result.refused] == [run._header.name]
    ((name, reason),) = result.waiting
    assert name == waits._header.name
    assert "Connection refused" in reason
    assert "exceed" not in reason
    monkeypatch.setattr(sys, "argv", ["custom_transformer", "sync"])
    with pytest.raises(UserError, match=r"not delivered \(http.*Connection refused\); make the store answer"):
        main()
    assert not sync().refused
    with training(root / "good") as good:
        good.log_metrics({"train_loss": 1.0}, 1)
    assert not capsys.readouterr().err
    assert [r.data.metrics["train_loss"] for r in runs(f"sqlite:///{root / 'mlflow.db'}")] == [1.0]


def test_a_line_that_finds_the_disk_full_is_written_later(
    root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    uri = f"sqlite:///{root / 'mlflow.db'}"
    with training(root) as run:
        spool = run._spool
        assert spool is not None
        real = spool._events
        assert real is not None

        class Full:
            """Takes three bytes more."""

            def write(self, data: memoryview) -> int:
                if len(data) > 3:
                    real.write(data[:3])
                    raise OSError(28, "No space left on device")
                return real.write(data)

            def __getattr__(self, name: str) -> Any:
                return getattr(real, name)

        run.log_metrics({"train_loss": 1.0}, 1)
        monkeypatch.setattr(spool, "_events", Full())
        for step in (2, 3):
            run.log_metrics({"train_loss": 1.0}, step)
        monkeypatch.setattr(spool, "_events", real)
        run.log_metrics({"train_loss": 1.0}, 4)
    (found,) = runs(uri)
    assert [step for step, _, _ in history(uri, found)] == [1, 2, 3, 4]
    assert capsys.readouterr().err.count("No space left on device; the work goes on") == 1


@pytest.mark.parametrize("uri", ["file:///tmp/x", "sqlite://", "sqlite:///", "http://", "nonsense", "sqlite:///a/"])
def test_an_address_that_is_none(uri: str) -> None:
    with pytest.raises(UserError, match=r"tracking\.uri"):
        store_uri(params(uri).tracking)


def test_a_relative_store_lies_at_the_root(root: Path) -> None:
    assert store_uri(params("sqlite:///some/runs.db").tracking) == f"sqlite:///{root}/some/runs.db"

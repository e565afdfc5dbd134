"""A tracking server that is down, killed, frozen, slow or refusing costs a training one line, and not one point."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from mlflow import MlflowClient

from tests.helpers import PIPELINE_ENVIRONMENT
from tests.servers import MlflowServer, Way, free_port

STEPS = 400


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MlflowServer]:
    server = MlflowServer(tmp_path_factory.mktemp("server"))
    yield server
    server.kill()


class Training:
    """The training stage as a process of its own, in a folder of its own, some seconds long."""

    def __init__(self, prepared: Path, folder: Path, uri: str):
        self.folder = shutil.copytree(prepared, folder)
        params = yaml.safe_load((folder / "params.yaml").read_text("utf-8"))
        params["training"] |= {"max_steps": STEPS, "num_epochs": 50, "batch_size": 8, "save_every": 100}
        params["tracking"] |= {"experiment": folder.name, "uri": uri}
        (folder / "params.yaml").write_text(yaml.safe_dump(params), "utf-8")
        self._process = self._start("stages.train")
        self._errors, self._ended = "", 0.0
        self._watch = threading.Thread(target=self._wait)
        self._watch.start()

    def _wait(self) -> None:
        """Several trainings run at once, and each has its own end."""
        _, self._errors = self._process.communicate(timeout=300)
        self._ended = time.time()

    def _start(self, *module: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", *module], cwd=self.folder, env=PIPELINE_ENVIRONMENT | {"OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip

    def wait_for_step(self, step: int) -> None:
        while self._process.poll() is None and self._steps() < step:
            time.sleep(0.02)

    def _steps(self) -> int:
        return sum(
            path.read_bytes().count(b'"train_loss"') for path in self.folder.glob("work/tracking/*/events.jsonl")
        )

    def ends_in_time_with_one_line(self, *saying: str) -> None:
        self._watch.join()
        errors = self._errors
        assert self._process.returncode == 0, errors
        warnings = [line for line in errors.splitlines() if line.startswith("warning")]
        assert len(warnings) == 1, errors
        assert any(words in warnings[0] for words in saying), warnings[0]
        assert "Traceback" not in errors
        assert self._ended - (self.folder / "metrics/train.json").stat().st_mtime < 10

    def is_delivered_by_sync(self, store: str) -> None:
        """Each point once and at its time, in one finished run with its checkpoints."""
        logged = {}
        for path in self.folder.glob("work/tracking/*/events.jsonl"):
            events = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
            logged = {e["step"]: (e["metrics"]["train_loss"], e["time"]) for e in events if "train_loss" in str(e)}
        assert len(logged) == STEPS
        sync = self._start("custom_transformer", "sync")
        said, errors = sync.communicate(timeout=120)
        assert (sync.returncode, said) == (0, "1 run delivered\n"), errors
        client = MlflowClient(store)
        found = client.get_experiment_by_name(self.folder.name)
        assert found is not None
        (run,) = client.search_runs([found.experiment_id])
        assert run.info.status == "FINISHED"
        history = client.get_metric_history(run.info.run_id, "train_loss")
        assert len(history) == STEPS
        assert {m.step: (m.value, m.timestamp) for m in history} == logged
        assert "checkpoints/best.pt" in [a.path for a in client.list_artifacts(run.info.run_id, "checkpoints")]
        assert not list(self.folder.glob("work/*/*/"))


def test_down_slow_or_refusing(prepared: Path, tmp_path: Path, server: MlflowServer) -> None:
    down = free_port()
    slow, refusing = Way(server), Way(server)
    slow.delay, refusing.refusal = 2.0, 500
    trainings = {
        "Connection refused": Training(prepared, tmp_path / "down", f"http://127.0.0.1:{down}"),
        "it takes too long": Training(prepared, tmp_path / "slow", slow.uri),
        "500": Training(prepared, tmp_path / "refusing", refusing.uri),
    }
    for saying, training in trainings.items():
        training.ends_in_time_with_one_line(saying)
    slow.delay, refusing.refusal = 0.0, 0
    up = Way(server, down)
    for training in trainings.values():
        training.is_delivered_by_sync(server.uri)
    for way in (slow, refusing, up):
        way.shutdown()


def test_frozen(prepared: Path, tmp_path: Path, server: MlflowServer) -> None:
    training = Training(prepared, tmp_path / "frozen", server.uri)
    training.wait_for_step(STEPS // 4)
    server.freeze()
    training.ends_in_time_with_one_line("timed out", "it takes too long")
    server.thaw()
    training.is_delivered_by_sync(server.uri)


def test_killed(prepared: Path, tmp_path: Path, server: MlflowServer) -> None:
    training = Training(prepared, tmp_path / "killed", server.uri)
    training.wait_for_step(STEPS // 4)
    server.kill()
    training.ends_in_time_with_one_line("Connection refused")
    server.start()
    training.is_delivered_by_sync(server.uri)

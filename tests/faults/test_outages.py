"""A tracking server that is down, killed, frozen, slow or refusing costs a training one line, and not one point."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import time
from pathlib import Path

import psutil
import pytest
import yaml
from mlflow import MlflowClient

from custom_transformer.tracking import courier
from tests.helpers import PIPELINE_ENVIRONMENT
from tests.processes import PATIENCE, Process
from tests.servers import MlflowServer, Way

pytestmark = pytest.mark.processes

STEPS = 400
PAUSE = STEPS // 4  # the step at which a training stops until the test lets it go on
# A request may take longer than a test waits for any process: whoever waits for an answer does not end in time.
ENVIRONMENT = PIPELINE_ENVIRONMENT | {"MLFLOW_HTTP_REQUEST_TIMEOUT": str(int(10 * PATIENCE))}
TRAIN = """
import os, signal, sys
from custom_transformer.errors import run_main
from custom_transformer.tracking import courier
from stages import train
metrics, pause = train.step_metrics, int(sys.argv[1])
def step_metrics(m, *rest):
    if m.step == pause:
        os.kill(os.getpid(), signal.SIGSTOP)
    return metrics(m, *rest)
train.step_metrics, courier._OPENING_SECONDS = step_metrics, float(sys.argv[2])
sys.argv[1:] = []
run_main(train.main)
"""


class Training:
    """The training stage as a process of its own, in a folder of its own."""

    def __init__(
        self, prepared: Path, folder: Path, uri: str, *, pause: int = 0, opening: float = courier._OPENING_SECONDS
    ):
        self.folder = shutil.copytree(prepared, folder)
        params = yaml.safe_load((folder / "params.yaml").read_text("utf-8"))
        params["training"] |= {"max_steps": STEPS, "num_epochs": 50, "batch_size": 8, "save_every": 100}
        params["tracking"] |= {"experiment": folder.name, "uri": uri}
        (folder / "params.yaml").write_text(yaml.safe_dump(params), "utf-8")
        self._uri = uri
        self._process = Process("-c", TRAIN, pause, opening, cwd=folder, env=ENVIRONMENT)

    def wait_for_pause(self) -> None:
        while not self._stopped():
            assert self._process.poll() is None, self._process.wait().stderr
            time.sleep(0.02)

    def _stopped(self) -> bool:
        with contextlib.suppress(psutil.NoSuchProcess):  # it has just ended
            return bool(psutil.Process(self._process.pid).status() == psutil.STATUS_STOPPED)
        return False

    def go_on(self) -> None:
        os.kill(self._process.pid, signal.SIGCONT)

    def ends_with_one_line(self, saying: str = "") -> None:
        """While nobody answers; `saying` is the reason, where it does not depend on what was under way."""
        done = self._process.wait()
        assert done.returncode == 0, done.stderr
        warnings = [line for line in done.stderr.splitlines() if line.startswith("warning")]
        assert len(warnings) == 1, done.stderr
        assert warnings[0].startswith(f"warning: MLflow tracking: {self._uri}: "), warnings[0]
        assert "; the work goes on, and what is not delivered waits in " in warnings[0], warnings[0]
        assert saying in warnings[0], warnings[0]
        assert "Traceback" not in done.stderr
        assert (self.folder / "metrics/train.json").exists()

    def is_delivered_by_sync(self, store: str) -> None:
        """Each point once and at its time, in one finished run with its checkpoints."""
        logged = {}
        for path in self.folder.glob("work/tracking/*/events.jsonl"):
            events = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
            logged = {e["step"]: (e["metrics"]["train_loss"], e["time"]) for e in events if "train_loss" in str(e)}
        assert len(logged) == STEPS
        sync = Process("-m", "custom_transformer", "sync", cwd=self.folder, env=ENVIRONMENT).wait()
        assert (sync.returncode, sync.stdout) == (0, "1 run delivered\n"), sync.stderr
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


def test_a_training_waits_some_seconds_for_its_store() -> None:
    assert courier._OPENING_SECONDS + courier._CLOSING_SECONDS < 10


def test_down_slow_or_refusing(prepared: Path, tmp_path: Path, mlflow_server: MlflowServer, free_port: int) -> None:
    """Slow: three requests are answered, and then none is for an hour."""
    slow, refusing = Way(mlflow_server), Way(mlflow_server)
    slow.answers, refusing.refusal = 3, 500
    down = f"http://127.0.0.1:{free_port}"
    trainings = {
        "Connection refused": Training(prepared, tmp_path / "down", down, opening=300),
        "500": Training(prepared, tmp_path / "refusing", refusing.uri, opening=300),
        "it takes too long": Training(prepared, tmp_path / "slow", slow.uri),
    }
    for saying, training in trainings.items():
        training.ends_with_one_line(saying)
    slow.let_go(), refusing.let_go()
    up = Way(mlflow_server, free_port)
    for training in trainings.values():
        training.is_delivered_by_sync(mlflow_server.uri)
    for way in (slow, refusing, up):
        way.close()


def test_frozen(prepared: Path, tmp_path: Path, mlflow_server: MlflowServer) -> None:
    training = Training(prepared, tmp_path / "frozen", mlflow_server.uri, pause=PAUSE)
    training.wait_for_pause()
    mlflow_server.freeze()
    training.go_on()
    training.ends_with_one_line("it takes too long")
    mlflow_server.thaw()
    training.is_delivered_by_sync(mlflow_server.uri)


def test_killed(prepared: Path, tmp_path: Path, mlflow_server: MlflowServer) -> None:
    """Between two requests, or while it answers one."""
    training = Training(prepared, tmp_path / "killed", mlflow_server.uri, pause=PAUSE)
    training.wait_for_pause()
    mlflow_server.kill()
    training.go_on()
    training.ends_with_one_line()
    mlflow_server.start()
    training.is_delivered_by_sync(mlflow_server.uri)

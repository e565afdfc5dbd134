"""The real pipeline in a copy of the repository, killed and run again, compared with an undisturbed run."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import psutil
import yaml

from tests.helpers import PIPELINE_ENVIRONMENT, copy_repository
from tests.processes import quick_environment, run

Victim = Literal["trainer", "dvc", "both", "one"]

# A training of some seconds, in which states, validations, epochs and checkpoints fall on different steps.
TRAINING = {
    "max_steps": 150,
    "num_epochs": 5,
    "batch_size": 8,
    "save_every": 7,
    "eval_every": 11,
    "keep_checkpoints": 2,
}


class Pipeline:
    """A copy of the repository whose `dvc repro` has been seen to its end once, undisturbed."""

    def __init__(
        self,
        folder: Path,
        target: str = "train",
        steps: int = 150,
        training: Mapping[str, int] = TRAINING,
        **environment: str,
    ):
        self.folder, self.target, self.steps = folder, target, steps
        # One thread: two would wait for each other whenever another process is at work, as in a soak test it is.
        # dash, where /bin/sh is that, stays between dvc and the stage; bash would become the stage.
        self.environment = PIPELINE_ENVIRONMENT | {"OMP_NUM_THREADS": "1", "SHELL": "/bin/sh"} | environment
        copy_repository(folder)
        subprocess.run(["git", "init", "--quiet"], cwd=folder, check=True)
        params = yaml.safe_load((folder / "params.yaml").read_text("utf-8"))
        params["training"] |= {**training, "max_steps": steps}
        (folder / "params.yaml").write_text(yaml.safe_dump(params), "utf-8")
        self.finish("tokenize")
        for command in (
            ["add", "--all"],
            ["-c", "user.name=t", "-c", "user.email=t@localhost", "commit", "--quiet", "--message", "tokens"],
        ):
            subprocess.run(["git", *command], cwd=folder, check=True)
        self._before = (folder / "dvc.lock").read_bytes()
        self.finish()
        self.undisturbed = self.outputs()

    def start_over(self) -> None:
        """As before the training: no outputs, nothing in DVC's cache that could stand in for it."""
        (self.folder / "dvc.lock").write_bytes(self._before)
        for made in ("checkpoints", ".dvc/cache/runs"):
            shutil.rmtree(self.folder / made, ignore_errors=True)
        for result in (self.folder / "metrics").glob("[!.]*"):
            result.unlink()

    def start(self, target: str | None = None) -> subprocess.Popen[str]:
        """`dvc repro`, in a process of its own, with its output in the folder's log."""
        with (self.folder / "log").open("a") as log:
            return subprocess.Popen(
                [sys.executable, "-m", "dvc", "repro", target or self.target],
                cwd=self.folder, env=self.environment, stdout=log, stderr=log, text=True,
            )  # fmt: skip

    def finish(self, target: str | None = None) -> None:
        """Runs the pipeline to its end, in processes that start at once and have one thread."""
        environment = self.environment | {"PATH": quick_environment()["PATH"]}
        done = run("-m", "dvc", "repro", target or self.target, cwd=self.folder, env=environment)
        (self.folder / "log").write_text(done.stdout + done.stderr, "utf-8")
        assert done.returncode == 0, self.log()

    def log(self) -> str:
        return (self.folder / "log").read_text("utf-8")

    def states(self) -> list[Path]:
        return sorted(self.folder.glob("work/train/*/state-*.pt"))

    def wait_for_states(self, process: subprocess.Popen[str], after: int = 0) -> None:
        """Until the newest state is of a step above `after`, or the process has ended."""
        while process.poll() is None and not any(int(path.name.split("-")[1]) > after for path in self.states()):
            time.sleep(0.005)

    def outputs(self) -> dict[str, bytes]:
        """All that the run has written and DVC tracks, and its lock, by name."""
        files = [self.folder / "dvc.lock"]
        files += [path for name in ("checkpoints", "metrics") for path in (self.folder / name).rglob("*")]
        return {str(path.relative_to(self.folder)): path.read_bytes() for path in files if path.is_file()}

    def differences(self) -> list[str]:
        """What is not as the undisturbed run left it."""
        now = self.outputs()
        names = sorted(now.keys() | self.undisturbed.keys())
        return [name for name in names if now.get(name) != self.undisturbed.get(name)]


def kill(process: subprocess.Popen[str], victim: Victim) -> None:
    """SIGKILL to dvc, to what it runs, to both, or to one process of what it runs; to dvc where it runs nothing yet."""
    try:
        dvc = psutil.Process(process.pid)
        stages = dvc.children(recursive=True)
    except psutil.NoSuchProcess:
        return
    if victim in ("dvc", "both") or not stages:
        os.kill(process.pid, signal.SIGKILL)
    if victim != "dvc":
        for stage in random.sample(stages, min(1, len(stages))) if victim == "one" else stages:
            try:
                stage.kill()
            except psutil.NoSuchProcess:
                continue
    process.wait()
    if victim == "both":
        psutil.wait_procs(stages, timeout=10)

"""The real dvc on a copy of the repository: it reproduces bit for bit, and a killed training goes on."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.helpers import copy_repository

# Stage commands begin with `python`: the one that runs these tests.
ENVIRONMENT = os.environ | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}


def dvc(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "dvc", *arguments]
    return subprocess.run(command, cwd=folder, env=ENVIRONMENT, capture_output=True, text=True, timeout=600)


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """What git would clone, with the smoke configuration as its parameters."""
    folder = copy_repository(tmp_path / "repository")
    for command in (
        ["init", "--quiet"],
        ["add", "--all"],
        ["-c", "user.name=t", "-c", "user.email=t@localhost", "commit", "-qm", "all"],
    ):
        subprocess.run(["git", *command], cwd=folder, check=True)
    return folder


def test_a_killed_training_goes_on_to_the_same_bytes(repository: Path) -> None:
    done = dvc(repository, "repro")
    assert done.returncode == 0, done.stdout + done.stderr
    lock = (repository / "dvc.lock").read_bytes()
    assert "up to date" in dvc(repository, "repro").stdout

    train = [sys.executable, "-m", "stages.train"]
    for _ in range(10):  # until a kill hits between two saved states
        process = subprocess.Popen(train, cwd=repository, env=ENVIRONMENT, stdout=subprocess.DEVNULL)
        while process.poll() is None and not list(repository.glob("work/*/state-*.pt")):
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
        process.wait()
        if list(repository.glob("work/*/state-*.pt")):
            break
    else:
        pytest.fail("no kill came between the first saved state and the end")

    done = dvc(repository, "repro", "--force")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "going on after step" in done.stdout
    assert (repository / "dvc.lock").read_bytes() == lock
    assert not list(repository.glob("work/*/"))

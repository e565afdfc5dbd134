"""What tests start as `python` and is a fork does as python would."""

from __future__ import annotations

import subprocess
from pathlib import Path

import psutil
import pytest

from tests.processes import quick_environment

# A fork has imported what preload.py names, to the last.
PROGRAM = """
import os, sys
assert sys.modules["tests.preload"].MODULES[-1] in sys.modules
print(os.getcwd(), os.environ["SAID"])
sys.exit({!r})
"""


@pytest.mark.processes
@pytest.mark.parametrize(("given", "code", "errors"), [(0, 0, ""), (3, 3, ""), ("refused", 1, "refused\n")])
def test_a_quick_python_has_streams_folder_variables_and_code(
    tmp_path: Path, given: object, code: int, errors: str
) -> None:
    done = subprocess.run(
        ["python", "-c", PROGRAM.format(given)], cwd=tmp_path, env=quick_environment() | {"SAID": "naïve"},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout, done.stderr) == (code, f"{tmp_path} naïve\n", errors)


@pytest.mark.processes
def test_a_quick_python_whose_fork_is_killed_has_failed() -> None:
    program = "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"
    assert subprocess.run(["python", "-c", program], env=quick_environment(), check=False).returncode != 0


@pytest.mark.processes
def test_a_quick_python_that_is_killed_takes_its_fork_along() -> None:
    program = "import os, time; print(os.getpid(), flush=True); time.sleep(1000)"
    started = subprocess.Popen(["python", "-c", program], env=quick_environment(), stdout=subprocess.PIPE, text=True)
    assert started.stdout is not None
    fork = psutil.Process(int(started.stdout.readline()))
    started.kill()
    started.communicate()
    assert psutil.wait_procs([fork], timeout=60)[1] == []

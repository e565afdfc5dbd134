"""What tests start as `python` and is a fork does as python would."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.processes import quick_environment

PROGRAM = """
import os, sys
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
def test_a_quick_python_that_is_killed_has_failed() -> None:
    program = "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"
    assert subprocess.run(["python", "-c", program], env=quick_environment(), check=False).returncode != 0

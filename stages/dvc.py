"""DVC's command line."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from custom_transformer.errors import UserError


def run_dvc(
    *arguments: str, output: int | None = subprocess.PIPE, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Runs a dvc command; raises UserError if it fails, with a stage's own reason if it gave one, else dvc's.

    `output` is where stdout and stderr go; None: where this process's go. This Python's programs come first on the
    PATH: DVC calls its workers dvc, and the stages python.
    """
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
    # What it says is read here, so it says it in UTF-8, whatever this terminal's encoding is.
    env = os.environ | {"PATH": path, "PYTHONIOENCODING": "utf-8:backslashreplace"} | environment
    command = [sys.executable, "-m", "dvc", *arguments]
    done = subprocess.run(
        command, stdout=output, stderr=output, encoding="utf-8", errors="replace", env=env, check=False
    )
    if done.returncode != 0:
        said = [line for line in (done.stderr or "").splitlines() if line.strip()]
        why = "run it by itself to see why" if output is not None else "the lines above may say why"
        said = said or [f"failed; {why}; then run this again"]
        reason = next((line for line in reversed(said) if line.startswith("error: ")), said[-1])
        raise UserError(f"dvc {' '.join(arguments[:2])}: {reason.removeprefix('error: ').removeprefix('ERROR: ')}")
    return done

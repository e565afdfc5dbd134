"""Checks that the results in the last commit belong to its code and parameters; one line says where they do not.

Looks at a clone without data: what DVC keeps may be missing, what git keeps may not. Needs git and dvc only.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ALWAYS = "inputs"  # the stage that runs every time, to see whether local files have changed
SHOWN = 3  # reasons a stage


def main() -> None:
    with tempfile.TemporaryDirectory() as clone:
        root = Path(__file__).resolve().parents[1]
        subprocess.run(["git", "-c", "advice.detachedHead=false", "clone", "--quiet", root, clone], check=True)
        found = dvc(clone, "status", "--json")
        if found.returncode != 0:
            sys.exit(f"error: {found.stderr.strip().splitlines()[-1].removeprefix('ERROR: ')}")
        status = json.loads(found.stdout)
        status[ALWAYS].remove("always changed")
        stale = {stage: reasons for stage, entries in status.items() if (reasons := list(changes(clone, entries)))}
        plan = dvc(clone, "repro", "--dry", "--allow-missing")
    planned = re.findall("^(?:Running stage|Stage) '(.*)'(?::| is cached)", plan.stdout, re.MULTILINE)
    if plan.returncode == 0 and planned == [ALWAYS] and not stale:
        print("dvc.lock belongs to the code, parameters and results committed with it")
        return
    where = "; ".join(f"{stage} ({shortened(reasons)})" for stage, reasons in stale.items())
    where = where or "a stage read other data than the stage before it wrote"
    sys.exit(f"error: dvc.lock is stale: {where}: run dvc repro, and commit dvc.lock and metrics/ with the change")


def dvc(folder: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "dvc", *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


def changes(clone: str, entries: list[Any]) -> Iterator[str]:
    """What dvc status says of a stage, but for data that is only not here."""
    for entry in entries:
        if isinstance(entry, str):  # 'changed command'
            yield entry
            continue
        for path, status in (pair for paths in entry.values() for pair in paths.items()):
            if isinstance(status, dict):  # of a file of parameters, by their names
                yield from status
            elif status == "modified":
                yield path
            elif status == "deleted" and not kept_by_dvc(clone, path):
                yield f"{path} is missing"


def kept_by_dvc(clone: str, path: str) -> bool:
    """Whether git ignores the path, be it a file or a folder."""
    return subprocess.run(["git", "check-ignore", "--quiet", f"{path}/"], cwd=clone, check=False).returncode == 0


def shortened(reasons: list[str]) -> str:
    more = len(reasons) - SHOWN
    return ", ".join(reasons[:SHOWN]) + (f" and {more} more" if more > 0 else "")


if __name__ == "__main__":
    main()

"""Mends DVC's own files where a dvc that was killed, or a full disk, cut them off while they were written.

DVC writes .dvc/tmp/rwlock and dvc.lock in place, and afterwards refuses to run for as long as they cannot be read.
The first only says which processes are at work; the second comes back from git, and stages that ran since then run
again, or come back from DVC's cache.
"""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

from dvc.schema import COMPILED_LOCKFILE_SCHEMA
from ruamel.yaml import YAML, YAMLError
from voluptuous import Invalid

from custom_transformer.errors import UserError, run_main
from custom_transformer.files import atomic_write
from custom_transformer.paths import LOCK, project_root


def main() -> None:
    root = project_root()
    for mended in filter(None, (mend_process_lock(root), mend_pipeline_lock(root))):
        print(mended)


def mend_process_lock(root: Path) -> str | None:
    """Removes DVC's list of processes where it cannot be read; says so."""
    path = root / ".dvc/tmp/rwlock"
    try:
        json.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    except ValueError:
        path.unlink()
        return f"{path}: cut off while dvc wrote it; removed"
    return None


def mend_pipeline_lock(root: Path) -> str | None:
    """Restores dvc.lock where it cannot be read; says so. Raises UserError where git does not have it."""
    path = root / LOCK
    try:
        COMPILED_LOCKFILE_SCHEMA(YAML(typ="safe").load(path.read_bytes()))
    except FileNotFoundError:
        return None
    except (YAMLError, ValueError, Invalid):
        pass
    else:
        return None
    committed = subprocess.run(["git", "show", f"HEAD:./{LOCK}"], cwd=root, capture_output=True, check=False)
    if committed.returncode != 0:
        raise UserError(f"{path}: cut off, and not in git; remove it, and every stage runs again")
    with atomic_write(path) as file:
        file.write(committed.stdout)
    return f"{path}: cut off while dvc wrote it; restored from git"


if __name__ == "__main__":
    run_main(main)

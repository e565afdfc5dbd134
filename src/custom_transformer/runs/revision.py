"""A run of another revision, verified by that revision's own code in a clone."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from custom_transformer.errors import UserError, shown
from custom_transformer.paths import DIGESTS, INPUTS, TOKENIZER, TOKENS, project_root

_PROGRAM = Path("src/custom_transformer/runs/verify.py")  # without it a revision cannot verify itself


def verify_revision(revision: str, arguments: list[str]) -> int:
    """Runs verify with `arguments` in a clone of `revision`, a commit or a DVC experiment; returns its exit status.

    The clone has the data from DVC's cache. Raises UserError if git does not know the revision or the cache lacks data.
    """
    root = project_root()
    commit = _resolved(revision, root)
    with tempfile.TemporaryDirectory() as scratch:
        clone = Path(scratch) / "clone"
        _run("git", "clone", "--quiet", "--shared", "--no-checkout", str(root), str(clone), cwd=root)
        _run("git", "checkout", "--quiet", "--detach", commit, cwd=clone)
        if not (clone / _PROGRAM).exists():
            raise UserError(f"{revision}: its code cannot verify yet, nor did its training leave {DIGESTS}")
        cache = _run("dvc", "cache", "dir", cwd=root).strip()
        _run("dvc", "cache", "dir", "--local", cache, cwd=clone)
        data = [str(path) for path in (INPUTS / "init_from.json", TOKENIZER, TOKENS, DIGESTS)]
        try:
            _run("dvc", "checkout", "--quiet", *data, cwd=clone)
        except UserError:
            remedy = f"git checkout {revision}, then dvc pull or dvc repro"
            raise UserError(f"{revision}: DVC's cache lacks its data or its {DIGESTS}; {remedy}") from None
        # Files and kept states are looked for in the repository itself, as DVC's experiments in temporary copies do.
        environment = os.environ | {"DVC_ROOT": str(root), "PYTHONPATH": str(clone / "src")}
        command = [sys.executable, "-m", "custom_transformer", "verify", *arguments]
        return subprocess.run(command, cwd=clone, env=environment, check=False).returncode


def _resolved(revision: str, root: Path) -> str:
    """The commit that a revision or an experiment's name means."""
    try:
        return _run("git", "rev-parse", "--verify", "--end-of-options", f"{revision}^{{commit}}", cwd=root).split()[-1]
    except UserError:
        found = _run("git", "for-each-ref", "--format=%(objectname)", f"refs/exps/*/*/{revision}", cwd=root).split()
    if not found:
        raise UserError(f"{shown(revision)}: neither a commit nor a DVC experiment; see git log and dvc exp list")
    return found[0]


def _run(program: str, *arguments: str, cwd: Path) -> str:
    command = [sys.executable, "-m", "dvc", *arguments] if program == "dvc" else [program, *arguments]
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, errors="replace", check=False)
    if done.returncode != 0:
        raise UserError(f"{program} {arguments[0]}: {(done.stderr.strip().splitlines() or ['failed'])[-1]}")
    return done.stdout

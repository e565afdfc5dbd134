"""Tags of a run: who ran which code on which data, in which DVC experiment."""

from __future__ import annotations

import contextlib
import getpass
import json
import os
import socket
import subprocess
from collections.abc import Iterator, Mapping
from hashlib import sha256
from pathlib import PurePosixPath
from typing import Any

from custom_transformer.config import Params
from custom_transformer.paths import LOCK, METRICS, PIPELINE, project_root
from custom_transformer.plain_yaml import load_yaml

CHECKOUT_TAG = "checkout"  # HOST:PATH of the clone: the only difference between equal runs in a shared store


def flat_params(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """('model.d_model', '128'), …: text unchanged, everything else as JSON."""
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from flat_params(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def describe(params: Params) -> str:
    model = params.model
    data = PurePosixPath(params.data.dataset).name
    return f"{data}-d{model.d_model}-L{model.n_blocks}-H{model.n_heads}-seed{params.seed}"


def run_name(otherwise: str) -> str:
    return os.environ.get("DVC_EXP_NAME") or otherwise


def provenance(stage: str) -> dict[str, str]:
    """Tags: the stage, who ran it where from which commit, and DVC's names for the experiment and its inputs."""
    tags = {"stage": stage, "mlflow.source.type": "LOCAL", "mlflow.source.name": f"stages.{stage}"}
    tags[CHECKOUT_TAG] = f"{socket.gethostname()}:{project_root()}"
    with contextlib.suppress(OSError, KeyError):  # a user without a name, as in some containers
        tags["mlflow.user"] = getpass.getuser()
    if commit := _git("rev-parse", "HEAD"):
        # Files that the pipeline itself rewrites do not make the code dirty.
        changes = _git("status", "--porcelain", "--untracked-files=no", f":!{LOCK}", f":!{METRICS}")
        tags |= {"mlflow.source.git.commit": commit, "git.dirty": json.dumps(bool(changes))}
    for name in ("DVC_EXP_NAME", "DVC_EXP_BASELINE_REV", "DVC_STAGE"):
        if value := os.environ.get(name):
            tags[name] = value
    return tags | _upstream_stages()


def _git(*args: str) -> str | None:
    """Git's answer about the working folder; None if it has none."""
    try:
        done = subprocess.run(["git", *args], capture_output=True, errors="replace", timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def _upstream_stages() -> dict[str, str]:
    """`dvc.stage.NAME`: a short hash of the dvc.lock entry, for each stage that the running one builds upon.

    Equal hashes mean equal commands, parameters, inputs and outputs. Outside a DVC stage the lock need not
    have anything to do with the files in use, so there are no such tags.
    """
    stage = os.environ.get("DVC_STAGE")
    if not stage:
        return {}
    try:
        pipeline, lock = (load_yaml(path.read_text("utf-8")) for path in (PIPELINE, LOCK))
    except (OSError, ValueError):
        return {}
    if not (isinstance(lock, dict) and isinstance(lock.get("stages"), dict)):
        return {}
    entries: dict[str, Any] = lock["stages"]
    # A dependency in dvc.yaml is a path, or a mapping from the path to its options.
    declared = pipeline["stages"].get(stage, {}).get("deps", [])
    needed = [dep if isinstance(dep, str) else next(iter(dep)) for dep in declared]
    upstream: dict[str, str] = {}
    while needed:
        path = PurePosixPath(needed.pop())
        for name, entry in entries.items():
            outs = [PurePosixPath(out["path"]) for out in entry.get("outs", [])]
            if name not in upstream and any(path.is_relative_to(o) or o.is_relative_to(path) for o in outs):
                content = json.dumps(entry, sort_keys=True).encode()
                upstream[name] = sha256(content).hexdigest()[:16]
                needed += [dep["path"] for dep in entry.get("deps", [])]
    return {f"dvc.stage.{name}": digest for name, digest in upstream.items()}

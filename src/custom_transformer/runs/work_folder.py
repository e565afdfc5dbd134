"""The state of an unfinished run, kept outside the pipeline's outputs so that a killed run can continue.

DVC empties a stage's outputs before it runs the stage, so the state is in a work folder of its own, whose name follows
from everything that decides the run's result. The folder is removed when the run has finished.
"""

from __future__ import annotations

import hashlib
import io
import os
import shutil
from collections import deque
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from custom_transformer.errors import UserError
from custom_transformer.files import atomic_write, link_or_copy, sha256_file, writing
from custom_transformer.paths import KEPT_STATES
from custom_transformer.runs.checkpoint import read_tensors, write_tensors
from custom_transformer.runs.fingerprint import differences, run_key, tags
from custom_transformer.runs.kept_states import KeptStates, digest_in_name

GENERATIONS = 2  # saved states kept: if the newest is damaged, the one before it is used
RESUME = "CUSTOM_TRANSFORMER_RESUME"  # set to "anyway", it lets a run continue under other conditions

_LOCK_SECONDS = 30.0  # enough for a training whose dvc was killed to notice that and release the lock


class _Digest(io.BytesIO):
    """Takes what is written for its digest and keeps none of it: a state's bytes would double a training's memory."""

    def __init__(self) -> None:
        super().__init__()
        self.sha256 = hashlib.sha256()

    def write(self, content: Any) -> int:
        self.sha256.update(content)
        return len(content)


class WorkFolder:
    """The work folder of the run that a fingerprint describes, locked while it is open.

    checkpoints: the folder in which the run collects its checkpoints until they are published. For each saved state
    its checkpoints are kept as hard links named by their digests, since a checkpoint is never changed in place.
    kept_states: the states that stay when the folder is removed, if any were asked for.
    """

    def __init__(self, root: Path, fingerprint: dict[str, str]):
        key = run_key(fingerprint)
        self.kept_states = KeptStates(root.with_name(KEPT_STATES.name) / key)
        self.fingerprint = fingerprint
        self.path = root / key
        self.checkpoints = self.path / "checkpoints"
        self._by_digest = self.path / "by-digest"
        self._finished = root / f"{key}.finished"
        self._saved: deque[dict[str, str]] = deque(maxlen=GENERATIONS)  # {name: digest} of each state kept
        self._known: dict[tuple[int, int, int], str] = {}  # digests of files by inode, time and size
        self._lock = FileLock(root / f"{key}.lock")

    def __enter__(self) -> WorkFolder:
        with writing(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            Path(self._lock.lock_file).touch()  # if this is not allowed, FileLock would report another holder
        self._acquire()
        with writing(self.path):
            shutil.rmtree(self._finished, ignore_errors=True)
            for folder in (self.checkpoints, self._by_digest):
                folder.mkdir(parents=True, exist_ok=True)
            for half_written in self.path.rglob(".*.tmp"):
                half_written.unlink()
        return self

    def _acquire(self) -> None:
        try:
            self._lock.acquire(timeout=0)
        except Timeout:
            print(f"{self.path}: another training of the same parameters and data holds it; waiting", flush=True)
        else:
            return
        # Of two equal experiments in a queue the second waits for the first, however long that takes.
        queued = "DVC_EXP_NAME" in os.environ
        try:
            self._lock.acquire(timeout=-1 if queued else _LOCK_SECONDS)
        except Timeout:
            raise UserError(
                f"{self.path}: a training with the same parameters and data is running; wait for it or end it"
            ) from None

    def __exit__(self, *error: object) -> None:
        self._lock.release()

    def save(self, step: int, state: dict[str, Any]) -> None:
        """Writes a state atomically, its digest in its name, and drops all but the newest GENERATIONS."""
        checkpoints = {}
        for path in sorted(self.checkpoints.glob("*.pt")):
            checkpoints[path.name] = digest = self._digest(path)
            link_or_copy(path, self._by_digest / digest)
        path = self._write("state", step, state | {"checkpoints": checkpoints, "fingerprint": self.fingerprint})
        self.kept_states.take(path)
        self._saved.append(checkpoints)
        for old in self._states()[GENERATIONS:]:
            old.unlink()
        needed = {digest for saved in self._saved for digest in saved.values()}
        for path in self._by_digest.iterdir():
            if path.name not in needed:
                path.unlink()

    def _digest(self, path: Path) -> str:
        """A checkpoint's SHA-256, taken once: a replaced one is another inode."""
        found = path.stat()
        key = (found.st_ino, found.st_mtime_ns, found.st_size)
        if key not in self._known:
            self._known[key] = sha256_file(path)
        return self._known[key]

    def keep(self, step: int, state: dict[str, Any]) -> Path:
        """Writes a state that stays as long as the folder, and that no run continues from by itself."""
        return self._write("kept", step, state)

    def _write(self, name: str, step: int, state: dict[str, Any]) -> Path:
        digest = _Digest()
        write_tensors(state, digest)
        path = self.path / f"{name}-{step:09d}-{digest.sha256.hexdigest()[:16]}.pt"
        with atomic_write(path) as file:
            write_tensors(state, file)
        return path

    def load(self) -> dict[str, Any] | None:
        """The newest undamaged state, or None when there is none.

        Raises UserError if it was saved under another fingerprint and $CUSTOM_TRANSFORMER_RESUME is not "anyway".
        """
        state = self._newest()
        if state is None:
            return None
        if changed := differences(state["fingerprint"], self.fingerprint):
            what = f"{self.path}: this unfinished run was begun under other conditions: {'; '.join(changed)}"
            if os.environ.get(RESUME) != "anyway":
                raise UserError(
                    f"{what}; going on would not end in the bytes of an undisturbed run: restore the conditions, "
                    f"or set {RESUME}=anyway, or start afresh after rm -r {self.path}"
                )
            print(f"{what}; it goes on all the same", flush=True)
            # The result belongs to neither set of conditions, so the fingerprint must record both.
            self.fingerprint = self.fingerprint | {"continues": tags(state["fingerprint"])["fingerprint"]}
        elif "continues" in state["fingerprint"]:
            self.fingerprint = state["fingerprint"]
        return state

    def _newest(self) -> dict[str, Any] | None:
        """The newest undamaged state; puts its checkpoints back."""
        shutil.rmtree(self.checkpoints)
        self.checkpoints.mkdir()
        for path in self._by_digest.iterdir():
            if sha256_file(path) != path.name:
                path.unlink()
        for path in self._states():
            if sha256_file(path)[:16] == digest_in_name(path):
                state: dict[str, Any] = read_tensors(path)
                kept = {name: self._by_digest / digest for name, digest in state["checkpoints"].items()}
                if all(file.exists() for file in kept.values()):
                    for name, file in kept.items():
                        link_or_copy(file, self.checkpoints / name)
                    self._saved.append(state["checkpoints"])
                    self.kept_states.take(path)  # which a kill right after it was saved has left undone
                    return state
            print(f"{path}: damaged; the state before it serves, if there is one", flush=True)
        return None

    def _states(self) -> list[Path]:
        return sorted(self.path.glob("state-*.pt"), reverse=True)

    def others(self) -> int:
        """How many other unfinished runs there are."""
        return len({state.parent for state in self.path.parent.glob("*/state-*.pt")} - {self.path})

    def publish(self, destination: Path) -> None:
        """Puts the checkpoints of the last saved state into `destination` in place of an earlier run's.

        Raises UserError, and publishes nothing, if one has been changed since.
        """
        checkpoints = {name: self._by_digest / digest for name, digest in self._saved[-1].items()}
        for name, path in checkpoints.items():
            if sha256_file(path) != path.name:
                raise UserError(f"{path}: damaged since {name} was written; rm -r {self.path} and train again")
        for name, path in checkpoints.items():
            with path.open("rb") as source, atomic_write(destination / name) as target:
                shutil.copyfileobj(source, target, 1 << 20)
        for path in destination.glob("*.pt"):
            if path.name not in checkpoints:
                path.unlink()

    def remove(self) -> None:
        """Deletes the saved states: the next run with the same key starts afresh."""
        self.path.rename(self._finished)  # at once: half a folder would be taken for an unfinished run
        shutil.rmtree(self._finished)

"""The state of an unfinished run, kept outside the pipeline's outputs so that a killed run goes on where it was.

DVC empties a stage's outputs before it runs the stage, so the state stands in a work folder of its own, under a
name that follows from everything that decides the run's result. It is removed when the run has finished.
"""

from __future__ import annotations

import hashlib
import io
import json
import shutil
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from filelock import FileLock, Timeout

from custom_transformer.checkpoint import read_tensors
from custom_transformer.errors import UserError
from custom_transformer.files import atomic_write, sha256_file

GENERATIONS = 2  # saved states kept: should the newest be damaged, the one before it serves


def run_key(facts: dict[str, Any]) -> str:
    """A name for the run that `facts` (plain values), this code and this PyTorch decide: 16 hexadecimal digits."""
    room = Path(__file__).parent
    sources = sorted(path for path in room.rglob("*") if path.suffix in (".py", ".cpp"))
    code = {str(path.relative_to(room)): sha256_file(path) for path in sources}
    everything = {
        "facts": facts,
        "code": code,
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
    }
    return hashlib.sha256(json.dumps(everything, sort_keys=True).encode()).hexdigest()[:16]


class WorkFolder:
    """A run's work folder, locked while it is open.

    checkpoints: the folder in which the run collects its checkpoints until they are published.
    """

    def __init__(self, root: Path, key: str):
        self.path = root / key
        self.checkpoints = self.path / "checkpoints"
        self._lock = FileLock(root / f"{key}.lock")

    def __enter__(self) -> WorkFolder:
        self.checkpoints.mkdir(parents=True, exist_ok=True)
        try:
            self._lock.acquire(timeout=0)
        except Timeout:
            raise UserError(
                f"{self.path}: a training with the same parameters and data is running; wait for it or end it"
            ) from None
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._lock.release()

    def save(self, step: int, state: dict[str, Any]) -> None:
        """Writes a state atomically, its digest in its name, and drops all but the newest GENERATIONS."""
        buffer = io.BytesIO()
        torch.save(state, buffer)
        content = buffer.getbuffer()
        digest = hashlib.sha256(content).hexdigest()[:16]
        with atomic_write(self.path / f"state-{step:09d}-{digest}.pt") as file:
            file.write(content)
        for old in self._states()[GENERATIONS:]:
            old.unlink()

    def load(self) -> dict[str, Any] | None:
        """The newest undamaged state, or None when there is none."""
        for path in self._states():
            if sha256_file(path)[:16] == path.stem.rpartition("-")[2]:
                state: dict[str, Any] = read_tensors(path)
                return state
        return None

    def _states(self) -> list[Path]:
        return sorted(self.path.glob("state-*.pt"), reverse=True)

    def publish(self, destination: Path) -> None:
        """Puts the run's checkpoints into `destination` in place of those that an earlier run left there."""
        wanted = sorted(self.checkpoints.glob("*.pt"))
        for path in wanted:
            with path.open("rb") as source, atomic_write(destination / path.name) as target:
                shutil.copyfileobj(source, target, 1 << 20)
        for path in destination.glob("*.pt"):
            if path.name not in {w.name for w in wanted}:
                path.unlink()

    def remove(self) -> None:
        """Forgets the run: the next one with the same name starts afresh."""
        shutil.rmtree(self.path)

"""The learner's folder: a file for each exercise that was begun, and progress.json."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from custom_transformer.errors import UserError
from custom_transformer.files import atomic_write, read_text, write_json
from exercises.catalogue import FOLDER, Exercise
from exercises.learner import shown_path

WORK = FOLDER / "work"
MAX_BYTES = 1 << 20


class Standing(BaseModel):
    """How far the learner is with one exercise."""

    model_config = ConfigDict(extra="forbid", strict=True)
    solved: bool = False
    hints: int = Field(default=0, ge=0)  # that were shown


class Progress(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)
    exercises: dict[str, Standing] = {}

    def of(self, name: str) -> Standing:
        return self.exercises.setdefault(name, Standing())


@dataclass(frozen=True)
class WorkFolder:
    folder: Path

    @property
    def progress_file(self) -> Path:
        return self.folder / "progress.json"

    def file(self, exercise: Exercise) -> Path:
        return self.folder / f"{exercise.name}.py"

    def begin(self, exercise: Exercise) -> bool:
        """Copies the template, unless the learner has a file already; returns whether it did."""
        if self.file(exercise).exists():
            return False
        with atomic_write(self.file(exercise), "w") as file:
            file.write(exercise.template.read_text("utf-8"))
        return True

    def reset(self, exercise: Exercise) -> Path | None:
        """Puts the template in the place of the learner's file, which stays beside it under the returned name."""
        file = self.file(exercise)
        old = None
        if file.exists():
            names = (self.folder / f"{exercise.name}.old{n}.py" for n in range(1, 1_000_000))
            old = next(name for name in names if not name.exists())
            file.rename(old)
        self.begin(exercise)
        return old

    def progress(self) -> Progress:
        """Raises UserError for a file that this program did not write."""
        file = self.progress_file
        if not file.exists():
            return Progress()
        try:
            return Progress.model_validate(json.loads(read_text(file, MAX_BYTES)))
        except (ValueError, ValidationError, RecursionError):
            raise UserError(
                f"{shown_path(file)}: not progress as this program writes it; move it away to start afresh"
            ) from None

    def save(self, progress: Progress) -> None:
        write_json(self.progress_file, progress.model_dump())

"""Long work seen from the terminal: a bar where there is one, a line now and then where output goes to a file."""

from __future__ import annotations

import time
from typing import Any

import rich.progress as rich_progress
from rich.console import Console

SECONDS_BETWEEN_LINES = 10.0
# For a Console that shows text as it is: no [markup], no :emoji: names, no colours by guess.
AS_IS: dict[str, Any] = {"markup": False, "emoji": False, "highlight": False}


class ProgressBar:
    """A context manager around a loop that calls `update` as it goes.

    total: how many units there are in all, or None where nobody knows.
    """

    def __init__(self, what: str, total: int | None, unit: str):
        self._what, self._total, self._unit = what, total, unit
        self._console = Console(**AS_IS)
        self._started = self._last_line = time.monotonic()
        self._done, self._text = 0, ""
        self._bar = rich_progress.Progress(
            rich_progress.TextColumn("{task.description}", markup=False),
            rich_progress.BarColumn(),
            rich_progress.MofNCompleteColumn(),
            rich_progress.TextColumn("{task.fields[text]}", markup=False),
            rich_progress.TextColumn("left"),
            rich_progress.TimeRemainingColumn(compact=True),
            console=self._console,
            disable=not self._console.is_terminal,
        )
        self._task = self._bar.add_task(what, total=total, text="")

    def update(self, done: int, text: str = "") -> None:
        """`done` units are done in all; `text` says how it goes."""
        self._done, self._text = done, text
        self._bar.update(self._task, completed=done, text=text)
        if self._bar.disable and time.monotonic() - self._last_line > SECONDS_BETWEEN_LINES:
            self._last_line = time.monotonic()
            self._print_line()

    def note(self, text: str) -> None:
        """A line of its own that stays, above the bar."""
        self._bar.console.print(text, soft_wrap=True)

    def _print_line(self) -> None:
        of = f" of {self._total:,}" if self._total else ""
        left = ""
        if self._total and self._done:
            elapsed = time.monotonic() - self._started
            left = f"  {elapsed / self._done * (self._total - self._done):.0f} s left"
        self.note(f"{self._what}: {self._done:,}{of} {self._unit}  {self._text}{left}".rstrip())

    def __enter__(self) -> ProgressBar:
        self._bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._bar.stop()
        if self._bar.disable and self._done:
            self._print_line()

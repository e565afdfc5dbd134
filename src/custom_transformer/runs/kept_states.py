"""States of a run that stay when it has finished, on request: from them parts of it can be computed again.

The request is a variable of the environment, not a parameter: it changes no result, so it must change no digest in
dvc.lock and no run's key.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from custom_transformer.errors import UserError, shown
from custom_transformer.files import link_or_copy

KEEP = "CUSTOM_TRANSFORMER_KEEP_STATES"  # "all", or the numbers of some steps, as in "611,612"

_NAME = re.compile(r"state-(\d{9})-([0-9a-f]{16})\.pt")


class KeptStates:
    """The states that a run keeps in `folder`: every one that it saves, or those after the steps that are asked for.

    Raises UserError for a variable that asks for neither.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        asked = os.environ.get(KEEP, "")
        self._all = asked == "all"
        if not self._all and not re.fullmatch(r"(\d{1,9}(,\d{1,9})*)?", asked, re.ASCII):
            raise UserError(f'{KEEP}: {shown(asked)} is neither "all" nor numbers of steps such as 611,612')
        self._steps = frozenset(map(int, asked.split(","))) if asked and not self._all else frozenset()

    def asks_for(self, step: int) -> bool:
        """Whether a state is to be saved after `step` for this alone."""
        return step in self._steps

    def take(self, path: Path) -> None:
        """Keeps the saved state in `path`, if it is one of those: as a hard link, where the file system has them."""
        if self._all or step_in_name(path) in self._steps:
            self.folder.mkdir(parents=True, exist_ok=True)
            link_or_copy(path, self.folder / path.name)


def states_in(folder: Path) -> dict[int, Path]:
    """The saved states in a folder by their steps. Raises UserError where two are of the same step."""
    states: dict[int, Path] = {}
    for path in sorted(folder.glob("state-*.pt")):
        if found := _NAME.fullmatch(path.name):
            step = int(found[1])
            if step in states:
                raise UserError(f"{path}: another state of step {step:,} than {states[step].name}; move one away")
            states[step] = path
    return states


def step_in_name(path: Path) -> int:
    """The number of steps after which a state was saved, which its name holds."""
    return int(path.stem.split("-")[1])


def digest_in_name(path: Path) -> str:
    """The first 16 hexadecimal digits of a state's SHA-256, which its name holds."""
    return path.stem.rpartition("-")[2]

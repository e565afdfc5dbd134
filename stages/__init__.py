"""The pipeline's stages: thin programs, run from the repository root as `python -m stages.NAME`."""

import gc
import sys
import tempfile
from pathlib import Path

# DVC runs some experiments in a temporary copy of the repository, where an editable installation would still point
# to the original's code: the copy's own comes first.
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))

import custom_transformer  # noqa: F401 - before PyTorch: it says how long idle threads wait

# Nearly all that a stage imports stays: with Python's default, a tenth of its start went into looking for garbage.
gc.set_threshold(10_000)

try:
    tempfile.gettempdir()  # PyTorch's import asks for it, and with the disk full there is none
except FileNotFoundError as error:
    sys.exit(f"error: {error.strerror}; free some space and run the same command again")

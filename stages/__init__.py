"""The pipeline's stages: thin programs, run from the repository root as `python -m stages.NAME`."""

import sys
from pathlib import Path

# DVC runs some experiments in a temporary copy of the repository, where an editable installation would still point
# to the original's code: the copy's own comes first.
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))

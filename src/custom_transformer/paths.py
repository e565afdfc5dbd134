"""Where the pipeline's files are, as paths from the repository's root: dvc.yaml names the same ones."""

from __future__ import annotations

import os
from pathlib import Path

from custom_transformer.errors import NoFiles, UserError

PARAMS = Path("params.yaml")  # every parameter; --config names another file
PIPELINE = Path("dvc.yaml")  # DVC's description of the stages
LOCK = Path("dvc.lock")  # the digests of what each stage read and wrote last
CONSTRAINTS = Path("constraints.txt")  # the versions of all packages
INPUTS = Path("data/inputs")  # the digests of the local files that the parameters name
RAW = Path("data/raw")  # each split's text as a parquet file, and source.json
TOKENIZER = Path("data/tokenizer")  # tokenizer.json and its settings
TOKENS = Path("data/tokens")  # each split as flat arrays of tokens, and meta.json
CHECKPOINTS = Path("checkpoints")  # of the last epochs, and the best one
BEST = CHECKPOINTS / "best.pt"  # the checkpoint with the lowest validation loss
EXPORTED = Path("models/huggingface")  # the best checkpoint, as other tools read it
METRICS = Path("metrics")  # figures, curves, samples, pictures and the report
DIGESTS = METRICS / "digests.csv"  # of the run's tensors and curves as it went
EXPLORER = METRICS / "explorer.html"  # the page in which the model runs
ENCODED = Path("work/tokens")  # under project_root(): the parts of texts whose tokens are not all there yet
UNFINISHED = Path("work/train")  # under project_root(): saved states of unfinished trainings
KEPT_STATES = Path("work/states")  # under project_root(): states that a run keeps on request
SPOOLS = Path("work/tracking")  # under project_root(): what runs have not yet delivered to MLflow
REFUSED = Path("work/tracking-refused")  # under project_root(): what MLflow will never take


def project_root() -> Path:
    """The repository's root, absolute: $DVC_ROOT in a DVC stage, else the nearest folder upwards that has dvc.yaml.

    For an experiment in a temporary copy, $DVC_ROOT is the repository that DVC was started from, so files under it
    remain when the copy is deleted. Without either it is the current folder.
    """
    if root := os.environ.get("DVC_ROOT"):
        return Path(root).resolve()
    here = Path.cwd()
    return next((folder for folder in (here, *here.parents) if (folder / PIPELINE).exists()), here)


def located(name: str) -> Path | None:
    """The file or folder that a parameter names, looked for here and then under the repository's root."""
    return next((path for root in (Path(), project_root()) if (path := root / name).exists()), None)


def initial_checkpoint(name: str) -> Path:
    """The file that `training.init_from` names. Raises NoFiles if it is not here, and UserError for one that the
    training itself would replace."""
    path = located(name)
    if path is None:
        raise NoFiles(f"training.init_from {name}: no such file; correct the path, or import a model there first")
    if any(path.resolve().is_relative_to((root / CHECKPOINTS).resolve()) for root in (Path(), project_root())):
        raise UserError(f"training.init_from {name}: the training would replace it; name a copy in another folder")
    return path

"""Where the pipeline's files are, as paths from the repository's root: dvc.yaml names the same ones."""

from __future__ import annotations

import os
from pathlib import Path

PARAMS = Path("params.yaml")  # every parameter; --config names another file
PIPELINE = Path("dvc.yaml")  # DVC's description of the stages
LOCK = Path("dvc.lock")  # the digests of what each stage read and wrote last
INPUTS = Path("data/inputs")  # the digests of the local files that the parameters name
RAW = Path("data/raw")  # each split's text as a parquet file, and source.json
TOKENIZER = Path("data/tokenizer")  # tokenizer.json and its settings
TOKENS = Path("data/tokens")  # each split as a flat array of tokens, and meta.json
CHECKPOINTS = Path("checkpoints")  # of the last epochs, and the best one
BEST = CHECKPOINTS / "best.pt"  # the checkpoint with the lowest validation loss
EXPORTED = Path("models/huggingface")  # the best checkpoint, as other tools read it
METRICS = Path("metrics")  # figures, curves, samples, pictures and the report
EXPLORER = METRICS / "explorer.html"  # the page in which the model runs
UNFINISHED = Path("work/train")  # under project_root(): saved states of unfinished trainings
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

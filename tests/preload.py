"""What processes.py imports before it forks: what takes long. Not the Hub's clients, which read their environment then,
nor the stages, which a test may have changed."""

import gc
import importlib
import os

# Every process that tests start has one thread, so that its results do not depend on where they run.
os.environ["OMP_NUM_THREADS"] = "1"

from custom_transformer.tracking.store import import_mlflow

import_mlflow()
MODULES = (
    "custom_transformer",
    "dvc.cli.parser",
    "dvc.repo.plots",
    "dvc.repo.reproduce",
    "dvc.scm",
    "httpx2",
    "jinja2",
    "networkx",
    "pandas",
    "pyarrow.parquet",
    "rich.live",
    "rich.table",
    "tokenizers",
)
for module in MODULES:
    importlib.import_module(module)
# A collection in a fork would copy all of this, which it looks through.
gc.set_threshold(10_000)
gc.collect()
gc.freeze()

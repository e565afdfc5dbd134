"""What processes.py imports before it forks: what takes long. Not the Hub's clients, which read their environment then,
nor the stages, which a test may have changed."""

import gc
import os

# Every process that tests start has one thread, so that its results do not depend on where they run.
os.environ["OMP_NUM_THREADS"] = "1"

import pandas  # noqa: F401
import pyarrow.parquet  # noqa: F401

import custom_transformer  # noqa: F401
from custom_transformer.tracking.store import import_mlflow

import_mlflow()
# A collection in a fork would copy all of this, which it looks through.
gc.set_threshold(10_000)
gc.collect()
gc.freeze()

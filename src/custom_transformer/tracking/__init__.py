"""MLflow, here and nowhere else."""

from custom_transformer.tracking.courier import SyncResult, sync
from custom_transformer.tracking.run import DatasetVersion, Run, checkpoint_run, training_run
from custom_transformer.tracking.store import store_uri

__all__ = ["DatasetVersion", "Run", "SyncResult", "checkpoint_run", "store_uri", "sync", "training_run"]

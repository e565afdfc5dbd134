"""MLflow, here and nowhere else."""

from custom_transformer.tracking.courier import SyncResult, sync
from custom_transformer.tracking.models import registered_files
from custom_transformer.tracking.provenance import flat_params
from custom_transformer.tracking.recorded import RecordedTraining, recorded_training
from custom_transformer.tracking.run import DatasetVersion, Run, checkpoint_run, training_run
from custom_transformer.tracking.store import store_uri
from custom_transformer.tracking.sweep import SweepRun, sweep_runs
from custom_transformer.tracking.system import PEAK_MEMORY

__all__ = [
    "PEAK_MEMORY",
    "DatasetVersion",
    "RecordedTraining",
    "Run",
    "SweepRun",
    "SyncResult",
    "checkpoint_run",
    "flat_params",
    "recorded_training",
    "registered_files",
    "store_uri",
    "sweep_runs",
    "sync",
    "training_run",
]

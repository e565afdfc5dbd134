"""Sweeps: runs with one purpose under a parent run of its name, and their results.

Any process may be the first to need the parent, and on a server two processes may create one each. So each process
checks again after acting, until exactly one parent holds all runs: the oldest parent stays, and whoever sees a second
one deletes it and adopts its children. The last process to check has seen everything the others did.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from custom_transformer.config import TrackingParams
from custom_transformer.errors import UserError
from custom_transformer.tracking.addresses import database_of, is_local
from custom_transformer.tracking.store import cause, one_at_a_time, open_store, store_uri, unless_gone, without_password

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

SWEEP_TAG = "sweep"
_PARENT_TAG = "mlflow.parentRunId"  # by which MLflow's own pages nest runs
_MOST_RUNS = 1000


def join_sweep(client: MlflowClient, uri: str, experiment: str, run_id: str, sweep: str) -> None:
    """Puts a run under the parent of `sweep`, which is created if it is missing. Raises what the client raises."""
    with one_at_a_time(uri):
        settled = False
        while not settled:
            parent, *others = _parents(client, experiment, sweep) or [_make_parent(client, experiment, sweep)]
            parent_id = parent.info.run_id
            with unless_gone():
                if parent.info.status != "FINISHED":  # it does nothing itself
                    client.set_terminated(parent_id)
            client.set_tag(run_id, _PARENT_TAG, parent_id)
            for other in others:
                with unless_gone():
                    client.delete_run(other.info.run_id)
            astray = f"tags.{SWEEP_TAG} = '{sweep}' and tags.`{_PARENT_TAG}` != '{parent_id}'"
            for child in client.search_runs([experiment], astray, max_results=_MOST_RUNS):
                with unless_gone():
                    client.set_tag(child.info.run_id, _PARENT_TAG, parent_id)
            settled = [run.info.run_id for run in _parents(client, experiment, sweep)] == [parent_id]


def _parents(client: MlflowClient, experiment: str, sweep: str) -> list[Run]:
    """The existing parent runs, oldest first: more than one only while processes race."""
    found = client.search_runs([experiment], f"tags.{SWEEP_TAG} = '{sweep}' and tags.stage = 'sweep'")
    return sorted(found, key=lambda run: (run.info.start_time, run.info.run_id))


def _make_parent(client: MlflowClient, experiment: str, sweep: str) -> Run:
    return client.create_run(experiment, run_name=sweep, tags={SWEEP_TAG: sweep, "stage": "sweep"})


@dataclass(frozen=True)
class SweepRun:
    """A finished run of a sweep: parameters by their full names, as MLflow keeps them, and the newest metrics."""

    run_id: str
    name: str
    params: dict[str, str]
    metrics: dict[str, float]


def sweep_runs(tracking: TrackingParams) -> list[SweepRun]:
    """The finished runs of the sweep `tracking.sweep`, newest first. Raises UserError if the store does not answer."""
    uri = store_uri(tracking)
    if is_local(uri) and not database_of(uri).exists():
        return []
    try:
        client = open_store(uri)
        experiment = client.get_experiment_by_name(tracking.experiment)
        if experiment is None:
            return []
        children = f"tags.{SWEEP_TAG} = '{tracking.sweep}' and tags.stage != 'sweep'"
        finished = f"{children} and attributes.status = 'FINISHED'"
        found = client.search_runs([experiment.experiment_id], finished, max_results=_MOST_RUNS)
    except Exception as error:
        message = f"MLflow tracking: {without_password(uri)}: {cause(error)}; run this again when it answers"
        raise UserError(message) from None
    return [SweepRun(run.info.run_id, run.info.run_name, run.data.params, run.data.metrics) for run in found]

"""The machine's load beside a run."""

from __future__ import annotations

import contextlib
import threading
from types import TracebackType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from custom_transformer.tracking.run import Run

_SECONDS_BETWEEN = 2.0


class SystemMetrics(threading.Thread):
    """While the `with` block lasts, notes the load as system/… metrics, their steps in seconds since the run began."""

    def __init__(self, run: Run):
        super().__init__(name="system metrics", daemon=True)
        self._run, self._ended = run, threading.Event()

    def __enter__(self) -> None:
        self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        self.join()

    def run(self) -> None:
        with contextlib.suppress(Exception):  # a machine that does not tell its load can still train
            monitors = _monitors()
            for monitor in monitors:
                monitor.collect_metrics()  # the first CPU share is always 0: it is measured from call to call
            stopped = False
            while not stopped:
                for monitor in monitors:
                    monitor.clear_metrics()
                stopped = self._ended.wait(_SECONDS_BETWEEN)
                load: dict[str, float] = {}
                for monitor in monitors:
                    monitor.collect_metrics()
                    load |= monitor.aggregate_metrics()
                self._run.note_metrics({f"system/{name}": value for name, value in load.items()}, self._run.seconds())


def _monitors() -> list[Any]:
    """MLflow's collectors, but not its loop: that one asks the server for the run at each sample."""
    from mlflow.system_metrics.metrics.cpu_monitor import CPUMonitor
    from mlflow.system_metrics.metrics.disk_monitor import DiskMonitor
    from mlflow.system_metrics.metrics.gpu_monitor import GPUMonitor
    from mlflow.system_metrics.metrics.network_monitor import NetworkMonitor

    monitors = [CPUMonitor(), DiskMonitor(), NetworkMonitor()]
    with contextlib.suppress(Exception):  # no GPU, or no library that tells of it
        monitors.append(GPUMonitor())
    return monitors

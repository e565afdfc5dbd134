"""The machine's load during a run, and the most memory that the run's process has held."""

from __future__ import annotations

import contextlib
import resource
import sys
import threading
from collections.abc import Callable
from typing import Any

PEAK_MEMORY = "process_peak_memory_megabytes"  # of resident memory, since the process began

_SECONDS_BETWEEN = 2.0
_BYTES = 1 if sys.platform == "darwin" else 1024  # the unit of ru_maxrss (man 2 getrusage)


class SystemMetrics(threading.Thread):
    """Calls `log` with the load every two seconds while the `with` block lasts."""

    def __init__(self, log: Callable[[dict[str, float]], None]):
        super().__init__(name="system metrics", daemon=True)
        self._log, self._ended = log, threading.Event()

    def __enter__(self) -> None:
        self.start()

    def __exit__(self, *error: object) -> None:
        self._ended.set()
        self.join()

    def run(self) -> None:
        with contextlib.suppress(Exception):  # a machine whose load cannot be measured can still train
            monitors = _monitors()
            for monitor in monitors:
                monitor.collect_metrics()  # the first CPU share is always 0: it is measured from call to call
            stopped = False
            while not stopped:
                for monitor in monitors:
                    monitor.clear_metrics()
                stopped = self._ended.wait(_SECONDS_BETWEEN)
                load = {PEAK_MEMORY: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * _BYTES / 1e6}
                for monitor in monitors:
                    monitor.collect_metrics()
                    load |= monitor.aggregate_metrics()
                self._log(load)


def _monitors() -> list[Any]:
    """MLflow's collectors, without its loop, which asks the server for the run at each sample."""
    from mlflow.system_metrics.metrics.cpu_monitor import CPUMonitor
    from mlflow.system_metrics.metrics.disk_monitor import DiskMonitor
    from mlflow.system_metrics.metrics.gpu_monitor import GPUMonitor
    from mlflow.system_metrics.metrics.network_monitor import NetworkMonitor

    monitors = [CPUMonitor(), DiskMonitor(), NetworkMonitor()]
    with contextlib.suppress(Exception):  # no GPU, or no library that reads its load
        monitors.append(GPUMonitor())
    return monitors

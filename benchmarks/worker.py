"""One contestant in a separate process, which does a step on request: python -m benchmarks.worker NAME WORKLOAD TUNED.
Over stdin, "step" is answered by the seconds and the loss, "reset" and "peak" by the peak of resident memory."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

from benchmarks.contestants import build
from benchmarks.workloads import Workload


def peak_bytes() -> int:
    status = Path("/proc/self/status").read_text()
    return 1024 * int(next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1])


def main() -> None:
    name, workload, tuned = sys.argv[1:]
    step = build(name, Workload.from_json(workload), json.loads(tuned))
    print(json.dumps("ready"), flush=True)
    for line in sys.stdin:
        if line.strip() == "step":
            start = time.perf_counter()
            loss = step()
            print(json.dumps([time.perf_counter() - start, loss]), flush=True)
        else:
            if line.strip() == "reset":
                Path("/proc/self/clear_refs").write_text("5")  # resets the peak (man 5 proc)
            print(json.dumps(peak_bytes()), flush=True)


if __name__ == "__main__":
    main()

"""Prints the SHA-256 and the path of each file that the pipeline's stages wrote, in the stages' order.

Run it in the folder of the pipeline, after dvc repro: equal lists are equal results, and the first line that differs
names the first file that does.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

from ruamel.yaml import YAML


def main() -> None:
    for path in outputs():
        print(f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path}")


def outputs() -> Iterator[Path]:
    lock = YAML(typ="safe").load(Path("dvc.lock"))["stages"]
    for stage in YAML(typ="safe").load(Path("dvc.yaml"))["stages"]:  # dvc.lock has them in no fixed order
        for out in lock[stage]["outs"]:
            path = Path(out["path"])
            yield from sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]


if __name__ == "__main__":
    main()

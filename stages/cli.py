"""The command line that most stages share."""

from __future__ import annotations

import sys
from pathlib import Path

from custom_transformer.config import Params, load_params
from custom_transformer.errors import ArgumentParser
from custom_transformer.paths import PARAMS


def parser(description: str | None) -> ArgumentParser:
    """A parser that knows --config; `description` is the stage's docstring."""
    program = f"python -m stages.{Path(sys.argv[0]).stem}"
    arguments = ArgumentParser(prog=program, description=description)
    arguments.add_argument("--config", default=PARAMS, help="parameters (default: %(default)s)")
    return arguments


def parameters(description: str | None) -> Params:
    """The parameters of a stage that takes no other argument."""
    return load_params(parser(description).parse_args().config)

"""The command line that most stages share."""

from __future__ import annotations

import argparse

from custom_transformer.config import Params, load_params


def parser(description: str | None) -> argparse.ArgumentParser:
    """A parser that knows --config; `description` is the stage's docstring."""
    arguments = argparse.ArgumentParser(description=description)
    arguments.add_argument("--config", default="params.yaml", help="parameters (default: params.yaml)")
    return arguments


def parameters(description: str | None) -> Params:
    """The parameters of a stage that takes no other argument."""
    return load_params(parser(description).parse_args().config)

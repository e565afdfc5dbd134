"""What editors are told: params.yaml's schema is that of the models, and as strict; dvc.yaml keeps DVC's."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from dvc.schema import COMPILED_MULTI_STAGE_SCHEMA
from jsonschema import Draft202012Validator
from voluptuous import Invalid

from custom_transformer.__main__ import main
from custom_transformer.schema import params_schema
from tests.ground.wrong import WRONG, with_change

COMMITTED = Path("configs/params.schema.json")
SCHEMA = Draft202012Validator(params_schema())


def test_the_committed_schema_is_that_of_the_models(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    Draft202012Validator.check_schema(params_schema())
    monkeypatch.setattr(sys, "argv", ["custom_transformer", "schema"])
    main()
    remedy = f"python -m custom_transformer schema > {COMMITTED}"
    assert COMMITTED.read_text(encoding="utf-8") == capsys.readouterr().out, f"out of date: {remedy}"


def test_every_key_is_explained() -> None:
    sections = params_schema()["$defs"].values()
    assert [
        name for section in sections for name, key in section["properties"].items() if "description" not in key
    ] == []


@pytest.mark.parametrize("path", [Path("params.yaml"), *Path("configs").glob("*.yaml")], ids=str)
def test_every_shipped_configuration_names_the_schema_and_keeps_it(path: Path) -> None:
    modeline, name = path.read_text().splitlines()[0].split("$schema=")
    assert modeline == "# yaml-language-server: "
    assert (path.parent / name).samefile(COMMITTED)
    assert [error.message for error in SCHEMA.iter_errors(yaml.safe_load(path.read_text()))] == []


@pytest.mark.parametrize(("key", "value"), [(key, value) for key, value, _ in WRONG])
def test_what_the_loader_refuses_an_editor_shows(key: str, value: Any) -> None:
    assert not SCHEMA.is_valid(with_change(key, value))


def test_the_pipeline_keeps_the_schema_of_dvc() -> None:
    pipeline = yaml.safe_load(Path("dvc.yaml").read_text())
    COMPILED_MULTI_STAGE_SCHEMA(pipeline)
    pipeline["stages"]["train"]["outputs"] = []
    with pytest.raises(Invalid, match="outputs"):
        COMPILED_MULTI_STAGE_SCHEMA(pipeline)


def test_every_plot_is_an_output_of_its_own() -> None:
    """One inside of a folder makes `dvc exp run` fail in a clone that has not pulled."""
    pipeline = yaml.safe_load(Path("dvc.yaml").read_text())
    outs = [out for stage in pipeline["stages"].values() for out in stage["outs"]]
    names = {out if isinstance(out, str) else next(iter(out)) for out in outs}
    plots = [(plot, None) if isinstance(plot, str) else next(iter(plot.items())) for plot in pipeline["plots"]]
    assert {path for plot, options in plots for path in (options["y"] if options else [plot])} <= names

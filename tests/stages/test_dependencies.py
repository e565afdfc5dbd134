"""Each stage's deps in dvc.yaml are the modules that decide its result, no more and no fewer."""

from __future__ import annotations

from pathlib import Path

import grimp
import pytest
import yaml

from tests.helpers import ROOT

STAGES = yaml.safe_load((ROOT / "dvc.yaml").read_text("utf-8"))["stages"]
# Modules that decide no result.
DECIDE_NOTHING = {
    "custom_transformer.config": "DVC tracks parameters by their values",
    "custom_transformer.errors": "messages",
    "custom_transformer.files": "how files are written safely, not what is in them",
    "custom_transformer.paths": "dvc.yaml names the same paths",
    "custom_transformer.progress": "the terminal",
    "custom_transformer.runs.dvc_parent": "whether somebody still waits for the result",
    "custom_transformer.runs.launch": "starts the stage in several processes",
    "custom_transformer.runs.fingerprint": "whether an unfinished run may go on",
    "custom_transformer.runs.work_folder": "where an unfinished run waits",
    "custom_transformer.text.workers": "how many processes share work whose result does not depend on that",
    "custom_transformer.tracking": "copies of results",
    "stages.cli": "the command line",
    "stages.generate": "as part of evaluate: samples, which only a person asks for",
    "stages.show": "the terminal",
}


def import_graph() -> grimp.ImportGraph:
    """Also imports within functions, but none that only the type checker makes."""
    return grimp.build_graph("custom_transformer", "stages", exclude_type_checking_imports=True, cache_dir=None)


def deciding(graph: grimp.ImportGraph, stage: str) -> set[str]:
    """The files of all modules that decide the result of a stage."""
    program = f"stages.{stage}"
    for module in DECIDE_NOTHING.keys() - {program}:
        for part in (*graph.find_descendants(module), module):
            graph.remove_module(part)
    files = {program: ROOT / f"stages/{stage}.py"}
    for module in graph.find_upstream_modules(program):
        path = ROOT / ("src/" if module.startswith("custom_transformer") else "") / module.replace(".", "/")
        files[module] = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    return {str(path.relative_to(ROOT)) for path in files.values()}


def uncovered(found: set[str], deps: list[str]) -> set[str]:
    return {file for file in found if not any(Path(file).is_relative_to(dep) for dep in deps)}


@pytest.mark.parametrize("stage", STAGES)
def test_the_deps_of_a_stage_are_what_it_imports(stage: str) -> None:
    found = deciding(import_graph(), stage)
    programs = [dep for dep in STAGES[stage]["deps"] if dep.startswith(("src/", "stages/"))]
    assert uncovered(found, programs) == set(), "missing among the deps"
    assert [dep for dep in programs if uncovered(found, [dep]) == found] == [], "imported by nothing"


def test_a_planted_import_is_missed_among_the_deps() -> None:
    graph = import_graph()
    graph.add_import(importer="custom_transformer.text.tokens", imported="custom_transformer.text.hub")
    assert uncovered(deciding(graph, "train"), STAGES["train"]["deps"]) == {"src/custom_transformer/text/hub.py"}

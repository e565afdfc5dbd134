"""The dependencies of each stage in dvc.yaml are the code that decides its results: no file fewer and none more."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

import grimp
import pytest
import yaml

from tests.helpers import ROOT

PIPELINE = yaml.safe_load((ROOT / "dvc.yaml").read_text("utf-8"))["stages"]
CODE = ("src/custom_transformer/", "stages/")  # what else a stage depends on is what other stages write
Imports = Mapping[str, Iterable[str]]

# Modules that decide no result, with the modules under them; what they import counts only where another imports it.
DECIDE_NOTHING = {
    "custom_transformer.config": "reads parameters, whose values DVC compares",
    "custom_transformer.errors": "words of refusals",
    "custom_transformer.files": "how files are written, not what is written",
    "custom_transformer.progress": "the terminal",
    "custom_transformer.runs.fingerprint": "finds the saved state of a stopped run",
    "custom_transformer.runs.resume": "keeps that state: a resumed run ends with the bytes of an uninterrupted one",
    "custom_transformer.tracking": "tells MLflow; DVC tracks nothing of that",
    "stages.cli": "reads the command line",
}
# Imports by which a stage reaches what decides none of its results.
NOT_FOLLOWED = {
    ("stages.evaluate", "stages.generate"): "samples, only with --generate, which the pipeline does not pass",
    ("stages.evaluate", "custom_transformer.pages.report"): "prints the metrics in the terminal",
}


@pytest.fixture(scope="module")
def imports() -> dict[str, set[str]]:
    """Which of our modules each imports, within functions too, but not for the type checker alone."""
    graph = grimp.build_graph("custom_transformer", "stages", exclude_type_checking_imports=True, cache_dir=None)
    return {module: graph.find_modules_directly_imported_by(module) for module in graph.modules}


def decides_nothing(module: str) -> bool:
    return any(module == name or module.startswith(f"{name}.") for name in DECIDE_NOTHING)


def deciding(stage: str, imports: Imports) -> set[str]:
    """The modules that decide the results of `stage`, its own included."""
    found, waiting = set(), [f"stages.{stage}"]
    while waiting:
        module = waiting.pop()
        if module in found or decides_nothing(module):
            continue
        found.add(module)
        waiting += [imported for imported in imports[module] if (module, imported) not in NOT_FOLLOWED]
    return found


def files_of(modules: Iterable[str]) -> set[str]:
    """The modules' files, and what lies beside them in their folders that is no Python, such as kernels.cpp."""
    files = set()
    for module in modules:
        path = Path(*module.split(".")).with_suffix(".py")
        path = path if module.startswith("stages.") else "src" / path
        files.add(str(path))
        data = (beside for beside in (ROOT / path).parent.iterdir() if beside.is_file() and beside.suffix != ".py")
        files |= {str(beside.relative_to(ROOT)) for beside in data}
    return files


def differences(stage: str, dependencies: Iterable[str], imports: Imports) -> tuple[list[str], list[str]]:
    """Files that decide results of `stage` and are under no dependency, and dependencies under which there is none."""
    needed = files_of(deciding(stage, imports))
    listed = [dependency for dependency in dependencies if dependency.startswith(CODE)]

    def covers(dependency: str, file: str) -> bool:
        return file == dependency or file.startswith(f"{dependency}/")

    missing = [file for file in needed if not any(covers(dependency, file) for dependency in listed)]
    unused = [dependency for dependency in listed if not any(covers(dependency, file) for file in needed)]
    return sorted(missing), sorted(unused)


@pytest.mark.parametrize("stage", PIPELINE)
def test_the_dependencies_are_what_the_stage_imports(stage: str, imports: Imports) -> None:
    assert differences(stage, PIPELINE[stage]["deps"], imports) == ([], [])


@pytest.mark.parametrize("stage", PIPELINE)
def test_an_import_that_dvc_does_not_know_is_caught(stage: str, imports: dict[str, set[str]]) -> None:
    """Right in the stage, and far from it."""
    new = "custom_transformer.runs.planted"
    for module in deciding(stage, imports):
        planted = {**imports, module: {*imports[module], new}, new: set()}
        missing = differences(stage, PIPELINE[stage]["deps"], planted)[0]
        assert missing == ["src/custom_transformer/runs/planted.py"], module


@pytest.mark.parametrize("stage", PIPELINE)
def test_a_dependency_too_few_or_too_many_is_caught(stage: str, imports: Imports) -> None:
    dependencies = PIPELINE[stage]["deps"]
    for dependency in dependencies:
        if dependency.startswith(CODE):
            others = [other for other in dependencies if other != dependency]
            assert differences(stage, others, imports)[0], dependency
    unused = "src/custom_transformer/runs/summary.py"
    assert differences(stage, [*dependencies, unused], imports) == ([], [unused])


def test_imports_within_functions_count_and_those_for_the_type_checker_do_not(imports: Imports) -> None:
    assert "custom_transformer.tracking" in imports["custom_transformer.__main__"]
    assert "custom_transformer.text.primer" not in imports["custom_transformer.runs.evaluation"]


def test_the_lists_name_what_there_is(imports: Imports) -> None:
    assert imports.keys() >= DECIDE_NOTHING.keys()
    for importer, imported in NOT_FOLLOWED:
        assert imported in imports[importer]


@pytest.mark.parametrize("stage", ["train", "evaluate", "generate", "report"])
def test_what_decides_how_it_is_computed_is_a_parameter_of_the_stage(stage: str) -> None:
    """Device and kernels decide the last digits."""
    params = PIPELINE[stage]["params"]
    assert "training" in params or {"training.compile", "training.device"} <= set(params)

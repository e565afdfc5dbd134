"""A run's best checkpoint in a real store: one model, one version, whatever is interrupted; the alias at the best."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from custom_transformer.tracking.registry import ALIAS, CRITERION, VALIDATION_TAG, deliver_model, keep_best
from custom_transformer.tracking.spool import Header
from custom_transformer.tracking.store import open_store


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[MlflowClient, Header]]:
    root = tmp_path_factory.mktemp("store")
    header = Header(f"sqlite:///{root / 'mlflow.db'}", "e", "n", 0, {"seed": "1"}, {})
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("DVC_ROOT", str(root))
        environment.delenv("MLFLOW_TRACKING_URI", raising=False)
        (root / "elsewhere").mkdir()
        environment.chdir(root / "elsewhere")  # where MLflow's default store would be another one
        client = open_store(header.uri)
        client.create_experiment("e", artifact_location=(root / "artifacts").as_uri())
        yield client, header


class Interrupted:
    """A client that does something of the test's after its call number `after`."""

    def __init__(self, client: MlflowClient, after: int, what: Callable[[], None]):
        self._client, self._left, self._what = client, after, what

    def __getattr__(self, name: str) -> Any:
        def call(*arguments: Any, **named: Any) -> Any:
            answer = getattr(self._client, name)(*arguments, **named)
            self._left -= 1
            if self._left == 0:
                self._what()
            return answer

        return call


class Killed(BaseException):
    """The power is gone."""


def kill() -> None:
    raise Killed


def model_folder(folder: Path) -> Path:
    (folder / "model/data").mkdir(parents=True, exist_ok=True)
    (folder / "model/MLmodel").write_text("flavors: {}\n")
    (folder / "model/data/checkpoint.pt").write_bytes(b"weights")
    return folder / "model"


def facts(name: str | None, bits: float = 1.5, text: str = "t" * 64) -> dict[str, Any]:
    measured = {"time": 1000, "step": 7, "metrics": {"eval_loss": 2.0, f"eval_{CRITERION}": bits}}
    return {"content": "c" * 64, "validation": text, "registered_model": name, "measured": measured}


def test_a_delivery_killed_after_any_call_and_done_again_leaves_one_of_each(
    store: tuple[MlflowClient, Header], tmp_path: Path
) -> None:
    client, header = store
    folder = model_folder(tmp_path)
    for after in itertools.count(1):
        name, run_id = f"killed-{after}", client.create_run("1").info.run_id
        try:
            deliver_model(Interrupted(client, after, kill), header, run_id, folder, facts(name))  # type: ignore[arg-type]
            break
        except Killed:
            deliver_model(client, header, run_id, folder, facts(name))
        (model,) = client.search_logged_models(["1"], f"source_run_id = '{run_id}'")
        assert model.status == "READY"
        assert {m.key: m.value for m in model.metrics} == {"eval_loss": 2.0, "eval_bits_per_byte": 1.5}
        assert [(o.model_id, o.step) for o in client.get_run(run_id).outputs.model_outputs] == [(model.model_id, 7)]
        assert len(client.get_metric_history(run_id, "eval_loss")) == 1
        (version,) = client.search_model_versions(f"name = '{name}'")
        assert (version.run_id, version.source) == (run_id, f"models:/{model.model_id}")
        assert version.tags == {CRITERION: "1.5", VALIDATION_TAG: "t" * 64}
        assert client.get_registered_model(name).aliases == {ALIAS: version.version}
        assert model.tags["mlflow.modelVersions"] == f'[{{"name": "{name}", "version": {version.version}}}]'
        stored = Path(model.artifact_location.removeprefix("file://"))
        assert (stored / "data/checkpoint.pt").read_bytes() == b"weights"
        assert f"model_id: {model.model_id}" in (stored / "MLmodel").read_text()
    assert after > 10


def test_a_version_has_the_figure_of_its_newest_evaluation(store: tuple[MlflowClient, Header], tmp_path: Path) -> None:
    """First of a part of the text, then of all of it, on which it has a better rival later."""
    client, header = store
    run_id = client.create_run("1").info.run_id
    for bits, text in ((1.0, "part"), (1.5, "whole")):
        told = facts("again", bits, text)
        told["measured"]["time"] = int(1000 * bits)
        deliver_model(client, header, run_id, model_folder(tmp_path), told)
    (version,) = client.search_model_versions("name = 'again'")
    assert version.tags == {CRITERION: "1.5", VALIDATION_TAG: "whole"}
    keep_best(client, add(client, "again", "1.4", "whole"))
    assert client.get_model_version_by_alias("again", ALIAS).version == 2


def test_without_a_name_nothing_is_registered(store: tuple[MlflowClient, Header], tmp_path: Path) -> None:
    client, header = store
    before = len(client.search_model_versions())
    run_id = client.create_run("1").info.run_id
    deliver_model(client, header, run_id, model_folder(tmp_path), facts(None))
    assert len(client.search_logged_models(["1"], f"source_run_id = '{run_id}'")) == 1
    assert len(client.search_model_versions()) == before


def test_a_model_whose_tokenizer_loses_text_never_becomes_the_best(
    store: tuple[MlflowClient, Header], tmp_path: Path
) -> None:
    """Not as the first, not by its figures, and not as a rival of those that come later."""
    client, header = store

    def deliver(figure: str, bits: float) -> str:
        told = facts("lossy")
        told["measured"]["metrics"] = {"eval_loss": 0.1, f"eval_{figure}": bits}
        run_id = client.create_run("1").info.run_id
        deliver_model(client, header, run_id, model_folder(tmp_path), told)
        (version,) = client.search_model_versions(f"name = 'lossy' AND run_id = '{run_id}'")
        return str(version.version)

    assert CRITERION not in client.get_model_version("lossy", deliver("lossy_bits_per_byte", 0.01)).tags
    assert client.get_registered_model("lossy").aliases == {}
    best = deliver(CRITERION, 2.0)
    deliver("lossy_bits_per_byte", 0.02)
    assert client.get_model_version_by_alias("lossy", ALIAS).version == int(best)


def add(client: MlflowClient, name: str, bits: str | None, text: str | None) -> Any:
    """A version as a courier makes it; None stands for a tag that somebody's own version has not."""
    tags = {CRITERION: bits, VALIDATION_TAG: text}
    return client.create_model_version(name, "file:///m", tags={key: v for key, v in tags.items() if v is not None})


@pytest.mark.parametrize(
    ("versions", "held"),
    [
        ([("2.0", "a")], 1),
        ([("2.0", "a"), ("1.5", "a"), ("1.8", "a")], 2),
        ([("2.0", "a"), ("2.0", "a")], 1),  # as good is not better
        ([("10.0", "a"), ("9.5", "a")], 2),  # by number, not as text
        ([("2.0", "a"), ("1.0", "b"), ("1.9", "a")], 3),  # on another text
        ([("2.0", "a"), ("a person's", "a"), (None, "a")], 1),
        ([("nan", "a"), ("2.0", "a")], 2),
        ([(None, None), ("2.0", "a")], 1),  # what has no figure is compared with nothing
    ],
)
def test_the_alias_moves_only_when_validation_improves(
    store: tuple[MlflowClient, Header], versions: list[tuple[str | None, str | None]], held: int
) -> None:
    client, _ = store
    name = f"alias-{len(client.search_registered_models())}"
    client.create_registered_model(name)
    for bits, text in versions:
        keep_best(client, add(client, name, bits, text))
    assert client.get_model_version_by_alias(name, ALIAS).version == held


def test_a_person_moves_the_alias_to_another_text_and_it_goes_on_there(store: tuple[MlflowClient, Header]) -> None:
    client, _ = store
    client.create_registered_model("moved")
    for bits, text in [("1.0", "old"), ("2.0", "new")]:
        keep_best(client, add(client, "moved", bits, text))
    client.set_registered_model_alias("moved", ALIAS, "2")
    for bits, text in [("0.5", "old"), ("1.9", "new")]:
        keep_best(client, add(client, "moved", bits, text))
    assert client.get_model_version_by_alias("moved", ALIAS).version == 4
    client.delete_model_version("moved", "4")  # and the alias with it
    keep_best(client, add(client, "moved", "3.0", "new"))
    assert client.get_model_version_by_alias("moved", ALIAS).version == 2


@pytest.mark.parametrize("bits", [("1.0", "1.5"), ("1.5", "1.0")])
def test_two_couriers_at_once_leave_the_alias_at_the_better_version(
    store: tuple[MlflowClient, Header], bits: tuple[str, str]
) -> None:
    """The second runs as a whole between any two calls of the first."""
    client, _ = store
    for after in itertools.count(1):
        name = f"race-{bits[0]}-{after}"
        client.create_registered_model(name)
        keep_best(client, add(client, name, "2.0", "a"))
        second: list[Any] = []

        def other(name: str = name, second: list[Any] = second) -> None:
            second.append(add(client, name, bits[1], "a"))
            keep_best(client, second[0])

        keep_best(Interrupted(client, after, other), add(client, name, bits[0], "a"))  # type: ignore[arg-type]
        if not second:
            break
        assert client.get_model_version_by_alias(name, ALIAS).tags[CRITERION] == "1.0"
    assert after > 5

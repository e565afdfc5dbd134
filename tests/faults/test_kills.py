"""Whatever is killed, the same `dvc repro` again ends in the bytes of an undisturbed run, and in one MLflow run."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from mlflow import MlflowClient

from tests.faults.killing import Pipeline, kill

pytestmark = pytest.mark.processes


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Pipeline:
    return Pipeline(tmp_path_factory.mktemp("kills") / "repository")


def interrupt(pipeline: Pipeline) -> None:
    """Starts afresh, and kills dvc and its training after the first saved state."""
    pipeline.start_over()
    process = pipeline.start()
    pipeline.wait_for_states(process)
    kill(process, "both")


def newest_run_is_whole(pipeline: Pipeline) -> None:
    client = MlflowClient(f"sqlite:///{pipeline.folder / 'mlflow.db'}")
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    run = client.search_runs(experiments, order_by=["attributes.start_time DESC"], max_results=1)[0]
    assert run.info.status == "FINISHED"
    steps = sorted(metric.step for metric in client.get_metric_history(run.info.run_id, "train_loss"))
    assert steps == list(range(1, pipeline.steps + 1))


def test_killed_again_and_again(pipeline: Pipeline) -> None:
    """The trainer; dvc, with the next dvc started while the trainer lives; both, with a state cut short."""
    pipeline.start_over()
    process = pipeline.start()
    pipeline.wait_for_states(process)
    kill(process, "trainer")
    assert process.returncode != 0

    process = pipeline.start()
    pipeline.wait_for_states(process, after=40)
    kill(process, "dvc")

    process = pipeline.start()  # beside the orphan, which notices and lets go
    pipeline.wait_for_states(process, after=80)
    kill(process, "both")
    newest = pipeline.states()[-1]
    newest.write_bytes(newest.read_bytes()[:1000])

    pipeline.finish()
    assert f"{newest.name}: damaged; the state before it serves" in pipeline.log()
    assert "going on after step" in pipeline.log()
    assert pipeline.differences() == []
    assert not list(pipeline.folder.glob("work/*/*/"))
    newest_run_is_whole(pipeline)


def test_a_run_goes_on_with_another_number_of_threads_to_the_same_end(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupt(pipeline)
    monkeypatch.setitem(pipeline.environment, "OMP_NUM_THREADS", "2")
    monkeypatch.setitem(pipeline.environment, "ATEN_CPU_CAPABILITY", "default")
    assert pipeline.start().wait(300) == 0, pipeline.log()
    assert "going on after step" in pipeline.log()
    assert pipeline.differences() == []


@pytest.fixture
def library_products(pipeline: Pipeline) -> Iterator[None]:
    """With the libraries' products, whose bits depend on the number of threads."""
    path = pipeline.folder / "params.yaml"
    before = path.read_text("utf-8")
    params = yaml.safe_load(before)
    params["training"]["portable"] = False
    path.write_text(yaml.safe_dump(params), "utf-8")
    yield
    path.write_text(before, "utf-8")


@pytest.mark.usefixtures("library_products")
def test_conditions_that_changed_stop_a_run_before_it_goes_on(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupt(pipeline)
    monkeypatch.setitem(pipeline.environment, "OMP_NUM_THREADS", "2")
    before = Path(pipeline.states()[-1]).read_bytes()
    process = pipeline.start()
    assert process.wait(300) != 0
    assert "threads was 1 and is 2" in pipeline.log()
    assert "CUSTOM_TRANSFORMER_RESUME=anyway" in pipeline.log()
    assert pipeline.states()[-1].read_bytes() == before
    monkeypatch.setitem(pipeline.environment, "CUSTOM_TRANSFORMER_RESUME", "anyway")
    process = pipeline.start()
    pipeline.wait_for_states(process, after=int(pipeline.states()[-1].name.split("-")[1]))
    kill(process, "both")
    assert "it goes on all the same" in pipeline.log()

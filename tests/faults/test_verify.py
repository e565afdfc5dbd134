"""`verify` on a real pipeline: equal where nothing was touched, and one flipped bit anywhere is found and named."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from mlflow import MlflowClient

from custom_transformer.runs.kept_states import KEEP
from tests.faults.killing import Pipeline, kill
from tests.processes import run

pytestmark = pytest.mark.processes


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Pipeline:
    """Killed once and run again, with all of its states kept and its lock committed."""
    folder = tmp_path_factory.mktemp("verify") / "repository"
    made = Pipeline(folder, steps=60, **{KEEP: "all"})
    shutil.rmtree(folder / "work/states")
    made.start_over()
    process = made.start()
    made.wait_for_states(process, after=20)
    kill(process, "both")
    assert not (folder / "metrics/digests.csv").exists()
    made.finish()
    assert made.differences() == []
    commit(made, "trained")
    return made


def commit(pipeline: Pipeline, message: str) -> None:
    identity = ["-c", "user.name=t", "-c", "user.email=t@localhost"]
    for command in (["add", "--all"], [*identity, "commit", "--quiet", "--message", message]):
        subprocess.run(["git", *command], cwd=pipeline.folder, check=True)


def verify(pipeline: Pipeline, *arguments: object) -> subprocess.CompletedProcess[str]:
    return run("-m", "custom_transformer", "verify", *arguments, cwd=pipeline.folder, env=pipeline.environment)


def equal(done: subprocess.CompletedProcess[str]) -> str:
    assert (done.returncode, done.stderr) == (0, "")
    said = done.stdout.splitlines()[-1]
    assert said.startswith("equal: ")
    return said


def test_a_run_that_was_killed_and_went_on_is_equal(pipeline: Pipeline) -> None:
    """By dvc.lock, by its MLflow run, by its states, and some segments of it; nothing is changed by that."""
    before = pipeline.outputs()
    said = equal(verify(pipeline))
    assert said == "equal: 9 digests of metrics/digests.csv, 9 states, 7 results of dvc.lock, over 60 steps"
    said = equal(verify(pipeline, "--segments", 3))
    assert "9 states by their digests; 6 of 60 steps (10%) computed again: " in said
    client = MlflowClient(f"sqlite:///{pipeline.folder / 'mlflow.db'}")
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    newest = client.search_runs(experiments, order_by=["attributes.start_time DESC"], max_results=1)[0]
    assert f"9 digests of run {newest.info.run_id}, 9 states, over 60 steps" in equal(
        verify(pipeline, "--run", newest.info.run_id)
    )
    (states,) = pipeline.folder.glob("work/states/*")
    assert "9 states" in equal(verify(pipeline, "--states", states))
    assert pipeline.outputs() == before


def test_a_revision_is_verified_by_its_own_code_in_a_clone(pipeline: Pipeline) -> None:
    program = [sys.executable, "-m", "custom_transformer", "verify", "--rev", "HEAD", "--segments", "1"]
    path = pipeline.folder / "src/custom_transformer/maths/ops.py"
    with changed(path, lambda content: content + b"\n"):  # not in the commit
        here = subprocess.run(program, cwd=pipeline.folder, env=pipeline.environment, capture_output=True, text=True)
    assert (here.returncode, here.stderr) == (0, "")
    assert "equal: " in here.stdout


class changed:
    """A file with other content for a while; its time and size may stay the same."""

    def __init__(self, path: Path, change: Callable[[bytes], bytes]):
        self.path, self.change = path, change

    def __enter__(self) -> None:
        self.before, self.mode = self.path.read_bytes(), self.path.stat().st_mode
        self.path.chmod(0o644)
        self.path.write_bytes(self.change(self.before))

    def __exit__(self, *error: object) -> None:
        self.path.write_bytes(self.before)
        self.path.chmod(self.mode)


def flipped(place: int) -> Callable[[bytes], bytes]:
    return lambda content: content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :]


@pytest.mark.parametrize(
    ("path", "place", "words"),
    [
        ("data/tokens/train-00000.bin", 4000, "not the content that the training read, by dvc.lock"),
        ("data/tokenizer/tokenizer.json", 200, "not the content that the training read, by dvc.lock"),
        ("src/custom_transformer/maths/ops.py", 3000, "not the content that the training read, by dvc.lock"),
        ("src/custom_transformer/fast/update.cpp", 30, "not the content that the training read, by dvc.lock"),
        ("stages/train.py", 3, "not the content that the training read, by dvc.lock"),
        ("metrics/digests.csv", 500, "not the content that the training wrote, by dvc.lock"),
    ],
)
def test_a_bit_of_data_or_code_names_its_file(pipeline: Pipeline, path: str, place: int, words: str) -> None:
    with changed(pipeline.folder / path, flipped(place)):
        done = verify(pipeline)
    assert (done.returncode, done.stderr) == (1, "")
    assert done.stdout == f"differs: {path}: {words}\n"


def test_a_bit_of_a_checkpoint_names_its_tensor(pipeline: Pipeline) -> None:
    path = pipeline.folder / "checkpoints/best.pt"
    numbers = torch.load(path, weights_only=True)["state_dict"]["blocks.1.up.weight"].numpy().tobytes()
    with changed(path, flipped(path.read_bytes().index(numbers) + 4 * 70)):
        done = verify(pipeline)
    assert done.returncode == 1
    assert "differs: checkpoints: has been changed since; what is recomputed is what dvc.lock records" in done.stdout
    assert "checkpoints/best.pt: blocks.1.up.weight[1, 6]: " in done.stdout
    assert "(1 of 2,048 numbers, 1 of 28 tensors)" in done.stdout


def test_a_bit_of_a_state_names_file_and_tensor(pipeline: Pipeline) -> None:
    path = sorted(pipeline.folder.glob("work/states/*/state-*.pt"))[4]
    numbers = torch.load(path, weights_only=True)["optimizer"]["v"]["token_embedding"].numpy().tobytes()
    with changed(path, flipped(path.read_bytes().index(numbers) + 4 * 33)):
        done = verify(pipeline, "--segments", 1)
        whole = verify(pipeline)
    where = path.relative_to(pipeline.folder)
    assert done.returncode == whole.returncode == 1
    assert f"differs: {where}: damaged" in done.stdout
    assert "optimizer.v.token_embedding: digest " in done.stdout
    assert "optimizer.v.token_embedding[1, 1]: " in whole.stdout


def test_without_the_digests_the_results_are_compared(pipeline: Pipeline) -> None:
    """As in a clone that has only the lock."""
    digests = pipeline.folder / "metrics/digests.csv"
    aside = digests.rename(pipeline.folder / "aside")
    try:
        assert equal(verify(pipeline)).endswith("7 results of dvc.lock, over 60 steps")
        assert_refused(verify(pipeline, "--segments", 1), "--segments: there is no metrics/digests.csv")
    finally:
        aside.rename(digests)


@pytest.fixture
def without_states(pipeline: Pipeline) -> Iterator[None]:
    aside = (pipeline.folder / "work/states").rename(pipeline.folder / "aside")
    yield
    aside.rename(pipeline.folder / "work/states")


def test_segments_need_states(pipeline: Pipeline, without_states: None) -> None:
    assert_refused(
        verify(pipeline, "--segments", 3), f"--segments: no states of it in work/states; keep them by {KEEP}"
    )


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--segments", 0), "--segments should be at least 1"),
        (("--rev", "nowhere"), "'nowhere': neither a commit nor a DVC experiment"),
        (("--run", "0123"), "run '0123': no metrics/digests.csv of it in sqlite:"),
        (("--states", "data"), "data: no states in it"),
        (("--states", "data", "--rev", "HEAD"), "not allowed with"),
    ],
)
def test_bad_input_gets_one_line(pipeline: Pipeline, arguments: tuple[object, ...], words: str) -> None:
    assert_refused(verify(pipeline, *arguments), words)


def test_without_a_lock_it_says_what_to_do(tmp_path: Path) -> None:
    done = run("-m", "custom_transformer", "verify", cwd=tmp_path)
    assert_refused(done, "dvc.lock: no such file; run from the repository's root, after dvc repro")


def assert_refused(done: subprocess.CompletedProcess[str], words: str) -> None:
    assert done.returncode == 1, done.stdout + done.stderr
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    assert words in done.stderr

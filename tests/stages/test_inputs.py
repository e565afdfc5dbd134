"""What DVC does when a local file changes: no more and no less than what follows from it."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import yaml

from tests.helpers import PIPELINE_ENVIRONMENT, copy_repository
from tests.processes import quick_environment, run

pytestmark = pytest.mark.processes


class Project:
    """A repository with texts and a tokenizer of its own, both ignored by git."""

    def __init__(self, folder: Path):
        self.folder = copy_repository(folder)
        (folder / "texts").mkdir()
        (folder / "texts/a.txt").write_text("\n\n".join(f"OLD story number {i} about a cat" for i in range(60)))
        with (folder / ".gitignore").open("a") as file:
            file.write("/texts/\n/tokenizer/\n")
        self.configure(dataset="texts/*.txt", subset_size=20, vocab_size=300)
        for command in (
            ["init", "--quiet"],
            ["config", "user.name", "t"],
            ["config", "user.email", "t@localhost"],
            ["add", "--all"],
            ["commit", "--quiet", "--message", "x"],
        ):
            subprocess.run(["git", *command], cwd=folder, check=True)

    def configure(self, **data: object) -> None:
        params = yaml.safe_load((self.folder / "params.yaml").read_text("utf-8"))
        params["data"] |= data
        (self.folder / "params.yaml").write_text(yaml.safe_dump(params), "utf-8")

    def dvc(self, *arguments: str) -> str:
        done = run("-m", "dvc", *arguments, cwd=self.folder, env=quick_environment())
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def repro(self) -> list[str]:
        """The stages that ran to bring the tokens up to date, but for `inputs`, which always does."""
        ran = re.findall(r"^Running stage '(.*)':$", self.dvc("repro", "tokenize"), re.M)
        assert ran[0] == "inputs"
        return ran[1:]

    def first(self) -> tuple[int, str]:
        texts = pq.read_table(self.folder / "data/raw/train.parquet")["text"].to_pylist()
        return len(texts), texts[0][:3]


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return Project(tmp_path / "project")


def test_an_edited_text_is_read_anew_and_never_comes_back(project: Project) -> None:
    assert project.repro() == ["download", "tokenize"]
    assert project.repro() == []
    subprocess.run(["git", "add", "--all"], cwd=project.folder, check=True)
    subprocess.run(["git", "commit", "--quiet", "--message", "y"], cwd=project.folder, check=True)
    (project.folder / "texts/a.txt").touch()
    assert project.repro() == []
    changes = subprocess.run(["git", "status", "--porcelain"], cwd=project.folder, capture_output=True, check=True)
    assert changes.stdout == b""
    project.configure(subset_size=30)
    assert project.repro() == ["download", "tokenize"]
    text = project.folder / "texts/a.txt"
    text.write_text(text.read_text().replace("OLD", "NEW"))
    assert project.repro() == ["download", "tokenize"]
    assert project.first() == (30, "NEW")
    project.configure(subset_size=20)
    assert project.repro() == ["download", "tokenize"]
    assert project.first() == (20, "NEW")
    # What has been computed before, on the same text, comes from the cache.
    text.write_text(text.read_text().replace("NEW", "OLD"))
    assert project.repro() == []
    assert project.first() == (20, "OLD")


def test_an_edited_tokenizer_is_loaded_anew(project: Project) -> None:
    project.repro()
    shutil.copytree(project.folder / "data/tokenizer", project.folder / "tokenizer")
    project.configure(tokenizer="tokenizer")
    assert project.repro() == ["tokenize"]
    assert project.repro() == []
    definition = project.folder / "tokenizer/tokenizer.json"
    definition.write_text(definition.read_text().replace("<|endoftext|>", "<|end|>"))
    settings = project.folder / "tokenizer/tokenizer_config.json"
    settings.write_text(settings.read_text().replace("<|endoftext|>", "<|end|>"))
    assert project.repro() == ["tokenize"]
    assert "<|end|>" in (project.folder / "data/tokenizer/tokenizer.json").read_text()


def test_a_temporary_experiment_reads_the_text_as_it_is_now(project: Project) -> None:
    """Its copy of the repository has neither texts nor tokenizer, which git ignores."""
    project.repro()
    shutil.copytree(project.folder / "data/tokenizer", project.folder / "tokenizer")
    text = project.folder / "texts/a.txt"
    text.write_text(text.read_text().replace("OLD", "NEW"))
    project.dvc("exp", "run", "--temp", "--name", "edited", "-S", "data.tokenizer=tokenizer", "tokenize")
    project.configure(tokenizer="tokenizer")
    assert project.repro() == []  # all of it has been computed
    assert project.first() == (20, "NEW")


def test_a_stage_run_alone_needs_no_manifest(project: Project) -> None:
    for stage in ("download", "tokenize"):
        done = run("-m", f"stages.{stage}", cwd=project.folder, env=PIPELINE_ENVIRONMENT)
        assert done.returncode == 0, done.stderr
    assert not (project.folder / "data/inputs").exists()

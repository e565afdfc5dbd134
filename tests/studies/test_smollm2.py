"""The study's steps on a small model: fetched only if it is the file that is known, measured, fine-tuned by DVC,
exported and compared. llama.cpp itself runs in .ci/validate-interchange."""

from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

from custom_transformer.config import load_params
from custom_transformer.errors import UserError
from custom_transformer.interchange.formats import export_as
from custom_transformer.interchange.gguf_files import FILE, export_gguf, import_gguf
from custom_transformer.maths.model import CustomTransformer
from custom_transformer.runs.checkpoint import load_checkpoint
from custom_transformer.text.saved_tokenizer import load_tokenizer
from custom_transformer.text.tokenization import build_tokenizer
from studies import fine_tuning, llama_cpp, smollm2
from studies.fine_tuning import Result, fine_tuning_params
from tests.helpers import ROOT, copy_repository, random_model
from tests.processes import quick_python
from tests.text.making import TEXTS, data

LLAMA = {"architecture": "llama", "d_model": 24, "n_heads": 4, "n_kv_heads": 2, "rope_base": 500.0}
PARAMS = load_params(ROOT / fine_tuning.CONFIG)


def small_model(folder: Path, **changes: object) -> CustomTransformer:
    """A Llama in `folder`/model.gguf."""
    tokenizer = build_tokenizer(data(vocab_size=300), TEXTS["train"])
    model = random_model(torch.float32, vocab_size=len(tokenizer), **LLAMA | changes)
    export_gguf(model, tokenizer, folder)
    return model


def test_the_imported_model_is_measured_in_windows(tmp_path: Path) -> None:
    model = small_model(tmp_path / "gguf", max_seq_len=8)
    import_gguf(tmp_path / "gguf" / FILE, tmp_path / "imported")
    text = "The 3rd text, naïve."
    measured = smollm2.measured_checkpoint(tmp_path / "imported", text, PARAMS.training)
    ids = load_tokenizer(tmp_path / "imported/tokenizer").encode(text)
    total, count = 0.0, 0
    for start in range(0, len(ids) - 1, 8):
        window = torch.tensor([ids[start : start + 8]])
        losses = F.cross_entropy(model.forward(window[:, :-1])[0].double(), window[0, 1:], reduction="sum")
        total, count = total + losses.item(), count + window.shape[1] - 1
    assert (measured.tokens, measured.loss) == (count, pytest.approx(total / count))
    assert measured.bits_per_byte == pytest.approx(total / math.log(2) / len(text.encode()))


def test_another_file_than_the_known_one_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(smollm2, "FETCHED", tmp_path / FILE)
    (tmp_path / FILE).write_bytes(b"GGUF")
    with pytest.raises(UserError, match="not the file that this study knows"):
        smollm2.fetched()


def test_the_measured_text_begins_the_given_one(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("né")
    assert smollm2.given_text(tmp_path / "text", 2) == "n"
    assert len(smollm2.given_text(None, 500).encode()) == 500
    with pytest.raises(UserError, match="no such file"):
        smollm2.given_text(tmp_path / "nowhere", 2)
    (tmp_path / "bytes").write_bytes(b"\xff\xfe")
    with pytest.raises(UserError, match="not UTF-8"):
        smollm2.given_text(tmp_path / "bytes", 2)


def test_the_parameters_follow_the_imported_model(tmp_path: Path) -> None:
    config = small_model(tmp_path, max_seq_len=16).config
    params = fine_tuning_params(Path("models/small"), config, Path("text.txt"), 7)
    assert params.model.model_dump() == config.model_dump(exclude={"vocab_size"})
    assert (params.data.max_length, params.data.dataset, params.training.max_steps) == (16, "text.txt", 7)
    assert (params.data.tokenizer, params.training.init_from) == ("models/small/tokenizer", "models/small/model.pt")
    params = fine_tuning_params(Path("models/small"), config.model_copy(update={"max_seq_len": 8192}), None, None)
    assert (params.data, params.training) == (
        PARAMS.data.model_copy(update={"tokenizer": params.data.tokenizer}),
        PARAMS.training.model_copy(update={"init_from": params.training.init_from}),
    )
    with pytest.raises(UserError, match=r"training\.max_steps"):
        fine_tuning_params(Path("models/small"), config, None, 0)


@pytest.fixture
def tuned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A small model where the fine-tuned one would be, in both formats."""
    monkeypatch.chdir(tmp_path)
    small_model(Path("gguf"), max_seq_len=48)
    import_gguf(Path("gguf") / FILE, smollm2.TUNED)
    for form in smollm2.FORMS:
        export_as(form, smollm2.TUNED / "model.pt", smollm2.TUNED / form, PARAMS)
    return smollm2.TUNED


def test_exports_are_compared_with_both_tools(tuned: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def answer(agree: bool) -> None:
        monkeypatch.setattr(llama_cpp, "check", lambda folders: agree)

    def missing(folders: object) -> bool:
        raise llama_cpp.NotInstalled("pip cannot install it")

    answer(True)
    both = smollm2.check_exports(PARAMS)
    assert [line.split(":")[0] for line in both] == ["transformers", "llama.cpp"]
    assert all(line.endswith("greedy tokens behind 3 prompts equal ours") for line in both)
    monkeypatch.setattr(llama_cpp, "check", missing)
    assert smollm2.check_exports(PARAMS) == [both[0], "llama.cpp: left out, since pip cannot install it"]
    answer(False)
    with pytest.raises(UserError, match=r"llama\.cpp computes something else"):
        smollm2.check_exports(PARAMS)

    weights = load_file(tuned / "huggingface/model.safetensors")
    for name, tensor in weights.items():
        weights[name] = tensor.flip(0).contiguous() if "q_proj" in name else tensor
    save_file(weights, tuned / "huggingface/model.safetensors", {"format": "pt"})
    answer(True)
    with pytest.raises(UserError, match="transformers goes on as"):
        smollm2.check_exports(PARAMS)


def test_the_report_sets_before_beside_after() -> None:
    def result(bits: float, text: str, ended: bool) -> Result:
        sample = {"prompt": "ROMEO:", "text": text, "ended": ended}
        return Result({"bits_per_byte": bits, "tokens": 12345}, [sample])

    before, after = result(1.5, "ROMEO: Hello", False), result(1.25, "ROMEO:\nFie!", True)
    after.metrics["held_out_accuracy"] = 0.5
    assert smollm2.table(before, after)[2:] == [
        "| `bits_per_byte` | 1.5000 | 1.2500 | of the texts, each from its start |",
        "| `tokens` | 12,345 | 12,345 | predicted, each once |",
    ]
    said = "\n".join(smollm2.samples(before, after))
    assert "`ROMEO:`, as imported:\n\n```text\nROMEO: Hello …\n```" in said
    assert "`ROMEO:`, fine-tuned:\n\n```text\nROMEO:\nFie!\n```" in said
    memory, duration = smollm2.summary(PARAMS, 12.34, 2.654e9), smollm2.summary(PARAMS, 1, None)
    assert "300 steps of 2 windows of 256 tokens, products in bfloat16, blocks recomputed" in memory[0]
    assert memory[0].endswith("held: 2.65 GB.")
    assert "unknown" in duration[0]


@pytest.mark.processes
def test_the_whole_study_by_dvc(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    project = copy_repository(tmp_path / "project")
    small_model(project / "models/gguf", max_seq_len=64)
    (project / "texts.txt").write_text("\n\n".join(f"Story {i}, of a cat and a dog." for i in range(60)))
    for command in (
        ["init", "--quiet"],
        ["config", "user.name", "t"],
        ["config", "user.email", "t@localhost"],
        ["add", "--all"],
        ["commit", "--quiet", "--message", "x"],
    ):
        subprocess.run(["git", *command], cwd=project, check=True)

    def no_llama_cpp(folders: object) -> bool:
        raise llama_cpp.NotInstalled("it is not here")

    # The stages run in processes that DVC starts; the study itself runs here, which starts fewer.
    monkeypatch.chdir(project)
    monkeypatch.setattr(sys, "executable", str(quick_python()))
    monkeypatch.setattr(smollm2, "apart", lambda function, *arguments: function(*arguments))
    monkeypatch.setattr(llama_cpp, "check", no_llama_cpp)
    arguments = ["--gguf", f"models/gguf/{FILE}", "--text", "texts.txt", "--steps", "4"]
    monkeypatch.setattr(sys, "argv", ["smollm2", *arguments])
    smollm2.main()

    report = smollm2.RESULTS.read_text("utf-8")
    assert report.strip() in capsys.readouterr().out
    assert "Fine-tuned on texts.txt: 4 steps" in report
    assert " GB." in report
    assert "| `bits_per_byte` |" in report
    assert "greedy tokens behind 3 prompts equal ours" in report
    assert "- llama.cpp: left out, since it is not here" in report
    tuned, imported = (load_checkpoint(folder / "model.pt") for folder in (smollm2.TUNED, smollm2.FOLDER))
    assert tuned.metadata["step"] == 4
    assert any(not torch.equal(tuned.state_dict[name], p) for name, p in imported.state_dict.items())
    status = subprocess.run(["git", "status", "--porcelain"], capture_output=True, text=True, check=True)
    assert status.stdout == ""  # the workspace's own parameters and results are as they were


@pytest.mark.processes
def test_another_process_returns_and_raises(tmp_path: Path) -> None:
    assert smollm2.apart(math.sqrt, 4) == 2
    with pytest.raises(UserError, match=r"nowhere\.gguf: no such file"):
        smollm2.apart(smollm2.given_text, tmp_path / "nowhere.gguf", 1)

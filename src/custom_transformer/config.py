"""params.yaml as validated, frozen models: the one place where a key is named."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from datetime import date
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    ValidationError,
    model_serializer,
    model_validator,
)

from custom_transformer.errors import UserError, escaped, one_line, shown
from custom_transformer.files import read_text
from custom_transformer.paths import PARAMS
from custom_transformer.plain_yaml import FLOAT, load_yaml

MAX_BYTES = 256 << 10  # of a file of parameters
MAX_VOCAB_SIZE = 1_000_000
MODEL_NAME = r"[A-Za-z0-9_][A-Za-z0-9_.-]*"


def _printable(text: str) -> str:
    if escaped(text) != text:
        held = "control characters, overrides of direction or half a surrogate pair"
        raise ValueError(f"{shown(text)} holds {held}; remove them")
    return text


def _fits_a_model_uri(name: str) -> str:
    if not re.fullmatch(MODEL_NAME, name):
        raise ValueError(f"{shown(name)} is no name for models:/NAME; use a-z, A-Z, 0-9, _, - and . only")
    return name


Count = Annotated[int, Field(ge=1, lt=2**31)]
Fraction = Annotated[float, Field(gt=0, lt=1)]
Beta = Annotated[float, Field(ge=0, lt=1)]
Text = Annotated[str, Field(min_length=1), AfterValidator(_printable)]
ModelName = Annotated[
    str, Field(max_length=200, json_schema_extra={"pattern": f"^{MODEL_NAME}$"}), AfterValidator(_fits_a_model_uri)
]
ExperimentName = Annotated[str, Field(min_length=1, max_length=500), AfterValidator(_printable)]
Name = Annotated[str, Field(pattern=r"^[\w.-]+$", max_length=100)]


class Section(BaseModel):
    """A group of keys: those without a default required, no others allowed, no value converted, nothing changed later.

    The text under a key is its description in editors (schema.py).
    """

    model_config = ConfigDict(
        extra="forbid", strict=True, frozen=True, allow_inf_nan=False, use_attribute_docstrings=True
    )


class DataParams(Section):
    """Where the text comes from and how it becomes tokens."""

    dataset: Text
    """primer, a registered name (tiny-textbooks, tinystories, …), a Hub id, or a path, folder or glob of files."""
    revision: Text | None
    """Branch, tag or commit of a Hub dataset; null: its main branch."""
    text_column: Text | None
    """The column that holds the text; null: the registered dataset's own, else "text"."""
    train_split: Text
    """The source's split to train on."""
    val_split: Text | None
    """The source's split to validate on; null: val_fraction of the training split is kept for it."""
    val_fraction: Fraction
    """Share of the training split kept for validation where val_split is null: the documents of smallest digest."""
    subset_size: Count | None
    """Documents to train on, of those not kept for validation; null: all of them."""
    val_subset_size: Count | None
    """Documents to validate on; null: all of them."""
    streaming: bool = False
    """Whether the training text is read where it is, each file by itself, in place of a copy of it in data/raw."""
    tokenizer: Text
    """bpe (trained on the training split), gpt2, or a path or Hub id of a fast tokenizer."""
    allow_lossy_tokenizer: bool = False
    """Whether the tokenizer may lose text (case, rare characters); such a run never becomes the registry's best."""
    vocab_size: Annotated[int, Field(ge=257, le=MAX_VOCAB_SIZE)]
    """Entries of a bpe tokenizer, at most: the 256 bytes, the end of text, and what it learns."""
    max_length: Annotated[int, Field(ge=2)]
    """Tokens per training window; at most model.max_seq_len."""

    @model_validator(mode="after")
    def _streamed_whole(self) -> DataParams:
        if self.streaming and (self.subset_size is not None or self.val_subset_size is None):
            raise ValueError(
                "streaming takes all of the training text and some of it to validate on; set subset_size to null and "
                "val_subset_size to a number"
            )
        return self


# The keys that not every architecture has.
_TURNED = ("n_kv_heads", "rope_base", "norm_eps")
OWN_KEYS = {"gpt2": ("bias",), "llama": _TURNED, "modern": _TURNED}


# The keys that one optimiser alone has.
OPTIMIZER_KEYS = {"muon": ("muon_learning_rate", "muon_momentum")}


def _foreign_keys(keys_of: Mapping[str, tuple[str, ...]], chosen: Any) -> dict[str, list[str]]:
    """The keys that the chosen one has not, and those that have them."""
    own = keys_of.get(chosen, ()) if isinstance(chosen, str) else ()
    others = [key for keys in keys_of.values() for key in keys if key not in own]
    return {key: [name for name, keys in keys_of.items() if key in keys] for key in others}


def _refuse_foreign_keys(fields: Any, keys_of: Mapping[str, tuple[str, ...]], chosen: Any) -> None:
    for key, owners in _foreign_keys(keys_of, chosen).items():
        if key in fields:
            raise ValueError(f"{key} is a key of {' and '.join(owners)}, not of {shown(chosen)}; remove it")


class ModelParams(Section):
    """The model's shape, except the vocabulary, which the tokenizer decides.

    An architecture's own keys may be left out; those of another are refused, and no part of `model_dump`.
    """

    architecture: Literal["gpt2", "llama", "modern"] = "gpt2"
    """Which layers it has: GPT-2's, Llama's (RMS norms, rotary positions, SwiGLU, grouped queries), or those of
    a modern recipe for small models (norms without gains, normed queries and keys, squared ReLU)."""
    d_model: Count
    """Width of the residual stream; a multiple of n_heads."""
    n_blocks: Count
    """Blocks of attention and feed-forward network."""
    n_heads: Count
    """Attention heads per block."""
    n_kv_heads: Count | None = None
    """llama, modern: heads of keys and values, which n_heads / n_kv_heads queries share; null: n_heads."""
    d_ffn: Count
    """Width of the feed-forward network's hidden layer."""
    max_seq_len: Count
    """The longest context, in tokens; gpt2 has an embedding for each of these positions."""
    rope_base: Annotated[float, Field(gt=1)] = 10_000.0
    """llama, modern: base of the angles by which queries and keys are turned at each position."""
    norm_eps: Annotated[float, Field(gt=0, lt=1)] = 1e-5
    """llama, modern: added to the mean square in its norms."""
    dropout: Annotated[float, Field(ge=0, lt=1)]
    """Share of activations dropped while training; 0: none."""
    bias: bool = True
    """gpt2: whether the linear layers and norms have biases."""
    tie_embeddings: bool
    """Whether the output head is the token embedding; false: a matrix of its own."""

    @model_validator(mode="before")
    @classmethod
    def _keys_are_its_own(cls, fields: Any) -> Any:
        if isinstance(fields, Mapping):
            _refuse_foreign_keys(fields, OWN_KEYS, fields.get("architecture", "gpt2"))
        return fields

    @model_serializer(mode="wrap")
    def _without_keys_of_others(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        foreign = _foreign_keys(OWN_KEYS, self.architecture)
        return {key: value for key, value in serialize(self).items() if key not in foreign}

    @model_validator(mode="after")
    def _heads_divide_model(self) -> ModelParams:
        if self.d_model % self.n_heads:
            raise ValueError(f"d_model ({self.d_model}) must be a multiple of n_heads ({self.n_heads})")
        if self.n_heads % self.kv_heads:
            raise ValueError(f"n_heads ({self.n_heads}) must be a multiple of n_kv_heads ({self.n_kv_heads})")
        if self.turns_pairs and self.head_size % 2:
            raise ValueError(
                f"d_model / n_heads ({self.head_size}) must be even, since {self.architecture} turns pairs of numbers"
            )
        return self

    @property
    def head_size(self) -> int:
        return self.d_model // self.n_heads

    @property
    def turns_pairs(self) -> bool:
        return "rope_base" in OWN_KEYS[self.architecture]

    @property
    def kv_heads(self) -> int:
        return self.n_kv_heads or self.n_heads

    def with_vocabulary(self, size: int) -> CustomTransformerConfig:
        """The configuration of this model for a vocabulary of `size` entries."""
        return CustomTransformerConfig(**self.model_dump() | {"vocab_size": size})


class CustomTransformerConfig(ModelParams):
    """Everything that decides a model's parameter table."""

    vocab_size: Count
    max_seq_len: Count = 128
    n_blocks: Count = 8
    n_heads: Count = 4
    d_model: Count = 128
    d_ffn: Count = 128
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    tie_embeddings: bool = True

    @classmethod
    def from_mapping(cls, fields: Mapping[str, Any], where: str = "model configuration") -> CustomTransformerConfig:
        """The configuration that `fields` describe; raises UserError naming the field that is wrong."""
        return validated(cls, dict(fields), where)


class TrainingParams(Section):
    """The optimiser, its schedule, and how often something is reported or kept.

    Muon's own keys may be left out; with another optimiser they are refused, and no part of `model_dump`.
    """

    batch_size: Count
    """Windows per forward pass."""
    grad_accumulation: Count
    """Forward passes per update."""
    num_epochs: Count
    """Passes over the training tokens."""
    max_steps: Count | None
    """Updates after which training ends; null: as many as the epochs hold."""
    optimizer: Literal["sgd", "adamw", "muon"]
    """The rule of an update; muon: orthogonalised momentum for the blocks' matrices, adamw for all other parameters."""
    learning_rate: Annotated[float, Field(gt=0)]
    """The peak of the schedule, reached at the end of the warm-up; with muon that of AdamW's parameters."""
    muon_learning_rate: Annotated[float, Field(gt=0)] = 0.02
    """muon: the peak of the matrices' learning rate, which follows the same schedule in proportion."""
    muon_momentum: Beta = 0.95
    """muon: the decay rate of the mean of the matrices' gradients."""
    min_learning_rate: Annotated[float, Field(ge=0)]
    """Where the decay ends; at most learning_rate."""
    lr_decay: Literal["cosine", "linear", "constant"]
    """How the learning rate goes down after the warm-up."""
    warmup_ratio: Annotated[float, Field(ge=0, lt=1)]
    """Share of the steps in which the learning rate rises from zero."""
    weight_decay: Annotated[float, Field(ge=0)]
    """Decoupled from the gradient; not applied to norms and biases."""
    betas: Annotated[tuple[Beta, Beta], Field(strict=False)]
    """AdamW's decay rates of the mean and the mean square of gradients."""
    max_grad_norm: Annotated[float, Field(gt=0)] | None
    """Longer gradients are scaled down to this norm; null: never."""
    max_nan_steps: Count
    """A step with NaN or infinity is skipped; the run stops at this many."""
    precision: Literal["float32", "bfloat16", "float64"]
    """Of the computation; bfloat16 means matrix products only, over float32 parameters."""
    compile: Literal["auto", True, False]
    """Whether to use compiled kernels; auto: always with `portable`, else for runs of more than some seconds."""
    portable: bool = True
    """Whether the result has the same bytes on every processor; false: products by PyTorch's libraries."""
    device: Literal["auto", "cpu", "cuda"]
    """What computes; auto: a GPU if there is one, else the processor."""
    init_from: Text | None = None
    """Checkpoint whose parameters training begins from: an imported FOLDER/model.pt or one from here; null: random."""
    recompute: bool = False
    """Whether a block keeps only its input and is computed again going back: less memory, more time, same result."""
    log_every: Count
    """Steps between rows of the training curve."""
    eval_every: Count | None
    """Steps between validations; null: at the end of each epoch."""
    save_every: Count
    """Steps between saved states that a killed run resumes from."""
    keep_checkpoints: Count
    """Epoch checkpoints kept, the newest ones."""

    @model_validator(mode="before")
    @classmethod
    def _keys_are_the_optimizers(cls, fields: Any) -> Any:
        if isinstance(fields, Mapping):
            _refuse_foreign_keys(fields, OPTIMIZER_KEYS, fields.get("optimizer"))
        return fields

    @model_serializer(mode="wrap")
    def _without_keys_of_other_optimizers(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        foreign = _foreign_keys(OPTIMIZER_KEYS, self.optimizer)
        return {key: value for key, value in serialize(self).items() if key not in foreign}

    @model_validator(mode="after")
    def _consistent(self) -> TrainingParams:
        if self.min_learning_rate > self.learning_rate:
            raise ValueError("min_learning_rate must not be above learning_rate")
        return self


class EvaluationParams(Section):
    """How a checkpoint is measured."""

    batch_size: Count
    """Full windows per forward pass; of shorter ones as many as have no more tokens."""
    max_batches: Count | None
    """Of the validation set only the first batch_size · max_batches windows; null: all of it."""


class SamplingParams(Section):
    """How a text is continued."""

    max_new_tokens: Count
    """Most tokens per sample; it ends earlier when its text ends."""
    temperature: Annotated[float, Field(ge=0)]
    """Divides the logits: below 1 likelier tokens gain; 0: always the likeliest token."""
    top_k: Count | None
    """Draw from this many likeliest tokens; null: from all."""
    top_p: Annotated[float, Field(gt=0, le=1)] | None
    """Draw from the fewest likeliest tokens that have this much probability together; null: from all."""


class GenerationParams(SamplingParams):
    """The samples that are drawn from the best checkpoint."""

    prompts: Annotated[list[str], Field(min_length=1)]
    """The texts that samples begin with."""
    num_samples: Count
    """Continuations per prompt."""

    @model_validator(mode="after")
    def _prompts_are_text(self) -> GenerationParams:
        for prompt in self.prompts:
            try:
                prompt.encode()
            except UnicodeEncodeError:
                raise ValueError(f"prompt {shown(prompt)} is not valid Unicode text") from None
        return self


class TrackingParams(Section):
    """Where runs are recorded."""

    experiment: ExperimentName
    """The MLflow experiment that runs belong to."""
    uri: Text | None
    """The MLflow store; null: SQLite at the repository root."""
    registered_model: ModelName | None
    """The registered model that each run's best checkpoint joins; alias best: the lowest bits_per_byte; null: none."""
    sweep: Name | None
    """Name of the parent run that groups this run with others; null: no parent."""


class Params(Section):
    """A whole params.yaml."""

    seed: Annotated[int, Field(ge=0, lt=2**32)]
    """What everything random follows from."""
    data: DataParams
    model: ModelParams
    training: TrainingParams
    evaluation: EvaluationParams
    generation: GenerationParams
    tracking: TrackingParams

    @model_validator(mode="after")
    def _windows_fit(self) -> Params:
        if self.data.max_length > self.model.max_seq_len:
            raise ValueError(
                f"data.max_length ({self.data.max_length}) must not be above "
                f"model.max_seq_len ({self.model.max_seq_len})"
            )
        return self


def load_params(path: Path | str = PARAMS) -> Params:
    """The validated parameters in a YAML file; raises UserError naming the file, the key and the remedy."""
    try:
        content = load_yaml(read_text(path, MAX_BYTES))
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; run from the repository root or name one with --config") from None
    except UnicodeDecodeError:
        raise UserError(f"{path}: not UTF-8 text; is this a YAML file of parameters?") from None
    except ValueError as error:
        raise UserError(f"{path}: not valid YAML: {one_line(error)}") from None
    if not isinstance(content, dict):
        raise UserError(f"{path}: expected sections (seed, data, model, …), found {type(content).__name__}")
    return validated(Params, content, str(path))


_Model = TypeVar("_Model", bound=BaseModel)


def validated(model: type[_Model], content: dict[Any, Any], where: str) -> _Model:
    """`content` as `model`; raises UserError naming `where`, the key and the remedy."""
    try:
        return model.model_validate(content)
    except ValidationError as error:
        first, *others = error.errors(include_url=False)
        more = f" (and {len(others)} more)" if others else ""
        raise UserError(f"{where}: {_explain(first)}{more}") from None


def _explain(error: Any) -> str:
    """One of pydantic's errors as 'key: what is wrong; what to do'."""
    key = ".".join(part if isinstance(part, str) else shown(part) for part in error["loc"])[:80]
    value, kind = error["input"], error["type"]
    if kind == "extra_forbidden":
        return f"{key}: unknown key; remove it or correct its name"
    if kind == "missing":
        return f"{key}: missing; add it (see params.yaml)"
    if kind == "value_error":
        return f"{key}: {error['ctx']['error']}" if key else str(error["ctx"]["error"])
    hint = ""
    if isinstance(value, str) and FLOAT.match(value):
        hint = "; drop the quotes, which make it text"
    elif kind == "bool_type":
        hint = "; write true or false"
    elif kind == "int_type" and isinstance(value, float) and value.is_integer():
        hint = f"; write {int(value)}"
    elif kind == "string_type" and isinstance(value, float | int | date):
        hint = "; put quotes around it, which make it text"
    elif kind == "string_type" and value is None:
        hint = ", which is what an empty value means too; write a text, in quotes if it is a word such as null"
    return f"{key}: {error['msg'].lower()}, not {_written(value)}{hint}"


def _written(value: object) -> str:
    """`value` in YAML's words, for a message."""
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    return str(value) if isinstance(value, date) else shown(value)

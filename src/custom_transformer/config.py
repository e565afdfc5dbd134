"""params.yaml as validated, frozen models: the one place where a key is named."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping
from datetime import date
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from custom_transformer.errors import UserError, one_line, shown
from custom_transformer.files import read_text
from custom_transformer.paths import PARAMS

MAX_BYTES = 256 << 10  # of a file of parameters
MAX_VOCAB_SIZE = 1_000_000
MAX_ALIASED = 100  # characters that a YAML alias may stand for
MODEL_NAME = r"[A-Za-z0-9_][A-Za-z0-9_.-]*"


def _printable(text: str) -> str:
    if any(unicodedata.category(character) in ("Cc", "Cs") for character in text):
        raise ValueError(f"{shown(text)} holds control characters or half a surrogate pair; remove them")
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
    """primer, a registered name (tiny-textbooks, tinystories, …), a Hub id, or a path or glob of local files."""
    revision: Text | None
    """Branch, tag or commit of a Hub dataset; null: its main branch."""
    text_column: Text | None
    """The column that holds the text; null: the registered dataset's own, else "text"."""
    train_split: Text
    """The source's split to train on."""
    val_split: Text | None
    """The source's split to validate on; null: val_fraction of the training split is kept for it."""
    val_fraction: Fraction
    """Share of the training split kept for validation where val_split is null."""
    subset_size: Count | None
    """Documents to train on; null: all of them."""
    val_subset_size: Count | None
    """Documents to validate on; null: all of them."""
    tokenizer: Text
    """bpe (trained on the training split), gpt2, or a path or Hub id of a fast tokenizer."""
    allow_lossy_tokenizer: bool = False
    """Whether the tokenizer may lose text (case, rare characters); such a run never becomes the registry's best."""
    vocab_size: Annotated[int, Field(ge=257, le=MAX_VOCAB_SIZE)]
    """Entries of a bpe tokenizer, at most: the 256 bytes, the end of text, and what it learns."""
    max_length: Annotated[int, Field(ge=2)]
    """Tokens per training window; at most model.max_seq_len."""


class ModelParams(Section):
    """The model's shape, except the vocabulary, which the tokenizer decides."""

    d_model: Count
    """Width of the residual stream; a multiple of n_heads."""
    n_blocks: Count
    """Blocks of attention and feed-forward network."""
    n_heads: Count
    """Attention heads per block."""
    d_ffn: Count
    """Width of the feed-forward network's hidden layer."""
    max_seq_len: Count
    """Positions that the model has an embedding for: the longest context, in tokens."""
    dropout: Annotated[float, Field(ge=0, lt=1)]
    """Share of activations dropped while training; 0: none."""
    bias: bool
    """Whether the linear layers and norms have biases."""
    tie_embeddings: bool
    """Whether the output head is the token embedding; false: a matrix of its own."""

    @model_validator(mode="after")
    def _heads_divide_model(self) -> ModelParams:
        if self.d_model % self.n_heads:
            raise ValueError(f"d_model ({self.d_model}) must be a multiple of n_heads ({self.n_heads})")
        return self

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
    bias: bool = True
    tie_embeddings: bool = True

    @property
    def head_size(self) -> int:
        return self.d_model // self.n_heads

    @classmethod
    def from_mapping(cls, fields: Mapping[str, Any], where: str = "model configuration") -> CustomTransformerConfig:
        """The configuration that `fields` describe; raises UserError naming the field that is wrong."""
        return validated(cls, dict(fields), where)


class TrainingParams(Section):
    """The optimiser, its schedule, and how often something is reported or kept."""

    batch_size: Count
    """Windows per forward pass."""
    grad_accumulation: Count
    """Forward passes per update."""
    num_epochs: Count
    """Passes over the training tokens."""
    max_steps: Count | None
    """Updates after which training ends; null: as many as the epochs hold."""
    optimizer: Literal["sgd", "adamw"]
    """The rule of an update."""
    learning_rate: Annotated[float, Field(gt=0)]
    """The peak of the schedule, reached at the end of the warm-up."""
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
    """Whether to use compiled kernels; auto: for runs of more than some seconds."""
    device: Literal["auto", "cpu", "cuda"]
    """What computes; auto: a GPU if there is one, else the processor."""
    log_every: Count
    """Steps between rows of the training curve."""
    eval_every: Count | None
    """Steps between validations; null: at the end of each epoch."""
    save_every: Count
    """Steps between saved states that a killed run resumes from."""
    keep_checkpoints: Count
    """Epoch checkpoints kept, the newest ones."""

    @model_validator(mode="after")
    def _consistent(self) -> TrainingParams:
        if self.min_learning_rate > self.learning_rate:
            raise ValueError("min_learning_rate must not be above learning_rate")
        return self


class EvaluationParams(Section):
    """How a checkpoint is measured."""

    batch_size: Count
    """Windows per forward pass."""
    max_batches: Count | None
    """Forward passes; null: the whole validation set."""


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
    """Continuations a prompt."""

    @model_validator(mode="after")
    def _prompts_are_text(self) -> GenerationParams:
        for prompt in self.prompts:
            try:
                prompt.encode()
            except UnicodeEncodeError:
                raise ValueError(f"prompt {prompt!a} is not valid Unicode text") from None
        return self


class TrackingParams(Section):
    """Where runs are recorded."""

    experiment: Text
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
        content = yaml.load(read_text(path, MAX_BYTES), Loader=_Loader)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; run from the repository root or name one with --config") from None
    except UnicodeDecodeError:
        raise UserError(f"{path}: not UTF-8 text; is this a YAML file of parameters?") from None
    except (yaml.YAMLError, RecursionError, ValueError, TypeError, LookupError, AttributeError) as error:
        # PyYAML's own constructors stumble over a tag whose value is of another kind, such as !!int ''.
        raise UserError(f"{path}: not valid YAML: {one_line(error)}") from None
    if not isinstance(content, dict):
        raise UserError(f"{path}: expected sections (seed, data, model, …), found {type(content).__name__}")
    return validated(Params, content, str(path))


class _Loader(yaml.SafeLoader):
    """YAML without repeated keys or large aliases.

    PyYAML silently keeps the last of two equal keys; here the second is an error. An alias may stand for a number or a
    word only: an alias for a list of aliases could make a short file a huge value.
    """

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            event = self.peek_event()
            node = self.anchors.get(event.anchor)
            if node is not None and not (isinstance(node, yaml.ScalarNode) and len(node.value) <= MAX_ALIASED):
                raise yaml.composer.ComposerError(
                    problem=f"the alias *{event.anchor} stands for more than a word; write it out",
                    problem_mark=event.start_mark,
                )
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            if key_node.value in seen:
                raise yaml.constructor.ConstructorError(
                    problem=f"key {key_node.value!r} stands twice", problem_mark=key_node.start_mark
                )
            seen.add(key_node.value if isinstance(key_node.value, str) else id(key_node))
        return super().construct_mapping(node, deep)


# YAML 1.2's numbers, as DVC reads them too; PyYAML, which follows YAML 1.1, would take 3e-4 for text.
_FLOAT = re.compile(r"[-+]?(\.\d+|\d+(\.\d*)?)([eE][-+]?\d+)?$", re.ASCII)
_Loader.add_implicit_resolver("tag:yaml.org,2002:float", _FLOAT, list("-+.0123456789"))

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
    if isinstance(value, str) and _FLOAT.match(value):
        hint = "; drop the quotes, which make it text"
    elif kind == "int_type" and isinstance(value, float) and value.is_integer():
        hint = f"; write {int(value)}"
    elif kind == "string_type" and isinstance(value, float | int | date):
        hint = "; put quotes around it, which make it text"
    return f"{key}: {error['msg'].lower()}, not {shown(value)}{hint}"

"""CustomTransformerWrapper: the model for people in Python. Loss, training step, generation and checkpoints."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from custom_transformer.config import CustomTransformerConfig
from custom_transformer.fast.choose import choose_engine
from custom_transformer.maths import checks, ops
from custom_transformer.maths.model import CustomTransformer
from custom_transformer.maths.optim import SGD
from custom_transformer.runs.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from custom_transformer.runs.generation import generate
from custom_transformer.runs.step import training_step


class CustomTransformerWrapper:
    """A CustomTransformer with what one does with it.

    device: None takes the GPU where there is one. dtype: float32 (default), float64, or bfloat16 for bfloat16
    products over float32 parameters. pad_token_id: labels of this id are left out of the loss; pad on the right.
    compile: whether it computes with the fast functions, which takes some seconds of compiling the first time.
    own: `architecture` ("gpt2", "llama") and that architecture's own keys, as in CustomTransformerConfig.
    It starts in training mode (dropout active), as PyTorch's modules do.

    Every method checks all its arguments before it computes and raises ValueError for what does not fit, alike with
    and without `compile`. input_ids and labels are (B, T) int64 tensors on any device and of any strides.
    """

    def __init__(
        self,
        vocab_size: int,
        max_seq_len: int = 128,
        n_blocks: int = 8,
        n_heads: int = 4,
        d_model: int = 128,
        d_ffn: int = 128,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        pad_token_id: int | None = None,
        dropout: float = 0.0,
        bias: bool = True,
        tie_embeddings: bool = True,
        compile: bool = False,
        **own: Any,
    ):
        # GPT-2's own key, which other architectures refuse.
        own |= {} if bias else {"bias": bias}
        config = CustomTransformerConfig(
            vocab_size=vocab_size,
            max_seq_len=max_seq_len,
            n_blocks=n_blocks,
            n_heads=n_heads,
            d_model=d_model,
            d_ffn=d_ffn,
            dropout=dropout,
            tie_embeddings=tie_embeddings,
            **own,
        )
        if pad_token_id is not None:
            pad_token_id = checks.check_count("pad_token_id", pad_token_id, -(2**63), 2**63)
        self.pad_token_id = pad_token_id
        device = _device(device)
        engine = choose_engine(compile, device, flops=math.inf)
        self.model = CustomTransformer(config, device=device, dtype=dtype, engine=engine)
        self.model.training = True

    @property
    def device(self) -> torch.device:
        return self.model.device

    @property
    def dtype(self) -> torch.dtype:
        return self.model.dtype

    # -- loss and training

    def forward(self, input_ids: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:
        """{"logits": (B, T, V)} and, with labels (B, T; unshifted, usually input_ids), {"loss": mean nats}.

        The label of position t is labels[:, t + 1]; those that are -100 or pad_token_id are left out.
        """
        checks.check_ids("input_ids", input_ids)
        shifted = None if labels is None else self._shifted(input_ids, labels)
        logits = self.model.forward(input_ids.to(self.device))
        if shifted is None:
            return {"logits": logits}
        with self.model.computing():
            loss, _ = ops.cross_entropy_forward(logits[:, :-1], shifted)
        return {"logits": logits, "loss": loss}

    def train_step(
        self, input_ids: Tensor, labels: Tensor, learning_rate: float = 0.001, max_grad_norm: float | None = 1.0
    ) -> dict[str, Any]:
        """Forward, backward, clip, and one step of SGD. input_ids, labels (B, T) int64, labels unshifted.

        Returns loss (nats per counted label), status ("ok", "nan_detected" for the loss, "nan_gradient"),
        grad_norm as applied and grad_norm_before_clip; model.gradients are those before clipping. Unless the status
        is "ok" no parameter has changed. Raises ValueError, also, for a learning rate that is negative or not finite
        and for a max_grad_norm that is not above 0.
        """
        checks.check_ids("input_ids", input_ids)
        batch = (input_ids.to(self.device)[:, :-1], self._shifted(input_ids, labels))
        result = training_step(self.model, SGD({}, self.model.engine.rules.sgd), [batch], learning_rate, max_grad_norm)
        return {
            "loss": result.loss,
            "status": result.status,
            "grad_norm": result.grad_norm,
            "grad_norm_before_clip": result.grad_norm_before_clip,
        }

    def _shifted(self, input_ids: Tensor, labels: Tensor) -> Tensor:
        """The label of each input but the last."""
        checks.check_ids("labels", labels)
        checks.check_same_shape("labels", labels, "input_ids", input_ids)
        if labels.shape[1] < 2:
            raise ValueError(f"labels {tuple(labels.shape)}: at least 2 tokens in a row are needed to predict one")
        shifted = labels.to(self.device)[:, 1:]
        if self.pad_token_id is not None:
            shifted = shifted.masked_fill(shifted == self.pad_token_id, ops.IGNORE_INDEX)
        checks.check_labels_in_vocabulary(shifted, self.model.config.vocab_size)
        return shifted

    # -- generation

    def generate(
        self,
        input_ids: Tensor,
        max_length: int = 100,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
        eos_token_id: int | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Continues input_ids (B, T) to at most `max_length` tokens, the prompt included; see generation.generate."""
        checks.check_ids("input_ids", input_ids)
        return generate(
            self.model,
            input_ids.to(self.device),
            max_length,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            eos_token_id=eos_token_id,
            generator=generator,
        )

    # -- checkpoints

    def save_checkpoint(self, path: Path | str, **metadata: Any) -> None:
        """Writes weights and configuration to `path`, atomically, with plain values as metadata."""
        save_checkpoint(path, self.model, metadata)

    def load_checkpoint(self, path: Path | str) -> dict[str, Any]:
        """Takes over the weights of a checkpoint of this model's shape; returns its metadata.

        Raises UserError when the file is damaged, and ValueError when it belongs to another shape.
        """
        checkpoint = load_checkpoint(path)
        for name, value in self.model.config.model_dump(exclude={"dropout"}).items():
            if (other := getattr(checkpoint.config, name)) != value:
                raise ValueError(f"{path}: {name} is {other}, this model's is {value}: not the same shape")
        self.model.load_state_dict(checkpoint.state_dict)
        return checkpoint.metadata

    @classmethod
    def from_checkpoint(
        cls, path: Path | str, device: torch.device | str | None = None, compile: bool = False
    ) -> CustomTransformerWrapper:
        """A wrapper around the model in a checkpoint, in evaluation mode. Raises UserError when it is damaged."""
        checkpoint: Checkpoint = load_checkpoint(path)
        wrapper = cls(**checkpoint.config.model_dump(), device=device, dtype=checkpoint.dtype, compile=compile)
        wrapper.model.load_state_dict(checkpoint.state_dict)
        return wrapper.eval()

    # -- the rest

    def eval(self) -> CustomTransformerWrapper:
        """Switches dropout off; returns self."""
        self.model.training = False
        return self

    def train(self, mode: bool = True) -> CustomTransformerWrapper:
        """Switches dropout on; returns self."""
        self.model.training = mode
        return self

    def to(self, device: torch.device | str) -> CustomTransformerWrapper:
        """Moves the model; returns self."""
        self.model.to(device)
        return self

    def count_parameters(self) -> int:
        """The number of scalars that are trained; a tied table counts once."""
        return self.model.count_parameters()

    def get_model_info(self) -> dict[str, Any]:
        """The configuration, parameter count, dtype and device, as plain values."""
        return {
            "model_type": "CustomTransformer",
            **self.model.config.model_dump(),
            "parameters": self.count_parameters(),
            "dtype": str(self.dtype).removeprefix("torch."),
            "device": str(self.device),
        }


def _device(device: torch.device | str | None) -> torch.device:
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    return checks.usable_device(device)

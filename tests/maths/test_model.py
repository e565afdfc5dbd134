"""The whole model: gradients, causality, purity, precision, names and shapes, refusals."""

from __future__ import annotations

import itertools

import pytest
import torch

from custom_transformer import CustomTransformer
from custom_transformer.config import CustomTransformerConfig
from custom_transformer.maths.gpt2 import parameters
from custom_transformer.maths.gradcheck import check_gradients, reduced
from custom_transformer.maths.ops import cross_entropy_backward, cross_entropy_forward
from tests.helpers import SIZES, random_model, random_tokens

VARIANTS = list(itertools.product([True, False], [True, False], [0.0, 0.2]))


@pytest.mark.parametrize(("tie_embeddings", "bias", "dropout"), VARIANTS)
def test_every_gradient_is_right(tie_embeddings: bool, bias: bool, dropout: float) -> None:
    config = CustomTransformerConfig(**SIZES, tie_embeddings=tie_embeddings, bias=bias, dropout=dropout)
    checks = list(check_gradients(config))
    assert {check.name: check.shape for check in checks} == {name: p.shape for name, p in parameters(config).items()}
    assert [check for check in checks if not check.ok] == []


def test_reduced_sizes_differ_from_each_other_and_keep_the_architecture() -> None:
    full = CustomTransformerConfig(
        vocab_size=50257, max_seq_len=1024, n_blocks=12, n_heads=12, d_model=768, d_ffn=3072, bias=False
    )
    small = reduced(full)
    sizes = [small.vocab_size, small.max_seq_len, small.n_blocks, small.n_heads, small.d_model, small.d_ffn]
    assert len(set(sizes)) == len(sizes)
    assert small.bias is False
    assert small.d_model % small.n_heads == 0


@pytest.mark.parametrize("tie_embeddings", [True, False])
def test_backward_from_logits_equals_the_fused_path(tie_embeddings: bool) -> None:
    model = random_model(tie_embeddings=tie_embeddings)
    tokens, labels = random_tokens(), random_tokens(seed=2)
    fused_loss = model.loss(tokens, labels)
    model.loss_backward()
    fused = model.gradients
    loss, saved = cross_entropy_forward(model.forward(tokens), labels)
    model.backward(cross_entropy_backward(1.0, saved))
    torch.testing.assert_close(loss, fused_loss)
    for name, gradient in model.gradients.items():
        torch.testing.assert_close(gradient, fused[name])


def test_the_future_changes_nothing() -> None:
    model, tokens = random_model(), random_tokens()
    logits = model.forward(tokens)
    for t in range(1, tokens.shape[1]):
        changed = tokens.clone()
        changed[:, t:] = (changed[:, t:] + 1) % 37
        assert torch.equal(model.forward(changed)[:, :t], logits[:, :t])


def test_gradients_have_the_parameters_names_and_shapes_and_parameters_stay_untouched() -> None:
    model = random_model(torch.float32, dropout=0.1)
    model.training = True
    before, tokens = model.state_dict(), random_tokens()
    given = tokens.clone()
    model.loss(tokens, tokens)
    model.loss_backward()
    assert {n: g.shape for n, g in model.gradients.items()} == {n: p.shape for n, p in before.items()}
    assert all(torch.equal(model.parameters[n], p) for n, p in before.items())
    assert torch.equal(tokens, given)


# float32: some thousand roundings of 2⁻²⁴ in sums whose terms mostly cancel. bfloat16: each product's operands are
# rounded to 2⁻⁹, and errors of that size add up like a random walk over the depth of the model.
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 1e-5), (torch.bfloat16, 6e-2)])
def test_lower_precisions_follow_float64(dtype: torch.dtype, bound: float) -> None:
    exact, model = random_model(torch.float64), random_model(dtype)
    tokens, labels = random_tokens(), random_tokens(seed=2)
    expected, loss = exact.loss(tokens, labels), model.loss(tokens, labels)
    exact.loss_backward()
    model.loss_backward()
    assert loss.item() == pytest.approx(expected.item(), rel=bound)
    for name, gradient in model.gradients.items():
        assert gradient.dtype == torch.float32
        right = exact.gradients[name]
        assert (gradient - right).norm() / right.norm() < bound, name


def test_bfloat16_keeps_float32_parameters_that_small_updates_still_move() -> None:
    model = random_model(torch.bfloat16)
    before = model.state_dict()
    model.loss(random_tokens(), random_tokens())
    model.loss_backward()
    model.update_parameters(1e-6)  # far below bfloat16's resolution
    assert any(not torch.equal(model.parameters[name], p) for name, p in before.items())


def test_dropout_acts_in_training_only_and_follows_its_generator() -> None:
    model, tokens = random_model(dropout=0.5), random_tokens()
    quiet = model.loss(tokens, tokens)
    assert torch.equal(model.loss(tokens, tokens), quiet)
    model.training = True
    model.generator.manual_seed(1)
    first = model.loss(tokens, tokens)
    assert not torch.equal(model.loss(tokens, tokens), first)
    model.generator.manual_seed(1)
    assert torch.equal(model.loss(tokens, tokens), first)


def test_gradient_descent_on_one_batch_learns_it() -> None:
    model = CustomTransformer(SIZES, seed=3)
    tokens = random_tokens()
    for _ in range(300):
        loss = model.loss(tokens[:, :-1], tokens[:, 1:])
        model.loss_backward()
        model.update_parameters(0.3)
    assert loss < 0.2


def test_initialisation_is_gpt2s() -> None:
    model = CustomTransformer({**SIZES, "d_model": 192, "d_ffn": 256, "vocab_size": 500, "n_blocks": 8}, seed=5)
    p = model.parameters
    assert p["token_embedding"].std().item() == pytest.approx(0.02, rel=0.02)
    assert p["blocks.3.qkv.weight"].std().item() == pytest.approx(0.02, rel=0.02)
    assert p["blocks.3.down.weight"].std().item() == pytest.approx(0.02 / 4, rel=0.02)
    assert (p["blocks.0.norm_1.weight"] == 1).all()
    assert (p["blocks.0.up.bias"] == 0).all()
    again = CustomTransformer(model.config, seed=5).parameters
    assert all(torch.equal(again[name], tensor) for name, tensor in p.items())
    assert not torch.equal(CustomTransformer(model.config, seed=6).parameters["token_embedding"], p["token_embedding"])


def test_the_table_follows_the_options() -> None:
    tied = parameters(CustomTransformerConfig(**SIZES))
    assert "head.weight" not in tied
    free = parameters(CustomTransformerConfig(**SIZES, tie_embeddings=False, bias=False))
    assert free["head.weight"].shape == (37, 15)
    assert not any(name.endswith("bias") for name in free)


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        (torch.tensor([[0, 37]]), "token id 37 is outside the vocabulary of 37"),
        (torch.tensor([[-1, 0]]), "token id -1"),
        (torch.zeros(1, 14, dtype=torch.int64), "max_seq_len is 13"),
        (torch.zeros(1, 0, dtype=torch.int64), "at least 1"),
        (torch.zeros(5, dtype=torch.int64), "must be"),
        (torch.zeros(1, 5), "must be"),
    ],
)
def test_wrong_tokens_are_refused(tokens: torch.Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        random_model().forward(tokens)


def test_backward_needs_a_forward_and_update_a_backward() -> None:
    model = random_model()
    with pytest.raises(RuntimeError, match="forward"):
        model.backward(torch.zeros(1, 1, 37))
    with pytest.raises(RuntimeError, match="backward"):
        model.update_parameters(0.1)


@pytest.mark.parametrize("change", ["missing", "unknown", "shape"])
def test_a_state_that_does_not_fit_is_refused_whole(change: str) -> None:
    model = random_model()
    before, state = model.state_dict(), random_model(seed=9).state_dict()
    if change == "missing":
        del state["final_norm.weight"]
    elif change == "unknown":
        state["extra"] = torch.zeros(1)
    else:
        state["final_norm.weight"] = torch.zeros(3)
    with pytest.raises(ValueError, match=r"extra|final_norm"):
        model.load_state_dict(state)
    assert all(torch.equal(model.parameters[name], p) for name, p in before.items())


@pytest.mark.parametrize("label", [-1, 37])
def test_a_label_outside_the_vocabulary_is_named(label: int) -> None:
    tokens = random_tokens()
    labels = tokens.clone()
    labels[1, 2] = label
    with pytest.raises(ValueError, match=f"label {label} is neither"):
        random_model().loss(tokens, labels)

"""Models of a shape: the same numbers every time, and copies that share them."""

import pytest
import torch

from roadint import RoadError
from roadint.bench.shapes import SHAPES, model_and_tokenizer, noise, random_ids, random_model, twin


def test_a_shape_has_its_sizes_and_always_the_same_weights() -> None:
    first, second = (random_model("tiny", torch.float32) for _ in "ab")
    assert first.config.hidden_size == SHAPES["tiny"]["hidden_size"]
    assert {value.dtype for value in first.parameters()} == {torch.float32}
    assert not any(value.requires_grad for value in first.parameters())
    for value, other in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(value, other)
    matrices = torch.cat([value.flatten() for value in first.parameters() if value.ndim > 1])
    assert matrices.std() == pytest.approx(0.02, rel=0.02)
    assert len({float(value.flatten()[0]) for value in first.parameters() if value.ndim > 1}) > 14
    ids = random_ids(first, 3, 5)
    assert first(input_ids=ids).logits.isfinite().all()


def test_a_twin_has_modules_of_its_own_and_the_same_weights() -> None:
    model = random_model("tiny", torch.float32)
    other = twin(model)
    assert other.lm_head is not model.lm_head
    assert other.lm_head.weight is model.lm_head.weight
    other.lm_head.forward = lambda x: x
    ids = random_ids(model, 1, 3)
    assert other(input_ids=ids).logits.shape[-1] == SHAPES["tiny"]["hidden_size"]
    assert model(input_ids=ids).logits.shape[-1] == SHAPES["tiny"]["vocab_size"]


def test_noise_is_drawn_once_for_all_dtypes() -> None:
    like = torch.empty(0, dtype=torch.bfloat16)
    drawn = noise(4, 5, like=like, seed=3)
    assert drawn.dtype is torch.bfloat16
    assert torch.equal(drawn, noise(4, 5, like=like, seed=3, dtype=torch.float32).bfloat16())
    assert not torch.equal(drawn, noise(4, 5, like=like, seed=4))


def test_a_shape_that_nobody_knows() -> None:
    with pytest.raises(RoadError, match=r"unknown shape 'llama-7': .*did you mean 'llama-7b'"):
        model_and_tokenizer("llama", "llama-7")

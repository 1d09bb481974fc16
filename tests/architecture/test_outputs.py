"""Hidden states in and out of what layers return, whatever its form."""

from typing import Any

import pytest
import torch

from roadint.architecture.layers import find_layers
from roadint.architecture.outputs import hidden_of, with_hidden
from tests.helpers import ARCHITECTURES, IDS, build

REST = object()


@pytest.mark.parametrize("form", [lambda h: h, lambda h: (h,), lambda h: (h, REST), lambda h: [h, REST]])  # fmt: skip
def test_taken_out_and_put_back(form: Any) -> None:
    before, after = torch.zeros(2, 3, 4), torch.ones(2, 3, 4)
    output = form(before)
    assert hidden_of(output) is before
    changed = with_hidden(output, after)
    assert type(changed) is type(output)
    assert hidden_of(changed) is after
    if not torch.is_tensor(output):
        assert list(changed[1:]) == list(output[1:])
        assert output[0] is before


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_of_a_models_own_layers(architecture: str) -> None:
    """A layer's output is what the next one gets, so that zeros in its place reach it."""
    model = build(architecture)
    layers, inputs = find_layers(model)[1], []
    layers[1].register_forward_pre_hook(lambda module, args: inputs.append(args[0]))
    layers[0].register_forward_hook(
        lambda module, args, output: with_hidden(output, torch.zeros_like(hidden_of(output)))
    )
    with torch.no_grad():
        model(input_ids=IDS)
    assert not inputs[0].any()

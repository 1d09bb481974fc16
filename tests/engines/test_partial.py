"""Parts of a forward pass: the same numbers as the whole, and a model that is left as it was."""

import threading
from typing import Any

import pytest
import torch
from transformers import BloomConfig, BloomForCausalLM, PreTrainedModel

from roadint.engines.transformers.partial import Resumed, output_after
from roadint.engines.transformers.view import view
from tests.helpers import LAYERS, build

IDS = torch.arange(3, 12)[None]


@pytest.mark.parametrize("layers", range(1, LAYERS + 1))
def test_stopped_and_resumed_is_the_whole(model: PreTrainedModel, layers: int) -> None:
    with torch.no_grad():
        expected = model(input_ids=IDS).logits
        hidden = output_after(model, layers, input_ids=IDS)
        torch.testing.assert_close(
            Resumed(layers, hidden).of(model)(input_ids=IDS * 0).logits, expected
        )
        assert torch.equal(model(input_ids=IDS).logits, expected)
    assert not any("forward" in vars(module) for module in model.modules())


def test_layers_that_return_tuples() -> None:
    torch.manual_seed(0)
    model = BloomForCausalLM(
        BloomConfig(vocab_size=128, hidden_size=32, n_layer=3, n_head=4)
    ).eval()
    with torch.no_grad():
        output = output_after(model, 2, input_ids=IDS)
        assert isinstance(output, tuple)
        resumed_logits = Resumed(2, output[0], as_tuple=True).of(model)(input_ids=IDS * 0).logits
    torch.testing.assert_close(resumed_logits, model(input_ids=IDS).logits)


def test_other_threads_and_other_forwards_stay(llama: PreTrainedModel) -> None:
    """accelerate, for one, sets a forward of its own on a layer."""
    layer = llama.model.layers[0]
    own = layer.forward
    layer.forward = lambda *args, **kwargs: own(*args, **kwargs)
    before = layer.forward
    seen: list[torch.Tensor] = []

    def boom(*_: Any) -> None:
        other = threading.Thread(target=lambda: seen.append(llama(input_ids=IDS).logits))
        other.start()
        other.join()
        raise ZeroDivisionError

    with torch.no_grad():
        expected = llama(input_ids=IDS).logits
        partly = Resumed(2, torch.zeros(1, 9, 32)).of(llama)
        assert not torch.allclose(partly(input_ids=IDS).logits, expected)
        with pytest.raises(ZeroDivisionError):
            view(partly, {partly.model.layers[2]: [boom]})(input_ids=IDS)
        seen.append(llama(input_ids=IDS).logits)
    assert all(torch.equal(each, expected) for each in seen)
    assert len(seen) == 2
    assert layer.forward is before
    assert "forward" not in vars(llama.model.layers[1])


def test_only_what_is_asked_for_runs() -> None:
    model = build("llama")
    ran = []
    for index, layer in enumerate(model.model.layers):
        layer.mlp.register_forward_hook(lambda *_, index=index: ran.append(index))
    hidden = output_after(model, 2, input_ids=IDS)
    assert ran == [0, 1]
    Resumed(2, hidden).of(model)(input_ids=IDS)
    assert ran == [0, 1, 2]

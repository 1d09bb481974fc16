"""Parts of a forward pass: the same numbers as the whole, and a model that is left as it was."""

import threading
from typing import Any

import pytest
import torch
from transformers import BloomConfig, BloomForCausalLM, PreTrainedModel

from roadint import RoadIntervention
from roadint.architecture.layers import find_layers
from roadint.engines.transformers.partial import Resumed, output_after
from roadint.engines.transformers.view import view
from tests.helpers import HALVES, LAYERS, build, trained

IDS = torch.arange(3, 12)[None]


def traces(model: PreTrainedModel) -> list[tuple[Any, ...]]:
    """What could show that something was done to a model: its modules, their attributes and hooks."""
    return [
        (
            path,
            id(module),
            sorted(vars(module)),
            *map(len, (module._forward_hooks, module._forward_pre_hooks)),
        )
        for path, module in model.named_modules()
    ]


@pytest.mark.parametrize("layers", range(1, LAYERS + 1))
def test_stopped_and_resumed_is_the_whole(model: PreTrainedModel, layers: int) -> None:
    seen: list[torch.Tensor] = []
    layer = find_layers(model)[1][layers - 1]
    with torch.no_grad():
        handle = layer.register_forward_hook(lambda _, __, output: seen.append(output))
        expected = model(input_ids=IDS).logits
        handle.remove()
        before = traces(model)
        hidden = output_after(model, layers, input_ids=IDS)
        assert torch.equal(hidden, seen[0])
        resumed = Resumed(layers, hidden).of(model)
        torch.testing.assert_close(resumed(input_ids=IDS * 0).logits, expected)
        other = Resumed(layers, hidden.flip(1)).of(model)(input_ids=IDS * 0).logits
        assert not torch.allclose(other, expected, atol=1e-2)
    assert traces(model) == before
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


def test_a_scored_call_in_the_middle_of_another() -> None:
    """Deterministic, unlike threads that happen to overlap: the inner call runs whole inside the outer one's forward."""
    model = build("llama")
    road = trained(model, RoadIntervention(layer=1, position="all", subspaces=HALVES))
    where = torch.tensor([[0, 0, 0], [3, 4, 7]]), torch.tensor([5, 6, 7])

    def score(compose: str) -> torch.Tensor:
        with torch.no_grad():
            return road.token_nll(*where, input_ids=IDS, compose=compose, use_cache=False)

    expected = {compose: score(compose) for compose in ("a", "b")}
    assert not torch.allclose(expected["a"], expected["b"], atol=1e-3)
    inner: list[torch.Tensor] = []

    def interrupt(*_: Any) -> None:
        if threading.current_thread() is threading.main_thread():
            thread = threading.Thread(target=lambda: inner.append(score("a")))
            thread.start()
            thread.join()

    for module in (model.model.embed_tokens, model.model.layers[1].mlp, model.model.norm):
        with module.register_forward_hook(interrupt):
            torch.testing.assert_close(score("b"), expected["b"])
    assert len(inner) >= 3
    for nll in inner:
        torch.testing.assert_close(nll, expected["a"])

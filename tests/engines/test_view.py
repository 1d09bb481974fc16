"""Views: hooks of one call's own, and the caller's model as it was."""

import functools
import gc
import types
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils import prune
from transformers import PreTrainedModel

from roadint import RoadIntervention, RoadModel
from roadint.architecture.layers import uncompiled
from roadint.engines.transformers.passes import Passes
from roadint.engines.transformers.turning import Turn
from roadint.engines.transformers.view import Copy, view
from tests.helpers import HALVES, build

IDS = torch.arange(3, 12)[None]


def state_of(model: nn.Module) -> list[Any]:
    return [
        (
            name,
            type(module),
            sorted(vars(module)),
            list(module._modules.values()),
            len(module._forward_hooks),
        )
        for name, module in model.named_modules()
    ]


def test_a_view_shares_all_but_its_hooks(model: PreTrainedModel) -> None:
    before, expected = state_of(model), model(input_ids=IDS).logits
    layers = [module for name, module in model.named_modules() if name.endswith(".1")]
    seen: list[nn.Module] = []
    own = view(
        model, {layer: [lambda module, args, output: seen.append(module)] for layer in layers}
    )
    assert type(own) is type(model)
    assert own is not model
    assert all(
        one is other for one, other in zip(own.parameters(), model.parameters(), strict=True)
    )
    assert torch.equal(own(input_ids=IDS).logits, expected)
    assert seen
    assert not any(module in layers for module in seen)  # copies ran
    count = len(seen)
    assert torch.equal(model(input_ids=IDS).logits, expected)
    assert len(seen) == count
    assert state_of(model) == before


def test_its_hooks_come_first_and_others_get_the_models_own_modules(llama: PreTrainedModel) -> None:
    layer, order = llama.model.layers[1], []
    layer.register_forward_hook(lambda module, args, output: order.append(("other", module)))
    layer.register_forward_pre_hook(
        lambda module, args, kwargs: order.append(("before", module)), with_kwargs=True
    )
    once = view(
        llama,
        {
            layer: [
                lambda *_: order.append(("first", None)),
                lambda *_: order.append(("second", None)),
            ]
        },
    )
    twice = view(once, {once.model.layers[1]: [lambda *_: order.append(("newest", None))]})
    twice(input_ids=IDS)
    assert order == [
        ("before", layer),
        ("newest", None),
        ("first", None),
        ("second", None),
        ("other", layer),
    ]


def test_modules_under_several_names_are_one_copy() -> None:
    shared = nn.Linear(4, 4)
    net = nn.ModuleDict(
        {"one": nn.Sequential(shared), "two": nn.Sequential(shared), "apart": nn.Linear(4, 4)}
    )
    own = view(net, {shared: [lambda module, args, output: output * 0]})
    assert own["one"][0] is own["two"][0]
    assert own["apart"] is net["apart"]
    assert not bool(own["two"](torch.ones(1, 4)).any())


def test_forwards_that_are_bound_to_a_module_are_its_copys(llama: PreTrainedModel) -> None:
    """As accelerate sets them: a partial of the module, around the class's own method."""
    body = llama.model

    def around(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        return module._old_forward(*args, **kwargs)

    body._old_forward = types.MethodType(type(body).forward, body)
    body.forward = functools.update_wrapper(functools.partial(around, body), body._old_forward)
    ran: list[int] = []
    view(llama, {body.layers[0]: [lambda *_: ran.append(0)]})(input_ids=IDS)
    assert ran == [0]


@pytest.mark.parametrize("compiled", ["whole", "in place", "a layer"])
def test_compiled_code_does_not_go_by(compiled: str) -> None:
    model: Any = build("llama")
    expected = model(input_ids=IDS).logits
    if compiled == "whole":
        model = torch.compile(model, backend="eager")
    elif compiled == "in place":
        model.compile(backend="eager")
    else:
        model.model.layers[1].compile(backend="eager")
    model(input_ids=IDS)
    ran: list[int] = []
    own = view(model, {uncompiled(model).model.layers[1]: [lambda *_: ran.append(1)]})
    torch.testing.assert_close(own(input_ids=IDS).logits, expected)
    assert ran == [1]
    torch.testing.assert_close(model(input_ids=IDS).logits, expected)
    assert ran == [1]


def test_hooks_come_and_go_in_the_middle_of_a_call(llama: PreTrainedModel) -> None:
    layer, calls = llama.model.layers[1], []

    def once(module: nn.Module, *_: Any) -> None:
        calls.append(module)
        handle.remove()

    handle = layer.register_forward_hook(once)
    own = view(llama, {layer: [lambda *_: None]}, {layer: [lambda *_: None]})
    own(input_ids=IDS)
    own(input_ids=IDS)
    assert calls == [layer]
    kept = llama.register_forward_pre_hook(
        lambda module, args, kwargs: calls.append(module), with_kwargs=True
    )
    own(input_ids=IDS)
    kept.remove()
    own(input_ids=IDS)
    assert calls == [layer, llama]


def test_backward_hooks_get_the_models_own_modules(llama: PreTrainedModel) -> None:
    layer, seen = llama.model.layers[1], []
    layer.register_full_backward_hook(lambda module, *_: seen.append(module))
    layer.register_full_backward_pre_hook(lambda module, *_: seen.append(module))
    view(llama, {layer: [lambda *_: None]})(input_ids=IDS).logits.sum().backward()
    assert seen == [layer, layer]


def test_a_compiled_module_inside_has_hooks_as_any(llama: PreTrainedModel) -> None:
    expected, seen = llama(input_ids=IDS).logits, []
    llama.model.layers[1] = torch.compile(llama.model.layers[1], backend="eager")
    own = view(llama, {llama.model.layers[1]: [lambda *_: seen.append(1)]})
    assert torch.equal(own(input_ids=IDS).logits, expected)
    assert seen == [1]


class Noting(nn.Module):
    """Keeps what it has seen, as some models keep where an image ended."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.seen, self.last = nn.Linear(4, 4), 0, None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.seen, self.last = self.seen + 1, x
        return self.inner(x)


def test_what_a_model_notes_on_itself_can_be_written_back() -> None:
    net = nn.Sequential(Noting())
    copies: list[Copy] = []
    plain = view(net, {net[0].inner: [lambda *_: None]})
    own = view(plain, {plain[0].inner: [lambda *_: None]}, copies=copies)
    x = torch.ones(1, 4)
    own(x), own(x)
    assert net[0].seen == 0
    for each in copies:
        each.write_back()
    assert net[0].seen == 2
    assert net[0].last is x
    assert not any(
        isinstance(value, dict) and -1 in value
        for module in net.modules()
        for value in vars(module).values()
    )


@pytest.mark.parametrize("by", ["weight norm", "pruning"])
def test_weights_that_hooks_make_before_each_forward(by: str) -> None:
    torch.manual_seed(0)
    layer: Any = nn.Linear(4, 4)
    net = nn.Sequential(layer)
    if by == "pruning":
        prune.random_unstructured(layer, "weight", 0.5)
        made_of = layer.weight_orig
    else:
        nn.utils.weight_norm(layer)
        made_of = layer.weight_g
    own = view(net, {layer: [lambda *_: None]})
    x = torch.randn(2, 4)
    with torch.no_grad():
        made_of.mul_(3)
    found = own(x)
    torch.testing.assert_close(found, net(x))
    found.sum().backward()
    assert made_of.grad is not None


@pytest.mark.parametrize("compose", ["x", "x + a"])
def test_a_call_leaves_nothing_for_the_garbage_collector(
    llama: PreTrainedModel, compose: str
) -> None:
    """Views go when the call ends: no cycle holds them, and with them rotations and graphs."""
    road = RoadModel(llama, RoadIntervention(layer=1, subspaces=HALVES))
    road.add_adapter("x")
    gc.collect()
    gc.disable()
    try:
        road(IDS, compose=compose).logits.sum().backward()
        road.generate(IDS, compose=compose, max_new_tokens=2)
        left = [thing for thing in gc.get_objects() if isinstance(thing, (Turn, Passes))]
    finally:
        gc.enable()
    assert not left

"""Layers as vLLM has them, armed: edits act where they should, in a graph too, and nothing else does."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from roadint import RoadError
from roadint.engines.vllm.arming import arm
from roadint.engines.vllm.model_parts import _find_layers
from roadint.engines.vllm.operations import Armed, activate
from roadint.engines.vllm.rows.shards import Part, pieces_of
from roadint.engines.vllm.steps import Steps
from tests.engines.vllm.helpers import (
    adapter,
    dense_edit,
    dense_target,
    registry_of,
    road,
    serve,
    steps_of,
)
from tests.helpers import LAYERS, WIDTH


class Method:
    """As vLLM's quant_method."""

    def apply(self, layer: Any, x: Tensor, bias: Tensor | None = None) -> Tensor:
        return nn.functional.linear(x, layer.weight, bias)


class Linear(nn.Module):
    """As vLLM's linear layers: their quant_method computes."""

    def __init__(self, outputs: int, inputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, inputs) / inputs**0.5)
        self.bias = nn.Parameter(torch.randn(outputs))
        self.quant_method = Method()

    def forward(self, x: Tensor) -> Tensor:
        return self.quant_method.apply(self, x, self.bias)


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = Linear(2 * WIDTH, WIDTH), Linear(WIDTH, 2 * WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(torch.tanh(self.up(x)))


class Layer(nn.Module):
    """A decoder layer: it gives what it added, and the residual apart."""

    def __init__(self) -> None:
        super().__init__()
        self.self_attn, self.mlp = Network(), Network()

    def forward(self, hidden: Tensor, residual: Tensor | None) -> tuple[Tensor, Tensor]:
        residual = hidden if residual is None else hidden + residual
        residual = residual + self.self_attn(residual)
        return self.mlp(residual), residual


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Layer() for _ in range(LAYERS))

    def forward(self, hidden: Tensor) -> Tensor:
        residual = None
        for layer in self.layers:
            hidden, residual = layer(hidden, residual)
        return hidden + residual


class Parts:
    """What is known of the model; roadint's own knowledge is of vLLM's classes."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model

    def site(self, layer: int, component: str) -> tuple[str, str]:
        path = f"layers.{layer}"
        if component == "block_output":
            return path, "summed"
        return f"{path}.{'mlp' if component == 'mlp_output' else 'self_attn'}", "alone"


@pytest.fixture
def model() -> Model:
    torch.manual_seed(0)
    return Model().eval()


def armed(model: Model, steps: Steps) -> Armed:
    found = Armed(steps.hidden_table, steps.linear_table)
    arm(Parts(model), steps.hidden, steps.linear, found)  # type: ignore[arg-type]
    activate(found)
    return found


def by_hand(model: Model, h: Tensor, matrices: dict[str, Any]) -> Tensor:
    """The same model whose modules' outputs are multiplied by a matrix a token, or none."""

    def turned(path: str, output: Tensor) -> Tensor:
        for token, matrix in enumerate(matrices.get(path, ())):
            if matrix is not None:
                output[token] = matrix.float() @ output[token]
        return output

    for number, layer in enumerate(model.layers):
        path = f"layers.{number}"
        for name in ("self_attn", "mlp"):
            part = getattr(layer, name)
            up = nn.functional.linear(h, part.up.weight, part.up.bias)
            up = torch.tanh(turned(f"{path}.{name}.up", up))
            down = turned(
                f"{path}.{name}.down", nn.functional.linear(up, part.down.weight, part.down.bias)
            )
            h = h + turned(f"{path}.{name}", down)
        h = turned(path, h.clone())
    return h


@pytest.mark.parametrize("compiled", [False, True])
@torch.no_grad()
def test_edits_act_at_their_sites_and_layers(model: Model, compiled: bool, tmp_path: Path) -> None:
    parts = [
        road(0, 1),
        road(1, 2, component="attention_output", position="all", basis="random"),
        road(2, 3, component="mlp_output", variant="road_4"),
    ]
    targets = {"layers.1.mlp.up": 2 * WIDTH, "layers.2.self_attn.down": WIDTH}
    one = adapter("x", targets)
    pieces = {
        name: listed
        for path, width in targets.items()
        for name, listed in pieces_of(path, [path], [Part(width)], 0, 1).items()
    }
    steps = steps_of(registry_of(plain=serve(tmp_path, *parts, adapters=[one])), pieces)
    bare, h = copy.deepcopy(model), torch.randn(7, WIDTH)
    found = armed(model, steps)
    assert [part.name for part in found.sites] == ["layers.0", "layers.1.self_attn", "layers.2.mlp"]
    assert [part.name for part in found.linears] == list(targets)
    run: Callable[[Tensor], Tensor] = model
    if compiled:
        torch._dynamo.reset()
        run = torch.compile(model, fullgraph=True, backend="aot_eager", dynamic=True)

    steps.clear()
    torch.testing.assert_close(run(h), by_hand(bare, h, {}))
    assert all(part.ran for part in (*found.sites, *found.linears))

    for name, asked, length in (("r", "a", 2), ("s", None, 2), ("t", "a + 2*x", 3)):
        steps.add(name, steps.registry.resolve(asked, length), length)
    steps.fill(["r", "s", "t"], np.array([0, 0, 0]), np.array([2, 2, 3]))
    edits = [dense_edit(part, {"a": 1}) for part in parts]
    matrices: dict[str, Any] = {
        "layers.0": [None, edits[0], None, None, None, None, edits[0]],
        "layers.1.self_attn": [edits[1], edits[1], None, None, edits[1], edits[1], edits[1]],
        "layers.2.mlp": [None, edits[2], None, None, None, None, edits[2]],
    }
    for path in targets:
        turn = dense_target(one, path, 2)
        matrices[path] = [None] * 4 + [turn] * 3
    expected = by_hand(bare, h, matrices)
    torch.testing.assert_close(run(h), expected, rtol=1e-4, atol=1e-4)
    steps.clear()
    torch.testing.assert_close(run(h), by_hand(bare, h, {}))


def test_what_a_model_has_is_kept(model: Model, tmp_path: Path) -> None:
    """Parameters, the classes of modules and of their quant_method, what others have put there."""
    before = {name: id(value) for name, value in model.state_dict(keep_vars=True).items()}
    kinds = [type(module) for module in model.modules()]
    layer, seen = model.layers[0], list[int]()
    forward = type(layer).forward

    def anothers(self: Any, *args: Any) -> Any:
        seen.append(1)
        return forward(self, *args)

    layer.forward = anothers.__get__(layer)
    one = adapter("x", {"layers.0.mlp.up": 2 * WIDTH})
    pieces = pieces_of("layers.0.mlp.up", ["layers.0.mlp.up"], [Part(2 * WIDTH)], 0, 1)
    steps = steps_of(registry_of(plain=serve(tmp_path, road(0), adapters=[one])), pieces)
    shared = model.layers[0].mlp.up.quant_method
    model.layers[1].mlp.up.quant_method = shared  # as some of vLLM's are
    armed(model, steps)
    assert {name: id(value) for name, value in model.state_dict(keep_vars=True).items()} == before
    assert [type(module) for module in model.modules()] == kinds
    assert isinstance(model.layers[0].mlp.up.quant_method, Method)
    assert model.layers[1].mlp.up.quant_method is shared
    assert type(shared) is Method
    model(torch.randn(2, WIDTH))
    assert seen == [1]


def test_layers_that_give_something_else(model: Model, tmp_path: Path) -> None:
    """Which of three tensors is the state is not known."""
    kind = type("Odd", (Layer,), {"forward": lambda self, hidden, residual: (hidden,) * 3})
    model.layers[1] = kind()
    steps = steps_of(registry_of(plain=serve(tmp_path, road(1))))
    armed(model, steps)
    with pytest.raises(RoadError, match="layers.1 returns 3 tensors: expected two of one shape"):
        model.layers[1](torch.randn(2, WIDTH), None)


def test_the_list_of_decoder_layers(model: Model) -> None:
    assert _find_layers(model, LAYERS) == ("layers", model.layers)
    model.layers[0].experts = nn.ModuleList(nn.Identity() for _ in range(LAYERS))
    assert _find_layers(model, LAYERS)[0] == "layers"
    with pytest.raises(RoadError, match="no list of 4 decoder layers in vLLM's Model"):
        _find_layers(model, 4)
    model.others = nn.ModuleList(nn.Identity() for _ in range(LAYERS))
    with pytest.raises(RoadError, match=r"found .layers., .others.\)"):
        _find_layers(model, LAYERS)


def test_a_forward_that_fetches_weights_is_not_replaced(model: Model, tmp_path: Path) -> None:
    """As vLLM's offloaders put it: a function of the instance, which nothing can call in its place."""
    layer = model.layers[1]
    plain = layer.forward
    layer.forward = lambda *args: plain(*args)  # type: ignore[method-assign]
    registry = registry_of(plain=serve(tmp_path, road(layer=1)))
    with pytest.raises(RoadError, match="layers.1 has a forward of its own, as offloaded weights"):
        armed(model, steps_of(registry))

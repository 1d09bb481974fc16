"""What acts are an adapter's values as they are now, however they were changed."""

import copy
import pickle
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.func import functional_call, jvp
from torch.nn.utils import parameters_to_vector, vector_to_parameters

import roadint
from roadint.adapters.adapter import RoadAdapter
from tests.helpers import IDS, VARIANTS, build, randomised, with_adapters


def stepped(kind: type[torch.optim.Optimizer], **settings: Any) -> Callable[[RoadAdapter], None]:
    def change(adapter: RoadAdapter) -> None:
        optimizer = kind(adapter.parameters(), lr=0.1, **settings)
        for parameter in adapter.parameters():
            parameter.grad = torch.ones_like(parameter)
        optimizer.step()

    return change


def through_numpy(adapter: RoadAdapter) -> None:
    adapter.theta.detach().numpy()[:] += 0.3


def through_data(adapter: RoadAdapter) -> None:
    adapter.theta.data.add_(0.3)


def through_a_vector(adapter: RoadAdapter) -> None:
    vector_to_parameters(parameters_to_vector(adapter.parameters()) + 0.3, adapter.parameters())


def averaged(adapter: RoadAdapter) -> None:
    for parameter in adapter.parameters():
        parameter.data.lerp_(torch.zeros_like(parameter), 0.5)


def loaded(adapter: RoadAdapter, assign: bool = False) -> None:
    adapter.load_state_dict(
        {name: value + 0.3 for name, value in adapter.state_dict().items()}, assign=assign
    )


def replaced(adapter: RoadAdapter) -> None:
    adapter.theta = torch.nn.Parameter(adapter.theta.detach() + 0.3)


def in_inference_mode(adapter: RoadAdapter) -> None:
    with torch.inference_mode():
        adapter.theta.add_(0.3)


WAYS = {
    "AdamW, fused": stepped(torch.optim.AdamW, fused=True),
    "Adam, foreach": stepped(torch.optim.Adam, foreach=True),
    "SGD, fused": stepped(torch.optim.SGD, fused=True),
    "Adagrad": stepped(torch.optim.Adagrad, fused=True),
    "numpy": through_numpy,
    "data": through_data,
    "vector": through_a_vector,
    "average": averaged,
    "load": loaded,
    "load, assign": lambda adapter: loaded(adapter, assign=True),
    "replaced": replaced,
    "inference mode": in_inference_mode,
}


@pytest.mark.parametrize("way", WAYS)
def test_what_acts_is_what_there_is(way: str) -> None:
    road = with_adapters(build("llama"), "a", "b")
    with torch.no_grad():
        before = road(input_ids=IDS, compose=["a", "b", "a + b", None]).logits
        WAYS[way](road.adapters["a"])
        after = road(input_ids=IDS, compose=["a", "b", "a + b", None]).logits
    true = road(
        input_ids=IDS, compose=["a", "b", "a + b", None]
    ).logits.detach()  # with gradients no table is used
    torch.testing.assert_close(after, true, rtol=0, atol=1e-5)
    assert not torch.allclose(after[0], before[0], atol=1e-3)
    torch.testing.assert_close(after[[1, 3]], before[[1, 3]], rtol=0, atol=1e-5)


def test_what_has_not_changed_is_not_made_again(monkeypatch: pytest.MonkeyPatch) -> None:
    road, made = with_adapters(build("llama"), "a", "b"), []
    rotation = RoadAdapter.rotation
    monkeypatch.setattr(
        RoadAdapter,
        "rotation",
        lambda self, *args, **named: made.append(self.name) or rotation(self, *args, **named),
    )
    with torch.no_grad():
        for compose in (["a", "b", "a", None], ["b", "a", "b", "a"], ["a", "a", "a", "a"]):
            road(input_ids=IDS, compose=compose)
        assert sorted(made) == ["a", "b"]
        road.adapters["b"].theta.data.mul_(2)
        road(input_ids=IDS, compose=["a", "b", "a", None])
    assert sorted(made) == ["a", "b", "b"]


@pytest.mark.parametrize("variant", VARIANTS)
def test_inside_and_outside_inference_mode(variant: Any, tmp_path: Any) -> None:
    road = with_adapters(build("llama"), "a", variant=variant)
    road.save_pretrained(tmp_path)
    model = build("llama")
    with torch.inference_mode():
        inside = road(input_ids=IDS, compose="a").logits
        other = roadint.RoadModel(model)
        other.load_adapter(tmp_path, "x")
        torch.testing.assert_close(other(input_ids=IDS, compose="x").logits, inside)
    with torch.no_grad():
        half = road(input_ids=IDS, compose="0.5*a").logits
        torch.testing.assert_close(other(input_ids=IDS, compose="0.5*x").logits, half)
        torch.testing.assert_close(road(input_ids=IDS, compose="a").logits, inside)
    other(input_ids=IDS, compose="x").logits.sum().backward()
    assert other.adapters["x"].theta.grad is not None


def test_copies_are_their_own() -> None:
    road = with_adapters(build("llama"), "a")
    with torch.no_grad():
        expected = road(input_ids=IDS, compose="a").logits
        for twin in (copy.deepcopy(road), pickle.loads(pickle.dumps(road))):
            torch.testing.assert_close(twin(input_ids=IDS, compose="a").logits, expected)
            randomised(twin.adapters["a"], 7)
            assert not torch.allclose(twin(input_ids=IDS, compose="a").logits, expected, atol=1e-3)
        torch.testing.assert_close(road(input_ids=IDS, compose="a").logits, expected)


_ELSEWHERE = """
import sys, torch
road, ids = torch.load(sys.argv[1], weights_only=False)
adapter = road.adapters["a"]
for _ in range(6):
    with torch.no_grad():
        adapter.theta.add_(0.3)
        acting = road(input_ids=ids, compose="a").logits
    torch.testing.assert_close(acting, road(input_ids=ids, compose="a").logits)  # which takes no table where values learn
"""


def test_a_table_that_moves_to_another_process_is_not_taken_for_later_values(tmp_path: Any) -> None:
    road = with_adapters(build("llama"), "a")
    with torch.no_grad():
        for _ in range(4):
            road.adapters["a"].theta.add_(0.1)
            road(input_ids=IDS, compose="a")
    torch.save((road, IDS), tmp_path / "road.pt")
    subprocess.run([sys.executable, "-c", _ELSEWHERE, str(tmp_path / "road.pt")], check=True)


@pytest.mark.parametrize("compose", ["a", "0.5*a"])
@pytest.mark.parametrize("gradients", [True, False])
def test_derivatives_of_forward_mode_are_those_of_backward(compose: str, gradients: bool) -> None:
    model = build("llama").requires_grad_(False)
    model.set_attn_implementation("eager")
    road = with_adapters(model, "a")
    theta = road.adapters["a"].theta.detach().clone()

    def loss(theta: Any) -> Any:
        return (
            functional_call(
                road, {"adapters.0.theta": theta}, (), {"input_ids": IDS, "compose": compose}
            )
            .logits.square()
            .mean()
        )

    learned = theta.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(loss(learned), learned)
    direction = torch.randn_like(theta)
    with torch.no_grad():
        loss(theta)  # its table knows these values
    with torch.set_grad_enabled(gradients):
        slope = jvp(loss, (theta,), (direction,))[1]
    torch.testing.assert_close(slope, (gradient * direction).sum())

"""A target's rotation in a decode's loop: in place, a few rows at a time, and the same as the way that keeps gradients."""

from typing import Any

import pytest
import torch

from roadint.adapters.adapter import RoadAdapter
from roadint.adapters.targets import layout_of
from roadint.engines.adapters import Adapters
from roadint.engines.call import Call
from roadint.engines.transformers import turning
from roadint.engines.transformers.passes import Passes
from roadint.engines.transformers.turning import Scratch, Turn
from roadint.grammar.composition import Composition
from tests.helpers import randomised

WIDTH = 12


def layers(names: list[str]) -> Any:
    """One rotated layer, each row through the adapter of its name."""
    net = torch.nn.Sequential(torch.nn.Linear(WIDTH, WIDTH))
    adapters = Adapters(
        randomised(RoadAdapter(name, layout_of(net, ["0"])), seed)
        for seed, name in enumerate("abc")
    )
    compositions = tuple(Composition(((name, 1.0),)) for name in names)
    lowered = adapters.lower(Call(compositions, torch.ones(len(names), 1, dtype=torch.bool)))
    assert lowered is not None
    turn = Turn(lowered.rotations[0], 0, len(names), Scratch())
    passes = Passes()

    def turned(output: torch.Tensor) -> torch.Tensor:
        passes.rows, passes.columns = output.shape[0], output.shape[1] if output.ndim > 2 else 1
        return turn(output, passes)

    return turned


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("names", [["a"] * 5, ["a", "b", "c", "b", "a"]])
@pytest.mark.parametrize("shape", [(5, WIDTH), (5, 1, WIDTH), (10, 7, WIDTH)])
@pytest.mark.parametrize("few", [1, 2 * 7 * WIDTH, 1 << 20])
def test_in_place_and_by_turns(
    dtype: Any, names: list[str], shape: Any, few: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(turning, "_SCRATCH", few)
    learning, outputs = layers(names), torch.randn(3, *shape, dtype=dtype)
    expected = [learning(output.clone().requires_grad_()).detach() for output in outputs]
    with torch.no_grad():
        layer = layers(names)
        for output, right in zip(outputs, expected, strict=True):
            own = output.clone()
            assert layer(own) is own
            torch.testing.assert_close(own, right, rtol=1e-6, atol=1e-6)
            aside = (
                output[..., :].transpose(0, -1).clone().transpose(0, -1)
            )  # not contiguous: not in place
            torch.testing.assert_close(layer(aside), right, rtol=1e-6, atol=1e-6)


def test_shapes_take_turns() -> None:
    """A prefill, steps, and a prefill again through one layer."""
    with torch.no_grad():
        layer = layers(["a", "b"])
        for shape in ((2, 5, WIDTH), (2, 1, WIDTH), (4, 1, WIDTH), (2, 5, WIDTH)):
            output = torch.randn(*shape).bfloat16()
            expected = layers(["a", "b"])(output.clone())
            torch.testing.assert_close(layer(output), expected, rtol=0, atol=0)

"""Quantised weights: edits and adapters act on what they compute.

The checkpoints are written by hand, with the weights that their numbers stand for beside them.
"""

import json
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from roadint import RoadModel
from tests.engines.vllm.helpers import dense_target
from tests.vllm.architectures import GROUPED, adapters, edits, make
from tests.vllm.checkpoints import save
from tests.vllm.engine import Asked, Engine
from tests.vllm.helpers import prompt_of
from tests.vllm.inside import forget, generate
from tests.vllm.oracle import difference

GROUP = 32
LAYER = "model.layers.0.self_attn.qkv_proj"


class Quantised(NamedTuple):
    """What a linear layer is stored as, and the weight that this stands for."""

    stored: dict[str, Tensor]
    weight: Tensor


def int8(weight: Tensor) -> Quantised:
    """A scale for each output."""
    scale = weight.abs().amax(1, keepdim=True) / 127
    whole = (weight / scale).round().clamp(-127, 127)
    return Quantised({"weight": whole.to(torch.int8), "weight_scale": scale}, whole * scale)


def int4(weight: Tensor) -> Quantised:
    """A scale for each group of inputs of an output; eight numbers in an int32."""
    groups = weight.unflatten(1, (-1, GROUP))
    scale = groups.abs().amax(-1, keepdim=True) / 7
    whole = (groups / scale).round().clamp(-8, 7)
    nibbles = (whole.flatten(1) + 8).to(torch.int64).unflatten(1, (-1, 8))
    packed = (nibbles << (4 * torch.arange(8))).sum(-1)
    packed = torch.where(packed >= 2**31, packed - 2**32, packed).to(torch.int32)
    stored = {
        "weight_packed": packed,
        "weight_scale": scale[..., 0],
        "weight_shape": torch.tensor(weight.shape),
    }
    return Quantised(stored, (whole * scale).flatten(1))


class Scheme(NamedTuple):
    """How the weights of a model are quantised.

    Args:
        quantise: One weight.
        config: What the model's configuration says of it.
        tolerance: How far log-probabilities may be from those with the weights that the numbers
            stand for, in nats. Activations may be quantised as well.
    """

    quantise: Callable[[Tensor], Quantised]
    config: dict[str, Any]
    tolerance: float


def _config(form: str, weights: dict[str, Any], inputs: dict[str, Any] | None) -> dict[str, Any]:
    common = {"type": "int", "symmetric": True}
    group = {
        "targets": ["Linear"],
        "weights": common | {"dynamic": False} | weights,
        "input_activations": None if inputs is None else common | inputs,
    }
    return {
        "quant_method": "compressed-tensors",
        "format": form,
        "config_groups": {"group_0": group},
        "ignore": ["lm_head"],
    }


SCHEMES = {
    "int8": Scheme(
        int8,
        _config(
            "int-quantized",
            {"num_bits": 8, "strategy": "channel"},
            {"num_bits": 8, "strategy": "token", "dynamic": True},
        ),
        0.3,
    ),
    "int4": Scheme(
        int4,
        _config("pack-quantized", {"num_bits": 4, "strategy": "group", "group_size": GROUP}, None),
        0.3,
    ),
}


class Served(NamedTuple):
    engine: Engine
    road: RoadModel
    tolerance: float


@pytest.fixture(scope="module", params=SCHEMES)
def served(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Served]:
    root, scheme = tmp_path_factory.mktemp(request.param), SCHEMES[request.param]
    model = make("llama", root / "model", **GROUPED)
    _quantise(model, root / "model", scheme)
    one = RoadModel(model).add_adapter(
        "one", targets=["q_proj", "k_proj"], layers=[0], variant="road_4"
    )
    made = {
        "h": save(model, root / "h", edits(model), seed=1),
        "ad": save(model, root / "ad", [], [*adapters(model), one], seed=2),
    }
    road = RoadModel(model)
    for label, path in made.items():
        road.add_checkpoint(path, label)
    engine = Engine(
        "v1",
        str(root / "model"),
        made,
        dtype="bfloat16",  # the CPU's kernels for these weights know no other
        skip_tokenizer_init=True,
        max_model_len=96,
    )
    try:
        yield Served(engine, road, scheme.tolerance)
    finally:
        engine.close()


def _quantise(model: Any, folder: Path, scheme: Scheme) -> None:
    """Quantise a saved model, and make the weights of `model` those that its numbers stand for."""
    file = folder / "model.safetensors"
    tensors = load_file(file)
    for path, module in model.model.layers.named_modules():
        if isinstance(module, torch.nn.Linear):
            name = f"model.layers.{path}"
            quantised = scheme.quantise(tensors.pop(f"{name}.weight"))
            tensors |= {
                f"{name}.{key}": value.contiguous() for key, value in quantised.stored.items()
            }
            module.weight.data.copy_(quantised.weight)
    save_file(tensors, file, {"format": "pt"})
    about = json.loads((folder / "config.json").read_text())
    about["quantization_config"] = scheme.config
    (folder / "config.json").write_text(json.dumps(about))


def test_it_is_what_the_weights_stand_for(served: Served) -> None:
    draw = random.Random(0)
    asked = [
        Asked(_prompt(draw, draw.randint(5, 40)), compose, 5)
        for compose in (None, *served.road.names)
    ]
    answered = served.engine.generate(asked)
    for one, answer in zip(asked, answered, strict=True):
        found = difference(served.road, one, answer)
        assert found.logprob < served.tolerance, (one.compose, found)


def _prompt(draw: random.Random, length: int) -> tuple[int, ...]:
    return tuple(token % 512 for token in prompt_of(draw, length))


def test_an_adapter_turns_what_a_quantised_layer_gives(served: Served) -> None:
    """In the first layer, whose inputs are the same without it."""
    asked = [Asked(_prompt(random.Random(1), 20), compose, 1) for compose in (None, "one@ad")]
    bare, turned = map(torch.from_numpy, served.engine.run(_outputs, LAYER, asked))
    adapter = served.road.adapters["one@ad"]
    expected, offset = bare.double(), 0
    for path, width in zip(adapter.layout.paths, adapter.layout.widths, strict=True):
        part = slice(offset, offset + width)
        expected[:, part] = expected[:, part] @ dense_target(adapter, path, 1).T
        offset += width
    torch.testing.assert_close(turned.double(), expected, rtol=0.01, atol=0.02)
    assert float((turned - bare).abs().max()) > 0.01
    assert torch.equal(turned[:, offset:], bare[:, offset:])  # values are no target


def _outputs(llm: Any, path: str, asked: list[Asked]) -> list[Any]:
    """What a layer gives for each of some prompts."""
    worker = llm.llm_engine.engine_core.engine_core.model_executor.driver_worker.worker
    layer = worker.model_runner.get_model().get_submodule(path)
    seen: list[Any] = []  # tensors do not travel between processes
    hook = layer.register_forward_hook(
        lambda *given: seen.append(given[2][0].float().numpy().copy())
    )
    try:
        for one in asked:
            forget(llm)
            generate(llm, [one])
    finally:
        hook.remove()
    assert type(layer.quant_method).__name__.endswith("CompressedTensorsLinearMethod")
    return seen

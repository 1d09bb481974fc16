"""The operations of vLLM's graphs on a device, where they read tables that stay in its memory."""

from pathlib import Path

import numpy as np
import pytest
import torch

from roadint.engines.vllm import operations
from roadint.engines.vllm.operations import Armed, ArmedLinear, ArmedSite
from roadint.engines.vllm.rows.hidden_rows import HiddenRows
from roadint.engines.vllm.rows.linear_rows import LinearRows
from roadint.engines.vllm.rows.shards import Piece
from roadint.engines.vllm.served import Served
from roadint.engines.vllm.steps import Limits, Steps
from tests.device.helpers import check_same
from tests.engines.vllm.helpers import adapter, registry_of, road, serve
from tests.helpers import WIDTH

PIECES = {
    "q_proj": [Piece("qkv_proj", 0, 0, 32, 32)],
    "k_proj": [Piece("qkv_proj", 32, 0, 16, 16)],
    "down_proj": [Piece("down_proj", 0, 0, 32, 32)],
}
WIDTHS = {"qkv_proj": 48, "down_proj": 32}
PROMPT = 6
COMPOSITIONS = ["a", None, "b - 0.5*a", "lin", "wide + a", "tail", "four", "tail + lin"]


@pytest.fixture
def served(tmp_path: Path) -> Served:
    edits = [
        road(1),
        road(2, subspaces={"tail": "[0, d)"}, position="last(3)", basis="hadamard", seed=2),
        road(2, subspaces={"four": "[0, d)"}, position="last(3)", basis="hadamard", phase="both"),
    ]
    widths = {"q_proj": 32, "k_proj": 16, "down_proj": 32}
    on_layers = [
        adapter("lin", widths),
        adapter("wide", {"q_proj": 32, "down_proj": 32}, 3, pairing="half", variant="road_4"),
    ]
    return serve(tmp_path / "one", *edits, adapters=on_layers)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_steps_on_a_device(served: Served, dtype: torch.dtype) -> None:
    """A prefill, a chunk that ends before the prompt does, a decoding step, a step without edits."""

    def work(device: torch.device) -> list[torch.Tensor]:
        registry = registry_of(plain=served)
        hidden = HiddenRows([served], (), WIDTH)
        linear = LinearRows([served], PIECES, WIDTHS, False)
        steps = Steps(registry, hidden, linear, Limits(8, 64), device)
        armed = _armed(steps, device)
        for number, text in enumerate(COMPOSITIONS):
            steps.add(f"r{number}", registry.resolve(text, PROMPT) if text else None, PROMPT)
        draw = torch.Generator().manual_seed(0)
        results = []
        with torch.no_grad():
            for start, count in ((0, PROMPT), (0, 4), (4, 2), (PROMPT, 1), (PROMPT + 1, 1)):
                requests = [f"r{number}" for number in range(len(COMPOSITIONS))]
                starts = np.full(len(requests), start, dtype=np.int32)
                steps.fill(requests, starts, np.full(len(requests), count, dtype=np.int32))
                operations.activate(armed)
                results += _forward(armed, len(requests) * count + 3, dtype, device, draw)
            steps.clear()
            results += _forward(armed, 4, dtype, device, draw)
        return results

    check_same(work)


def _armed(steps: Steps, device: torch.device) -> Armed:
    armed = Armed(steps.hidden_table, steps.linear_table)
    for site in steps.hidden.sites:
        places = [
            (place, None if frame is None else frame.to(device))
            for place, frame in steps.hidden.at(site)
        ]
        armed.sites.append(ArmedSite(str(site), places))
    for module in steps.linear.modules:
        armed.linears.append(ArmedLinear(module, steps.linear.at(module)))
    return armed


def _forward(
    armed: Armed, tokens: int, dtype: torch.dtype, device: torch.device, draw: torch.Generator
) -> list[torch.Tensor]:
    """What the operations make of random numbers, with three tokens of padding."""
    results = []
    for number in range(len(armed.sites)):
        hidden, residual = (
            torch.randn(tokens, WIDTH, generator=draw).to(dtype).to(device) for _ in range(2)
        )
        operations.edit(hidden, residual, number)
        operations.edit(residual, None, number)
        results += [hidden, residual]
    for number, module in enumerate(armed.linears):
        output = torch.randn(tokens, WIDTHS[module.name], generator=draw).to(dtype).to(device)
        operations.turn_output(output, number)
        results.append(output)
    return [result.float() for result in results]

"""What a compiled decoding step launches, and what it reads of parameters: without a clock.

Launches are counted in the code that Inductor writes for the step, so they are those after fusion.
"""

import re
from collections.abc import Mapping
from contextlib import nullcontext
from functools import partial
from typing import Any

import torch
from torch import nn
from torch._inductor import config
from torch._inductor.utils import run_and_get_code
from transformers import CompileConfig, PreTrainedModel

from roadint.adapters.targets import find_targets
from roadint.bench.linear_systems import RANK, bmm_lora_system, random_adapter
from roadint.bench.shapes import random_ids, twin
from roadint.bench.timing import BASE
from roadint.model.road_model import RoadModel

_STEPS = 2
_PROMPT = 16
# Calls in the code: of fused kernels in C++ or Triton, and of products and attention.
_LAUNCH = re.compile(
    r"^ +(?:cpp_\w+\(|triton_\w+\.run\(|extern_kernels\.|(?:buf\d+ = )?torch\.ops\.)", re.MULTILINE
)


def traffic_cases(
    base: PreTrainedModel, rows: int, about: Mapping[str, Any]
) -> list[dict[str, Any]]:
    """Count a decoding step of the bare model, of roadint and of the LoRA of batched products.

    Args:
        base: The bare model, a LLaMA.
        rows: How many rows, each with an adapter of its own.
        about: Further entries of every case.

    Returns:
        Cases "traffic" with "launches", "parameter_mb" (10⁶ bytes of weights, and of the rows'
        adapters, that a step reads), and what is beside the base's: "launches_beside" and
        "parameters_over_base".
    """
    layout = find_targets(base)
    road = RoadModel(twin(base))
    road.attach([random_adapter(f"a{number}", layout, number) for number in range(rows)])
    road.compile(mode="default")
    compose = [f"a{number}" for number in range(rows)]
    lora = bmm_lora_system(base, layout.paths, rows)
    settings = CompileConfig(mode="default")
    settings._compile_all_devices = True  # type: ignore[assignment]
    static = {"cache_implementation": "static", "compile_config": settings}
    outputs, inputs = sum(layout.widths), sum(layout.inputs)
    size = next(base.parameters()).element_size()
    systems: dict[str, tuple[Any, Any, dict[str, Any], int]] = {
        BASE: (twin(base), nullcontext(), static, 0),
        # A complex number of float32 a pair of dims.
        "roadint": (road, nullcontext(), {"compose": compose}, 4 * outputs),
        lora.name: (
            lora.module,
            lora.context(list(range(rows))),
            static,
            RANK * (inputs + outputs) * size,
        ),
    }
    weights = _weight_bytes(base)
    cases: list[dict[str, Any]] = []
    for name, (module, context, keywords, of_row) in systems.items():
        with context:
            launches = _launches(module, random_ids(base, rows, _PROMPT), keywords)
        read = weights + rows * of_row
        first = cases[0]["launches"] if cases else launches
        case = {"name": "traffic", "system": name, "launches": launches}
        case |= {"launches_beside": launches - first, "parameter_mb": round(read / 1e6, 6)}
        cases.append({**case, "parameters_over_base": round(read / weights, 4), **about})
    return [{**case, "rows": rows} for case in cases]


def _launches(module: Any, ids: torch.Tensor, keywords: Mapping[str, Any]) -> int:
    """The launches of a step of a generation, whose decode alone is compiled."""
    torch.compiler.reset()
    generate = partial(
        module.generate,
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=_STEPS + 1,
        min_new_tokens=_STEPS + 1,
        do_sample=False,
        pad_token_id=0,
        **keywords,
    )
    with config.patch(force_disable_caches=True):  # else no code is written
        _, code = run_and_get_code(generate)
    return len(_LAUNCH.findall(code[-1]))


def _weight_bytes(base: nn.Module) -> int:
    """The bytes of all weights that a step reads: of embeddings a row a token, which is nothing."""
    return sum(
        parameter.nbytes
        for module in base.modules()
        if not isinstance(module, nn.Embedding)
        for parameter in module.parameters(recurse=False)
    )

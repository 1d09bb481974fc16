"""What a compiled decoding step launches and moves, counted: on any machine, without a clock.

Each operation of the step's graph counts as one launch, and as the bytes that it reads and writes,
before a compiler fuses any: what adapters add to the bare model is theirs.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import PreTrainedModel

from roadint.adapters.targets import find_targets
from roadint.bench.linear_systems import bmm_lora_system, random_adapter
from roadint.bench.shapes import random_ids, twin
from roadint.bench.timing import BASE
from roadint.model.road_model import RoadModel

_STEPS = 3  # the first step of a graph may make what later ones keep
_PROMPT = 16


class Counter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the operations inside a context.

    Attributes:
        launches: How many there were; views launch nothing.
        bytes: What they read and wrote.
        names: The operations, in order.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.launches = self.bytes = 0
        self.names: list[str] = []

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        """Run an operation, and count it."""
        result = function(*args, **(kwargs or {}))
        name = str(function).removesuffix(".default")
        if not function.is_view and name != "aten._unsafe_view":
            self.launches += 1
            self.names.append(name)
            moved = _MOVED.get(name, _all_of)
            self.bytes += moved([*args, *(kwargs or {}).values()], result)
        return result


def _all_of(args: Sequence[Any], result: Any) -> int:
    return sum(_size(value) for value in tree_leaves((args, result)))


def _turned(args: Sequence[Any], result: Any) -> int:
    """Hidden states in and out, and of the table the blocks of the tokens' rotations."""
    h, u, v, index = args[:4]
    entries = len(u) if index is None else len(index)
    of_entry = h.shape[-1] // 2 * 2 * u.element_size()
    return 2 * _size(h) + _size(index) + int(entries * of_entry * (1 if v is None else 2))


# What does not touch all of its tensors.
_MOVED: dict[str, Callable[[Sequence[Any], Any], int]] = {
    "roadint.turn": _turned,
    "aten.embedding": lambda args, result: 2 * _size(result) + _size(args[1]),
    "aten.index_copy_": lambda args, result: 2 * _size(args[3]) + _size(args[2]),
}


def _size(value: Any) -> int:
    return value.numel() * value.element_size() if isinstance(value, Tensor) else 0


def traffic_cases(
    base: PreTrainedModel, rows: int, about: Mapping[str, Any]
) -> list[dict[str, Any]]:
    """Count a decoding step of the bare model, of roadint and of the LoRA of batched products.

    Args:
        base: The bare model, a LLaMA.
        rows: How many rows, each with an adapter of its own.
        about: Further entries of every case.

    Returns:
        Cases "traffic" with "launches", "mb" (10⁶ bytes), and what is beside the base's:
        "launches_beside" and "mb_over_base".
    """
    paths = find_targets(base).paths
    road, layout = RoadModel(twin(base)), find_targets(base)
    road.attach([random_adapter(f"a{number}", layout, number) for number in range(rows)])
    compose = [f"a{number}" for number in range(rows)]
    lora = bmm_lora_system(base, paths, rows)
    # transformers would compile the decode of a static cache by a compiler of its own.
    static = {"cache_implementation": "static", "disable_compile": True}
    systems: dict[str, tuple[Any, Any, dict[str, Any]]] = {
        BASE: (twin(base), nullcontext(), static),
        "roadint": (road, nullcontext(), {"compose": compose}),
        lora.name: (lora.module, lora.context(list(range(rows))), static),
    }
    ids = random_ids(base, rows, _PROMPT)
    cases = []
    for name, (module, context, keywords) in systems.items():
        with context:
            counter = _count(module, partial(module.generate, input_ids=ids, **keywords), ids)
        case = {"name": "traffic", "system": name, "launches": counter.launches}
        cases.append({**case, "mb": counter.bytes / 1e6, "rows": rows, **about})
    first = cases[0]
    for case in cases:
        case["launches_beside"] = case["launches"] - first["launches"]
        case["mb_over_base"] = round(case["mb"] / first["mb"], 4)
    return cases


def _count(module: Any, generate: Callable[..., Any], ids: Tensor) -> Counter:
    """The operations of the last step of a generation."""
    counters: list[Counter] = []

    def backend(graph: Any, inputs: Any) -> Callable[..., Any]:
        def run(*values: Any) -> Any:
            with Counter() as counter:
                result = graph(*values)
            counters.append(counter)
            return result

        return run

    module.compile(backend=backend, fullgraph=True)
    generate(
        attention_mask=torch.ones_like(ids),
        max_new_tokens=_STEPS + 1,
        min_new_tokens=_STEPS + 1,
        do_sample=False,
        pad_token_id=0,
    )
    return counters[-1]

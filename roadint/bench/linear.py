"""`roadint bench linear`: adapters on linear layers beside PEFT's; one layer, a whole model's decode, merging, training memory."""

import time
from collections.abc import Callable, Sequence
from functools import partial
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

from roadint.adapters.layer import RoadLinear
from roadint.adapters.merging import Merged, merge
from roadint.adapters.targets import find_targets, layout_of
from roadint.architecture.properties import cache_name
from roadint.bench.learn import import_peft
from roadint.bench.linear_systems import System, bare, bmm, peft, random_road, roadint
from roadint.bench.measure import case, machine
from roadint.bench.workers import in_turns
from roadint.grammar.composition import Composition
from roadint.model.pretrained import load
from roadint.progress import track

WIDTHS, TOKENS, ADAPTERS, ROWS = (576, 1024, 2048, 4096), (1, 128), (1, 8, 64), 64
PARTS = ("layer", "decode", "merge", "memory")


class Holder(nn.Module):
    """One linear layer, as a module that PEFT can wrap."""

    def __init__(self, width: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.layer = nn.Linear(width, width, bias=False, dtype=dtype).requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        """x: [rows, tokens, width]."""
        found: Tensor = self.layer(x)
        return found


def bench_linear(
    model: str = "smollm2-135m",
    *,
    parts: Sequence[str] = PARTS,
    widths: Sequence[int] = WIDTHS,
    dtypes: Sequence[str] = ("float32", "bfloat16"),
    runs: int = 15,
    steps: int = 16,
    quiet: bool = False,
) -> dict[str, Any]:
    """Each case in one process, all systems in turns; returns {"machine", "job", "cases"}.

    parts: "layer" (64 rows, 1 and 128 tokens, 1, 8 and 64 adapters), "decode" (one-token steps of the whole model, 8 rows with 1
    and 8 adapters, 64 rows with 1 and 64), "merge" (2,048 × 2,048, in and out, alone and in a stack of eight), "memory" (what a
    layer keeps for its gradient).
    A case has "over_base", the median of its time over the base's in the same turn. A system that fails in a dtype has "error".
    """
    makers: dict[str, Callable[..., list[dict[str, Any]]]] = {
        "layer": _layers,
        "decode": _decode,
        "merge": _merge,
        "memory": _memory,
    }
    cases: list[dict[str, Any]] = []
    with torch.no_grad():
        for part in parts:
            for dtype in dtypes if part in ("layer", "decode") else ("float32",):
                cases += makers[part](
                    model=model,
                    widths=widths,
                    dtype=getattr(torch, dtype),
                    runs=runs,
                    steps=steps,
                    quiet=quiet,
                )
    job = {"model": model, "parts": list(parts), "rows": ROWS, "rank": 8}
    return {"machine": machine(torch.device("cpu"), torch.float32), "job": job, "cases": cases}


def _layers(
    *, widths: Sequence[int], dtype: torch.dtype, runs: int, quiet: bool, **_: Any
) -> list[dict[str, Any]]:
    found = []
    settings = [
        (width, tokens, count) for width in widths for tokens in TOKENS for count in ADAPTERS
    ]
    for width, tokens, count in track(settings, len(settings), f"layers, {dtype}", quiet=quiet):
        holder = Holder(width, dtype).eval()
        x = torch.randn(ROWS, tokens, width, dtype=dtype)
        systems = _systems(holder, ["layer"], count)
        repeat = 20 if tokens == 1 else 1

        rows = [number % count for number in range(ROWS)]

        def once(
            system: System, rows: Sequence[int] = rows, x: Tensor = x, repeat: int = repeat
        ) -> float:
            with system.context(rows) as module:
                started = time.perf_counter()
                for _ in range(repeat):
                    module(x, **system.keywords(rows))
                return (time.perf_counter() - started) / repeat

        about = {
            "width": width,
            "tokens": tokens,
            "adapters": count,
            "rows": ROWS,
            "dtype": _plain(dtype),
        }
        found += _timed("layer", systems, once, runs, about)
    return found


def _decode(
    *, model: str, dtype: torch.dtype, runs: int, steps: int, quiet: bool, **_: Any
) -> list[dict[str, Any]]:
    base, _ = load(model, dtype=dtype)
    base.requires_grad_(False)
    paths = find_targets(base).paths
    found = []
    for rows, rivals in ((8, True), (ROWS, False)):
        ids = torch.randint(
            10, base.config.vocab_size, (rows, 16), generator=torch.Generator().manual_seed(0)
        )
        systems = []
        for each in _systems(base, paths, rows, rivals=rivals):
            if each.name == "base":
                systems.append(each)
                continue
            for label, own in {
                "1 adapter": [0] * rows,
                f"{rows} adapters": list(range(rows)),
            }.items():
                systems.append(each.through(own, label))

        def step(system: System, ids: Tensor = ids) -> float:
            output = base(input_ids=ids, use_cache=True)
            cache = getattr(output, cache_name(base))
            times = []
            with system.context(()) as module:
                for _ in range(steps):
                    started = time.perf_counter()
                    module(
                        input_ids=ids[:, :1],
                        use_cache=True,
                        **{cache_name(base): cache},
                        **system.keywords(()),
                    )
                    times.append(time.perf_counter() - started)
            return median(times)

        about = {"rows": rows, "tokens": 1, "dtype": _plain(dtype), "model": model}
        found += _timed("decode", systems, step, max(3, runs // 2), about, quiet=quiet)
    return found


def _systems(
    module: nn.Module, paths: Sequence[str], count: int, rivals: bool = True
) -> list[System]:
    found = [bare(module), roadint(module, paths, count)]
    if rivals:
        found += [
            peft("road", module, paths, count),
            peft("lora", module, paths, count),
            bmm(module, paths, count),
        ]
    return found


def _timed(
    name: str,
    systems: Sequence[System],
    once: Callable[[System], float],
    runs: int,
    about: dict[str, Any],
    quiet: bool = True,
) -> list[dict[str, Any]]:
    """All in turns; the ratio is the median over the turns of a system's time over the base's in the same turn."""
    times: dict[str, list[float]] = {system.name: [] for system in systems}
    errors: dict[str, str] = {}
    for turn in track(
        range(runs + 1), runs + 1, f"{name}, {about['rows']} rows, {about['dtype']}", quiet=quiet
    ):
        for system in in_turns(list(systems), turn):
            if system.name in errors:
                continue
            try:
                seconds = once(system)
            except (RuntimeError, TypeError) as error:  # PEFT's mixed batches refuse half precision
                errors[system.name] = str(error).splitlines()[0]
                continue
            if turn:  # the first one warms up
                times[system.name].append(seconds)
    found = []
    for system in systems:
        if system.name in errors:
            found.append(
                {"name": name, "system": system.name, "error": errors[system.name], **about}
            )
            continue
        over = median(
            own / base for own, base in zip(times[system.name], times["base"], strict=True)
        )
        found.append(
            {
                **case(name, system.name, times[system.name], None),
                "over_base": round(over, 3),
                **about,
            }
        )
    return found


def _merge(*, runs: int, **_: Any) -> list[dict[str, Any]]:
    """A layer alone and a stack of eight, all weights at once; seconds a layer."""
    return _merge_stack(1, runs) + _merge_stack(8, runs)


def _merge_stack(layers: int, runs: int) -> list[dict[str, Any]]:
    width, composition = 2048, Composition((("a0", 1.0),))
    net = nn.Sequential(*(nn.Linear(width, width) for _ in range(layers)))
    paths = [str(place) for place in range(layers)]
    adapters = {"a0": random_road("a0", layout_of(net, paths))}
    theirs: Any = peft("road", net, paths, 1).module
    merged: list[Merged] = []

    def enter(keep: bool) -> None:
        merged.append(merge(net, adapters, composition, keep))

    def leave() -> None:
        merged.pop().undo()

    pairs: dict[str, tuple[Callable[[], Any], Callable[[], Any]]] = {
        "roadint": (partial(enter, False), leave),
        "roadint, weights kept": (partial(enter, True), leave),
        "PEFT RoAd": (theirs.merge_adapter, theirs.unmerge_adapter),
    }
    times: dict[tuple[str, str], list[float]] = {}
    for turn in range(runs + 1):
        for system in in_turns(list(pairs), turn):
            for what, act in zip(("merge", "unmerge"), pairs[system], strict=True):
                started = time.perf_counter()
                act()
                if turn:
                    times.setdefault((what, system), []).append(
                        (time.perf_counter() - started) / layers
                    )
    about = {"width": width, "dtype": "float32", "layers": layers}
    return [case(what, system, seconds, None, **about) for (what, system), seconds in times.items()]


def _memory(*, widths: Sequence[int], **_: Any) -> list[dict[str, Any]]:
    """What autograd keeps of one layer with a frozen weight, in copies of its output; weights are not counted."""
    library, width = import_peft(), widths[0]
    found = []
    for dtype in (torch.float32, torch.bfloat16):
        holder = Holder(width, dtype)
        road = RoadLinear(holder.layer)
        peft_road = library.get_peft_model(
            Holder(width, dtype), library.RoadConfig(group_size=2, target_modules=["layer"])
        )
        peft_lora = library.get_peft_model(
            Holder(width, dtype), library.LoraConfig(r=8, target_modules=["layer"])
        )
        x = torch.randn(8, 128, width, dtype=dtype)
        for name, module in {
            "base": holder,
            "roadint": road,
            "PEFT RoAd": peft_road,
            "PEFT LoRA r=8": peft_lora,
        }.items():
            weights = {each.untyped_storage().data_ptr() for each in module.parameters()}
            kept: dict[int, int] = {}

            def note(
                tensor: Tensor, kept: dict[int, int] = kept, weights: set[int] = weights
            ) -> Tensor:
                storage = tensor.untyped_storage()
                if storage.data_ptr() not in weights:
                    kept[storage.data_ptr()] = storage.nbytes()
                return tensor

            with (
                torch.enable_grad(),
                torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor),
            ):
                output = module(x.requires_grad_())
            about = {"width": width, "dtype": _plain(dtype)}
            copies = sum(kept.values()) / (output.numel() * output.element_size())
            found.append(
                {"name": "memory", "system": name, "copies_kept": round(copies, 2), **about}
            )
    return found


def _plain(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")

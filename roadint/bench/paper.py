"""`roadint bench paper`: figure 4 and table D.1 of the paper (arXiv 2409.00119), on this machine.

Figure 4 is the throughput of a LLaMA-7B with adapters on all its linear layers: for one request, by
LoRA's rank ("ranks", at its left); by the number of generated tokens, for eight requests with
adapters of their own ("lengths", in its middle); by the number of such requests ("requests", at its
right). Table D.1 is memory and time of training beside OFT and BOFT ("training"). The first pass
over the prompt is not counted.

Steps are timed at a few lengths of the cache, and added up to a generation. Eager ones have a cache
that grows. A graph has a static cache of the whole length, so all steps of a generation take alike.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from statistics import median
from typing import Any

import torch
from transformers import PreTrainedModel

from roadint.adapters.targets import find_targets
from roadint.bench.lengths import generation_seconds
from roadint.bench.linear_systems import (
    RANK,
    LinearSystem,
    Maker,
    base_system,
    bmm_lora_system,
    merged_system,
    peft_lora_system,
    peft_road_system,
    road_system,
)
from roadint.bench.machine import free_memory, machine
from roadint.bench.paper_training import METHODS, training_cases
from roadint.bench.report import case
from roadint.bench.shapes import model_and_tokenizer
from roadint.bench.steps import MODES, Mode, modes_on, steps_of
from roadint.bench.timing import BASE, ratios_of, take_turns

PARTS = ("ranks", "lengths", "requests", "training")
_PROMPT = 32  # tokens before the first generated one
_MIXED: tuple[Maker, ...] = (
    base_system,
    road_system,
    bmm_lora_system,
    peft_lora_system,
    peft_road_system,
)
_ByLength = dict[int, tuple[dict[str, list[float]], dict[str, str]]]
"""tokens in the cache → the seconds of steps and the errors, by system"""


def bench_paper(
    shape: str = "llama-7b",
    *,
    parts: Sequence[str] = PARTS,
    modes: Sequence[Mode] = MODES,
    ranks: Sequence[int] = (1, 2, 4, 8, 16),
    lengths: Sequence[int] = (256, 512, 1024, 2048, 4096),
    requests: Sequence[int] = (1, 2, 4, 8, 16),
    tokens: int = 2048,
    rows: int = 8,
    runs: int = 3,
    steps: int = 16,
    training_steps: int = 5,
    training_tokens: int = 512,
    methods: Sequence[str] = METHODS,
    dtype: torch.dtype = torch.bfloat16,
    done: Callable[[dict[str, Any]], None] = lambda report: None,
    quiet: bool = False,
) -> dict[str, Any]:
    """Measure what the paper shows of speed and memory.

    Args:
        shape: A name in `roadint.bench.shapes.SHAPES`.
        parts: Of PARTS.
        modes: "eager", and "graph" on a GPU.
        ranks: The ranks of LoRA.
        lengths: Numbers of generated tokens.
        requests: Numbers of requests in a batch, each with an adapter of its own.
        tokens: Generated tokens of "ranks" and "requests".
        rows: The requests of "lengths".
        runs: The runs of every system.
        steps: The steps of a run, at every length of the cache.
        training_steps: The measured steps of training, out of the table's 100.
        training_tokens: The tokens of a training step.
        methods: Of ALL_METHODS of `roadint.bench.paper_training`; those of table D.1 by default.
        dtype: The dtype of the model.
        done: Is given the report after every part, so that no figure is lost.
        quiet: Whether there is no progress bar.

    Returns:
        {"machine", "job", "cases", "ratios"}. A case of a generation has "tokens_per_s"; seconds
        are a generation's, and a training step's.
    """
    base, tokenizer = model_and_tokenizer(shape, shape, dtype)
    figure = _Figure(base, modes, runs, steps, quiet)
    measure: dict[str, Callable[[], list[dict[str, Any]]]] = {
        "ranks": lambda: figure.ranks(ranks, tokens),
        "lengths": lambda: figure.lengths(rows, lengths),
        "requests": lambda: figure.requests(requests, tokens),
        "training": lambda: training_cases(
            base, tokenizer, methods, 1, training_tokens, training_steps, quiet=quiet
        ),
    }
    report: dict[str, Any] = {
        "machine": machine(base.device, dtype),
        "job": {"model": shape, "parts": list(parts), "rows": rows, "prompt": _PROMPT},
        "cases": [],
    }
    for part in parts:
        with torch.no_grad():
            report["cases"] += measure[part]()
        report["ratios"] = ratios_of(report["cases"])
        done(report)
        free_memory(base.device)
    return report


class _Figure:
    """The measurements of figure 4.

    Args:
        base: The bare model.
        modes: As in `bench_paper`.
        runs: The runs of every system.
        steps: The steps of a run.
        quiet: Whether there is no progress bar.
    """

    def __init__(
        self,
        base: PreTrainedModel,
        modes: Sequence[Mode],
        runs: int,
        steps: int,
        quiet: bool,
    ) -> None:
        self._base, self._runs, self._steps, self._quiet = base, runs, steps, quiet
        self._modes = modes_on(base.device, modes)

    def ranks(self, ranks: Sequence[int], tokens: int) -> list[dict[str, Any]]:
        """One request: LoRA by its rank and RoAd by its variant, merged and not."""
        makers: list[Maker] = [base_system, merged_system, partial(merged_system, lora_rank=RANK)]
        for number in "124":
            named: dict[str, Any] = {"variant": f"road_{number}", "name": f"roadint RoAd{number}"}
            makers.append(partial(road_system, **named))
        for rank in ranks:
            makers.append(partial(bmm_lora_system, rank=rank))
            makers.append(partial(peft_lora_system, rank=rank))
        return self._generations("ranks", makers, 1, [tokens])

    def lengths(self, rows: int, lengths: Sequence[int]) -> list[dict[str, Any]]:
        """Requests with adapters of their own, by the number of generated tokens."""
        return self._generations("lengths", _MIXED, rows, lengths)

    def requests(self, requests: Sequence[int], tokens: int) -> list[dict[str, Any]]:
        """Generations by the number of requests with adapters of their own."""
        cases = []
        for count in requests:
            cases += self._generations("requests", _MIXED, count, [tokens])
        return cases

    def _generations(
        self, name: str, makers: Sequence[Maker], requests: int, lengths: Sequence[int]
    ) -> list[dict[str, Any]]:
        paths = find_targets(self._base).paths
        adapters = list(range(requests))
        systems = [make(self._base, paths, requests).assigned(adapters) for make in makers]
        cases = []
        for mode in self._modes:
            # PEFT asks the host at every layer, which no graph can hold.
            fit = [system for system in systems if mode == "eager" or "PEFT" not in system.name]
            times = self._times(name, mode, fit, requests, lengths)
            about = {"mode": mode, "requests": requests}
            for tokens in lengths:
                cases += _cases(name, mode, times, {**about, "tokens": tokens})
        del systems
        free_memory(self._base.device)
        return cases

    def _times(
        self,
        name: str,
        mode: Mode,
        systems: Sequence[LinearSystem],
        requests: int,
        lengths: Sequence[int],
    ) -> _ByLength:
        times: _ByLength = {}
        for length in cache_lengths(mode, lengths):
            with steps_of(mode, self._base, requests, length, self._steps) as once:
                what = f"{name}, {mode}, {requests} rows, {length} tokens in the cache"
                times[length] = take_turns(systems, once, self._runs, what, quiet=self._quiet)
            free_memory(self._base.device)
        return times


def cache_lengths(mode: Mode, lengths: Sequence[int]) -> list[int]:
    """The lengths of the cache at which steps are timed.

    Args:
        mode: "eager": at the beginning, after a quarter of the longest generation, at its end.
            "graph": the whole of every generation.
        lengths: Numbers of generated tokens.

    Returns:
        Tokens in the cache.
    """
    longest = max(lengths)
    after = (0, longest // 4, longest) if mode == "eager" else lengths
    return sorted({_PROMPT + tokens for tokens in after})


def _cases(
    name: str, mode: Mode, times: _ByLength, about: Mapping[str, Any]
) -> list[dict[str, Any]]:
    """The cases of one number of generated tokens, a case a system."""
    tokens = about["tokens"]
    errors = {system: text for _, failed in times.values() for system, text in failed.items()}
    systems = [system for system in next(iter(times.values()))[0] if system not in errors]
    seconds: dict[str, list[float]] = {}
    for system in systems:
        runs = zip(*(of_system[system] for of_system, _ in times.values()), strict=True)
        if mode == "eager":
            seconds[system] = [
                generation_seconds(dict(zip(times, run, strict=True)), _PROMPT, tokens)
                for run in runs
            ]
        else:
            seconds[system] = [tokens * step for step in times[_PROMPT + tokens][0][system]]
    cases = []
    for system, values in seconds.items():
        pairs = zip(values, seconds.get(BASE, values), strict=True)
        more = {
            "over_base": round(median(own / base for own, base in pairs), 3),
            "tokens_per_s": round(about["requests"] * tokens / median(values), 2),
        }
        cases.append(case(name, system, values, None, **more, **about))
    refused = [{"name": name, "system": key, "error": text} for key, text in errors.items()]
    return [*cases, *({**entry, **about} for entry in refused)]

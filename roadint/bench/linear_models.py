"""What `roadint bench linear` measures on whole models: decoding steps, prefill, merging."""

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor
from transformers import PreTrainedModel

from roadint.adapters.targets import find_targets
from roadint.bench.compiled import generation_steps, generations
from roadint.bench.linear_merging import whole_model_cases
from roadint.bench.linear_systems import (
    LinearSystem,
    Maker,
    base_system,
    bmm_lora_system,
    road_system,
)
from roadint.bench.machine import free_memory
from roadint.bench.shapes import model_and_tokenizer, random_ids
from roadint.bench.steps import Mode, Steps, modes_on, steps_of
from roadint.bench.timing import compare, seconds_of
from roadint.bench.traffic import traffic_cases

_PROMPT = 16  # tokens in the cache before the steps of a decode
_FEW = 8  # rows


class WholeModel:
    """What is measured on a whole model, in every dtype; it is built anew for each dtype.

    Args:
        model: Hub id, folder or short name.
        shape: A name in `roadint.bench.shapes.SHAPES`, in place of the model.
        dtypes: The dtypes.
        rivals: The systems beside the base and roadint.
        runs: The runs of every system.
        quiet: Whether there is no progress bar.
    """

    def __init__(
        self,
        model: str,
        shape: str | None,
        dtypes: Sequence[torch.dtype],
        rivals: Sequence[Maker],
        runs: int,
        quiet: bool,
    ) -> None:
        self._model, self._shape, self._dtypes = model, shape, dtypes
        self._rivals, self._runs, self._quiet = rivals, runs, quiet
        self._built: dict[torch.dtype, PreTrainedModel] = {}

    def decode(
        self, rows_of: Sequence[int], modes: Sequence[Mode], steps: int
    ) -> list[dict[str, Any]]:
        """Steps with some numbers of rows, the rivals beside up to 8."""
        cases = []
        for base, about in self._bases():
            for rows in rows_of:
                for mode in modes_on(base.device, modes):
                    entries = {"rows": rows, "tokens": 1, "mode": mode, **about}
                    cases += self._steps(base, mode, rows, steps, entries)
                    free_memory(base.device)
        return cases

    def _steps(
        self, base: PreTrainedModel, mode: Mode, rows: int, steps: int, about: Mapping[str, Any]
    ) -> list[dict[str, Any]]:
        timed = partial(compare, "decode", runs=self._runs, about=about, quiet=self._quiet)
        if mode == "generate":
            return timed(generations(base, rows), generation_steps(base, rows, _PROMPT, steps))
        systems = _decoding_systems(base, rows, self._makers(rows, mode))
        length = _PROMPT if mode == "eager" else _PROMPT + steps
        with steps_of(mode, base, rows, length, steps) as once:
            return timed(systems, once)

    def _makers(self, rows: int, mode: Mode) -> Sequence[Maker]:
        """PEFT asks the host at every layer, which no graph can hold, and takes minutes for 64."""
        graph = [make for make in self._rivals if make in (bmm_lora_system,)]
        if mode == "graph":
            return (base_system, road_system, *graph)
        return (base_system, road_system, *(self._rivals if rows <= _FEW else ()))

    def prefill(self, rows: int, tokens: int) -> list[dict[str, Any]]:
        """The pass over prompts, a row with an adapter of its own, the head at the last token."""
        cases = []
        for base, about in self._bases():
            makers = (base_system, road_system, *self._rivals)
            systems = [make(base, find_targets(base).paths, rows) for make in makers]
            once = _prefill(random_ids(base, rows, tokens))
            entries = {"rows": rows, "tokens": tokens, "mode": "eager", **about}
            cases += compare("prefill", systems, once, self._runs, entries, quiet=self._quiet)
        return cases

    def traffic(self) -> list[dict[str, Any]]:
        """Launches and bytes of a compiled step with 8 rows."""
        return [case for base, about in self._bases() for case in traffic_cases(base, _FEW, about)]

    def merge(self) -> list[dict[str, Any]]:
        """Merging and unmerging all linear layers."""
        cases = []
        for base, about in self._bases():
            cases += whole_model_cases(base, find_targets(base).paths, self._runs, about)
        return cases

    def _bases(self) -> Iterator[tuple[PreTrainedModel, dict[str, Any]]]:
        for dtype in self._dtypes:
            if dtype not in self._built:
                self._built.clear()  # one at a time
                base, _ = model_and_tokenizer(self._model, self._shape, dtype)
                self._built[dtype] = base.requires_grad_(False)
            about = {"dtype": _name_of(dtype), "model": self._shape or self._model}
            yield self._built[dtype], about


def _decoding_systems(
    base: PreTrainedModel, rows: int, makers: Sequence[Maker]
) -> list[LinearSystem]:
    """The base, and every other system twice: with one adapter for all rows, and with one a row."""
    paths = find_targets(base).paths
    base_alone, *others = [make(base, paths, rows) for make in makers]
    assignments = {", 1 adapter": [0] * rows, f", {rows} adapters": list(range(rows))}
    return [
        base_alone,
        *(
            system.assigned(adapters, label)
            for system in others
            for label, adapters in assignments.items()
        ),
    ]


def _prefill(ids: Int[Tensor, "rows tokens"]) -> Steps:
    """A function that returns the time of a pass over prompts, its edit made and all."""
    adapters = list(range(len(ids)))

    def once(system: LinearSystem) -> float:
        keywords = {"input_ids": ids, "use_cache": True, "logits_to_keep": 1}

        def act() -> None:
            with system.context(adapters) as module:
                module(**keywords, **system.keywords(adapters))

        return seconds_of(act, ids.device)

    return once


def _name_of(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")

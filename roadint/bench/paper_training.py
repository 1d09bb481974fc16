"""Table D.1 of the paper: memory and time of training adapters on all linear layers.

All methods train beside the same frozen weights, in turns, each in its own library's step: roadint
scores tokens as its trainer does, PEFT's models compute their own loss over all logits.
"""

from collections.abc import Callable, Mapping, Sequence
from statistics import fmean
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from roadint.adapters.targets import find_targets
from roadint.bench.machine import forget_peak, free_memory, peak_mb, used_mb
from roadint.bench.peft_library import boft_config, import_peft, oft_config
from roadint.bench.report import case
from roadint.bench.shapes import random_ids, twin
from roadint.bench.timing import seconds_of, take_turns
from roadint.data.collate import Collator, Example, completion_nll, moved
from roadint.model.road_model import RoadModel

_RATE = 1e-3
_STEPS = 100  # of the table
_NUMBER = 12  # bytes: a trained number in float32, with its two averages in AdamW

# Method → the arguments of its adapter.
_ROADS: dict[str, dict[str, Any]] = {
    **{f"roadint RoAd{number}": {"variant": f"road_{number}"} for number in (1, 2, 4)},
    "roadint RoAd1 + LoRA r=32": {"variant": "road_1", "lora_rank": 32},
}
# Method → its configuration in PEFT; w is the size of a block, m the number of butterflies.
_PEFT: dict[str, Callable[[Any, Sequence[str]], Any]] = {
    "PEFT LoRA r=8": lambda peft, paths: peft.LoraConfig(r=8, target_modules=paths),
    "PEFT LoRA r=128": lambda peft, paths: peft.LoraConfig(r=128, target_modules=paths),
    "PEFT RoAd": lambda peft, paths: peft.RoadConfig(group_size=2, target_modules=paths),
    "PEFT OFT w=2": lambda peft, paths: oft_config(peft, paths, 2),
    "PEFT OFT w=16": lambda peft, paths: oft_config(peft, paths, 16),
    "PEFT BOFT w=4 m=2": lambda peft, paths: boft_config(peft, paths, 4, butterflies=2),
}
ALL_METHODS = (*_ROADS, *_PEFT)
_OF_TABLE_6 = ("roadint RoAd1 + LoRA r=32", "PEFT LoRA r=128")  # LLaVA's
METHODS = tuple(name for name in ALL_METHODS if name not in _OF_TABLE_6)


class _Method:
    """A method of training; its modules are made at its first step.

    Args:
        name: A name in ALL_METHODS.
        base: The bare model.
        batch: What roadint trains on.
        ids: The same tokens, for PEFT.
    """

    def __init__(
        self,
        name: str,
        base: PreTrainedModel,
        batch: dict[str, Any],
        ids: Int[Tensor, "rows tokens"],
    ) -> None:
        self.name, self._base, self._batch, self._ids = name, base, batch, ids
        self._loss: Callable[[], Float[Tensor, ""]] | None = None
        self.parameters: list[nn.Parameter] = []
        self.first_loss = 0.0
        self.peak = self.beside = 0.0

    @property
    def numbers(self) -> int:
        """How many numbers train."""
        return sum(parameter.numel() for parameter in self.parameters)

    def once(self) -> float:
        """The seconds of a step; notes its peak of memory, and what of it is not the weights."""
        device = self._ids.device
        if self._loss is None:
            self._loss = self._road() if self.name in _ROADS else self._peft()
            self._optimizer = torch.optim.AdamW(self.parameters, _RATE, weight_decay=0.0)
            self.first_loss = self._step()
            free_memory(device)
        before = used_mb(device)
        forget_peak(device)
        seconds = seconds_of(self._step, device)
        self.peak = max(self.peak, peak_mb(device))
        own = self.numbers * _NUMBER / 1e6
        self.beside = max(self.beside, peak_mb(device) - before + own)
        return seconds

    def _step(self) -> float:
        assert self._loss is not None
        loss = self._loss()
        loss.backward()  # type: ignore[no-untyped-call]
        self._optimizer.step()
        self._optimizer.zero_grad()
        return float(loss.detach())

    def _road(self) -> Callable[[], Float[Tensor, ""]]:
        road = RoadModel(self._base)
        road.add_adapter("road", **_ROADS[self.name])
        self.parameters = road.train().trained_parameters()
        return lambda: completion_nll(road, self._batch)[0].mean()

    def _peft(self) -> Callable[[], Float[Tensor, ""]]:
        peft = import_peft()
        config = _PEFT[self.name](peft, list(find_targets(self._base).paths))
        model = peft.get_peft_model(twin(self._base), config).train()
        self.parameters = [value for value in model.parameters() if value.requires_grad]

        def loss() -> Float[Tensor, ""]:
            output = model(input_ids=self._ids, labels=self._ids, use_cache=False)
            result: Tensor = output.loss
            return result

        return loss


def training_cases(
    base: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    methods: Sequence[str],
    rows: int,
    tokens: int,
    steps: int,
    *,
    about: Mapping[str, Any] | None = None,
    quiet: bool = False,
) -> list[dict[str, Any]]:
    """Train adapters on all linear layers by several methods.

    Args:
        base: The bare model, whose weights are frozen.
        tokenizer: Its tokenizer, for the padding.
        methods: Names in ALL_METHODS.
        rows: The rows of a step.
        tokens: The tokens of a row.
        steps: The measured steps.
        about: Further entries of every case.
        quiet: Whether there is no progress bar.

    Returns:
        Cases "training": the seconds of a step; "hundred_steps_s", their mean times 100;
        "beside_mb", the peak of memory without the weights of the model and without what other
        methods hold; "numbers", how many train; "loss", at the first step, in nats. A method that
        fails has "error".
    """
    ids = random_ids(base, rows, tokens + 1)
    examples = [Example(row[:1], row[1:], "road") for row in ids.tolist()]
    batch = moved(Collator(tokenizer)(examples), ids.device)
    everyone = [_Method(name, base, batch, ids[:, :tokens]) for name in methods]
    with torch.enable_grad():
        times, errors = take_turns(everyone, _Method.once, steps, "training", quiet=quiet)
    entries = {"rows": rows, "tokens": tokens, **(about or {})}
    cases: list[dict[str, Any]] = []
    for method in everyone:
        if method.name in errors:
            refused = {"name": "training", "system": method.name, "error": errors[method.name]}
            cases.append({**refused, **entries})
            continue
        figures = {
            "hundred_steps_s": round(_STEPS * fmean(times[method.name]), 3),
            "beside_mb": round(method.beside, 1),
            "numbers": method.numbers,
            "loss": round(method.first_loss, 4),
        }
        made = case("training", method.name, times[method.name], method.peak, **figures)
        cases.append({**made, **entries})
    return cases

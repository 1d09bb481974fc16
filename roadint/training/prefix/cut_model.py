"""A base model, cut at the lowest layer that the edit reaches."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from transformers import Cache

from roadint.architecture.outputs import hidden_of
from roadint.architecture.properties import cache_name, takes_positions
from roadint.engines.transformers.partial import Resumed, output_after
from roadint.model.road_model import RoadModel
from roadint.training.prefix.key_values import KeyValueLayout, key_value_layout


@dataclass(frozen=True)
class CutModel:
    """The base model of a RoadModel, whose layers below the cut do not depend on what is learned.

    Attributes:
        model: The base model.
        device: The device on which it takes its inputs.
        skipped: The number of layers below the cut.
        width: The width of the hidden states at the cut; 0 where no layer is below it.
        place: The device on which the layer below the cut gives them.
        as_tuple: Whether layers return tuples.
        takes_positions: Whether the forward takes position_ids.
        layout: The layout of keys and values of all layers.
        upper: The layout of keys and values above the cut.
    """

    model: nn.Module
    device: torch.device
    skipped: int
    width: int
    place: torch.device
    as_tuple: bool
    takes_positions: bool
    layout: KeyValueLayout
    upper: KeyValueLayout

    @classmethod
    def probe(cls, road: RoadModel, tokens: Sequence[int]) -> "CutModel":
        """Cut a model, and measure its layers by running a few tokens.

        Args:
            road: The model; its interventions and adapters decide where the cut is.
            tokens: The ids of about two tokens.

        Returns:
            The cut model.

        Raises:
            CannotReuseError: where the model caches something else than keys and values.
        """
        model, skipped = road.model, road.untouched_layers()
        ids = torch.tensor([list(tokens)], device=road.device)
        layout = key_value_layout(model, ids)
        width, place, as_tuple = 0, road.device, False
        if skipped:
            output = output_after(model, skipped, input_ids=ids)
            as_tuple = isinstance(output, tuple)
            width, place = hidden_of(output).shape[-1], hidden_of(output).device
        return cls(
            model=model,
            device=road.device,
            skipped=skipped,
            width=width,
            place=place,
            as_tuple=as_tuple,
            takes_positions=takes_positions(model),
            layout=layout,
            upper=layout.above(skipped),
        )

    @property
    def cache_name(self) -> str:
        """The argument of the model's forward that takes a cache."""
        return cache_name(self.model)

    def inputs(
        self,
        ids: Int[Tensor, "rows columns"],
        rank: Int[Tensor, "rows columns"],
        mask: Bool[Tensor, "rows columns"],
        past: Cache,
    ) -> dict[str, Any]:
        """The arguments to run tokens after those in a cache without padding.

        Args:
            ids: The tokens.
            rank: The index of every token in its example.
            mask: False for padding.
            past: The cache.

        Returns:
            Keyword arguments, on the model's device.
        """
        before = torch.ones(len(ids), past.get_seq_length(), dtype=torch.bool)
        inputs = {"input_ids": ids, "attention_mask": torch.cat([before, mask], dim=1).long()}
        if self.takes_positions:
            inputs["position_ids"] = rank
        moved = {name: value.to(self.device) for name, value in inputs.items()}
        return {**moved, self.cache_name: past}

    def hidden_at_cut(self, **inputs: Any) -> Float[Tensor, "rows columns width"]:
        """The hidden states at the cut, without running the layers above."""
        return hidden_of(output_after(self.model, self.skipped, **inputs))

    def resumed(self, hidden: Float[Tensor, "rows columns width"] | None) -> Resumed:
        """A pass from the cut on, with these hidden states."""
        return Resumed(
            self.skipped, None if hidden is None else hidden.to(self.place), self.as_tuple
        )

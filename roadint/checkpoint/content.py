"""Checkpoint: what a checkpoint's folder holds, and the interventions and adapters made from it."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from roadint.adapters.adapter import RoadAdapter
from roadint.adapters.targets import Layout, check_layout
from roadint.architecture.layers import uncompiled
from roadint.errors import RoadError, listing, quoted
from roadint.grammar.subspace import check_name, labelled
from roadint.interventions.base import SubspaceIntervention
from roadint.interventions.registry import kind_of

_LAYOUT = ("paths", "widths", "inputs")  # what an adapter's spec says of its targets
_PLACED = frozenset({"name", "heads", *_LAYOUT})  # what RoadAdapter takes in another form


@dataclass(frozen=True)
class Checkpoint:
    """The content of a checkpoint's folder, checked, before anything is built from it.

    Args:
        folder: The folder that it was read from.
        config: The content of the JSON file.
        tensors: The tensors by name.
    """

    folder: Path
    config: dict[str, Any]
    tensors: Mapping[str, Tensor]

    def names(self, label: str | None = None) -> list[str]:
        """The names that a composition may use; with a label they are "name@label"."""
        subspaces = [name for spec in self.config["interventions"] for name in spec["subspaces"]]
        adapters = [spec["name"] for spec in self.config.get("adapters", ())]
        return [labelled(name, label) for name in dict.fromkeys(subspaces + adapters)]

    @property
    def dtype(self) -> str:
        """The base model's dtype in the training, as `roadint.load` takes it; "auto" if unknown."""
        recipe = self.config["training"].get("recipe")
        recipe = recipe if isinstance(recipe, dict) else {}
        section = recipe.get("model")  # the first checkpoints have no sections
        dtype = (section if isinstance(section, dict) else recipe).get("dtype")
        if not isinstance(dtype, str):
            return "auto"
        name = dtype.removeprefix("torch.")
        return name if isinstance(getattr(torch, name, None), torch.dtype) else "auto"

    def interventions(self, label: str | None = None) -> list[SubspaceIntervention]:
        """The interventions with their values.

        Args:
            label: Makes the subspaces' names "name@label".

        Raises:
            RoadError: where values do not fit their arguments.
        """
        interventions = []
        for index, spec in enumerate(self.config["interventions"]):
            subspaces = {labelled(name, label): part for name, part in spec["subspaces"].items()}
            arguments = {**spec, "subspaces": subspaces}
            kind = arguments.pop("kind", "road")  # the first checkpoints knew one kind
            intervention = kind_of(kind)(**arguments)
            self._fill(f"{index}.", intervention.values(), f"intervention {index}")
            interventions.append(intervention)
        return interventions

    def adapters(self, model: nn.Module, label: str | None = None) -> list[RoadAdapter]:
        """The adapters with their values.

        Args:
            model: The base model; an adapter's head has the form of the model's own.
            label: Makes the adapters' names "name@label".

        Raises:
            RoadError: where they do not fit the model, or values their arguments.
        """
        adapters = []
        for index, spec in enumerate(self.config.get("adapters", ())):
            check_layout(model, _layout_of(spec), spec["heads"])
            heads = {path: self._head(model, index, path) for path in spec["heads"]}
            adapters.append(self._adapter(index, spec, heads, label))
        return adapters

    def adapters_alone(self, label: str | None = None) -> list[RoadAdapter]:
        """The adapters with their values, without a base model: whether they fit one is not known.

        Args:
            label: Makes the adapters' names "name@label".

        Raises:
            RoadError: where values do not fit their arguments, and for an adapter with heads.
        """
        adapters = []
        for index, spec in enumerate(self.config.get("adapters", ())):
            if spec["heads"]:
                raise RoadError(
                    f"{self.folder}: adapter {quoted(spec['name'])} has heads "
                    f"({listing(spec['heads'])}), which have the form of its base model's own: "
                    "expected an adapter without heads, or .adapters(model)"
                )
            adapters.append(self._adapter(index, spec, {}, label))
        return adapters

    def single_adapter(self, model: nn.Module, name: str | None = None) -> RoadAdapter:
        """The checkpoint's only adapter, under another name where one is wanted.

        Raises:
            RoadError: where it holds more, or interventions.
        """
        adapters = self.adapters(model)
        if len(adapters) != 1 or self.config["interventions"]:
            raise RoadError(
                f"{self.folder} holds {listing(self.names())}: expected a single adapter; take "
                "add_checkpoint"
            )
        adapters[0].name = adapters[0].name if name is None else check_name(name)
        return adapters[0]

    def adapter_values(self) -> list[tuple[dict[str, Any], Tensor, Tensor]]:
        """The arguments, θ and α of each adapter, without a model."""
        return [
            (spec, self.tensors[f"adapter.{index}.theta"], self.tensors[f"adapter.{index}.alpha"])
            for index, spec in enumerate(self.config.get("adapters", ()))
        ]

    def _adapter(
        self, index: int, spec: Mapping[str, Any], heads: Mapping[str, nn.Module], label: str | None
    ) -> RoadAdapter:
        arguments = {name: spec[name] for name in spec if name not in _PLACED}
        name = labelled(spec["name"], label)
        adapter = RoadAdapter(name, _layout_of(spec), heads=heads, **arguments)
        self._fill(f"adapter.{index}.", adapter.values(), f"adapter {adapter.name}")
        return adapter

    def _head(self, model: nn.Module, index: int, path: str) -> nn.Module:
        """The model's module that an adapter's head replaces, known to be of the same shapes."""
        module = uncompiled(model.get_submodule(path))
        for name, value in module.state_dict().items():
            saved = self.tensors.get(f"adapter.{index}.heads.{path}.{name}")
            if saved is None or saved.shape != value.shape:
                raise RoadError(
                    f"{self.folder}: {path}.{name} is {_shape(saved)}, this model's "
                    f"{tuple(value.shape)}: load its own base model"
                )
        return module

    @torch.no_grad()
    def _fill(self, prefix: str, values: Mapping[str, Tensor], what: str) -> None:
        for name, parameter in values.items():
            saved = self.tensors.get(prefix + name)
            is_finite = saved is not None and bool(saved.isfinite().all())
            if saved is None or saved.shape != parameter.shape or not is_finite:
                finite = "" if saved is None else f", finite: {is_finite}"
                raise RoadError(
                    f"{self.folder}: {name} of {what} is {_shape(saved)}{finite}; expected finite "
                    f"{tuple(parameter.shape)}"
                )
            if saved.dtype != parameter.dtype:
                raise RoadError(
                    f"{self.folder}: {name} of {what} is {saved.dtype}; expected {parameter.dtype}"
                )
            parameter.copy_(saved)
        for name in self.tensors:
            if name.startswith(prefix) and name.removeprefix(prefix) not in values:
                raise RoadError(
                    f"{self.folder} holds {quoted(name)}, for which {what} has no place: load its "
                    "own base model"
                )


def _layout_of(spec: Mapping[str, Any]) -> Layout:
    return Layout(*(tuple(spec[name]) for name in _LAYOUT))


def _shape(tensor: Tensor | None) -> str:
    return "nothing" if tensor is None else str(tuple(tensor.shape))

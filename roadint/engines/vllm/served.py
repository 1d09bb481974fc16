"""A checkpoint that is served: its rotations, and whether an engine can serve them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch

from roadint.adapters.adapter import RoadAdapter
from roadint.checkpoint.content import Checkpoint
from roadint.checkpoint.reading import folder_of, read
from roadint.errors import RoadError, quoted
from roadint.interventions.base import SubspaceIntervention, subspace_names


@dataclass(frozen=True)
class Base:
    """What is known of the base model before it is loaded.

    Args:
        width: The width of its hidden states, in dims.
        layers: How many layers it has.
        model_type: transformers' name of the architecture.
    """

    width: int
    layers: int
    model_type: str


@dataclass(frozen=True, eq=False)
class Served:
    """A checkpoint with its values, on the CPU.

    Args:
        path: Where it was read.
        fingerprint: The SHA-256 of its two files.
        content: What was read.
        interventions: Its interventions, whose names have no label.
        adapters: Its adapters, whose names have no label.
    """

    path: str
    fingerprint: str
    content: Checkpoint
    interventions: Sequence[SubspaceIntervention]
    adapters: Sequence[RoadAdapter]

    @cached_property
    def names(self) -> list[str]:
        """The names that a composition may use, without a label."""
        return self.content.names()

    @cached_property
    def subspaces(self) -> frozenset[str]:
        """The names of its interventions' subspaces, without a label."""
        return frozenset(subspace_names(self.interventions))

    @cached_property
    def adapters_by_name(self) -> Mapping[str, RoadAdapter]:
        """The adapters by their names, without a label."""
        return {adapter.name: adapter for adapter in self.adapters}

    def about(self) -> dict[str, Any]:
        """What is told of it, as plain JSON values."""
        return {"path": self.path, "fingerprint": self.fingerprint, "names": self.names}


def formats_of(model_type: str) -> dict[str, str]:
    """The settings by which vLLM reads a base model and its tokenizer as transformers does.

    Mistral's models have files of Mistral's own beside those of transformers, which vLLM prefers:
    of another model type, and with other prompts of chats.

    Args:
        model_type: transformers' name of the architecture.
    """
    if "tral" not in model_type:
        return {}
    return {"config_format": "hf", "tokenizer_mode": "hf", "load_format": "hf"}


def open_served(name_or_path: str, base: Base) -> Served:
    """Read a checkpoint, and refuse what can't be served.

    Args:
        name_or_path: A folder or a hub id.
        base: The base model.

    Returns:
        The checkpoint.

    Raises:
        RoadError: where it is damaged, of another base model, or has an edit that is no rotation.
    """
    content = read(folder_of(name_or_path))
    _check_base(content, base, name_or_path)
    # Engines run in inference mode, whose tensors could not be used outside of it.
    with torch.inference_mode(False), torch.no_grad():
        interventions = [part.requires_grad_(False) for part in content.interventions()]
        adapters = [adapter.requires_grad_(False) for adapter in content.adapters_alone()]
    where = f"{name_or_path} can't be served"
    for intervention in interventions:
        _check_intervention(intervention, where)
    _check_order(interventions, where)
    for adapter in adapters:
        if adapter.lora_rank:
            raise RoadError(
                f"{where}: adapter {adapter.name!r} has a LoRA of rank {adapter.lora_rank} beside "
                "its rotations: expected rotations alone, with the LoRA in vLLM's own lora_modules"
            )
    return Served(str(name_or_path), content.config["sha256"], content, interventions, adapters)


def _check_base(content: Checkpoint, base: Base, name: str) -> None:
    made_on = content.config["base_model"]
    size = (made_on["width"], made_on["layers"])
    if size != (base.width, base.layers) or made_on.get("model_type") not in (
        None,
        base.model_type,
    ):
        raise RoadError(
            f"{name} was trained on {quoted(made_on['id'] or made_on.get('model_type'))} (width "
            f"{size[0]}, {size[1]} layers), the engine's model is of type {quoted(base.model_type)}"
            f" (width {base.width}, {base.layers} layers): expected its own base model"
            + (", read with config_format='hf'" if base.model_type == "transformer" else "")
        )


def _check_intervention(intervention: SubspaceIntervention, where: str) -> None:
    if intervention.takes_source:
        raise RoadError(
            f"{where}: the intervention at layer {intervention.layer} takes the hidden states of "
            "another input, which a server has not: use RoadModel"
        )
    if not intervention.turns:
        raise RoadError(
            f"{where}: the intervention at layer {intervention.layer} is of kind "
            f"{intervention.kind!r}, which is no rotation: expected 'road', or use RoadModel"
        )


def _check_order(interventions: Sequence[SubspaceIntervention], where: str) -> None:
    """Refuse two bases at one site: between them the order of the edits would matter."""
    bases: dict[tuple[int, str], Any] = {}
    for part in interventions:
        pairs = pairs_of(part)
        if bases.setdefault((part.layer, part.component), pairs) != pairs:
            raise RoadError(
                f"{where}: it edits the {part.component} of layer {part.layer} in two bases: "
                "expected one basis and one pairing at a site"
            )


def pairs_of(intervention: Any) -> tuple[Any, ...]:
    """The basis and the pairing of an intervention that turns pairs."""
    basis = intervention.basis
    seed = basis.seed if basis.kind in ("random", "hadamard") else 0
    return basis.kind, seed, intervention.group

"""Making an adapter for a model: its targets and heads, by name."""

from collections.abc import Iterable, Sequence
from typing import Any, TypedDict

from torch import nn
from typing_extensions import Unpack

from roadint.adapters.adapter import RoadAdapter
from roadint.adapters.targets import ALL_LINEAR, Names, find_targets
from roadint.architecture.layers import named_modules
from roadint.errors import RoadError, did_you_mean, quoted
from roadint.grammar.subspace import SubspaceLike
from roadint.rotation.rotation import Pairing, Variant


class AdapterArguments(TypedDict, total=False):
    """The arguments of a new adapter.

    Attributes:
        targets: "all-linear" by default; see `roadint.adapters.targets.find_targets`.
        exclude: Targets to leave out, in the same form.
        layers: Indices of decoder layers; targets outside of them are left out.
        heads: Modules of the model, such as "classifier", whose copies train with the adapter.
            Layers inside of them are no targets: the copies replace them.
        variant: As in `RoadAdapter`.
        pairing: As in `RoadAdapter`.
        subspace: As in `RoadAdapter`.
        lora_rank: As in `RoadAdapter`.
        lora_alpha: As in `RoadAdapter`.
    """

    targets: Names
    exclude: Names
    layers: Iterable[int] | None
    heads: str | Sequence[str]
    variant: Variant
    pairing: Pairing
    subspace: SubspaceLike
    lora_rank: int
    lora_alpha: float | None


def make_adapter(model: nn.Module, name: str, **arguments: Unpack[AdapterArguments]) -> RoadAdapter:
    """Make an adapter for the outputs of a model's linear layers; it starts as the identity.

    Args:
        model: A transformers model.
        name: The adapter's name in compositions.
        arguments: See `AdapterArguments`.

    Raises:
        RoadError: where something does not fit.
    """
    targets, exclude = arguments.pop("targets", ALL_LINEAR), arguments.pop("exclude", ())
    heads = names_of("heads", arguments.pop("heads", ()))
    layout = find_targets(model, targets, exclude, arguments.pop("layers", None), heads)
    rank = arguments.get("lora_rank", 0)
    for path in layout.paths:
        if isinstance(rank, int) and rank and isinstance(model.get_submodule(path), nn.Embedding):
            raise RoadError(
                f"{path} is an embedding, beside which no LoRA is possible: expected linear layers "
                "alone"
            )
    modules = dict(named_modules(model))
    for path in heads:
        if path not in modules:
            near = [known for known in modules if known.endswith(f".{path}")] or list(modules)
            raise RoadError(
                f"heads names {quoted(path)}, which is no module of the model"
                f"{did_you_mean(path, near)}"
            )
    copied = {path: modules[path] for path in heads}
    return RoadAdapter(name, layout, heads=copied, **arguments)  # type: ignore[arg-type, misc]


def names_of(argument: str, names: Any) -> list[str]:
    """One name, or a list of names, as a list without repetitions.

    Raises:
        RoadError: for anything else.
    """
    listed = [names] if isinstance(names, str) else names
    if not isinstance(listed, (list, tuple)) or not all(isinstance(name, str) for name in listed):
        raise RoadError(f"{argument}={quoted(names)}: expected a name, or a list of names")
    return list(dict.fromkeys(listed))

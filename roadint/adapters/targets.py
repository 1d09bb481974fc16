"""The targets of adapters: all linear layers of a model, or some by name, kind or layer."""

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from roadint.architecture.layers import (
    decoder_of,
    find_layers,
    inner_model,
    named_modules,
    text_config,
)
from roadint.errors import RoadError, did_you_mean, listing, quoted

Names = str | Sequence[str]
ALL_LINEAR, FC1 = "all-linear", "fc1"

# What the architectures call the first layer of a feed-forward network.
_FIRST = (
    *("up_proj", "gate_proj", "fc1", "fc_in", "c_fc", "dense_h_to_4h", "intermediate.dense"),
    *("lin1", "wi", "wi_0", "wi_1"),
)
# In the body, and no part of it: PEFT's layers, attention to an encoder that is not there, other
# senses.
_BESIDE = re.compile(r"(^|\.)lora_|(^|\.)encoder_attn\.|audio|vision|visual|image|speech")


@dataclass(frozen=True)
class Layout:
    """The targets of an adapter, whose blocks lie end to end in one vector.

    Args:
        paths: The paths of the targets in the model.
        widths: The widths of their outputs, in dims.
        inputs: The widths of their inputs, in dims.
    """

    paths: tuple[str, ...]
    widths: tuple[int, ...]
    inputs: tuple[int, ...]

    @property
    def blocks(self) -> list[int]:
        """How many blocks each target has."""
        return [width // 2 for width in self.widths]

    def part(
        self, values: Float[Tensor, " blocks *entries"], path: str
    ) -> Float[Tensor, " blocks_of_target *entries"]:
        """The values of one target.

        Args:
            values: The values of all blocks, end to end.
            path: The target's path.

        Returns:
            A view of the target's values.
        """
        return torch.split(values, self.blocks)[self.paths.index(path)]


def find_targets(
    model: nn.Module,
    targets: Names = ALL_LINEAR,
    exclude: Names = (),
    layers: Iterable[int] | None = None,
    heads: Sequence[str] = (),
) -> Layout:
    """The modules whose outputs an adapter rotates, in the model's order.

    Linear layers (quantised ones too), GPT-2's Conv1D and embeddings can be targets.

    Args:
        model: A transformers model, or a wrapper of one.
        targets: "all-linear" (every linear layer of the language model's body: not its heads, not
            another tower or its projector, not the routers and gates of a mixture of experts, nor
            layers whose weights the model uses without calling them); "fc1" (the first layer of
            every feed-forward network); a list of names ("q_proj", "mlp.down_proj"), with which
            paths end; or a text, which is a regular expression for whole paths, or a name.
        exclude: Targets to leave out, in the same forms.
        layers: Indices of layers, from 0; by default all layers, and modules outside of layers.
        heads: Modules whose copies train in their place: layers inside of them are left out.

    Returns:
        The targets.

    Raises:
        RoadError: where nothing is selected, a name is unknown, or an output has an odd width.
    """
    known = _linear_modules(model)
    if isinstance(targets, str) and targets == ALL_LINEAR:
        chosen = set(_all_linear(model, known))
    else:
        chosen = set(_matching("targets", targets, known))
    nothing = exclude is None or (isinstance(exclude, (str, list, tuple)) and not exclude)
    if not nothing:
        chosen -= set(_matching("exclude", exclude, known))
    if layers is not None:
        chosen &= set(_inside_layers(model, layers, known))
    chosen = {path for path in chosen if not any(_is_inside(path, head) for head in heads)}
    if not chosen:
        beside = f", heads={quoted(list(heads))} (whose copies train whole)" if heads else ""
        raise RoadError(
            f"targets={quoted(targets)}, exclude={quoted(exclude)}, layers={quoted(layers)}{beside}"
            f" select no module of {type(model).__name__}"
        )
    return layout_of(model, chosen)


def layout_of(model: nn.Module, paths: Iterable[str]) -> Layout:
    """The layout of some modules, in the model's order.

    Args:
        model: The model, or another module that has them.
        paths: The paths of the modules.

    Returns:
        The layout.

    Raises:
        RoadError: where a module is missing or has an odd width.
    """
    known, wanted = _linear_modules(model), set(paths)
    for path in wanted - set(known):
        raise _no_layer(model, path)
    sizes = {path: _size(module) for path, module in known.items() if path in wanted}
    odd = [path for path, (width, _) in sizes.items() if width % 2]
    if odd:
        names = list(dict.fromkeys(path.rpartition(".")[2] for path in odd))
        which = "it" if len(odd) == 1 else f"all {len(odd)} such"
        raise RoadError(
            f"{odd[0]} has the odd width {sizes[odd[0]][0]}: rotations need pairs; "
            f"leave {which} out with exclude={names if len(odd) > 1 else odd}"
        )
    return Layout(
        tuple(sizes),
        tuple(width for width, _ in sizes.values()),
        tuple(inputs for _, inputs in sizes.values()),
    )


def check_layout(model: nn.Module, layout: Layout, heads: Iterable[str] = ()) -> None:
    """Refuse a model that an adapter does not fit.

    Args:
        model: The model.
        layout: The adapter's layout.
        heads: The paths of the adapter's heads.

    Raises:
        RoadError: where the model lacks a target or a head, or has it in another size.
    """
    known = _linear_modules(model)
    for path, width, inputs in zip(layout.paths, layout.widths, layout.inputs, strict=True):
        if path not in known:
            raise _no_layer(model, path)
        size = _size(known[path])
        if size != (width, inputs):
            raise RoadError(
                f"{path} is {size[1]} → {size[0]} wide, the adapter's {inputs} → {width}: "
                "load its own base model"
            )
    paths = {path for path, _ in named_modules(model)}
    for path in heads:
        if path not in paths:
            raise RoadError(
                f"{type(model).__name__} has no {path}, of which the adapter has a copy: "
                "load the same class of model"
            )


def may_rest(model: nn.Module, path: str) -> bool:
    """Whether a forward pass may leave a target out.

    It may leave out experts that get no token, and parts that text alone does not reach.

    Args:
        model: The model.
        path: The target's path.

    Returns:
        True where a pass that does not run the target is no error.
    """
    if re.search(r"(^|\.)(\w*experts?|cross\w*|encoder_attn)(\.|$)", path):
        return True
    inside = {id(module) for module in decoder_of(model)[1].modules()}
    return id(model.get_submodule(path)) not in inside and not _is_bypassed(model, path)


def _no_layer(model: nn.Module, path: str) -> RoadError:
    return RoadError(
        f"{type(model).__name__} has no linear layer {path}: expected the adapter's own base model"
    )


def _linear_modules(model: nn.Module) -> dict[str, nn.Module]:
    """The modules that can be targets, by path."""
    return {
        path: module
        for path, module in named_modules(model)
        if isinstance(module, (nn.Linear, Conv1D, nn.Embedding))
    }


def _size(module: nn.Module) -> tuple[int, int]:
    """The widths of a module's output and input."""
    if isinstance(module, nn.Embedding):
        return module.embedding_dim, module.num_embeddings
    if isinstance(module, Conv1D):
        return module.nf, module.nx
    return module.out_features, module.in_features  # type: ignore[return-value]


def _all_linear(model: nn.Module, known: Mapping[str, nn.Module]) -> list[str]:
    prefix, body = decoder_of(model)
    counts = {
        value
        for name, value in vars(text_config(model)).items()
        if "expert" in name and isinstance(value, int)
    }
    head = getattr(inner_model(model), "get_output_embeddings", lambda: None)()
    inside = {id(module) for module in body.modules()} - {id(head)}
    # A head may be tied to an embedding.
    embedded = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    return [
        path
        for path, module in known.items()
        if id(module) in inside
        and path.startswith(f"{prefix}." if prefix else "")
        and not isinstance(module, nn.Embedding)
        and id(getattr(module, "weight", None)) not in embedded
        and not _is_bypassed(model, path)
        and not _routes(path, module, counts)
        and not _BESIDE.search(path.removeprefix(prefix))
    ]


def _routes(path: str, module: nn.Module, counts: Collection[int]) -> bool:
    """Whether a layer routes tokens to experts or weighs them, and returns no hidden states."""
    if re.search(r"Router|TopK|Grouped|Gat(e|ing)$", type(module).__name__):
        return True
    if re.search(r"router|gating", path):
        return True
    width = _size(module)[0]
    return path.endswith("gate") and (width == 1 or width in counts)


def _is_bypassed(model: nn.Module, path: str) -> bool:
    """Whether the model uses the layer's weights without calling it, as far as can be told."""
    parent, _, name = path.rpartition(".")
    holder = model.get_submodule(parent)
    if isinstance(holder, nn.MultiheadAttention):
        return True
    return name == "dt_proj" and hasattr(holder, "A_log")


def _matching(argument: str, wanted: Names, known: Iterable[str]) -> list[str]:
    """The paths that a list of names, a regular expression or a keyword selects."""
    paths = list(known)
    if isinstance(wanted, str):
        if wanted == ALL_LINEAR:
            return paths
        if wanted == FC1:
            return [path for path in paths if _ends(path, _FIRST)]
        try:
            whole = [path for path in paths if re.fullmatch(wanted, path)]
        except re.error as error:
            raise RoadError(
                f"{argument}={quoted(wanted)} is no regular expression ({error})"
            ) from None
        return whole or _ending(argument, [wanted], paths)
    if isinstance(wanted, (list, tuple)) and all(isinstance(name, str) for name in wanted):
        return _ending(argument, wanted, paths)
    raise RoadError(
        f"{argument}={quoted(wanted)}: "
        "expected 'all-linear', 'fc1', a list of names, or a regular expression"
    )


def _ending(argument: str, names: Sequence[str], paths: Sequence[str]) -> list[str]:
    for name in names:
        if not any(_ends(path, (name,)) for path in paths):
            ends = sorted({path.rpartition(".")[2] for path in paths})
            raise RoadError(
                f"{argument} names {quoted(name)}, which no module is called: "
                f"there are {listing(ends)}{did_you_mean(name, ends)}"
            )
    return [path for path in paths if _ends(path, names)]


def _is_inside(path: str, module: str) -> bool:
    return path == module or path.startswith(f"{module}.")


def _ends(path: str, names: Iterable[str]) -> bool:
    return any(path == name or path.endswith(f".{name}") for name in names)


def _inside_layers(model: nn.Module, layers: Iterable[int], known: Iterable[str]) -> list[str]:
    path, all_layers = find_layers(model)
    wanted = list(layers) if isinstance(layers, (list, tuple, set, frozenset, range)) else [layers]
    for index in wanted:
        if not isinstance(index, int) or isinstance(index, bool):
            raise RoadError(
                f"layers={quoted(layers)}: "
                f"expected a list of indices, from 0 to {len(all_layers) - 1}"
            )
        if not 0 <= index < len(all_layers):
            raise RoadError(
                f"layer {index} is outside the model: "
                f"expected 0 to {len(all_layers) - 1} (layers count from 0)"
            )
    prefixes = tuple(f"{path}.{index}." for index in wanted)
    return [target for target in known if target.startswith(prefixes)]

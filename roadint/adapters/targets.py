"""Which modules of a model are rotated: all linear layers, or some by name, pattern, kind or layer."""

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

from torch import nn
from transformers.pytorch_utils import Conv1D

from roadint.architecture.layers import decoder_of, find_layers, inner_model, text_config
from roadint.errors import RoadError, did_you_mean, listing, quoted

Names = str | Sequence[str]
ALL_LINEAR, FC1 = "all-linear", "fc1"

# What the architectures call the first layer of a feed-forward network.
_FIRST = (
    "up_proj",
    "gate_proj",
    "fc1",
    "fc_in",
    "c_fc",
    "dense_h_to_4h",
    "intermediate.dense",
    "lin1",
    "wi",
    "wi_0",
    "wi_1",
)


@dataclass(frozen=True)
class Layout:
    """The targets of an adapter, end to end in one vector: paths in the model, and the width of each one's output."""

    paths: tuple[str, ...]
    widths: tuple[int, ...]
    inputs: tuple[int, ...]

    @property
    def blocks(self) -> list[int]:
        """How many blocks each target has."""
        return [width // 2 for width in self.widths]


def find_targets(
    model: nn.Module,
    targets: Names = ALL_LINEAR,
    exclude: Names = (),
    layers: Iterable[int] | None = None,
) -> Layout:
    """The modules that an adapter rotates the outputs of, in the model's order.

    targets: "all-linear" (every linear layer of the language model's body: not its heads, not another tower or what leads from it,
    not the routers and gates of a mixture of experts, nor layers whose weights the model uses without calling them), "fc1" (the
    first of each feed-forward network), a list of names ("q_proj", "mlp.down_proj": what a path ends with), or one text, a regular
    expression for whole paths, or a name. Linear layers (quantised ones too), GPT-2's Conv1D and embeddings can be targets.
    exclude: the same, to leave out.
    layers: indices of layers, from 0; all of them, and what lies outside of layers, by default.
    Raises RoadError where nothing is selected, a name is unknown, or an output has an odd width.
    """
    known = {path: module for path, module in model.named_modules() if _is_target(module)}
    everything = isinstance(targets, str) and targets == ALL_LINEAR
    chosen = set(_all_linear(model, known) if everything else _matching("targets", targets, known))
    nothing = exclude is None or (isinstance(exclude, (str, list, tuple)) and not exclude)
    chosen -= set() if nothing else set(_matching("exclude", exclude, known))
    if layers is not None:
        chosen &= set(_inside(model, layers, known))
    paths = [path for path in known if path in chosen]
    if not paths:
        said = f"targets={quoted(targets)}, exclude={quoted(exclude)}, layers={quoted(layers)}"
        raise RoadError(f"{said} select no module of {type(model).__name__}")
    return layout_of(model, paths)


# In the body, and no part of it: PEFT's own layers, attention to an encoder that is not there, other senses.
_BESIDE = re.compile(r"(^|\.)lora_|(^|\.)encoder_attn\.|audio|vision|visual|image|speech")


def _all_linear(model: nn.Module, known: Mapping[str, nn.Module]) -> list[str]:
    prefix, body = decoder_of(model)
    counts = {
        value
        for name, value in vars(text_config(model)).items()
        if "expert" in name and isinstance(value, int)
    }
    head = getattr(inner_model(model), "get_output_embeddings", lambda: None)()
    inside = {id(each) for each in body.modules()} - {id(head)}
    embedded = {
        id(each.weight) for each in model.modules() if isinstance(each, nn.Embedding)
    }  # a head may be tied to one
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
    """Whether the layer sends tokens to experts, or weighs them: its outputs are no hidden states."""
    if re.search(r"Router|TopK|Grouped|Gat(e|ing)$", type(module).__name__) or re.search(
        r"router|gating", path
    ):
        return True
    width = _size(module)[0]
    return path.endswith("gate") and (width == 1 or width in counts)


def _is_bypassed(model: nn.Module, path: str) -> bool:
    """Whether the model uses the layer's weights without calling it, as far as can be told beforehand."""
    parent, _, name = path.rpartition(".")
    around = model.get_submodule(parent)
    return isinstance(around, nn.MultiheadAttention) or (
        name == "dt_proj" and hasattr(around, "A_log")
    )


def may_rest(model: nn.Module, path: str) -> bool:
    """Whether a pass may well go by a target: an expert that no token went to, or a part that text alone does not reach."""
    if re.search(r"(^|\.)(\w*experts?|cross\w*|encoder_attn)(\.|$)", path):
        return True
    inside = {id(each) for each in decoder_of(model)[1].modules()}
    return id(model.get_submodule(path)) not in inside and not _is_bypassed(model, path)


def layout_of(model: nn.Module, paths: Iterable[str]) -> Layout:
    """The layout of these modules, in the model's order. Raises RoadError where one is missing or has an odd width."""
    known = {path: module for path, module in model.named_modules() if _is_target(module)}
    wanted = set(paths)
    for path in wanted - set(known):
        raise RoadError(
            f"{type(model).__name__} has no linear layer {path}: expected the adapter's own base model"
        )
    sizes = {path: _size(module) for path, module in known.items() if path in wanted}
    odd = [path for path, (width, _) in sizes.items() if width % 2]
    if odd:
        names = list(dict.fromkeys(path.rpartition(".")[2] for path in odd))
        such = "it" if len(odd) == 1 else f"all {len(odd)} such"
        raise RoadError(
            f"{odd[0]} has the odd width {sizes[odd[0]][0]}: rotations need pairs; "
            f"leave {such} out with exclude={names if len(odd) > 1 else odd}"
        )
    return Layout(
        tuple(sizes),
        tuple(width for width, _ in sizes.values()),
        tuple(inputs for _, inputs in sizes.values()),
    )


def check_layout(model: nn.Module, layout: Layout, heads: Iterable[str] = ()) -> None:
    """Raises RoadError where the model lacks a target or a head, or has it in another size."""
    modules = dict(model.named_modules())
    for path, width, inputs in zip(layout.paths, layout.widths, layout.inputs, strict=True):
        if path not in modules or not _is_target(modules[path]):
            raise RoadError(
                f"{type(model).__name__} has no linear layer {path}: expected the adapter's own base model"
            )
        found = _size(modules[path])
        if found != (width, inputs):
            raise RoadError(
                f"{path} is {found[1]} → {found[0]} wide, the adapter's {inputs} → {width}: load its own base model"
            )
    for path in heads:
        if path not in modules:
            raise RoadError(
                f"{type(model).__name__} has no {path}, of which the adapter has a copy: load the same class of model"
            )


def _is_target(module: nn.Module) -> bool:
    return isinstance(module, (nn.Linear, Conv1D, nn.Embedding))


def _size(module: nn.Module) -> tuple[int, int]:
    """Width of the output, and of the input."""
    if isinstance(module, nn.Embedding):
        return module.embedding_dim, module.num_embeddings
    if isinstance(module, Conv1D):
        return module.nf, module.nx
    return module.out_features, module.in_features  # type: ignore[return-value]


def _matching(argument: str, wanted: Names, known: Iterable[str]) -> list[str]:
    known = list(known)
    if not isinstance(wanted, str) and not (
        isinstance(wanted, (list, tuple)) and all(isinstance(each, str) for each in wanted)
    ):
        raise RoadError(
            f"{argument}={quoted(wanted)}: expected 'all-linear', 'fc1', a list of names, or a regular expression"
        )
    if wanted == ALL_LINEAR:
        return known
    if wanted == FC1:
        return [path for path in known if _ends(path, _FIRST)]
    if isinstance(wanted, str):
        try:
            found = [path for path in known if re.fullmatch(wanted, path)]
        except re.error as error:
            raise RoadError(
                f"{argument}={quoted(wanted)} is no regular expression ({error})"
            ) from None
        if found:
            return found
        wanted = [wanted]
    for name in wanted:
        if not any(_ends(path, (name,)) for path in known):
            names = sorted({path.rpartition(".")[2] for path in known})
            raise RoadError(
                f"{argument} names {quoted(name)}, which no module is called: there are {listing(names)}{did_you_mean(name, names)}"
            )
    return [path for path in known if _ends(path, wanted)]


def _ends(path: str, names: Iterable[str]) -> bool:
    return any(path == name or path.endswith(f".{name}") for name in names)


def _inside(model: nn.Module, layers: Iterable[int], known: Iterable[str]) -> list[str]:
    path, found = find_layers(model)
    wanted = list(layers) if isinstance(layers, (list, tuple, set, frozenset, range)) else [layers]
    for index in wanted:
        if not isinstance(index, int) or isinstance(index, bool):
            raise RoadError(
                f"layers={quoted(layers)}: expected a list of indices, from 0 to {len(found) - 1}"
            )
        if not 0 <= index < len(found):
            raise RoadError(
                f"layer {index} is outside the model: expected 0 to {len(found) - 1} (layers count from 0)"
            )
    return [each for each in known if any(each.startswith(f"{path}.{index}.") for index in wanted)]

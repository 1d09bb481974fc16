"""Where a component is in a model, found by running it; and an edit there by hand: a plain hook, a dense matrix, no cache."""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

ROWS, COLUMNS = 2, 9

# What modules of a component are called, by the last part of their path.
_NAMES = {
    "attention_output": re.compile(r"attn|attention|^mixer$|temporal_block"),
    "mlp_output": re.compile(r"mlp|feed_?forward|^ffn?$|moe|experts"),
}
# What is none, though it is called so.
_NEVER = re.compile(
    r"norm|residual|hyper|rotary|embed|gate$|router|dropout|indexer|cross|encoder_attn|mamba",
    re.IGNORECASE,
)
# The linear layer inside, where a module adds the residual itself, or the block has no module for it.
_INSIDE = {
    "attention_output": ("attention.output.dense", "self_attention.dense"),
    "mlp_output": ("mlp.dense_4h_to_h", "output.dense", "ffn.down_proj", "fc2"),
}


def first_tensor(output: Any) -> Tensor | None:
    """The hidden states among what a module returns."""
    if torch.is_tensor(output):
        return output
    if isinstance(output, (tuple, list)) and output and torch.is_tensor(output[0]):
        return output[0]
    return None


def replaced(output: Any, hidden: Tensor) -> Any:
    """What a module returns, with these hidden states."""
    return hidden if torch.is_tensor(output) else type(output)([hidden, *output[1:]])


def axes(shape: Sequence[int], width: int | None) -> tuple[int, int] | None:
    """The axes of rows and columns in the shape of hidden states (of any width: None); None where it is none."""
    leading = list(shape[:-1])
    if (
        len(leading) < 2
        or (width and shape[-1] != width)
        or leading.count(ROWS) != 1
        or leading.count(COLUMNS) != 1
    ):
        return None
    return leading.index(ROWS), leading.index(COLUMNS)


@dataclass(frozen=True)
class Site:
    """A module whose output is a component. rows, columns: the axes of its output."""

    path: str
    module: nn.Module
    rows: int
    columns: int


@dataclass(frozen=True)
class Layers:
    """The decoder layers of a model: those that run on tokens. continuous: whether they give the next one what they return."""

    path: str
    modules: list[nn.Module]
    calls: dict[str, int]
    shapes: dict[str, tuple[int, ...]]
    width: int
    continuous: bool

    def kinds(self) -> list[int]:
        """The first layer of each kind, but the second layer for its kind."""
        found: dict[tuple[str, ...], int] = {}
        for index in [1, *range(len(self.modules))]:
            inside = tuple(name for name, _ in self.modules[index].named_children())
            found.setdefault((type(self.modules[index]).__name__, *inside), index)
        return list(found.values())


def observe(model: nn.Module, inputs: dict[str, Any], width: int) -> Layers | None:
    """Run the model once and see which of its lists of modules are the decoder layers; None where there is none."""
    calls: dict[str, int] = {}
    shapes: dict[str, tuple[int, ...]] = {}
    taken: dict[str, list[Tensor]] = {}
    given: dict[str, Tensor] = {}
    lists = [
        (path, module)
        for path, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) > 1
    ]
    elements = {f"{path}.{index}" for path, module in lists for index in range(len(module))}

    def before(path: str) -> Any:
        def hook(module: nn.Module, args: Any, kwargs: Any) -> None:
            taken[path] = [each for each in (*args, *kwargs.values()) if torch.is_tensor(each)]

        return hook

    def after(path: str) -> Any:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            calls[path] = calls.get(path, 0) + 1
            hidden = first_tensor(output)
            if hidden is not None:
                shapes[path] = tuple(hidden.shape)
                if path in elements:
                    given[path] = hidden.clone()

        return hook

    handles = []
    for path, module in model.named_modules():
        handles.append(module.register_forward_hook(after(path)))
        if path in elements:
            handles.append(module.register_forward_pre_hook(before(path), with_kwargs=True))
    try:
        with torch.no_grad():
            model(**inputs)
    finally:
        for handle in handles:
            handle.remove()
    found = []
    for path, module in lists:
        if axes(shapes.get(f"{path}.1", ()), None):
            pairs = [(f"{path}.{index}", f"{path}.{index + 1}") for index in range(len(module) - 1)]
            follows = [
                _same(given[one], taken.get(other, [])) for one, other in pairs if one in given
            ]
            found.append(Layers(path, list(module), calls, shapes, width, any(follows)))
    found.sort(key=lambda each: (not each.continuous, -len(each.modules), each.path.count(".")))
    return found[0] if found else None


def _same(hidden: Tensor, candidates: list[Tensor]) -> bool:
    return any(each.shape == hidden.shape and torch.equal(each, hidden) for each in candidates)


def site_of(
    model: nn.Module, inputs: dict[str, Any], layers: Layers, layer: int, component: str
) -> tuple[Site | None, str]:
    """The module that is this component, or None and why there is none."""
    prefix = f"{layers.path}.{layer}"
    if component == "block_output":
        where = axes(layers.shapes.get(prefix, ()), layers.width)
        if not layers.continuous:
            return None, "no layer takes what the one before it returns"
        return (
            (Site(prefix, layers.modules[layer], *where), "")
            if where
            else (None, "its output has another shape or width")
        )
    found: list[Site] = []
    impure: list[str] = []
    for name, module in layers.modules[layer].named_modules():
        path, last = f"{prefix}.{name}", name.rpartition(".")[2]
        inside = any(name.startswith(f"{each.path[len(prefix) + 1 :]}.") for each in found)
        named = _NAMES[component].search(last) and not _NEVER.search(name)
        if (
            not name
            or inside
            or not layers.calls.get(path)
            or not (named or name in _INSIDE[component])
        ):
            continue
        where = axes(layers.shapes.get(path, ()), layers.width)
        if not where:
            continue
        if pure(model, inputs, module):
            found.append(Site(path, module, *where))
        else:
            impure.append(name)
    found = [each for each in found if each.path[len(prefix) + 1 :] in _INSIDE[component]] or found
    if len(found) > 1:
        return None, f"it is several: {', '.join(each.path[len(prefix) + 1 :] for each in found)}"
    if not found:
        return (
            None,
            f"no module is it alone: {', '.join(impure)} adds the residual"
            if impure
            else "no module is it",
        )
    return found[0], ""


def pure(model: nn.Module, inputs: dict[str, Any], module: nn.Module) -> bool:
    """Whether a module gives zero where its own weights are zero: no residual is added inside."""
    kept = []
    for child in module.modules():
        if "norm" not in type(child).__name__.lower():
            kept += [
                (parameter, parameter.detach().clone())
                for parameter in child.parameters(recurse=False)
            ]
    seen: list[bool] = []

    def hook(module: nn.Module, args: Any, output: Any) -> None:
        hidden = first_tensor(output)
        seen.append(hidden is not None and float(hidden.abs().max()) < 1e-6)

    handle = module.register_forward_hook(hook)
    try:
        with torch.no_grad():
            for parameter, _ in kept:
                parameter.zero_()
            model(**inputs)
    finally:
        handle.remove()
        with torch.no_grad():
            for parameter, value in kept:
                parameter.copy_(value)
    return all(seen)


def dense(theta: Tensor, alpha: Tensor, blocks: range) -> Tensor:
    """The matrix R of RoAd1 on these blocks (pairs of neighbours), the identity elsewhere: z = R h."""
    matrix = torch.eye(2 * len(theta))
    for block in blocks:
        cosine, sine = alpha[block] * theta[block].cos(), alpha[block] * theta[block].sin()
        pair = slice(2 * block, 2 * block + 2)
        matrix[pair, pair] = torch.stack(
            [torch.stack([cosine, -sine]), torch.stack([sine, cosine])]
        )
    return matrix


def edited(position: str, phase: str, rank: int, prompt: int) -> bool:
    """Whether a token of this rank in its row is one that a position of a phase names."""
    if rank >= prompt:
        return phase != "prompt" and (position != "first(1)" or rank == prompt)
    return (
        phase != "generated"
        and {"all": True, "last(2)": rank >= prompt - 2, "first(1)": rank == 0}[position]
    )


@contextmanager
def by_hand(
    layer: nn.Module,
    site: Site,
    matrices: list[Tensor],
    position: str,
    phase: str,
    prompt: int,
    columns: int,
) -> Iterator[None]:
    """The edit of rows without padding, in passes without a cache, which run whole sequences of at least so many columns.

    prompt: of how many tokens; the rest is generated. Only while the layer runs: others may share the module.
    """
    inside: list[bool] = []

    def hook(module: nn.Module, args: Any, output: Any) -> Any:
        if not inside and module is not layer:
            return None
        hidden = first_tensor(output)
        assert hidden is not None
        hidden = hidden.clone()
        if hidden.shape[site.columns] < columns:
            raise NotWhole
        view = hidden.movedim((site.rows, site.columns), (0, 1))
        chosen = [
            column for column in range(view.shape[1]) if edited(position, phase, column, prompt)
        ]
        for row, matrix in enumerate(matrices[: len(view)]):
            view[row, chosen] = view[row, chosen] @ matrix.T
        return replaced(output, hidden)

    handles = [site.module.register_forward_hook(hook)]
    if site.module is not layer:
        handles.append(layer.register_forward_pre_hook(lambda *_: inside.append(True)))
        handles.append(layer.register_forward_hook(lambda *_: inside.clear()))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


class NotWhole(Exception):
    """A pass that was to run the whole sequence ran a part of it."""

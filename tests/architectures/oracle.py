"""Where a component is in a model, found by running it; and an edit there by hand: a plain hook, a dense matrix, no cache."""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

ROWS, COLUMNS = 2, 9

_ATTENTION = re.compile(r"(?<!cross)(?<!cross_)(attn|attention|mixer)", re.IGNORECASE)
_MLP = re.compile(r"(mlp|feed_?forward|ffn?$|ffn|moe|expert|^ff$)", re.IGNORECASE)
_NEVER = re.compile(r"(norm|rotary|embed|gate$|router|dropout|indexer)", re.IGNORECASE)
_CROSS = re.compile(r"(cross|encoder_attn|encdec)", re.IGNORECASE)
# The linear layer inside, where a module adds the residual itself, or the block has no module for it.
_INSIDE = {
    "attention_output": ("attention.output.dense", "self_attention.dense", "self_attention.out_proj"),
    "mlp_output": ("mlp.dense_4h_to_h", "mlp.down_proj", "output.dense", "ffn.w_out", "fc2"),
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


@dataclass
class Site:
    """A module whose output is a component. rows, columns: the axes of its output."""

    path: str
    module: nn.Module
    rows: int
    columns: int


@dataclass
class Layout:
    """The decoder layers of a model, and the components inside of each one, by what ran."""

    path: str
    layers: list[nn.Module]
    calls: dict[str, int]
    shapes: dict[str, tuple[int, ...]]
    width: int
    notes: list[str] = field(default_factory=list)


def axes(shape: Sequence[int], width: int) -> tuple[int, int] | None:
    """The axes of rows and columns in the shape of hidden states; None where it is none."""
    if len(shape) < 3 or shape[-1] != width:
        return None
    leading = list(shape[:-1])
    if leading.count(ROWS) != 1 or leading.count(COLUMNS) != 1:
        return None
    return leading.index(ROWS), leading.index(COLUMNS)


def observe(model: nn.Module, inputs: dict[str, Any], width: int, count: int) -> Layout | None:
    """Run the model once and see which list of modules its decoder layers are; None where there is no such list."""
    calls: dict[str, int] = {}
    shapes: dict[str, tuple[int, ...]] = {}
    handles = []

    def hook_of(path: str) -> Any:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            calls[path] = calls.get(path, 0) + 1
            hidden = first_tensor(output)
            if hidden is not None:
                shapes[path] = tuple(hidden.shape)

        return hook

    for path, module in model.named_modules():
        handles.append(module.register_forward_hook(hook_of(path)))
    try:
        with torch.no_grad():
            model(**inputs)
    finally:
        for handle in handles:
            handle.remove()
    lists = []
    for path, module in model.named_modules():
        if isinstance(module, nn.ModuleList) and len(module) == count:
            ran = [index for index in range(count) if axes(shapes.get(f"{path}.{index}", ()), width)]
            if 1 in ran:
                lists.append((path.count("."), path, list(module)))
    if not lists:
        return None
    lists.sort(key=lambda each: each[0])
    _, path, layers = lists[0]
    found = Layout(path, layers, calls, shapes, width)
    if len(lists) > 1:
        found.notes.append(f"other lists of {count}: {[each[1] for each in lists[1:]]}")
    return found


def sites(model: nn.Module, inputs: dict[str, Any], layout: Layout, layer: int, component: str) -> tuple[list[Site], str]:
    """The modules that are this component (several where one is inside of another), or none and why."""
    prefix = f"{layout.path}.{layer}"
    if component == "block_output":
        where = axes(layout.shapes.get(prefix, ()), layout.width)
        return ([Site(prefix, layout.layers[layer], *where)], "") if where else ([], "its output has another shape")
    pattern = _ATTENTION if component == "attention_output" else _MLP
    found: list[Site] = []
    impure: list[str] = []
    for name, module in layout.layers[layer].named_modules():
        path = f"{prefix}.{name}"
        last = name.rpartition(".")[2]
        fits = (pattern.search(last) or pattern.search(type(module).__name__)) and not _NEVER.search(last)
        fits = fits and not _NEVER.search(type(module).__name__)
        if not name or not layout.calls.get(path) or _CROSS.search(name) or not (fits or name in _INSIDE[component]):
            continue
        where = axes(layout.shapes.get(path, ()), layout.width)
        if not where or any(name.startswith(f"{each.path[len(prefix) + 1:]}.") for each in found):
            continue
        if pure(model, inputs, module):
            found.append(Site(path, module, *where))
        else:
            impure.append(name)
    inside = [each for each in found if each.path[len(prefix) + 1 :] in _INSIDE[component]]
    found = inside or found
    if len(found) > 1:
        return [], f"several: {[each.path[len(prefix) + 1:] for each in found]}"
    if not found:
        return [], f"no module is it alone ({', '.join(impure)} has more in it)" if impure else "no module is it"
    return found, ""


def pure(model: nn.Module, inputs: dict[str, Any], module: nn.Module) -> bool:
    """Whether a module gives zero where all of its own weights are zero: no residual is added inside."""
    kept = {}
    for name, child in module.named_modules():
        if "norm" in type(child).__name__.lower():
            continue
        for own, parameter in child.named_parameters(recurse=False):
            kept[f"{name}.{own}"] = (parameter, parameter.detach().clone())
    seen: list[bool] = []

    def hook(module: nn.Module, args: Any, output: Any) -> None:
        hidden = first_tensor(output)
        seen.append(hidden is not None and float(hidden.abs().max()) < 1e-6)

    handle = module.register_forward_hook(hook)
    try:
        with torch.no_grad():
            for parameter, _ in kept.values():
                parameter.zero_()
            model(**inputs)
    finally:
        handle.remove()
        with torch.no_grad():
            for parameter, value in kept.values():
                parameter.copy_(value)
    return all(seen)


def dense(theta: Tensor, alpha: Tensor, blocks: range) -> Tensor:
    """The matrix R of RoAd1 on these blocks (pairs of neighbours), the identity elsewhere: z = R h."""
    width = 2 * len(theta)
    matrix = torch.eye(width, dtype=torch.float64)
    for block in blocks:
        angle, scale = float(theta[block]), float(alpha[block])
        turn = torch.tensor([[angle, 0.0]], dtype=torch.float64)
        cosine, sine = float(turn.cos()[0, 0]), float(turn.sin()[0, 0])
        pair = slice(2 * block, 2 * block + 2)
        matrix[pair, pair] = scale * torch.tensor([[cosine, -sine], [sine, cosine]], dtype=torch.float64)
    return matrix.float()


def edited(position: str, phase: str, rank: int, prompt: int) -> bool:
    """Whether a token of this rank in its row is one that a position of a phase names."""
    if rank < 0:
        return False
    if rank >= prompt:
        return phase != "prompt" and position in ("all", "last(2)")
    chosen = {"all": True, "last(2)": rank >= prompt - 2, "first(1)": rank == 0}[position]
    return phase != "generated" and chosen


@contextmanager
def by_hand(
    layer: nn.Module, site: Site, matrices: list[Tensor], mask: Tensor, position: str, phase: str, prompt: list[int] | None = None
) -> Iterator[list[int]]:
    """The edit, in passes without a cache that run whole sequences; what follows the mask is generated."""
    inside: list[bool] = []
    seen: list[int] = []

    def hook(module: nn.Module, args: Any, output: Any) -> Any:
        if not inside and module is not layer:
            return None
        hidden = first_tensor(output)
        assert hidden is not None
        count = hidden.shape[site.columns]
        seen.append(count)
        if count < mask.shape[1]:
            raise NotWhole(f"a pass of {count} columns")
        hidden = hidden.clone()
        view = hidden.movedim((site.rows, site.columns), (0, 1))
        for row in range(len(mask)):
            kept = [*mask[row].tolist(), *[1] * (count - mask.shape[1])]
            length = sum(mask[row].tolist()) if prompt is None else prompt[row]
            rank = -1
            for column, keep in enumerate(kept):
                rank += bool(keep)
                if keep and edited(position, phase, rank, length):
                    view[row, column] = view[row, column] @ matrices[row].T
        return replaced(output, hidden)

    handles = [site.module.register_forward_hook(hook)]
    if site.module is not layer:
        handles.append(layer.register_forward_pre_hook(lambda *_: inside.append(True)))
        handles.append(layer.register_forward_hook(lambda *_: inside.clear()))
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


class NotWhole(Exception):
    """A pass that was to run the whole sequence did not."""

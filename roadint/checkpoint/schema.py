"""Checks of a checkpoint's JSON and of the shapes of its tensors, before anything is built.

A checkpoint comes from anywhere, and anybody can make its SHA-256. What passes here has every
required field, of the right type and in its range, and tensors of the shapes that its arguments
need. The rules for the arguments of a kind come from the kind.
"""

from collections.abc import Mapping
from typing import Any, get_args

from roadint.data.prompts import Template
from roadint.errors import RoadError, listing, quoted
from roadint.files.rules import (
    Rule,
    Shapes,
    anything,
    either,
    fields,
    listed,
    mapped,
    number,
    one_of,
    text,
    whole,
)
from roadint.grammar.position import Phase
from roadint.interventions.arguments import MOST_DIMS, PAIRING_RULE, VARIANT_RULE, WIDEST
from roadint.interventions.registry import kind_of
from roadint.rotation.rotation import parameter_shape

_NULL = one_of(None)
_NAME = text(r"[^\W\d]\w*(@\w+)?", 4096, "a plain word")
_PATH = text(r"[^\s]+", 1000, "a module's path")
_POSITION = text(
    r"\w{1,20}(\((-?\d{1,18}(, ?-?\d{1,18})*)?\))?", 100_000, "a position such as 'last(2)'"
)
_BOUNDARY = r"[\d_d*/+\- ]{1,60}"
_RANGE = rf"\[{_BOUNDARY},{_BOUNDARY}\)"
_EVERY = r"(blocks|rows)\[ ?\d{0,9} ?: ?\d{0,9} ?: ?\d{1,9} ?\]"
_SUBSPACE = text(
    rf"{_RANGE}( ?[|∪+,]? ?{_RANGE})*|{_EVERY}", 500_000, "ranges such as '[0, d/2) | [3d/4, d)'"
)

_SHARED: dict[str, Rule] = {  # the arguments of every kind of intervention
    "layer": whole(0, 100_000),
    "component": text(most=100),
    "position": _POSITION,
    "phase": one_of(*get_args(Phase)),
    "subspaces": mapped(_NAME, _SUBSPACE),
    "embed_dim": whole(1, WIDEST),
}
_ADAPTER = fields(
    {
        "name": _NAME,
        "variant": VARIANT_RULE,
        "pairing": PAIRING_RULE,
        "subspace": either(_NULL, _SUBSPACE),
        "lora_rank": whole(0, MOST_DIMS),
        "lora_alpha": number(-1e30, 1e30),
        "paths": listed(_PATH),
        "widths": listed(whole(2, MOST_DIMS)),
        "inputs": listed(whole(1, MOST_DIMS)),
        "heads": listed(_PATH),
    }
)
_CHECKPOINT = fields(
    {
        "format": whole(1, 2),
        "base_model": fields(
            {"id": text(), "width": whole(1, WIDEST), "layers": whole(1, 100_000)},
            {"model_type": text(most=200), "labels": whole(1, 100_000)},
        ),
        "template": one_of(*get_args(Template)),
        "training": fields({}, open_to_others=True),
        "interventions": listed(anything),
        "sha256": text(r"[0-9a-f]{64}", 64, "a SHA-256"),
    },
    {
        "versions": mapped(text(most=100), text(most=100)),
        "dtype": one_of("float32"),
        "adapters": listed(_ADAPTER),
    },
)


def check_config(config: Any, what: str) -> dict[str, Shapes]:
    """Check a checkpoint's JSON, whole.

    Args:
        config: The content of the JSON.
        what: The checkpoint's name in messages.

    Returns:
        The tensors that the checkpoint needs: prefix → name → shape.

    Raises:
        RoadError: where something is missing, unknown, of another type or outside its range.
    """
    _CHECKPOINT(config, what)
    base, needed = config["base_model"], {}
    names: set[str] = set()
    for index, spec in enumerate(config["interventions"]):
        where = f"{what}: intervention {index}"
        needed[f"{index}."] = _check_intervention(spec, where, base)
        names |= spec["subspaces"].keys()
    for index, spec in enumerate(config.get("adapters", ())):
        where = f"{what}: adapter {index}"
        if spec["name"] in names:
            raise RoadError(
                f"{where} is called {quoted(spec['name'])}, as something before it: "
                "expected names of their own"
            )
        names.add(spec["name"])
        needed[f"adapter.{index}."] = _check_adapter(spec, where)
    return needed


def _check_intervention(spec: Any, where: str, base: Mapping[str, Any]) -> Shapes:
    fields({}, {"kind": text(most=100)}, open_to_others=True)(spec, where)
    kind = kind_of(spec.get("kind", "road"))  # the first checkpoints knew one kind
    fields(_SHARED, {"kind": anything, **kind.rules()})(spec, where)
    width = spec["embed_dim"]
    if width != base["width"]:
        raise RoadError(
            f"{where} is {width} wide, its base model {base['width']}: expected the same"
        )
    if spec["layer"] >= base["layers"]:
        raise RoadError(f"{where} is at layer {spec['layer']}: expected 0 to {base['layers'] - 1}")
    if len(spec["subspaces"]) > width:
        raise RoadError(
            f"{where} has {len(spec['subspaces'])} subspaces: expected at most its width, {width}"
        )
    arguments = {name: value for name, value in spec.items() if name != "kind"}
    return kind.needed_tensors(arguments, where)


def _check_adapter(spec: Mapping[str, Any], where: str) -> Shapes:
    paths, widths, inputs = spec["paths"], spec["widths"], spec["inputs"]
    if not len(paths) == len(widths) == len(inputs) or not paths:
        raise RoadError(
            f"{where} has {len(paths)} paths, {len(widths)} widths and {len(inputs)} inputs: "
            "expected as many of each"
        )
    for what, names in {"paths": paths, "heads": spec["heads"]}.items():
        if len(set(names)) < len(names):
            raise RoadError(
                f"{where} names one of its {what} twice: expected each of {listing(names)} once"
            )
    if any(width % 2 for width in widths):
        raise RoadError(f"{where} has an odd width: expected pairs of dims")
    rank = spec["lora_rank"]
    lora = {"lora_a": (rank, sum(inputs)), "lora_b": (sum(widths), rank)} if rank else {}
    shape = parameter_shape(spec["variant"], sum(widths) // 2)
    return {"theta": shape, "alpha": shape, **lora}


def check_tensors(
    header: Mapping[str, tuple[str, tuple[int, ...]]], needed: Mapping[str, Shapes], what: str
) -> None:
    """Check that a file has exactly the tensors that a checkpoint needs, in float32.

    Heads of adapters may have any shape: the base model decides about them.

    Args:
        header: Dtype and shape of the file's tensors, by name.
        needed: What `check_config` returned.
        what: The file's name in messages.

    Raises:
        RoadError: where a tensor is missing, unknown, or of another dtype or shape.
    """
    expected = {
        prefix + name: shape for prefix, shapes in needed.items() for name, shape in shapes.items()
    }
    for name, shape in expected.items():
        if name not in header:
            raise RoadError(f"{what} lacks {name}: expected float32 {shape}")
        if header[name] != ("F32", shape):
            raise RoadError(
                f"{what}: {name} is {header[name][0]} {header[name][1]}: expected float32 {shape}"
            )
    heads = tuple(f"{prefix}heads." for prefix in needed if prefix.startswith("adapter."))
    for name, (dtype, _) in header.items():
        if name not in expected and not name.startswith(heads):
            raise RoadError(
                f"{what} holds {quoted(name)}, which the checkpoint says nothing of: "
                f"expected {listing(expected)}"
            )
        if dtype not in ("F32", "I64", "I32", "BOOL", "U8"):
            raise RoadError(f"{what}: {quoted(name)} is {dtype}: expected float32")

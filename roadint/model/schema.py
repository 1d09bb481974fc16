"""What a checkpoint's JSON may say, as tables, and which tensors it asks for: checked before anything of it is made.

A checkpoint comes from anywhere, and anybody can make its SHA-256. What passes here has every field that is needed, of the right
type and in its range, and parameters as large as the tensors that are there. Raises RoadError throughout.
"""

import inspect
import re
from collections.abc import Callable, Mapping
from typing import Any, get_args

from roadint.data.prompts import Template
from roadint.errors import RoadError, did_you_mean, listing, quoted
from roadint.grammar.position import Phase
from roadint.interventions.interchange import RowsOfBlock, Selection
from roadint.interventions.registry import kind_of
from roadint.interventions.road import Form
from roadint.rotation.basis import BasisKind
from roadint.rotation.rotation import Variant, parameter_shape

Rule = Callable[[Any, str], None]  # a value and where it stands; raises RoadError
Shapes = dict[str, tuple[int, ...]]

_WIDEST, _MOST = (
    1 << 20,
    1 << 24,
)  # dims of a hidden state; dims of any module, a vocabulary's included


def whole(low: int, high: int) -> Rule:
    """An integer in a range."""

    def rule(value: Any, where: str) -> None:
        if type(value) is not int or not low <= value <= high:
            raise _wrong(where, value, f"an integer from {low} to {high}")

    return rule


def number(low: float, high: float) -> Rule:
    """A finite number in a range, and exact as a float."""

    def rule(value: Any, where: str) -> None:
        if (
            type(value) not in (int, float)
            or not low <= value <= high
            or (type(value) is int and abs(value) > 1 << 53)
        ):
            raise _wrong(where, value, f"a number from {low:g} to {high:g}")

    return rule


def text(pattern: str = r"(?s:.)*", most: int = 4096, what: str = "text") -> Rule:
    """Text of bounded length. pattern: of all of it, in linear time."""
    compiled = re.compile(pattern)

    def rule(value: Any, where: str) -> None:
        if not isinstance(value, str) or len(value) > most or not compiled.fullmatch(value):
            raise _wrong(where, value, f"{what} of at most {most} characters")

    return rule


def one_of(*options: Any) -> Rule:
    """One of these values, of the same type."""

    def rule(value: Any, where: str) -> None:
        if not any(type(value) is type(each) and value == each for each in options):
            raise _wrong(
                where,
                value,
                f"one of {listing(options)}{did_you_mean(value, [str(each) for each in options])}",
            )

    return rule


def either(*rules: Rule) -> Rule:
    """What one of the rules allows."""

    def rule(value: Any, where: str) -> None:
        reasons = []
        for each in rules:
            try:
                return each(value, where)
            except RoadError as error:
                reasons.append(error)
        raise reasons[-1]

    return rule


def listed(rule_of_items: Rule, most: int = 1_000_000) -> Rule:
    """A list, each item by the rule."""

    def rule(value: Any, where: str) -> None:
        if not isinstance(value, list) or len(value) > most:
            raise _wrong(where, value, f"a list of at most {most:,}")
        for index, each in enumerate(value):
            rule_of_items(each, f"{where}[{index}]")

    return rule


def mapped(rule_of_keys: Rule, rule_of_values: Rule) -> Rule:
    """A mapping of any keys."""

    def rule(value: Any, where: str) -> None:
        if not isinstance(value, dict) or not value:
            raise _wrong(where, value, "a mapping that names something")
        for key, each in value.items():
            rule_of_keys(key, f"a name in {where}")
            rule_of_values(each, f"{where}[{quoted(key)}]")

    return rule


def fields(
    required: Mapping[str, Rule],
    optional: Mapping[str, Rule] | None = None,
    *,
    open_to_others: bool = False,
) -> Rule:
    """A mapping with these keys, and no others."""
    rules = {**required, **(optional or {})}

    def rule(value: Any, where: str) -> None:
        if not isinstance(value, dict):
            raise _wrong(where, value, f"a mapping with {listing(required)}")
        for key in required:
            if key not in value:
                raise RoadError(f"{where} lacks {key!r}: expected {listing(required)}")
        for key, each in value.items():
            if key in rules:
                rules[key](each, f"{where}.{key}")
            elif not open_to_others:
                raise RoadError(
                    f"{where} has the unknown key {quoted(key)}: expected {listing(rules)}{did_you_mean(key, rules)}"
                )

    return rule


def anything(value: Any, where: str) -> None:
    """No rule."""


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
_PAIRING = either(whole(2, _MOST), one_of("adjacent", "half"))

_SITE: dict[str, Rule] = {
    "layer": whole(0, 100_000),
    "component": text(most=100),
    "position": _POSITION,
    "phase": one_of(*get_args(Phase)),
    "subspaces": mapped(_NAME, _SUBSPACE),
    "embed_dim": whole(1, _WIDEST),
}
# What the kinds add to a site; each has some, as its own __init__ says.
_OF_KINDS: dict[str, Rule] = {
    "variant": one_of(*get_args(Variant)),
    "pairing": _PAIRING,
    "basis": one_of(*get_args(BasisKind)),
    "basis_seed": whole(0, 2**32 - 1),
    "form": one_of(*get_args(Form)),
    "rank": whole(1, _WIDEST),
    "stages": whole(1, _WIDEST),
    "rows": one_of(*get_args(RowsOfBlock)),
    "learn": one_of(None, *get_args(Selection)),
    "source_representation": listed(number(-3e38, 3e38), _WIDEST),
}
_ADAPTER = fields(
    {
        "name": _NAME,
        "variant": one_of(*get_args(Variant)),
        "pairing": _PAIRING,
        "subspace": either(_NULL, _SUBSPACE),
        "lora_rank": whole(0, _MOST),
        "lora_alpha": number(-1e30, 1e30),
        "paths": listed(_PATH),
        "widths": listed(whole(2, _MOST)),
        "inputs": listed(whole(1, _MOST)),
        "heads": listed(_PATH),
    }
)
_CHECKPOINT = fields(
    {
        "format": whole(1, 2),
        "base_model": fields(
            {"id": text(), "width": whole(1, _WIDEST), "layers": whole(1, 100_000)},
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
    """Check a checkpoint's JSON, whole; returns the tensors that it needs, prefix → name → shape. what: its name in messages."""
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
                f"{where} is called {quoted(spec['name'])}, as something before it: expected names of their own"
            )
        names.add(spec["name"])
        needed[f"adapter.{index}."] = _check_adapter(spec, where)
    return needed


def _check_intervention(spec: Any, where: str, base: Mapping[str, Any]) -> Shapes:
    fields({}, {"kind": text(most=100)}, open_to_others=True)(spec, where)
    kind = kind_of(spec.get("kind", "road"))  # the first checkpoints knew one kind
    taken = {
        name
        for each in kind.__mro__
        if "__init__" in vars(each)
        for name in inspect.signature(each).parameters
    }
    of_kind = {name: rule for name, rule in _OF_KINDS.items() if name in taken}
    fields(_SITE, {"kind": anything, **of_kind})(spec, where)
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
    if len(spec.get("source_representation", [0.0] * width)) != width:
        raise RoadError(
            f"{where} has a source of {len(spec['source_representation'])} numbers: expected its width, {width}"
        )
    return _SHAPES[kind.kind](spec)


def _check_adapter(spec: Mapping[str, Any], where: str) -> Shapes:
    paths, widths, inputs = spec["paths"], spec["widths"], spec["inputs"]
    if not len(paths) == len(widths) == len(inputs) or not paths:
        raise RoadError(
            f"{where} has {len(paths)} paths, {len(widths)} widths and {len(inputs)} inputs: expected as many of each"
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
    return {**_of_rotations(spec["variant"], sum(widths)), **lora}


def check_tensors(
    header: Mapping[str, tuple[str, tuple[int, ...]]], needed: Mapping[str, Shapes], what: str
) -> None:
    """Whether a file's tensors are those that `check_config` named, float32, and no others but the adapters' heads."""
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
                f"{what} holds {quoted(name)}, which the checkpoint says nothing of: expected {listing(expected)}"
            )
        if dtype not in ("F32", "I64", "I32", "BOOL", "U8"):
            raise RoadError(f"{what}: {quoted(name)} is {dtype}: expected float32")


def _of_rotations(variant: Variant, dims: int) -> Shapes:
    shape = parameter_shape(variant, dims // 2)
    return {"theta": shape, "alpha": shape}


def _of_road(spec: Mapping[str, Any]) -> Shapes:
    return {**_of_rotations(spec.get("variant", "road_1"), spec["embed_dim"]), **_of_basis(spec)}


def _of_interchange(spec: Mapping[str, Any]) -> Shapes:
    width = spec["embed_dim"]
    gates: dict[str | None, Shapes] = {
        "mask": {"mask": (width,)},
        "boundary": {"boundary": (len(spec["subspaces"]),)},
    }
    return {
        "theta": (spec.get("stages", 1), width // 2),
        **gates.get(spec.get("learn"), {}),
        **_of_basis(spec),
    }


def _of_basis(spec: Mapping[str, Any]) -> Shapes:
    return {"basis": (spec["embed_dim"],) * 2} if spec.get("basis") == "pca" else {}


def _of_baseline(second: Callable[[int, int], Shapes]) -> Callable[[Mapping[str, Any]], Shapes]:
    def shapes(spec: Mapping[str, Any]) -> Shapes:
        width, rank = spec["embed_dim"], spec.get("rank", 8)
        return {
            "learned_source.weight": (rank, width),
            "learned_source.bias": (rank,),
            **second(rank, width),
        }

    return shapes


_SHAPES: dict[str, Callable[[Mapping[str, Any]], Shapes]] = {
    "road": _of_road,
    "interchange": _of_interchange,
    "loreft": _of_baseline(
        lambda rank, width: {"rotate_layer.parametrizations.weight.original": (width, rank)}
    ),
    "direft": _of_baseline(lambda rank, width: {"proj_layer.weight": (rank, width)}),
    "steering": lambda spec: {"vectors": (spec.get("rank", 8), spec["embed_dim"])},
}


def _wrong(where: str, value: Any, expected: str) -> RoadError:
    return RoadError(f"{where} is {quoted(value)}: expected {expected}")

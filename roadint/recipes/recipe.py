"""Recipes: everything that a run needs, as one YAML file or preset."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal, get_type_hints

from roadint.adapters.targets import ALL_LINEAR
from roadint.data.prompts import Template
from roadint.errors import RoadError, did_you_mean, listing, quoted
from roadint.files.paths import is_file, path_of
from roadint.grammar.position import Phase
from roadint.grammar.subspace import Subspace
from roadint.interventions.base import SubspaceIntervention
from roadint.interventions.registry import kind_of
from roadint.model.pretrained import Dtype
from roadint.model.road_model import RoadModel
from roadint.recipes.settings import FLOAT32, Range, cast, read_yaml
from roadint.rotation.basis import BasisKind
from roadint.rotation.rotation import Pairing, Variant

LINEAR = "linear"
# Those of transformers that need no setting of their own.
Schedule = Literal[
    "linear",
    "cosine",
    "cosine_with_restarts",
    "polynomial",
    "constant",
    "constant_with_warmup",
    "inverse_sqrt",
]
_PRESETS = Path(str(files("roadint.recipes"))) / "presets"


@dataclass(frozen=True)
class Recipe:
    """One run. What is learned and where, from which data, and how; defaults are the paper's where it names them (section 4.3)."""

    # the model
    model: str = "gemma-3-270m"  # for roadint.load
    dtype: Dtype = "auto"  # the base model's; the rotations are float32 always
    # the interventions: the same at every layer of the list
    kind: str = "road"  # or a baseline: "loreft", "direft", "steering"; "linear": adapters on linear layers, see below
    layers: list[int] | None = None  # 9 by default, or, of adapters, all
    component: str = "block_output"
    position: str = "last"
    phase: Phase = "prompt"
    variant: Variant = "road_1"
    subspaces: dict[str, Any] = field(
        default_factory=lambda: {"german": "[0, d/2)", "english": "[d/2, d)"}
    )
    pairing: Pairing = "adjacent"
    basis: BasisKind = "identity"
    basis_seed: int = 0
    rank: int = 8  # of a baseline
    # the adapter, of kind "linear", in the place of interventions
    targets: str | list[str] = ALL_LINEAR  # or "fc1", names, a regular expression
    exclude: list[str] = field(default_factory=list)
    lora_rank: int = 0
    lora_alpha: float | None = None
    heads: list[str] = field(default_factory=list)
    # the data: composition → source, see roadint.data.sources; of a task: "train", "dev" (or "validation") and "test"
    task: str | None = (
        None  # a task with a metric of its own, see roadint.tasks: "rte", …, "commonsense", "cloze"
    )
    data: dict[str, str] = field(default_factory=dict)
    rows: int | None = None  # of each source, the first ones; all by default
    rows_seed: int | None = None  # draws the rows of each source at random instead
    template: Template = "alpaca"
    max_length: int = 512  # tokens of prompt and completion together
    max_completion: int | None = None  # tokens; half of max_length by default
    companions: dict[str, list[str]] = field(
        default_factory=dict
    )  # composition → what acts beside it in training, one at a time
    companion_rate: float = 0.5  # the share of its examples that have their companion
    eos: list[str] = field(
        default_factory=list
    )  # whose completions end with the end-of-sequence token
    # the optimisation: AdamW without weight decay, linear decay of the rate
    lr: float = 5e-3
    lrs: dict[str, float] = field(default_factory=dict)  # subspace → its own rate
    decay: float = 0.0  # toward the identity, times the rate, at every step
    max_log_scale: float | None = None  # bound of |log α|; 0: pure rotations
    strengths: dict[str, float] = field(
        default_factory=dict
    )  # subspace → the strength, after training, that becomes its 1
    epochs: float = 5
    batch_size: int = 8  # rows of a step, all compositions in proportion
    micro_batch: int | None = None  # rows that run at once, of like length; a whole step by default
    schedule: Schedule = "linear"
    warmup_steps: float = 0  # a count, or below 1 a share of all steps
    scored_rows: int | None = (
        None  # of a reasoning task: at most so many validation, and test, rows
    )
    max_new_tokens: int = 32  # of an answer that is scored
    max_grad_norm: float = 1.0
    seed: int = 42
    save_steps: int = 50
    prefix_reuse: bool = True  # compute once what the edit can't change
    prefix_memory: float | None = (
        None  # GB for it, then less is kept, or files are used; a quarter of what is free by default
    )

    def __post_init__(self) -> None:
        for name, hint in _hints().items():
            object.__setattr__(
                self, name, cast(f"recipe setting {name}", getattr(self, name), hint)
            )
        for name, expected in _RANGES.items():
            expected.check(f"recipe setting {name}", getattr(self, name))
        if self.micro_batch is not None and self.batch_size % self.micro_batch:
            raise RoadError(
                f"recipe setting micro_batch={self.micro_batch} does not divide batch_size={self.batch_size}"
            )
        if self.layers is not None and not self.layers:
            raise RoadError("recipe setting layers=[] selects no layer: expected some, such as [9]")

    @classmethod
    def load(
        cls, name: "str | Path | Recipe", overrides: Mapping[str, Any] | None = None
    ) -> "Recipe":
        """A preset ("composition", "composition-paper") or a YAML file, with overrides. Raises RoadError for what doesn't fit."""
        if isinstance(name, Recipe):
            return name.override({} if overrides is None else overrides)
        path, name = path_of("recipe", name), str(name)
        if path.suffix not in (".yaml", ".yml"):
            path = _PRESETS / f"{name}.yaml"
        if not is_file(path):
            presets = sorted(each.stem for each in _PRESETS.glob("*.yaml"))
            raise RoadError(
                f"no recipe {quoted(str(name))}: expected a YAML file or one of "
                f"{listing(presets)}{did_you_mean(str(name), presets)}"
            )
        content = read_yaml(path, "recipe")
        if not isinstance(content, (Mapping, type(None))):
            raise RoadError(
                f"recipe {quoted(str(path))} is a {type(content).__name__}: expected a mapping of settings"
            )
        return cls().override(content or {}).override({} if overrides is None else overrides)

    def override(self, settings: Mapping[str, Any]) -> "Recipe":
        """The same recipe with some settings changed; texts are read as YAML. Raises RoadError for an unknown name or type."""
        if not isinstance(settings, Mapping):
            raise RoadError(
                f"recipe settings {quoted(settings)}: expected a mapping such as {{'lr': 1e-2}}"
            )
        known = {each.name for each in fields(self)}
        hints = _hints()
        changed = {}
        for name, value in settings.items():
            if name not in known:
                raise RoadError(
                    f"recipe has no setting {quoted(name)}: expected one of {listing(sorted(known))}{did_you_mean(name, known)}"
                )
            changed[name] = cast(f"recipe setting {name}", value, hints[name])
        if "subspaces" in changed:
            changed["subspaces"] = {
                name: written(spec) for name, spec in changed["subspaces"].items()
            }
        return replace(self, **changed)

    def on(self, model: Any) -> RoadModel:
        """A RoadModel with new interventions, or a new adapter for each data set, untrained. Raises RoadError."""
        road = RoadModel(model, self.interventions())
        for name in self.adapter_names():
            road.add_adapter(
                name,
                **{
                    each: getattr(self, each)
                    for each in (
                        "variant",
                        "pairing",
                        "targets",
                        "exclude",
                        "layers",
                        "lora_rank",
                        "lora_alpha",
                        "heads",
                    )
                },
            )
        return road

    def adapter_names(self) -> list[str]:
        """Of kind "linear", an adapter for each data set; one of a task's own is called by the task's name."""
        return (
            [] if self.kind != LINEAR else [self.task] if self.task else list(self.data) or ["road"]
        )

    def interventions(self) -> list[SubspaceIntervention]:
        """New interventions, one a layer, untrained. Raises RoadError where a setting does not fit."""
        if self.kind == LINEAR:
            return []
        for setting in ("lrs", "strengths"):
            for name in getattr(self, setting):
                if name not in self.subspaces:
                    raise RoadError(
                        f"recipe setting {setting} names {quoted(name)}: "
                        f"expected one of {listing(self.subspaces)}, or {setting}={{}}"
                    )
        if kind_of(self.kind).takes_source:
            raise RoadError(
                f"recipe kind {quoted(self.kind)} learns from counterfactual outputs, not from rows: see RoadModel.interchange"
            )
        arguments = {name: getattr(self, name) for name in kind_of(self.kind).recipe_fields()}
        return [
            kind_of(self.kind)(layer=layer, **arguments)
            for layer in ([9] if self.layers is None else self.layers)
        ]


@cache
def _hints() -> dict[str, Any]:
    """The types of the settings, by name."""
    return {
        name: hint
        for name, hint in get_type_hints(Recipe).items()
        if name in {each.name for each in fields(Recipe)}
    }


def written(subspace: Any) -> Any:
    """A subspace as text and lists, which YAML and JSON can hold: slices, ranges and pairs mean the same as such."""
    if isinstance(subspace, (slice, range)) and subspace.step in (None, 1):
        return f"[{_boundary(subspace.start, '0')}, {_boundary(subspace.stop, 'd')})"
    if isinstance(subspace, Subspace):
        return str(subspace)
    if (
        isinstance(subspace, tuple)
        and len(subspace) == 2
        and not any(isinstance(each, (tuple, list)) for each in subspace)
    ):
        start, end = subspace  # two neighbours may be meant as dims: the grammar's to tell
        return (
            list(subspace) if isinstance(start, int) and end == start + 1 else f"[{start}, {end})"
        )
    if isinstance(subspace, (tuple, list)):
        return [written(each) for each in subspace]
    return subspace


def _boundary(place: Any, otherwise: str) -> str:
    if place is None:
        return otherwise
    return f"d - {-place}" if isinstance(place, int) and place < 0 else str(place)


_COUNT, _SEED, _NUMBER = Range(1, 2**31 - 1), Range(0, 2**32 - 1), Range(-FLOAT32)
_POSITIVE, _NOT_NEGATIVE = Range(0, above=True), Range(0)
# Of the settings that are numbers; of lists and mappings each value.
_RANGES = {
    "layers": Range(0, 2**31 - 1),
    "basis_seed": _SEED,
    "rank": _COUNT,
    "lora_rank": Range(0, 2**31 - 1),
    "lora_alpha": _NUMBER,
    "rows": _COUNT,
    "rows_seed": _SEED,
    "max_length": Range(2, 2**31 - 1),
    "max_completion": _COUNT,
    "companion_rate": Range(0, 1),
    "lr": _POSITIVE,
    "lrs": _NOT_NEGATIVE,
    "decay": _NOT_NEGATIVE,
    "max_log_scale": _NOT_NEGATIVE,
    "strengths": _NUMBER,
    "epochs": Range(0, 1e6, above=True),
    "batch_size": _COUNT,
    "micro_batch": _COUNT,
    "warmup_steps": Range(0, 2**31 - 1),
    "scored_rows": _COUNT,
    "max_new_tokens": _COUNT,
    "max_grad_norm": _NOT_NEGATIVE,
    "seed": _SEED,
    "save_steps": _COUNT,
    "prefix_memory": _NOT_NEGATIVE,
}

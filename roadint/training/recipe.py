"""Recipes: everything that a run needs, as one YAML file or preset."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from importlib.resources import files
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

import yaml

from roadint.basis import BasisKind
from roadint.errors import RoadError, did_you_mean, first_line, listing
from roadint.kinds import kind_of
from roadint.linear.targets import ALL_LINEAR
from roadint.model import RoadModel
from roadint.position import Phase
from roadint.prompt import Template
from roadint.rotation import Pairing, Variant
from roadint.site import SubspaceIntervention

LINEAR = "linear"
_PRESETS = Path(str(files("roadint.training"))) / "recipes"


@dataclass(frozen=True)
class Recipe:
    """One run. What is learned and where, from which data, and how; defaults are the paper's where it names them (section 4.3)."""

    # the model
    model: str = "gemma-3-270m"  # for roadint.load
    dtype: str = "auto"  # the base model's; the rotations are float32 always
    # the interventions: the same at every layer of the list
    kind: str = "road"  # or a baseline: "loreft", "direft", "steering"; "linear": adapters on linear layers, see below
    layers: list[int] | None = None  # 9 by default, or, of adapters, all
    component: str = "block_output"
    position: str = "last"
    phase: Phase = "prompt"
    variant: Variant = "road_1"
    subspaces: dict[str, Any] = field(default_factory=lambda: {"german": "[0, d/2)", "english": "[d/2, d)"})
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
    task: str | None = None  # a task with a metric of its own, see roadint.tasks: "rte", …, "commonsense", "cloze"
    data: dict[str, str] = field(default_factory=dict)
    rows: int | None = None  # of each source; all by default
    template: Template = "alpaca"
    max_length: int = 512  # tokens of prompt and completion together
    max_completion: int | None = None  # tokens; half of max_length by default
    companions: dict[str, list[str]] = field(default_factory=dict)  # composition → what acts beside it in training, one at a time
    companion_rate: float = 0.5  # the share of its examples that have their companion
    eos: list[str] = field(default_factory=list)  # whose completions end with the end-of-sequence token
    # the optimisation: AdamW without weight decay, linear decay of the rate
    lr: float = 5e-3
    lrs: dict[str, float] = field(default_factory=dict)  # subspace → its own rate
    decay: float = 0.0  # toward the identity, times the rate, at every step
    max_log_scale: float | None = None  # bound of |log α|; 0: pure rotations
    strengths: dict[str, float] = field(default_factory=dict)  # subspace → the strength, after training, that becomes its 1
    epochs: float = 5
    batch_size: int = 8  # rows of a step, all compositions in proportion
    micro_batch: int | None = None  # rows that run at once, of like length; a whole step by default
    schedule: str = "linear"
    warmup_steps: float = 0  # a count, or below 1 a share of all steps
    scored_rows: int | None = None  # of a reasoning task: at most so many validation, and test, rows
    max_new_tokens: int = 32  # of an answer that is scored
    max_grad_norm: float = 1.0
    seed: int = 42
    save_steps: int = 50
    prefix_reuse: bool = True  # compute once what the edit can't change
    prefix_memory: float | None = None  # GB for it, then less is kept, or files are used; a quarter of what is free by default

    @classmethod
    def load(cls, name: "str | Path | Recipe", overrides: Mapping[str, Any] | None = None) -> "Recipe":
        """A preset ("composition", "composition-paper") or a YAML file, with overrides. Raises RoadError for what doesn't fit."""
        if isinstance(name, Recipe):
            return name.override(overrides or {})
        path = Path(name)
        if path.suffix not in (".yaml", ".yml"):
            path = _PRESETS / f"{name}.yaml"
        if not path.is_file():
            presets = sorted(each.stem for each in _PRESETS.glob("*.yaml"))
            raise RoadError(
                f"no recipe {str(name)!r}: expected a YAML file or one of {listing(presets)}{did_you_mean(str(name), presets)}"
            )
        try:
            content = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise RoadError(f"recipe {path} is no YAML ({first_line(error)})") from None
        if not isinstance(content, dict):
            raise RoadError(f"recipe {path} is a {type(content).__name__}: expected a mapping of settings")
        return cls().override(content).override(overrides or {})

    def override(self, settings: Mapping[str, Any]) -> "Recipe":
        """The same recipe with some settings changed; texts are read as YAML. Raises RoadError for an unknown name or type."""
        known = {each.name for each in fields(self)}
        hints = get_type_hints(type(self))
        changed = {}
        for name, value in settings.items():
            if name not in known:
                raise RoadError(
                    f"recipe has no setting {name!r}: expected one of {listing(sorted(known))}{did_you_mean(name, known)}"
                )
            changed[name] = _cast(name, value, hints[name])
        recipe = replace(self, **changed)
        for name in ("epochs", "batch_size", "lr", "max_length", "save_steps"):
            if getattr(recipe, name) <= 0:
                raise RoadError(f"recipe setting {name}={getattr(recipe, name)!r} must be above 0")
        if recipe.micro_batch is not None and (recipe.micro_batch < 1 or recipe.batch_size % recipe.micro_batch):
            raise RoadError(f"recipe setting micro_batch={recipe.micro_batch} does not divide batch_size={recipe.batch_size}")
        return recipe

    def on(self, model: Any) -> RoadModel:
        """A RoadModel with new interventions, or a new adapter for each data set, untrained. Raises RoadError."""
        road = RoadModel(model, self.interventions())
        for name in self.adapter_names():
            road.add_adapter(
                name,
                **{
                    each: getattr(self, each)
                    for each in ("variant", "pairing", "targets", "exclude", "layers", "lora_rank", "lora_alpha", "heads")
                },
            )
        return road

    def adapter_names(self) -> list[str]:
        """Of kind "linear", an adapter for each data set; one of a task's own is called by the task's name."""
        return [] if self.kind != LINEAR else [self.task] if self.task else list(self.data) or ["road"]

    def interventions(self) -> list[SubspaceIntervention]:
        """New interventions, one a layer, untrained. Raises RoadError where a setting does not fit."""
        if self.kind == LINEAR:
            return []
        for setting in ("lrs", "strengths"):
            for name in getattr(self, setting):
                if name not in self.subspaces:
                    raise RoadError(
                        f"recipe setting {setting} names {name!r}: expected one of {listing(self.subspaces)}, or {setting}={{}}"
                    )
        if kind_of(self.kind).takes_source:
            raise RoadError(
                f"recipe kind {self.kind!r} learns from counterfactual outputs, not from rows: see RoadModel.interchange"
            )
        names = ["component", "position", "phase", "subspaces"]
        names += ["variant", "pairing", "basis", "basis_seed"] if self.kind == "road" else ["rank"]
        arguments = {name: getattr(self, name) for name in names}
        return [kind_of(self.kind)(layer=layer, **arguments) for layer in ([9] if self.layers is None else self.layers)]


def _cast(name: str, value: Any, hint: Any) -> Any:
    """`value` as the type that the setting has; YAML reads 1e-2 and the like as text."""
    options = get_args(hint) if get_origin(hint) is not None else (hint,)
    plain = str in options or any(isinstance(option, str) for option in options)
    if isinstance(value, str) and (get_origin(hint) is dict or not plain):
        value = yaml.safe_load(value)
    listed_hint = next((option for option in options if get_origin(option) is list), None)
    if listed_hint is not None:  # a list or something else
        if isinstance(value, str) and value.lstrip().startswith("["):
            value = yaml.safe_load(value)
        if isinstance(value, list) or (str not in options and value is not None):
            return _cast(name, value, listed_hint)
    if get_origin(hint) is list or hint is list:
        listed = value if isinstance(value, list) else [value]
        return [_cast(name, each, options[0]) for each in listed]
    if get_origin(hint) is dict:
        if not isinstance(value, dict):
            raise RoadError(f"recipe setting {name}={value!r}: expected a mapping such as {{german: …}}")
        return {key: each if options[1] is Any else _cast(f"{name}.{key}", each, options[1]) for key, each in value.items()}
    if value is None and type(None) in options:
        return None
    if float in options and isinstance(value, (int, float, str)) and not isinstance(value, bool):
        try:
            return float(value)
        except ValueError:
            raise RoadError(f"recipe setting {name}={value!r}: expected a number") from None
    for option in options:
        if isinstance(option, type) and isinstance(value, option) and not (option is int and isinstance(value, bool)):
            return value
        if value == option or value in get_args(option):
            return value
    expected = [getattr(option, "__name__", option) for option in options]
    raise RoadError(f"recipe setting {name}={value!r} does not fit: expected {listing(expected)}")

"""What a sweep tries: a recipe, settings to vary, and how each run is measured; one YAML file."""

import hashlib
import itertools
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import yaml

from roadint.composition import Composition
from roadint.errors import RoadError, did_you_mean, first_line, listing
from roadint.evaluation.report import DEV
from roadint.training.recipe import Recipe

Settings = dict[str, Any]


@dataclass(frozen=True)
class Plan:
    """recipe: a preset or YAML file. set: settings of all runs. over: setting → values, or a list of these; each combination runs.

    compose: the compositions to measure, strengths included; none, each subspace and all of them by default. data: name → source
    of references. prompts: what is asked, the first `max_prompts`. rows: the first references of each source.
    """

    recipe: str
    set: Settings = field(default_factory=dict)
    over: list[dict[str, list[Any]]] = field(default_factory=list)
    compose: list[str] | None = None
    data: dict[str, str] = field(default_factory=lambda: dict(DEV))
    prompts: str = "bundled:prompts_dev"
    max_prompts: int | None = None
    rows: int | None = None
    language: str = "de"
    max_new_tokens: int = 48

    @classmethod
    def load(cls, source: str, over: Mapping[str, Any] | None = None, **changes: Any) -> "Plan":
        """A sweep's YAML file, or a recipe with `over` given here. Raises RoadError for what doesn't fit, before anything runs."""
        content: dict[str, Any] = {"recipe": source}
        if Path(source).suffix in (".yaml", ".yml") and Path(source).is_file():
            try:
                read = yaml.safe_load(Path(source).read_text(encoding="utf-8"))
            except (yaml.YAMLError, UnicodeDecodeError) as error:
                raise RoadError(f"sweep {source} is no YAML ({first_line(error)})") from None
            if isinstance(read, dict) and "recipe" in read:
                content = read
        known = [each.name for each in fields(cls)]
        for name in content:
            if name not in known:
                raise RoadError(f"sweep has no setting {name!r}: expected one of {listing(known)}{did_you_mean(str(name), known)}")
        changes["set"] = {**(content.get("set") or {}), **(changes.get("set") or {})}
        content |= {name: value for name, value in changes.items() if value is not None}
        grids = content.get("over") or {}
        content["over"] = [{**grid, **(over or {})} for grid in (grids if isinstance(grids, list) else [grids])]
        plan = cls(**content)
        for grid in plan.over:
            for name, values in grid.items():
                if not isinstance(values, list) or not values:
                    raise RoadError(f"over {name}={values!r}: expected a list of values, such as [1e-2, 3e-2]")
        for settings in plan.runs():
            recipe = plan.recipe_of(settings)
            recipe.interventions()
            for each in plan.compose or ():
                Composition.parse(each, recipe.subspaces)
        return plan

    def runs(self) -> list[Settings]:
        """The settings of every run, each once; runs that can share a prefix (model, lowest layer, position) follow each other."""
        found: dict[str, Settings] = {}
        for grid in self.over:
            for values in itertools.product(*grid.values()):
                settings = dict(zip(grid, values, strict=True))
                found.setdefault(key(settings), settings)
        return sorted(found.values(), key=self._place)

    def recipe_of(self, settings: Settings) -> Recipe:
        """The recipe of one run. Raises RoadError where a setting does not fit."""
        return Recipe.load(self.recipe, self.set).override(settings)

    def _place(self, settings: Settings) -> tuple[str, ...]:
        recipe = self.recipe_of(settings)
        return recipe.model, recipe.dtype, f"{min(recipe.layers or [0]):04d}", recipe.component, recipe.position, recipe.phase


def key(settings: Settings) -> str:
    """A short name of a run's settings, the same in every process."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:10]

"""What a sweep tries: a recipe, settings to vary, and how each run is measured; one YAML file."""

import hashlib
import itertools
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_type_hints

from roadint.data.sources import check_sources, load_prompts
from roadint.errors import RoadError, did_you_mean, listing, quoted
from roadint.evaluation.language import check_language
from roadint.evaluation.report import DEV
from roadint.files.paths import is_file, path_of
from roadint.grammar.composition import Composition
from roadint.recipes.recipe import Recipe, written
from roadint.recipes.settings import Range, cast, read_yaml

Settings = dict[str, Any]
_MOST = 10_000  # runs of a sweep
_COUNT = Range(1, 2**31 - 1)


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
        if not isinstance(source, Recipe):
            path_of("sweep", source)
        content: dict[str, Any] = {"recipe": str(source) if isinstance(source, Path) else source}
        if Path(str(source)).suffix in (".yaml", ".yml") and is_file(Path(str(source))):
            read = read_yaml(Path(str(source)), "sweep")
            if isinstance(read, dict) and "recipe" in read:
                content = read
        hints = get_type_hints(cls)
        for name in (*content, *changes):
            if name not in hints:
                raise RoadError(
                    f"sweep has no setting {quoted(name)}: expected one of {listing(hints)}{did_you_mean(name, list(hints))}"
                )
        changes["set"] = {
            **_mapping("set", content.get("set")),
            **_mapping("set", changes.get("set")),
        }
        content |= {name: value for name, value in changes.items() if value is not None}
        grids = content.pop("over", None) or {}
        settings = {
            name: cast(f"sweep's {name}", value, hints[name]) for name, value in content.items()
        }
        settings["set"] = _plain("set", content["set"])
        varied = _mapping("over", over)
        plan = cls(
            **settings,
            over=[_plain("over", grid) | _plain("over", varied) for grid in _listed(grids)],
        )
        plan.check()
        return plan

    def check(self) -> None:
        """Raises RoadError for what doesn't fit, before anything runs; what only the hub knows is not asked."""
        for name in ("max_prompts", "rows", "max_new_tokens"):
            _COUNT.check(f"sweep's {name}", getattr(self, name))
        if self.compose is not None and not self.compose:
            raise RoadError(
                "sweep's compose=[] measures nothing: expected compositions, or no such setting for the usual ones"
            )
        check_language(self.language)
        for grid in self.over:
            for name, values in grid.items():
                if not isinstance(values, list) or not values:
                    raise RoadError(
                        f"over {name}={quoted(values)}: expected a list of values, such as [1e-2, 3e-2]"
                    )
        count = sum(math.prod(map(len, grid.values())) for grid in self.over)
        if count > _MOST:
            raise RoadError(f"the sweep has {count:,} runs: expected at most {_MOST:,}")
        load_prompts(self.prompts, self.max_prompts)
        sources = set(self.data.values())
        base = Recipe.load(self.recipe, self.set)
        for settings in self.runs():
            recipe = base.override(settings)
            if recipe.task:
                raise RoadError(
                    f"a sweep can't run task {quoted(recipe.task)}: expected a recipe of data sets; see bench learn"
                )
            recipe.interventions()
            for each in self.compose or ():
                Composition.parse(each, recipe.adapter_names() or list(recipe.subspaces))
            sources |= set(recipe.data.values())
        check_sources({source: source for source in sources if not source.startswith("hub:")}, 1)

    def runs(self) -> list[Settings]:
        """The settings of every run, each once; runs that can share a prefix (model, lowest layer, position) follow each other."""
        found: dict[str, Settings] = {}
        for grid in self.over:
            for values in itertools.product(*grid.values()):
                settings = dict(zip(grid, values, strict=True))
                found.setdefault(key(settings), settings)
        base = Recipe.load(self.recipe, self.set)
        return sorted(found.values(), key=lambda settings: _place(base.override(settings)))

    def recipe_of(self, settings: Settings) -> Recipe:
        """The recipe of one run. Raises RoadError where a setting does not fit."""
        return Recipe.load(self.recipe, self.set).override(settings)


def key(settings: Settings) -> str:
    """A short name of a run's settings, the same in every process."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:10]


def _place(recipe: Recipe) -> tuple[str, ...]:
    return (
        recipe.model,
        recipe.dtype,
        f"{min(recipe.layers or [0]):04d}",
        recipe.component,
        recipe.position,
        recipe.phase,
    )


def _listed(grids: Any) -> list[Any]:
    return grids if isinstance(grids, list) else [grids]


def _mapping(name: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, (Mapping, type(None))):
        raise RoadError(
            f"sweep's {name}={quoted(value)}: expected a mapping by the names of settings"
        )
    return dict(value or {})


def _plain(name: str, value: Any) -> dict[str, Any]:
    """A mapping of settings as JSON can hold it, which is what the table is written in. Raises RoadError where it can't."""
    found = {
        setting: _written(each) if setting == "subspaces" else each
        for setting, each in _mapping(name, value).items()
    }
    try:
        json.dumps(found, sort_keys=True)
    except (TypeError, ValueError, RecursionError):
        raise RoadError(
            f"sweep's {name}={quoted(found)}: expected texts, numbers, lists and mappings"
        ) from None
    return found


def _written(subspaces: Any) -> Any:
    """Subspaces, or a list of what they are in one run after the other."""
    if isinstance(subspaces, list):
        return [_written(each) for each in subspaces]
    return (
        {name: written(spec) for name, spec in subspaces.items()}
        if isinstance(subspaces, Mapping)
        else subspaces
    )

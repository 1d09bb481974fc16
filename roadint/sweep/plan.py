"""The plan of a sweep: a recipe, settings to vary, and measurements, in one YAML file."""

import hashlib
import itertools
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from pydantic import Field

from roadint.data.prompt_files import read_prompts
from roadint.data.sources import check_sources
from roadint.errors import RoadError, quoted
from roadint.evaluation.evaluate import DEV
from roadint.evaluation.forms import asked_by
from roadint.files.paths import is_file, path_of
from roadint.files.yaml import read_yaml
from roadint.grammar.composition import Composition
from roadint.recipes.edit import LINEAR, plain_subspaces
from roadint.recipes.recipe import Recipe
from roadint.recipes.section import Count, NameList, Section
from roadint.tasks.run import check_task

Changes = dict[str, Any]  # the settings of one run, by name
_MOST = 10_000  # runs of a sweep


class Plan(Section):
    """The plan of a sweep.

    A run of a task is measured by the task; what the plan says of compositions, references, prompts
    and answers is for the others.

    Attributes:
        recipe: A preset or a YAML file.
        set: Settings of all runs.
        over: Setting → values, or a list of such grids; every combination of a grid runs.
        compose: The compositions to measure, with strengths; none, every subspace alone and all of
            them by default.
        data: Name → source of references.
        prompts: The prompts: a file or a bundled set.
        max_prompts: How many prompts to take, from the first; all by default.
        rows: How many references to take of a source, from the first; all by default.
        expect: Subspace → property of answers, as in `roadint.evaluate`.
        max_new_tokens: The largest length of an answer, in tokens.
    """

    noun: ClassVar = "sweep"

    recipe: str
    set: Changes = Field(default_factory=dict)
    over: list[dict[str, Any]] = Field(default_factory=list)
    compose: NameList | None = None
    data: dict[str, str] = Field(default_factory=lambda: dict(DEV))
    prompts: str = "bundled:prompts_dev"
    max_prompts: Count | None = None
    rows: Count | None = None
    expect: dict[str, str] = Field(default_factory=dict)
    max_new_tokens: Count = 48

    @classmethod
    def load(
        cls, source: str | Path, over: Mapping[str, Any] | None = None, **changes: Any
    ) -> "Plan":
        """A sweep's YAML file, or a recipe, with changes.

        Args:
            source: The YAML file of a sweep, or a recipe: a preset or its YAML file.
            over: Setting → values, in every grid beside those of the file.
            changes: Fields of the plan in place of the file's; None changes nothing. "set" is
                joined with the file's.

        Raises:
            RoadError: where something does not fit; nothing has run then.
        """
        content = _read(source)
        shared = _mapping("set", content.get("set")) | _mapping("set", changes.pop("set", None))
        content |= {name: value for name, value in changes.items() if value is not None}
        grids = content.pop("over", None) or {}
        varied = _plain("over", over)
        content["over"] = [
            _plain("over", grid) | varied
            for grid in (grids if isinstance(grids, list) else [grids])
        ]
        content["set"] = _plain("set", shared)
        plan = cls(**content)
        plan.check()
        return plan

    def check(self) -> None:
        """Check all runs before any of them starts, without the hub.

        Raises:
            RoadError: where a run would fail.
        """
        if self.compose is not None and not self.compose:
            raise RoadError(
                "sweep setting compose=[] measures nothing: expected compositions, or no such "
                "setting for the usual ones"
            )
        self._check_grids()
        base = self.recipe_of({})
        recipes = [base.override(changes) for changes in self.runs()]
        tasks = [recipe for recipe in recipes if recipe.task.name]
        # Data are read once, however many runs learn from them.
        different = {repr((recipe.edit.kind, recipe.data, recipe.task)): recipe for recipe in tasks}
        for recipe in different.values():
            check_task(recipe)
        if len(tasks) == len(recipes):
            self._check_unused(tasks)
            return
        read_prompts(self.prompts, self.max_prompts)
        sources = {*self.data.values()}
        for recipe in recipes:
            if recipe.task.name:
                continue
            recipe.interventions()
            asked_by(recipe.names(), self.expect)
            for composition in self.compose or ():
                Composition.parse(composition, recipe.names())
            sources |= {*recipe.data.sources.values()}
            if recipe.data.images:
                raise RoadError(
                    "recipe setting images=true: sweeps measure answers to prompts of text; "
                    "expected images=false, or roadint train for each setting"
                )
        check_sources({source: source for source in sources if not source.startswith("hub:")}, 1)

    def _check_unused(self, tasks: Sequence[Recipe]) -> None:
        """Refuse what would be ignored, as all runs are tasks'."""
        unused = self.model_fields_set - {"recipe", "set", "over"}
        if tasks and unused:
            raise RoadError(
                f"sweep setting {min(unused)} has no meaning for task "
                f"{quoted(tasks[0].task.name)}: expected recipe, set and over, where the data are "
                "the recipe's (--set 'data={train: FILE, test: FILE}') and the rows that are "
                "scored are scored_rows"
            )

    def _check_grids(self) -> None:
        for grid in self.over:
            for name, values in grid.items():
                if not isinstance(values, list) or not values:
                    raise RoadError(
                        f"over {name}={quoted(values)}: expected a list of values, such as "
                        "[1e-2, 3e-2]"
                    )
        count = sum(math.prod(map(len, grid.values())) for grid in self.over)
        if count > _MOST:
            raise RoadError(f"the sweep has {count:,} runs: expected at most {_MOST:,}")

    def runs(self) -> list[Changes]:
        """The settings of every run, each combination once, in the order of the plan."""
        runs: dict[str, Changes] = {}
        for grid in self.over:
            for values in itertools.product(*grid.values()):
                changes = dict(zip(grid, values, strict=True))
                runs.setdefault(key(changes), changes)
        return list(runs.values())

    def neighbours(self, runs: Sequence[Changes]) -> list[Changes]:
        """Runs in the order to do them: those that can share a prefix follow each other.

        Args:
            runs: Some of `runs`.
        """
        base = self.recipe_of({})
        return sorted(runs, key=lambda changes: _prefix_of(base.override(changes)))

    def read(self) -> dict[str, Any]:
        """What files say that the plan names: the recipe's settings, and the prompts."""
        base = self.recipe_of({})
        prompts = [] if base.task.name else read_prompts(self.prompts, self.max_prompts)
        return {"settings": base.record(), "asked": prompts}

    def recipe_of(self, changes: Changes) -> Recipe:
        """The recipe of one run.

        Args:
            changes: Its settings, one of `runs`; none for what all runs share.

        Raises:
            RoadError: where a setting does not fit.
        """
        return Recipe.load(self.recipe, self.set).override(changes)


def key(changes: Changes) -> str:
    """A short name of a run, the same in every process.

    Args:
        changes: The run's settings.
    """
    return hashlib.sha256(json.dumps(changes, sort_keys=True).encode()).hexdigest()[:10]


def _prefix_of(recipe: Recipe) -> tuple[str, ...]:
    """A key that runs share which can use the same stored prefix; adapters have no position."""
    names = ("component", "position", "places", "phase")
    where = (str(recipe.edit.arguments.get(name, "")) for name in names)
    if recipe.edit.kind == LINEAR:
        lowest = min(recipe.edit.layers or [0])
    else:
        lowest = min(each["layer"] for each in recipe.edit.interventions())
    return (recipe.model.name, recipe.model.dtype, f"{lowest:04d}", *where)


def _read(source: str | Path) -> dict[str, Any]:
    """The fields of a plan in a sweep's file; for a recipe, the field `recipe`."""
    path = path_of("sweep", source)
    if path.suffix in (".yaml", ".yml") and is_file(path):
        content = read_yaml(path, "sweep")
        if isinstance(content, dict) and "recipe" in content:
            return content
    return {"recipe": str(source)}


def _mapping(name: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, (Mapping, type(None))):
        raise RoadError(
            f"sweep setting {name}={quoted(value)}: expected a mapping by the names of settings"
        )
    return dict(value or {})


def _plain(name: str, value: Any) -> dict[str, Any]:
    """Settings as JSON values, for the table."""
    settings = {
        setting: _plain_subspaces(values) if setting in ("subspaces", "edit.subspaces") else values
        for setting, values in _mapping(name, value).items()
    }
    try:
        json.dumps(settings, sort_keys=True)
    except (TypeError, ValueError, RecursionError):
        raise RoadError(
            f"sweep setting {name}={quoted(settings)}: expected texts, numbers, lists and mappings"
        ) from None
    return settings


def _plain_subspaces(subspaces: Any) -> Any:
    """Subspaces as text; in `over`, a list of them, one for every run."""
    if isinstance(subspaces, list):
        return [_plain_subspaces(run) for run in subspaces]
    return plain_subspaces(subspaces)

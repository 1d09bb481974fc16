"""Recipes: everything that a run needs, as one YAML file or preset."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict
from torch import nn

from roadint.errors import RoadError, listing, quoted
from roadint.interventions.base import SubspaceIntervention
from roadint.interventions.registry import kind_of
from roadint.model.road_model import RoadModel
from roadint.recipes.edit import LINEAR, EditSection
from roadint.recipes.library import read_recipe
from roadint.recipes.names import SECTIONS, nested
from roadint.recipes.sections import DataSection, ModelSection, OptimisationSection, TaskSection


class Recipe(BaseModel):
    """One run: what is learned and where, from which data, and how.

    Settings are nested in sections; short names work as well.

    Args:
        settings: Settings by name, see `roadint.recipes.names.nested`; texts are read as YAML.

    Raises:
        RoadError: where a setting is unknown or does not fit.

    Examples:
        >>> Recipe(lr=1e-2, layers=[6, 9]).optimisation.lr
        0.01
        >>> Recipe.load("composition", {"edit.layers": 9}).edit.layers
        [9]
    """

    model_config = ConfigDict(frozen=True)

    model: ModelSection
    edit: EditSection
    data: DataSection
    optimisation: OptimisationSection
    task: TaskSection

    def __init__(self, **settings: Any) -> None:
        sections = nested(settings)
        super().__init__(**{name: SECTIONS[name](**values) for name, values in sections.items()})

    @classmethod
    def load(
        cls, name: "str | Path | Recipe", overrides: Mapping[str, Any] | None = None
    ) -> "Recipe":
        """A preset or a YAML file, with some settings changed.

        Args:
            name: A preset such as "composition", a YAML file, or a recipe.
            overrides: Settings to change, see `override`.

        Raises:
            RoadError: where there is no such recipe, or a setting is unknown or does not fit.
        """
        recipe = name if isinstance(name, Recipe) else cls().override(read_recipe(name))
        return recipe.override({} if overrides is None else overrides)

    def override(self, settings: Mapping[str, Any]) -> "Recipe":
        """The same recipe with some settings changed.

        Where the kind of edit changes, arguments that the new kind does not have are dropped.

        Args:
            settings: By short name, dotted name or section; texts are read as YAML.

        Raises:
            RoadError: where a name is unknown, a value does not fit, or a setting is of another
                kind of edit than the chosen one.
        """
        if not isinstance(settings, Mapping):
            raise RoadError(
                f"recipe settings {quoted(settings)}: expected a mapping such as {{'lr': 1e-2}}"
            )
        changes = {name: values for name, values in nested(settings).items() if values}
        return self.model_copy(
            update={name: getattr(self, name).changed(values) for name, values in changes.items()}
        )

    def learning(self, sources: Mapping[str, Any]) -> "Recipe":
        """The same recipe with something to learn every data set, where it names nothing itself.

        That is an adapter each, or where no subspaces are named, subspaces of equal size.

        Args:
            sources: Name → source; names are plain, no expressions.
        """
        if not sources or self.task.name or self.data.sources:
            return self
        if self.edit.kind == LINEAR:
            return self.override({"data.sources": dict(sources)})
        if self.edit.subspaces:
            return self
        parts = {name: f"blocks[{part}::{len(sources)}]" for part, name in enumerate(sources)}
        return self.override({"edit.subspaces": parts})

    def record(self, sources: Mapping[Any, Any] | None = None) -> dict[str, Any]:
        """The recipe as nested mappings, which a checkpoint keeps.

        Args:
            sources: The data sources, where they are not the recipe's.
        """
        record = self.model_dump()
        if sources:
            record["data"]["sources"] = dict(sources)
        return record

    def on(self, model: nn.Module) -> RoadModel:
        """A RoadModel with new interventions, or a new adapter for each data set, untrained.

        What starts at random is drawn by the recipe's seed, whatever was drawn before.

        Args:
            model: A transformers model.

        Raises:
            RoadError: where a setting does not fit, or not this model.
        """
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(self.optimisation.seed)
            road = RoadModel(model, self.interventions())
            for name in self.adapter_names():
                road.add_adapter(name, layers=self.edit.layers, **self.edit.arguments)
        return road

    def adapter_names(self) -> list[str]:
        """The names of adapters, of kind "linear": one for every data set, or the task's."""
        if self.edit.kind != LINEAR:
            return []
        return [self.task.name] if self.task.name else list(self.data.sources) or ["road"]

    def names(self) -> list[str]:
        """The names that a composition may use: subspaces or adapters."""
        return self.adapter_names() or list(self.edit.subspaces)

    def interventions(self) -> list[SubspaceIntervention]:
        """New interventions, untrained; none of kind "linear".

        One a layer, or several where subspaces act at places of their own.

        Raises:
            RoadError: where a setting does not fit.
        """
        if self.edit.kind == LINEAR:
            return []
        for setting in ("lrs", "strengths"):
            for name in getattr(self.optimisation, setting):
                if name not in self.edit.subspaces:
                    raise RoadError(
                        f"recipe setting {setting} names {quoted(name)}: "
                        f"expected one of {listing(self.edit.subspaces)}, or {setting}={{}}"
                    )
        kind = kind_of(self.edit.kind)
        if kind.takes_source:
            raise RoadError(
                f"recipe kind {quoted(self.edit.kind)} learns from counterfactual outputs, not "
                "from rows: see RoadModel.interchange"
            )
        return [kind(**arguments) for arguments in self.edit.interventions()]

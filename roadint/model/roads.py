"""What lies on a model: interventions at hidden states and adapters on linear layers; placed, named, added, removed, kept."""

import re
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import huggingface_hub
import torch
from torch import nn

from roadint.adapters.adapter import RoadAdapter
from roadint.adapters.merging import Merged
from roadint.adapters.targets import ALL_LINEAR, Names, find_targets
from roadint.architecture.layers import find_layers, site_path, text_config
from roadint.architecture.properties import check_model, device_of, width_of
from roadint.data.prompts import Template, check_template
from roadint.engines.locks import Gate, Lock
from roadint.engines.table import Banks
from roadint.errors import RoadError, did_you_mean, listing, quoted
from roadint.grammar.composition import ALL, Composition, CompositionLike
from roadint.grammar.subspace import SubspaceLike, check_name
from roadint.interventions.base import SubspaceIntervention, subspace_names
from roadint.interventions.sums import label_of
from roadint.model import checkpoint
from roadint.model.description import model_card
from roadint.model.hosted import Hosted
from roadint.rotation.rotation import Pairing, Variant

if TYPE_CHECKING:
    from typing_extensions import Self


@dataclass(frozen=True)
class Placed:
    """What lies on a model at one moment, read once by each call. paths: of the modules at the sites."""

    sites: tuple[SubspaceIntervention, ...]
    paths: tuple[str, ...]
    adapters: Mapping[str, RoadAdapter]
    merged: Merged | None

    @property
    def names(self) -> list[str]:
        """What a composition may use."""
        return [*subspace_names(self.sites), *(() if self.merged else self.adapters)]


class Roads(Hosted):
    """The base class of RoadModel: everything but running the model.

    interventions: nn.ModuleList of the interventions at hidden states; linear: nn.ModuleList of the adapters on linear layers.
    """

    def __init__(
        self,
        model: nn.Module,
        interventions: SubspaceIntervention | Sequence[SubspaceIntervention] = (),
        *,
        capacity: int = 1024,
    ) -> None:
        super().__init__()
        check_model(model)
        self.model = model
        self._gate = Gate()
        self._changing = (
            Lock()
        )  # what lies on the model: replaced, never changed, so that a call reads it whole
        self._merged: Merged | None = None
        self._paths: dict[tuple[int, str], str] = {}  # of the sites: (layer, component) → module
        self.interventions, self.linear = nn.ModuleList(), nn.ModuleList()
        self._place(listed_interventions(interventions))
        if not isinstance(capacity, int) or capacity < 1:
            raise RoadError(
                f"capacity={quoted(capacity)}: expected how many compositions of adapters are held ready, at least 1"
            )
        self.capacity = capacity
        self._banks = Banks()
        self.template: Template = "plain"
        self.training_summary: dict[str, Any] = {}

    @property
    def sites(self) -> list[SubspaceIntervention]:
        """The interventions, as a plain list of their own type."""
        return list(self.interventions)  # type: ignore[arg-type]

    @property
    def adapters(self) -> dict[str, RoadAdapter]:
        """The adapters on linear layers, by name."""
        return {each.name: each for each in self.linear}  # type: ignore[misc]

    @property
    def names(self) -> list[str]:
        """The names of all subspaces and adapters, in order: what a composition may use. Adapters that are merged rest."""
        return self._placed().names

    @property
    def trainable_count(self) -> int:
        """How many numbers train, over all interventions and adapters."""
        return sum(each.trainable_count for each in self._learned())

    def trained_parameters(self) -> list[nn.Parameter]:
        """What an optimizer gets: the parameters of interventions and adapters, none of the model's."""
        return [*self.interventions.parameters(), *self.linear.parameters()]

    @property
    def device(self) -> torch.device:
        """Where the model takes its inputs."""
        return device_of(self.model) or torch.device("cpu")

    def compositions(self) -> list[Composition]:
        """What there is to compare: none, each subspace and adapter alone and, where there are several, all of them."""
        alone: list[CompositionLike] = [None, *self.names]
        everything: list[CompositionLike] = [ALL] if len(self.names) > 1 else []
        return [Composition.parse(each, self.names) for each in alone + everything]

    def add_adapter(
        self,
        name: str = "road",
        *,
        variant: Variant = "road_1",
        targets: Names = ALL_LINEAR,
        exclude: Names = (),
        layers: Iterable[int] | None = None,
        pairing: Pairing = "adjacent",
        subspace: SubspaceLike = None,
        lora_rank: int = 0,
        lora_alpha: float | None = None,
        heads: str | Sequence[str] = (),
    ) -> RoadAdapter:
        """Put a new adapter, which changes nothing yet, on the outputs of linear layers; rows use it by its name.

        targets, exclude, layers: which; see roadint.adapters.targets.find_targets. heads: modules of the model, such as
        "classifier", whose copies train with the adapter. The rest as in roadint.adapters.adapter.RoadAdapter. Raises RoadError.
        """
        layout = find_targets(self.model, targets, exclude, layers)
        embeddings = [
            path
            for path in layout.paths
            if isinstance(self.model.get_submodule(path), nn.Embedding)
        ]
        if embeddings and isinstance(lora_rank, int) and lora_rank:
            raise RoadError(
                f"{embeddings[0]} is an embedding, beside which no LoRA is possible: expected linear layers alone"
            )
        modules = dict(self.model.named_modules())
        wanted = _named("heads", heads)
        for each in wanted:
            if each not in modules:
                near = [path for path in modules if path.endswith(f".{each}")] or list(modules)
                raise RoadError(
                    f"heads names {quoted(each)}, which is no module of the model{did_you_mean(each, near)}"
                )
        adapter = RoadAdapter(
            name,
            layout,
            variant=variant,
            pairing=pairing,
            subspace=subspace,
            lora_rank=lora_rank,
            lora_alpha=lora_alpha,
            heads={path: modules[path] for path in wanted},
        )
        self.attach([adapter])
        return adapter

    def load_adapter(self, name_or_path: str | Path, name: str | None = None) -> RoadAdapter:
        """Put the adapter of a checkpoint, from a folder or the hub, beside what is there, under a name of its own if wanted.

        A checkpoint of several, or of interventions too, goes through `add_checkpoint`. Raises RoadError, and changes nothing,
        where it does not fit the model or the name is taken.
        """
        saved = checkpoint.read_for(self.model, name_or_path)
        adapters = saved.adapters(self.model)
        if len(adapters) != 1 or saved.config["interventions"]:
            raise RoadError(
                f"{name_or_path} holds {listing(saved.names())}: expected a single adapter; take add_checkpoint"
            )
        adapters[0].name = adapters[0].name if name is None else check_name(name)
        self.attach(adapters)
        return adapters[0]

    def remove_adapter(self, name: str) -> None:
        """Take an adapter away. Raises RoadError where there is none of that name."""
        if self._merged:
            raise RoadError(
                f"adapters are merged into the weights, as '{self._merged.composition}': unmerge() before one is removed"
            )
        if not isinstance(name, str) or name not in self.adapters:
            raise RoadError(
                f"no adapter {quoted(name)}: expected one of {listing(self.adapters)}{did_you_mean(name, self.adapters)}"
            )
        self._keep_adapters(lambda each: each.name != name)

    def save_pretrained(self, folder: str | Path, adapters: Sequence[str] | None = None) -> None:
        """Write interventions and adapters (not the model) as a checkpoint of a few kB.

        adapters: only these adapters, and no interventions; everything by default.
        """
        config = text_config(self.model)
        about = {
            "base_model": {
                "id": str(getattr(self.model, "name_or_path", "")),
                "model_type": str(config.model_type),
                "width": int(config.hidden_size),
                "layers": int(config.num_hidden_layers),
                **(
                    {"labels": int(config.num_labels)}
                    if "SequenceClassification" in type(self.model).__name__
                    else {}
                ),
            },
            "template": self.template,
            "training": self.training_summary,
        }
        if adapters is None:
            checkpoint.save(folder, self.sites, about, list(self.adapters.values()))
            return
        chosen = _named("adapters", adapters)
        if not chosen:
            raise RoadError(
                f"adapters={quoted(adapters)} names no adapter to save: expected some of {listing(self.adapters)}"
            )
        for name in chosen:
            if name not in self.adapters:
                raise RoadError(
                    f"no adapter {quoted(name)} to save: expected one of {listing(self.adapters)}"
                )
        checkpoint.save(folder, [], about, [self.adapters[name] for name in chosen])

    @classmethod
    def from_pretrained(
        cls, model: nn.Module, name_or_path: str | Path | Mapping[str, str | Path]
    ) -> "Self":
        """Put a checkpoint, from a folder or the hub, onto its base model. Raises RoadError where it doesn't fit or is damaged.

        A mapping of labels to checkpoints loads several, to compose across them: see `add_checkpoint`.
        """
        several = isinstance(name_or_path, Mapping)
        checkpoints: Mapping[Any, str | Path] = name_or_path if several else {None: name_or_path}  # type: ignore[assignment, dict-item]
        if not checkpoints:
            raise RoadError("no checkpoints given: expected at least one, such as {'a': 'runs/a'}")
        label, first = next(iter(checkpoints.items()))
        if several:
            check_label(label)
        saved = checkpoint.read_for(model, first)
        road = cls(model, saved.interventions(label))
        road.attach(saved.adapters(model, label))
        road.template = check_template(saved.config["template"])
        road.training_summary = saved.config["training"]
        for label, each in list(checkpoints.items())[1:]:
            road.add_checkpoint(each, label)
        return road

    def add_checkpoint(self, name_or_path: str | Path, label: str) -> None:
        """Load another checkpoint beside what is there; its names are "name@label" in compositions, all of them "label".

        Sums across checkpoints (`german@a + english@b`, `a - b`) act on disjoint blocks for all variants, and on shared blocks for
        RoAd1, as the product. Raises RoadError, and changes nothing, where it doesn't fit the model, the template or the label.
        """
        check_label(label)
        if label in self._labels() or label in self.names:
            raise RoadError(
                f"label {quoted(label)} is taken: expected another one than {listing(self.names)}"
            )
        saved = checkpoint.read_for(self.model, name_or_path)
        template = saved.config["template"]
        if template != self.template:
            raise RoadError(
                f"{name_or_path} was trained with template {quoted(template)}, this one with {self.template!r}"
            )
        adapters = saved.adapters(self.model, label)
        self._place(saved.interventions(label))
        self.attach(adapters)

    def remove_checkpoint(self, label: str) -> None:
        """Take away what `add_checkpoint` or `from_pretrained` loaded as `label`. Raises RoadError where nothing is."""
        if not isinstance(label, str) or not label or label not in self._labels():
            raise RoadError(
                f"no checkpoint {quoted(label)} to remove: the names are {listing(self.names)}"
            )
        with self._changing:
            self.interventions = nn.ModuleList(
                site for site in self.sites if label_of(site) != label
            )
        self._keep_adapters(lambda each: each.name.partition("@")[2] != label)

    def push_to_hub(self, repo_id: str, *, private: bool = False, token: str | None = None) -> str:
        """Upload the checkpoint with a model card to the hub; returns the address of the commit."""
        api = huggingface_hub.HfApi(token=token)
        repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
        with tempfile.TemporaryDirectory() as folder:
            self.save_pretrained(folder)
            specs = [each.spec() for each in self._learned()]
            card = model_card(
                repo_id, str(getattr(self.model, "name_or_path", "")), self.names, specs
            )
            (Path(folder) / "README.md").write_text(card, encoding="utf-8")
            return str(
                api.upload_folder(
                    repo_id=repo_id, folder_path=folder, commit_message="Upload with roadint"
                ).commit_url
            )

    def train(self, mode: bool = True) -> "Self":
        """Switch interventions and adapters; the caller's model keeps its own mode (a frozen model should not drop out)."""
        self.training = mode
        self.interventions.train(mode)
        self.linear.train(mode)
        return self

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:  # type: ignore[override]
        """That of interventions and adapters: the model is the caller's."""
        own = super().state_dict(*args, **kwargs)
        prefix = f"{kwargs.get('prefix', '')}model."
        return {name: value for name, value in own.items() if not name.startswith(prefix)}

    def load_state_dict(
        self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False
    ) -> Any:
        """The counterpart of `state_dict`. Raises RoadError, with `strict`, where the keys are others."""
        result = super().load_state_dict(state_dict, strict=False, assign=assign)
        missing = [key for key in result.missing_keys if not key.startswith("model.")]
        if strict and (missing or result.unexpected_keys):
            raise RoadError(
                f"state_dict of another RoadModel: it lacks {missing or 'nothing'}, and has {result.unexpected_keys}"
            )
        return type(result)(missing, result.unexpected_keys)

    def untouched_layers(self) -> int:
        """How many of the lowest layers run as in the base model, whatever is learned."""
        lowest = [site.layer + (site.component == "block_output") for site in self.sites]
        if self.linear:
            path, layers = find_layers(self.model)
            inside = [each for adapter in self.adapters.values() for each in adapter.layout.paths]
            lowest += [
                next((i for i in range(len(layers)) if each.startswith(f"{path}.{i}.")), 0)
                for each in inside
            ]
        return min(lowest, default=0)

    def _learned(self) -> list[SubspaceIntervention | RoadAdapter]:
        return [*self.sites, *self.adapters.values()]

    def _labels(self) -> set[str]:
        return {label_of(site) for site in self.sites} | {
            name.partition("@")[2] for name in self.adapters
        }

    def attach(self, adapters: Sequence[RoadAdapter]) -> None:
        """Put adapters that exist already on the model. Raises RoadError, and attaches none, where a name is taken."""
        for adapter in adapters:
            device = device_of(self.model.get_submodule(adapter.layout.paths[0]))
            if device is not None:
                adapter.to(device)
        with self._changing:
            taken = {*subspace_names(self.sites), *self.adapters, *self._labels()}
            for adapter in adapters:
                if adapter.name in taken:
                    raise RoadError(
                        f"name {adapter.name!r} is taken: expected another one than {listing(taken)}"
                    )
                taken.add(adapter.name)
            self.linear = nn.ModuleList([*self.linear, *adapters])

    def _keep_adapters(self, keep: Callable[[RoadAdapter], bool]) -> None:
        with self._changing:
            kept = [each for each in self.adapters.values() if keep(each)]
            self.linear = nn.ModuleList(kept)
        self._banks.keep({each.layout_and_groups for each in kept})

    def _placed(self) -> Placed:
        with self._changing:
            sites = tuple(self.sites)
            paths = tuple(self._paths[site.layer, site.component] for site in sites)
            return Placed(sites, paths, self.adapters, self._merged)

    @torch.inference_mode(False)
    def _place(self, interventions: Sequence[SubspaceIntervention]) -> None:
        """Put interventions beside those that are there: with the model's width, on the device of the layer that each one edits."""
        paths = {
            (each.layer, each.component): site_path(self.model, each.layer, each.component)
            for each in interventions
        }
        for intervention in interventions:
            path = paths[intervention.layer, intervention.component]
            intervention.bind(width_of(self.model)).keep_site()
            device = device_of(self.model.get_submodule(path))
            if device is not None:
                intervention.to(device)
        with self._changing:
            self._paths = {**self._paths, **paths}
            self.interventions = nn.ModuleList([*self.interventions, *interventions])


def listed_interventions(interventions: Any) -> list[SubspaceIntervention]:
    """One intervention, or some of them, as a list. Raises RoadError for anything else."""
    if isinstance(interventions, SubspaceIntervention):
        return [interventions]
    try:
        listed = list(() if isinstance(interventions, (str, bytes, Mapping)) else interventions)
    except TypeError:
        listed = []
    else:
        if not isinstance(interventions, (str, bytes, Mapping)) and all(
            isinstance(each, SubspaceIntervention) for each in listed
        ):
            return listed
    what = next(
        (each for each in listed if not isinstance(each, SubspaceIntervention)), interventions
    )
    raise RoadError(
        f"interventions are {quoted(what)}: expected a RoadIntervention or a list of such"
    )


def _named(what: str, names: Any) -> list[str]:
    """One name, or several, as a list without repetitions. Raises RoadError for anything else."""
    listed = [names] if isinstance(names, str) else names
    if not isinstance(listed, (list, tuple)) or not all(isinstance(each, str) for each in listed):
        raise RoadError(f"{what}={quoted(names)}: expected a name, or a list of names")
    return list(dict.fromkeys(listed))


def check_label(label: object) -> None:
    """Raises RoadError for what can't stand behind the @ of a name."""
    if (
        not isinstance(label, str)
        or not re.fullmatch(r"\w{1,100}", label)
        or label in (ALL, "none")
    ):
        raise RoadError(
            f"label {quoted(label)} of a checkpoint is not a plain word: expected letters, digits and '_', such as 'a'"
        )

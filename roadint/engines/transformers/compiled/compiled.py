"""Calls through a view that torch has compiled, any edits in one graph.

The graph turns the outputs of all targets and sites that the model's adapters and interventions
have. Which tokens turn, and by what, is in memory that the graph reads (`Slots`), and that a call
writes before its passes. So other compositions, strengths, adapters and orders of rows run in the
same graph; a target or a site that is new makes a new one.
"""

import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from transformers import CompileConfig, PreTrainedModel

from roadint.adapters.targets import may_rest
from roadint.architecture.layers import uncompiled
from roadint.architecture.outputs import hidden_of
from roadint.architecture.properties import CACHES, input_device
from roadint.engines.attached import Attached, Lowered
from roadint.engines.call import Call
from roadint.engines.transformers.capture import captures
from roadint.engines.transformers.compiled.graph_view import GraphView
from roadint.engines.transformers.compiled.places import (
    LinearPlaces,
    Place,
    by_path,
    site_place,
)
from roadint.engines.transformers.compiled.root import make_root
from roadint.engines.transformers.generation import setting, with_settings
from roadint.engines.transformers.hidden_edits import SiteTokens, tokens_of
from roadint.engines.transformers.passes import Passes
from roadint.engines.transformers.turning import copies_in
from roadint.errors import RoadError, check_known, first_line
from roadint.interventions.base import SubspaceIntervention

logger = logging.getLogger(__name__)

_OPTIONS = ("backend", "mode", "dynamic", "fullgraph", "options")
_FEWEST = 8  # slots
_PROBE = (2, 3)  # rows and columns of the pass that shows whether every place is reached


class Compiled:
    """A model's graph; it is made at the first call, and made anew where its places change.

    Calls of several threads run one after another. A copy starts without a graph.

    Args:
        options: Those of torch.compile.
    """

    def __init__(self, options: Mapping[str, Any]) -> None:
        for name in options:
            check_known("option of compile", name, _OPTIONS)
        self.options = dict(options)
        self._lock = threading.RLock()
        self._inside = False
        self._graph: _Graph | None = None
        self._told: set[str] = set()

    def forward(
        self, model: nn.Module, attached: Attached, call: Call, inputs: dict[str, Any]
    ) -> Any:
        """The model's output; NotImplemented where the call has to run uncompiled."""
        return self._run(model, attached, call, inputs, lambda graph: graph.forward(call, inputs))

    def generate(
        self,
        model: nn.Module,
        attached: Attached,
        call: Call,
        inputs: dict[str, Any],
        *,
        drafted: bool = False,
    ) -> Any:
        """What `generate` returns; NotImplemented where the call has to run uncompiled."""
        if drafted:
            return self._refuse("something else drafts tokens")
        return self._run(model, attached, call, inputs, lambda graph: graph.generate(inputs))

    def _run(
        self,
        model: nn.Module,
        attached: Attached,
        call: Call,
        inputs: dict[str, Any],
        run: Callable[["_Graph"], Any],
    ) -> Any:
        reason = _why_not(model, attached, call, inputs)
        if reason is None:
            with self._lock:
                if self._inside:
                    reason = "it is inside another call"
                else:
                    self._inside = True
                    try:
                        graph = self._graph_for(uncompiled(model), attached)
                        reason = graph.why_not()
                        if reason is None:
                            graph.prepare(call, attached.lower(call))
                            return run(graph)
                    finally:
                        self._inside = False
        return self._refuse(reason)

    def _refuse(self, reason: str) -> Any:
        if reason not in self._told:
            self._told.add(reason)
            logger.warning("a call runs uncompiled: %s", reason)
        return NotImplemented

    def _graph_for(self, model: Any, attached: Attached) -> "_Graph":
        if self._graph is None or not self._graph.fits(model, attached):
            self._graph = _Graph(model, attached, self.options)
        return self._graph

    def __deepcopy__(self, memo: Any) -> "Compiled":
        return Compiled(self.options)

    def __reduce__(self) -> Any:
        return Compiled, (self.options,)


def _why_not(
    model: nn.Module, attached: Attached, call: Call, inputs: Mapping[str, Any]
) -> str | None:
    """Why a call can't run in a graph; None where it can."""
    plain = uncompiled(model)
    if not isinstance(plain, PreTrainedModel):
        return f"{type(plain).__name__} wraps the model that is edited"
    if len({parameter.device for parameter in plain.parameters()}) > 1:
        return "the model is on several devices"
    if call.sources is not None or call.learning is not None:
        return "interchanges and training run uncompiled"
    if captures(plain, inputs):
        return "hidden states or attentions are asked for"
    if torch.is_grad_enabled() and _wants_gradients(plain, attached, inputs):
        return "gradients are wanted (expected torch.no_grad() around the call)"
    return _why_no_turn(attached, {name for row in call.compositions for name, _ in row.terms})


def _wants_gradients(model: nn.Module, attached: Attached, inputs: Mapping[str, Any]) -> bool:
    """Whether a backward pass may come, after other calls have written into the slots."""
    values = [*attached.interventions.parameters(), *attached.adapters.parameters()]
    values += [*model.parameters(), *filter(torch.is_tensor, inputs.values())]
    return any(value.requires_grad for value in values)


def _why_no_turn(attached: Attached, names: set[str]) -> str | None:
    """Why one of the names does something else than turn pairs; None where none does."""
    for intervention in attached.interventions:
        if names & set(intervention.partition) and not intervention.turns:
            return f"an edit of kind {intervention.kind} is no turn"
        if intervention.unmeasured_axes() is not None:
            return f"the axes of the basis at layer {intervention.layer} are not measured"
    for name in names & set(attached.adapters):
        adapter = attached.adapters[name]
        if adapter.lora_rank or adapter.head_paths:
            return f"adapter {name!r} has a LoRA or a head of its own"
    return None


class _Graph:
    """A view of the model with places for all edits.

    Args:
        model: The caller's model, not compiled.
        attached: Its interventions and adapters.
        options: Those of torch.compile.

    Attributes:
        fault: Why it can't be compiled; None where it can.
    """

    def __init__(
        self, model: PreTrainedModel, attached: Attached, options: Mapping[str, Any]
    ) -> None:
        self._model, self._options = model, dict(options)
        interventions = attached.interventions
        device = input_device(model)
        self._linear = LinearPlaces(attached.adapters.values(), _FEWEST, device)
        self._sites = {
            intervention: site_place(intervention, path, _FEWEST)
            for intervention, path in zip(interventions, interventions.paths, strict=True)
            if intervention.turns
        }
        self._acting: list[tuple[Place, SiteTokens]] = []
        self._rows = torch.full((1,), -1, device=device)
        self._passes, self._copies = Passes(), 0
        places = [*self._linear.places, *self._sites.values()]
        modules = {model.get_submodule(path): turns for path, turns in by_path(places).items()}
        self._view = GraphView(model, modules)
        settings = self._compile_config().to_dict()
        self._keeping = make_root(self._view.root, self._before_pass, settings)
        self.fault = self._fault(places, device)

    def fits(self, model: nn.Module, attached: Attached) -> bool:
        """Whether the graph has places for all edits, and the model still has its modules."""
        sites = [edit for edit in attached.interventions if edit.turns]
        return (
            model is self._model
            and input_device(model) == self._linear.slots.u.device
            and all(edit in self._sites and self._is_place_of(edit) for edit in sites)
            and self._linear.covers(attached.adapters.values())
            and self._view.is_current()
        )

    def _is_place_of(self, intervention: SubspaceIntervention) -> bool:
        """Whether an intervention still turns as its place does, with slots on its device."""
        place = self._sites[intervention]
        return (
            place.frame is getattr(intervention, "frame", place.frame)
            and place.group == getattr(intervention, "group", place.group)
            and place.slots.u.device == next(intervention.parameters()).device
        )

    def why_not(self) -> str | None:
        """Why a call can't run in the graph as the model is now; None where it can."""
        hooked = self._view.hooked()
        return self.fault if hooked is None else f"{hooked} has a hook"

    def prepare(self, call: Call, lowered: Lowered) -> None:
        """Write what a call needs into the slots."""
        rows = len(call.compositions)
        self._linear.make_room(lowered.adapters, rows)
        self._rows, self._copies = self._linear.write(lowered.adapters, rows), 0
        self._acting = []
        for edit in lowered.interventions:
            rotation, _ = edit.intervention.as_turn(edit.rows)  # type: ignore[misc]
            place = self._sites[edit.intervention]
            place.slots = place.slots.with_room(rows, mirrored=rotation.v is not None)
            place.slots.put(rotation, slice(None))
            self._acting.append((place, tokens_of(edit, call)))

    def forward(self, call: Call, inputs: dict[str, Any]) -> Any:
        """The model's output."""
        self._passes = Passes(call.columns)
        return self._keeping.compiled(self._options)(**inputs)

    def generate(self, inputs: dict[str, Any]) -> Any:
        """What `generate` returns, by a static cache where nothing else is asked for."""
        self._passes = Passes()
        returned = setting("return_dict_in_generate", self._model, inputs)
        self._keeping.keeps_caches = not returned
        chosen: dict[str, Any] = {}
        own_cache = any(inputs.get(name) is not None for name in CACHES)
        uses_cache = setting("use_cache", self._model, inputs) is not False
        implementation = setting("cache_implementation", self._model, inputs)
        # Old configurations say "hybrid", which transformers takes for nothing said.
        if uses_cache and not own_cache and implementation in (None, "static", "hybrid"):
            chosen["cache_implementation"] = "static"
            if setting("compile_config", self._model, inputs) is None:
                chosen["compile_config"] = self._compile_config()
        return self._view.root.generate(**with_settings(inputs, chosen))  # type: ignore[operator]

    def _compile_config(self) -> CompileConfig:
        options = {"mode": None, **self._options}
        if options.get("backend", "inductor") == "inductor" and "options" not in options:
            options["mode"] = options["mode"] or "reduce-overhead"  # CUDA graphs
        config = CompileConfig(**options)
        config._compile_all_devices = True  # type: ignore[assignment]
        return config

    def _before_pass(self, args: Any, kwargs: dict[str, Any]) -> None:
        """Say which tokens of a pass take which slot; without waiting for the device."""
        passes = self._passes
        passes.begin(self._view.root, args, kwargs)
        passes.end(self._view.root)
        copies = passes.rows // len(self._rows)
        if copies != self._copies:
            self._linear.slots.point(self._rows.repeat_interleave(copies))
            self._copies = copies
        nothing = dict.fromkeys(self._sites.values())
        for place, tokens in self._acting:
            tokens.check_columns(passes)
            wanted = tokens.wanted(passes)
            if wanted is not None:
                nothing.pop(place)
                row = torch.arange(passes.rows, device=wanted.device) // tokens.copies(passes)
                place.slots.point(torch.where(wanted, row[:, None], -1).flatten())
        for place in nothing:
            place.slots.point_nowhere(passes.rows * passes.columns)

    def _fault(self, places: Sequence[Place], device: torch.device) -> str | None:
        """Run a few tokens past all places, uncompiled, and see whether all are reached."""
        if self._view.patched is not None:
            return f"{self._view.patched} has a forward of its own, as offloaded weights give it"
        rows, columns = _PROBE
        ids = torch.ones(rows, columns, dtype=torch.long, device=device)
        passes, reached = Passes(columns), set()
        widths = {place: edit.width for edit, place in self._sites.items()}

        def see(place: Place, output: Any) -> None:
            hidden = hidden_of(output)
            if place not in widths:
                copies_in(hidden, passes, rows, place.path)
            elif tuple(hidden.shape) != (rows, columns, widths[place]):
                raise RoadError(f"{place.path} gives hidden states of shape {tuple(hidden.shape)}")
            reached.add(place)

        inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "use_cache": False}
        passes.begin(self._view.root, (), inputs)
        for place in places:
            place.probe = see
        try:
            with torch.no_grad():
                self._keeping.plain(**inputs)
        except Exception as error:  # whatever a model raises
            return f"a trial run failed: {first_line(error)}"
        finally:
            for place in places:
                place.probe = None
        missed = [place.path for place in places if place not in reached]
        missed = [path for path in missed if not may_rest(self._model, path)]
        return f"{missed[0]} is not called for all tokens" if missed else None

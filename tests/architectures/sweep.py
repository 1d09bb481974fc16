"""What the sweep asks of one model: each component edited right or refused, adapters the same live, merged and alone."""

import inspect
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

import roadint
from roadint import RoadError, RoadIntervention, RoadModel
from roadint.architecture.properties import counts_padding
from tests.architectures import oracle
from tests.architectures.oracle import COLUMNS, ROWS, Site
from tests.architectures.tiny import WIDTH, extra_inputs

COMPONENTS = ("block_output", "attention_output", "mlp_output")
HALVES = {"a": "[0, d/2)", "b": "[d/2, d)"}
SHORT, NEW = 6, 5  # tokens of the shorter row; generated ones
TOLERANCE = 2e-3
_GENERATION: dict[str, Any] = {
    "max_new_tokens": NEW,
    "min_new_tokens": NEW,
    "do_sample": False,
    "pad_token_id": 0,
    "eos_token_id": None,
    "output_logits": True,
    "return_dict_in_generate": True,
}


@dataclass(frozen=True)
class Outcome:
    """What became of one component ("adapters" among them): verdict "right", "refused" or "FAULT", and why or where."""

    component: str
    verdict: str
    text: str = ""


class Fault(Exception):
    """What is not as it should be."""


def off(one: Tensor, other: Tensor) -> float:
    """The largest difference, beside the largest value."""
    if one.shape != other.shape:
        return float("inf")
    return float((one - other).abs().max() / other.abs().max().clamp(min=1e-6))


class Bare:
    """A tiny model, its inputs, and what it can do by itself."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.ids = torch.randint(
            8, 100, (ROWS, COLUMNS), generator=torch.Generator().manual_seed(5)
        )
        self.extra = extra_inputs(model, self.ids)
        self.mask = torch.ones_like(self.ids)
        self.left = self.mask.clone()
        self.left[1, :-SHORT] = 0
        takes = inspect.signature(model.forward).parameters
        self.uncached = {"use_cache": False} if "use_cache" in takes or "kwargs" in takes else {}
        self.base = self.logits(model, self.ids, self.mask)
        self.notes: list[str] = []
        self.cached = 0  # the rows of a batch with which its own cache is right
        self.pads = self.pads_generate = False
        if off(self.logits(model, self.ids, self.mask), self.base) > 1e-5:
            raise Fault("the bare model is not deterministic")
        if not self.extra:
            self._learn_padding()
        if getattr(model, "can_generate", bool)():
            self._learn_generation()
        else:
            self.notes.append("does not generate")

    def _learn_padding(self) -> None:
        try:
            batch = self.logits(self.model, self.padded(self.left), self.left)[1, -SHORT:]
        except Exception as error:
            self.notes.append(f"no padding ({type(error).__name__})")
            return
        alone = self.logits(self.model, self.ids[1:, :SHORT], self.mask[1:, :SHORT], slice(1, 2))[0]
        self.pads = off(batch, alone) < TOLERANCE

    def _learn_generation(self) -> None:
        generate = self.model.generate
        try:
            for rows in (ROWS, 1):
                found = [
                    self.continuation(generate, self.ids[:rows], self.mask[:rows], use_cache=cache)
                    for cache in (True, False)
                ]
                if off(*found) < TOLERANCE:
                    self.cached = rows
                    break
                self.notes.append(f"its own cache is off by {off(*found):.1g} with {rows} rows")
            if self.cached == ROWS and not self.extra:
                batch = self.continuation(generate, self.padded(self.left), self.left)[1]
                alone = self.continuation(generate, self.ids[1:, :SHORT], self.mask[1:, :SHORT])[0]
                self.pads_generate = off(batch, alone) < TOLERANCE
        except Exception as error:
            self.notes.append(f"its own generate raises {type(error).__name__}")

    def padded(self, mask: Tensor) -> Tensor:
        """The second row's first tokens, where the mask has them."""
        ids = self.ids.clone()
        ids[1] = 0
        ids[1, mask[1].bool()] = self.ids[1, :SHORT]
        return ids

    def _inputs(self, ids: Tensor, mask: Tensor, rows: slice) -> dict[str, Any]:
        return {
            "input_ids": ids,
            "attention_mask": mask,
            **{name: value[rows] for name, value in self.extra.items()},
        }

    def inputs(self) -> dict[str, Any]:
        """Those of a pass without a cache."""
        return {**self._inputs(self.ids, self.mask, slice(None)), **self.uncached}

    def logits(
        self, run: Any, ids: Tensor, mask: Tensor, rows: slice = slice(None), **more: Any
    ) -> Tensor:
        """[rows, columns, vocabulary]."""
        with torch.no_grad():
            output = run(**self._inputs(ids, mask, rows), **more)
        found: Tensor = output.logits if hasattr(output, "logits") else output[0]
        return found.float()

    def continuation(self, run: Any, ids: Tensor, mask: Tensor, **more: Any) -> Tensor:
        """[rows, NEW, vocabulary]: the logits of greedy generation."""
        with torch.no_grad():
            # BLIP's generate writes into its ids.
            output = run(
                **self._inputs(ids.clone(), mask, slice(0, len(ids))), **_GENERATION, **more
            )
        return torch.stack(output.logits, dim=1).float()


def sweep(model: nn.Module) -> list[Outcome]:
    """The outcomes of all components and of adapters."""
    config: Any = model.config
    if config.is_encoder_decoder or type(model).forward is nn.Module.forward:
        why = (
            "an encoder-decoder"
            if config.is_encoder_decoder
            else "a model without a forward of its own"
        )
        return [_construction(model, component, why) for component in COMPONENTS]
    bare = Bare(model)
    layers = oracle.observe(model, bare.inputs(), _width(model))
    notes = f" ({'; '.join(bare.notes)})" if bare.notes else ""
    found = []
    for component in COMPONENTS:
        for layer in layers.kinds() if layers else [1]:
            at = Component(bare, layers, layer, component)
            outcome = _outcome(
                component if layer == 1 else f"{component} of layer {layer}", at.check
            )
            found.append(Outcome(outcome.component, outcome.verdict, outcome.text + notes))
    if any(each.verdict == "right" and "block_output" in each.component for each in found):
        found.append(_outcome("identity", lambda: identity(bare)))
    return [*found, _outcome("adapters", lambda: adapters(bare, layers))]


def _outcome(component: str, check: Any) -> Outcome:
    try:
        return Outcome(component, "right", check())
    except RoadError as error:
        return Outcome(component, "refused", str(error))
    except Fault as error:
        return Outcome(component, "FAULT", str(error))


def _width(model: nn.Module) -> int:
    config: Any = model.config
    return int(getattr(config.get_text_config(decoder=True), "hidden_size", WIDTH))


def _construction(model: nn.Module, component: str, why: str) -> Outcome:
    try:
        RoadModel(model, RoadIntervention(layer=1, component=component))
    except RoadError as error:
        return Outcome(component, "refused", str(error))
    return Outcome(component, "FAULT", f"{why} is accepted")


def _guarded(what: str, run: Any, *args: Any, **kwargs: Any) -> Any:
    """A run of roadint's, whose exceptions are faults, RoadErrors apart."""
    try:
        return run(*args, **kwargs)
    except RoadError:
        raise
    except Exception as error:
        raise Fault(
            f"{what}: {type(error).__name__}: {' '.join(str(error).split())[:100]}"
        ) from error


def randomise(road: RoadModel) -> None:
    """Large random rotations, as if trained."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for each in [*road.interventions, *road.adapters.values()]:
            each.theta.copy_(2 * torch.randn(each.theta.shape, generator=generator))
            each.alpha.copy_(torch.rand(each.alpha.shape, generator=generator) + 0.5)


@dataclass(frozen=True)
class Component:
    """One component of one layer: roadint's edit beside the one by hand."""

    bare: Bare
    layers: oracle.Layers | None
    layer: int
    component: str

    def check(self) -> str:
        """Where the component is. Raises RoadError where roadint refuses it, Fault where its edit is another one."""
        self._road("last(2)", "prompt")
        if self.layers is None:
            self._forward(None, "last(2)", "prompt", COLUMNS)
            raise Fault("accepted, but no list of layers runs on [rows, columns, width]")
        site, why = oracle.site_of(
            self.bare.model, self.bare.inputs(), self.layers, self.layer, self.component
        )
        first = self.layer == 1
        forwards = (
            [
                ("last(2)", "prompt", COLUMNS),
                ("first(1)", "prompt", COLUMNS),
                ("all", "generated", SHORT),
            ]
            if first
            else []
        )
        for position, phase, prompt in [*forwards, ("all", "prompt", COLUMNS)]:
            self._forward(site, position, phase, prompt)
        if site is None:
            raise Fault(f"accepted, but {why}")
        whole = (
            first and self.component == "block_output"
        )  # what depends on the pass is the same for all components
        generations = (
            [("last(2)", "prompt"), ("all", "prompt"), ("first(1)", "generated"), ("all", "both")]
            if whole
            else []
        )
        for position, phase in (generations or [("all", "generated")]) if self.bare.cached else ():
            self._generation(site, position, phase)
        if whole:
            self._padding()
        return site.path

    def _road(self, position: str, phase: str) -> RoadModel:
        own = RoadIntervention(
            layer=self.layer,
            component=self.component,
            position=position,
            phase=phase,
            subspaces=HALVES,
        )
        road: RoadModel = _guarded("construction", RoadModel, self.bare.model, own)
        randomise(road)
        return road

    def _by_hand(self, road: RoadModel, site: Site, position: str, phase: str, prompt: int) -> Any:
        assert self.layers is not None
        theta, alpha = road.interventions[0].theta.detach(), road.interventions[0].alpha.detach()
        half = len(theta) // 2
        matrices = [
            oracle.dense(theta, alpha, range(half)),
            oracle.dense(theta, alpha, range(half, 2 * half)),
        ]
        return oracle.by_hand(
            self.layers.modules[self.layer], site, matrices, position, phase, prompt, COLUMNS
        )

    def _forward(self, site: Site | None, position: str, phase: str, prompt: int) -> None:
        bare, road, what = self.bare, self._road(position, phase), f"{position} of {phase}"
        more = {} if prompt == COLUMNS else {"prompt_length": torch.full((ROWS,), prompt)}
        got = _guarded(what, bare.logits, road, bare.ids, bare.mask, compose=["a", "b"], **more)
        if off(got, bare.base) < 1e-4:
            raise Fault(f"{what}: no effect at all")
        if site is None:
            return
        with self._by_hand(road, site, position, phase, prompt):
            want = bare.logits(bare.model, bare.ids, bare.mask, **bare.uncached)
        if off(got, want) > TOLERANCE:
            raise Fault(f"{what}: off by {off(got, want):.2g} from a hook at {site.path}")

    def _generation(self, site: Site, position: str, phase: str) -> None:
        bare, road, what = (
            self.bare,
            self._road(position, phase),
            f"generate, {position} of {phase}",
        )
        ids, mask, compose = (
            bare.ids[: bare.cached],
            bare.mask[: bare.cached],
            ["a", "b"][: bare.cached],
        )
        got = _guarded(what, bare.continuation, road.generate, ids, mask, compose=compose)
        try:
            with self._by_hand(road, site, position, phase, COLUMNS):
                want = bare.continuation(bare.model.generate, ids, mask, use_cache=False)
        except oracle.NotWhole:
            bare.notes.append("its generate runs in parts without a cache too")
            return
        if off(got, want) > TOLERANCE:
            raise Fault(
                f"{what}: off by {off(got, want):.2g} from a hook at {site.path} without a cache"
            )

    def _padding(self) -> None:
        """A row that is padded on the left is the same alone."""
        bare = self.bare
        if bare.pads:
            road = self._road("last(2)", "prompt")
            batch = bare.logits(road, bare.padded(bare.left), bare.left, compose=["a", "b"])[
                1, -SHORT:
            ]
            alone = bare.logits(
                road, bare.ids[1:, :SHORT], bare.mask[1:, :SHORT], slice(1, 2), compose="b"
            )[0]
            if off(batch, alone) > TOLERANCE:
                raise Fault(
                    f"last(2) of prompt: a padded row is off by {off(batch, alone):.2g} from itself alone"
                )
        if bare.pads_generate:
            run = self._road("all", "both").generate
            batch = bare.continuation(run, bare.padded(bare.left), bare.left, compose=["a", "b"])[1]
            alone = bare.continuation(
                run, bare.ids[1:, :SHORT], bare.mask[1:, :SHORT], compose="b"
            )[0]
            if off(batch, alone) > TOLERANCE:
                raise Fault(
                    f"generate, all of both: a padded row is off by {off(batch, alone):.2g} from itself alone"
                )


def identity(bare: Bare) -> str:
    """An edit that changes nothing gives the base model's logits, whatever the mask.

    Where positions are looked up in a table, of tokens that are not padding, as the model's own generate counts them.
    """
    road = RoadModel(bare.model, RoadIntervention(layer=1))
    masks = {
        "no padding": bare.mask,
        "padding on the left": bare.left,
        "padding on the right": bare.left.flip(1),
    }
    for name, mask in masks.items():
        ids = bare.ids if name == "no padding" else bare.padded(mask)
        try:
            counts = name == "padding on the left" and counts_padding(bare.model)
            own = {"position_ids": (mask.cumsum(1) - 1).clamp(min=0)} if counts else {}
            want = bare.logits(bare.model, ids, mask, **own)
        except Exception:
            continue
        got = _guarded(name, bare.logits, road, ids, mask)
        kept = mask.bool()
        if off(got[kept], want[kept]) > 1e-4:
            raise Fault(f"{name}: off by {off(got[kept], want[kept]):.2g} from the base model")
    return ""


def adapters(bare: Bare, layers: oracle.Layers | None) -> str:
    """Adapters on all linear layers: the same live, merged, and in a row alone; none where no text comes by."""
    ids, mask = bare.ids, bare.mask
    road = _guarded("construction", roadint.add_linear_road, bare.model, name="a")
    randomise(road)
    paths = road.adapters["a"].layout.paths
    live = _guarded("live", bare.logits, road, ids, mask, compose="a")
    if off(live, bare.base) < 1e-4:
        raise Fault("no effect at all")
    ids_of_one, mask_of_one = ids[:1], mask[:1]
    with _guarded("merged", road.merged, "a") as plain:
        merged = bare.logits(plain, ids, mask)
        answered = (
            bare.continuation(plain.generate, ids_of_one, mask_of_one) if bare.cached else None
        )
    if off(live, merged) > TOLERANCE:
        raise Fault(f"live and merged differ by {off(live, merged):.2g}")
    if answered is not None:
        answer = _guarded(
            "generate",
            bare.continuation,
            road.generate,
            ids_of_one,
            mask_of_one,
            compose="a",
        )
        if off(answer, answered) > TOLERANCE:
            raise Fault(f"generate: live and merged differ by {off(answer, answered):.2g}")
    mixed = _guarded("a mixed batch", bare.logits, road, ids, mask, compose=[None, "a"])
    for row, run, more in ((0, bare.model, {}), (1, road, {"compose": "a"})):
        alone = _guarded(
            "a row alone",
            bare.logits,
            run,
            ids[row : row + 1],
            mask[row : row + 1],
            slice(row, row + 1),
            **more,
        )[0]
        if off(mixed[row], alone) > TOLERANCE:
            raise Fault(
                f"row {row} of a mixed batch is off by {off(mixed[row], alone):.2g} from itself alone"
            )
    if off(bare.logits(bare.model, ids, mask), bare.base) > 1e-5:
        raise Fault("the model is not as it was")
    unused = [path for path in paths if layers and not layers.calls.get(path)]
    if unused:
        raise Fault(f"{len(unused)} of {len(paths)} targets never see a token: {unused[0]}, …")
    return f"{len(paths)} targets"

"""What the sweep asks of one model: each component edited right or refused, adapters the same live, merged and alone."""

import inspect
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

import roadint
from roadint import RoadError, RoadIntervention, RoadModel
from tests.architectures import oracle
from tests.architectures.oracle import COLUMNS, ROWS, Site
from tests.architectures.tiny import VOCABULARY, WIDTH

COMPONENTS = ("block_output", "attention_output", "mlp_output")
RIGHT, REFUSED, FAULT = "right", "refused", "FAULT"
NEW = 5
HALVES = {"a": "[0, d/2)", "b": "[d/2, d)"}


@dataclass(frozen=True)
class Outcome:
    """What became of one component ("adapters" among them) of one case."""

    case: str
    component: str
    verdict: str
    text: str = ""
    notes: str = ""


def off(one: Tensor, other: Tensor) -> float:
    """The largest difference, beside the largest value."""
    if one.shape != other.shape:
        return float("inf")
    return float((one - other).abs().max() / other.abs().max().clamp(min=1e-6))


class Bare:
    """A tiny model, its inputs, and what it can do by itself."""

    def __init__(self, model: nn.Module, extra: dict[str, Any]) -> None:
        self.model, self.extra = model, extra
        generator = torch.Generator().manual_seed(5)
        self.ids = torch.randint(8, 100, (ROWS, COLUMNS), generator=generator)
        self.mask = torch.ones_like(self.ids)
        self.lengths = [COLUMNS, 6]
        self.left = self.mask.clone()
        self.left[1, : COLUMNS - 6] = 0
        self.right = self.left.flip(1)
        self.settings = {"max_new_tokens": NEW, "min_new_tokens": NEW, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
        self.settings |= {"output_logits": True, "return_dict_in_generate": True}
        takes = inspect.signature(model.forward).parameters
        self.uncached = {"use_cache": False} if "use_cache" in takes or "kwargs" in takes else {}

    def padded(self, mask: Tensor) -> Tensor:
        """The second row's first tokens, where the mask has them."""
        ids = self.ids.clone()
        ids[1] = 0
        ids[1, mask[1].bool()] = self.ids[1, :6]
        return ids

    def inputs(self, ids: Tensor, mask: Tensor, rows: Any = slice(None)) -> dict[str, Any]:
        extra = {name: value[rows] if torch.is_tensor(value) else value for name, value in self.extra.items()}
        return {"input_ids": ids, "attention_mask": mask, **extra}

    def logits(self, run: Any, ids: Tensor, mask: Tensor, rows: Any = slice(None), **more: Any) -> Tensor:
        with torch.no_grad():
            output = run(**self.inputs(ids, mask, rows), **more)
        found: Tensor = output.logits if hasattr(output, "logits") else output[0]
        return found.float()

    def continuation(self, run: Any, ids: Tensor, mask: Tensor, rows: Any = slice(None), **more: Any) -> Tensor:
        """[rows, NEW, vocabulary]: the logits of greedy generation."""
        with torch.no_grad():
            output = run(**self.inputs(ids, mask, rows), **self.settings, **more)
        return torch.stack(output.logits, dim=1).float()


def randomise(road: RoadModel) -> None:
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for each in [*road.sites, *road.adapters.values()]:
            each.theta.copy_(2 * torch.randn(each.theta.shape, generator=generator))
            each.alpha.copy_(torch.rand(each.alpha.shape, generator=generator) + 0.5)


TOLERANCE = 2e-3


class Sweep:
    def __init__(self, name: str, bare: Bare, layer: int = 1) -> None:
        self.name, self.bare, self.layer = name, bare, layer
        model = bare.model
        self.base = bare.logits(model, bare.ids, bare.mask)
        self.notes: list[str] = []
        self.can_generate = bool(getattr(model, "can_generate", bool)())
        self.layout: oracle.Layout | None = None
        config = model.config.get_text_config(decoder=True)
        count = getattr(config, "num_hidden_layers", None)
        uncached = {**bare.inputs(bare.ids, bare.mask), **bare.uncached}
        if isinstance(count, int):
            self.layout = oracle.observe(model, uncached, WIDTH, count)
        self.uncached = uncached
        self._learn()

    def _learn(self) -> None:
        """What the bare model can do: a cache that is right, padding that is no part of a row."""
        bare, model = self.bare, self.bare.model
        self.whole = self.cached = self.pads_forward = self.pads_generate = False
        again = bare.logits(model, bare.ids, bare.mask)
        if off(again, self.base) > 1e-5:
            self.notes.append("not deterministic")
        alone = bare.logits(model, bare.ids[1:, :6], bare.mask[1:, :6], slice(1, 2))[0]
        try:
            batch = bare.logits(model, bare.padded(bare.left), bare.left)[1, -6:]
            self.pads_forward = off(batch, alone) < TOLERANCE
        except Exception as error:
            self.notes.append(f"padded forward: {type(error).__name__}")
        if not self.can_generate:
            self.notes.append("can't generate")
            return
        try:
            self.want = bare.continuation(model.generate, bare.ids, bare.mask)
            self.whole_run = bare.continuation(model.generate, bare.ids, bare.mask, use_cache=False)
            self.cached = off(self.want, self.whole_run) < TOLERANCE
            if not self.cached:
                self.notes.append(f"its own cache is off by {off(self.want, self.whole_run):.1g}")
            batch = bare.continuation(model.generate, bare.padded(bare.left), bare.left)[1]
            own = bare.continuation(model.generate, bare.ids[1:, :6], bare.mask[1:, :6], slice(1, 2))[0]
            self.pads_generate = off(batch, own) < TOLERANCE
        except Exception as error:
            self.notes.append(f"bare generate: {type(error).__name__}: {str(error)[:60]}")
        if not self.pads_forward or not self.pads_generate:
            self.notes.append("padding: " + ("generate " if not self.pads_generate else "") + ("forward" if not self.pads_forward else ""))

    def component(self, component: str) -> Outcome:
        try:
            faults, found, why = self._component(component)
        except RoadError as error:
            return Outcome(self.name, component, REFUSED, str(error))
        if faults:
            return Outcome(self.name, component, FAULT, "; ".join(faults), "; ".join(self.notes))
        return Outcome(self.name, component, RIGHT, found, "; ".join(self.notes))

    def _road(self, component: str, position: str, phase: str) -> RoadModel:
        own = RoadIntervention(layer=self.layer, component=component, position=position, phase=phase, subspaces=HALVES)
        road = RoadModel(self.bare.model, own)
        randomise(road)
        return road

    def _component(self, component: str) -> tuple[list[str], str, str]:
        bare, faults = self.bare, []
        road = self._road(component, "last(2)", "prompt")
        path = road._paths[self.layer, component]
        if self.layout is None:
            return [f"edits {path}; no list of decoder layers ran"], path, ""
        found, why = oracle.sites(bare.model, self.uncached, self.layout, self.layer, component)
        if not found:
            faults.append(f"edits {path}; by the test, {why}")
            site = None
        else:
            site = found[0]
        faults += self._forwards(component, path, site)
        if not faults or not site:
            faults += self._generations(component, path, site)
        if not any("rais" in each for each in faults):
            faults += self._rows(component)
            faults += self._identity(component)
        return faults, path, why

    def _matrices(self, road: RoadModel) -> list[Tensor]:
        theta, alpha = road.sites[0].theta.detach(), road.sites[0].alpha.detach()
        half = len(theta) // 2
        return [oracle.dense(theta, alpha, range(half)), oracle.dense(theta, alpha, range(half, 2 * half))]

    def _by_hand(self, road: RoadModel, site: Site, position: str, phase: str, prompt: Any = None) -> Any:
        assert self.layout is not None
        layer = self.layout.layers[self.layer]
        return oracle.by_hand(layer, site, self._matrices(road), self.bare.mask, position, phase, prompt)

    def _forwards(self, component: str, path: str, site: Site | None) -> list[str]:
        bare = self.bare
        kinds = [("last(2)", "prompt", None), ("first(1)", "prompt", None), ("all", "prompt", None)]
        kinds += [("all", "generated", [6, 6]), ("all", "both", [6, 6])]
        for position, phase, prompt in kinds:
            road = self._road(component, position, phase)
            more = {} if prompt is None else {"prompt_length": torch.tensor(prompt)}
            what = f"{position} of {phase}"
            try:
                got = bare.logits(road, bare.ids, bare.mask, compose=["a", "b"], **more)
            except RoadError:
                raise
            except Exception as error:
                return [f"edits {path}; {what}: raises {type(error).__name__}: {str(error)[:90]}"]
            if off(got, self.base) < 1e-4:
                return [f"edits {path}; {what}: no effect at all"]
            if site is None:
                continue
            with self._by_hand(road, site, position, phase, prompt):
                want = bare.logits(bare.model, bare.ids, bare.mask, **bare.uncached)
            if off(want, self.base) < 1e-4:
                return [f"the oracle at {site.path} has no effect"]
            if off(got, want) > TOLERANCE:
                return [f"edits {path}; {what}: off by {off(got, want):.2g} from a hook at {site.path}"]
        return []

    def _generations(self, component: str, path: str, site: Site | None) -> list[str]:
        bare = self.bare
        if not self.cached or site is None:
            return []
        for position, phase in (("last(2)", "prompt"), ("first(1)", "prompt"), ("all", "generated"), ("all", "both")):
            road = self._road(component, position, phase)
            what = f"generate, {position} of {phase}"
            try:
                got = bare.continuation(road.generate_tokens, bare.ids, bare.mask, compose=["a", "b"])
            except RoadError:
                raise
            except Exception as error:
                return [f"edits {path}; {what}: raises {type(error).__name__}: {str(error)[:90]}"]
            try:
                with self._by_hand(road, site, position, phase):
                    want = bare.continuation(bare.model.generate, bare.ids, bare.mask, use_cache=False)
            except oracle.NotWhole as error:
                self.notes.append(f"generate without a cache: {error}")
                return []
            if off(got, want) > TOLERANCE:
                return [f"edits {path}; {what}: off by {off(got, want):.2g} from a hook without a cache"]
        return []

    def _rows(self, component: str) -> list[str]:
        """A padded row is the same alone."""
        bare, faults = self.bare, []
        for position, phase in (("last(2)", "prompt"), ("all", "both")):
            road = self._road(component, position, phase)
            if self.pads_forward:
                batch = bare.logits(road, bare.padded(bare.left), bare.left, compose=["a", "b"])[1, -6:]
                alone = bare.logits(road, bare.ids[1:, :6], bare.mask[1:, :6], slice(1, 2), compose="b")[0]
                if off(batch, alone) > TOLERANCE:
                    faults.append(f"{position} of {phase}: a padded row is off by {off(batch, alone):.2g} from itself alone")
            if self.pads_generate:
                batch = bare.continuation(road.generate_tokens, bare.padded(bare.left), bare.left, compose=["a", "b"])[1]
                alone = bare.continuation(road.generate_tokens, bare.ids[1:, :6], bare.mask[1:, :6], slice(1, 2), compose="b")[0]
                if off(batch, alone) > TOLERANCE:
                    faults.append(f"generate, {position} of {phase}: a padded row is off by {off(batch, alone):.2g} from itself alone")
        return faults

    def _identity(self, component: str) -> list[str]:
        bare, faults = self.bare, []
        road = RoadModel(bare.model, RoadIntervention(layer=self.layer, component=component))
        for name, ids, mask in (
            ("no padding", bare.ids, bare.mask),
            ("left padding", bare.padded(bare.left), bare.left),
            ("right padding", bare.padded(bare.right), bare.right),
        ):
            try:
                want = bare.logits(bare.model, ids, mask)
            except Exception:
                continue
            try:
                got = bare.logits(road, ids, mask)
            except RoadError:
                raise
            except Exception as error:
                faults.append(f"identity, {name}: raises {type(error).__name__}: {str(error)[:80]}")
                continue
            kept = mask.bool()
            if off(got[kept], want[kept]) > 1e-4:
                faults.append(f"identity, {name}: off by {off(got[kept], want[kept]):.2g} from the base model")
        return faults

    def adapters(self) -> Outcome:
        bare, faults = self.bare, []
        try:
            road = roadint.add_linear_road(bare.model, name="a")
            randomise(road)
            targets = road.adapters["a"].layout.paths
            live = bare.logits(road, bare.ids, bare.mask, compose="a")
            with road.merged("a") as plain:
                merged = bare.logits(plain, bare.ids, bare.mask)
            if off(live, merged) > TOLERANCE:
                faults.append(f"live and merged differ by {off(live, merged):.2g}")
            if off(live, self.base) < 1e-4:
                faults.append("no effect at all")
            mixed = bare.logits(road, bare.ids, bare.mask, compose=[None, "a"])
            alone = bare.logits(road, bare.ids[1:], bare.mask[1:], slice(1, 2), compose="a")[0]
            own = bare.logits(bare.model, bare.ids[:1], bare.mask[:1], slice(0, 1))[0]
            if off(mixed[0], own) > TOLERANCE:
                faults.append(f"a row without adapters is off by {off(mixed[0], own):.2g} beside one that has some")
            if off(mixed[1], alone) > TOLERANCE:
                faults.append(f"a row is off by {off(mixed[1], alone):.2g} from itself alone")
            if off(bare.logits(bare.model, bare.ids, bare.mask), self.base) > 1e-5:
                faults.append("the model is not as it was")
            unused = self._unused(targets)
            if unused:
                faults.append(f"targets that no text reaches: {unused[:3]} of {len(unused)}")
        except RoadError as error:
            return Outcome(self.name, "adapters", REFUSED, str(error))
        except Exception as error:
            return Outcome(self.name, "adapters", FAULT, f"raises {type(error).__name__}: {str(error)[:120]}")
        verdict = FAULT if faults else RIGHT
        return Outcome(self.name, "adapters", verdict, "; ".join(faults) or f"{len(targets)} targets")

    def _unused(self, targets: Any) -> list[str]:
        """Targets that no pass of text runs: another tower's, or a projector's."""
        if self.layout is None:
            return []
        return [path for path in targets if not self.layout.calls.get(path)]

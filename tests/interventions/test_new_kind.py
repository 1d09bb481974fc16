"""A kind that a stranger adds, in one class: everything that roadint does with an intervention, no other file touched."""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerFast

import roadint
from roadint import RoadError, RoadIntervention, RoadModel
from roadint.files.rules import Rule, number
from roadint.grammar.subspace import Partition
from roadint.interop.pyvene import load
from roadint.interventions import registry
from roadint.interventions.additive import Strengths
from roadint.interventions.base import SubspaceIntervention
from roadint.interventions.pyvene.entry import EditIntervention
from roadint.interventions.pyvene.patches import pyvene as pv
from roadint.interventions.registry import kind_of, register
from tests.helpers import HALVES, IDS, SHORT, WIDTH, call, rows


@pytest.fixture(scope="module")
def gain() -> Iterator[type[SubspaceIntervention]]:
    @register("made-up-gain")
    class GainIntervention(EditIntervention):
        """`h · e^{s g}`: a gain for each pair of dims, which starts at `start`."""

        def __init__(self, *, start: float = 0.0, **site: Any) -> None:
            super().__init__(**site)
            self.start = start
            self._bind_first()

        def _parameter_names(self) -> Sequence[str]:
            return ("gains",)

        def _build(self, width: int) -> Partition:
            self.gains = nn.Parameter(torch.full((width // 2,), float(self.start)))
            return Partition(self._subspaces, width)

        @property
        def trainable_count(self) -> int:
            return self.partition.covered()

        def rows(self, strengths: Tensor, learning: Tensor | None = None) -> Strengths:
            return Strengths(strengths, learning)

        def edit(self, h: Tensor, rows: Strengths, source: Tensor | None = None) -> Tensor:
            gains = self.gains
            if rows.learning is not None:
                gains = torch.where(rows.learning, gains, gains.detach())
            return (h * (rows.values * gains).exp().repeat_interleave(2, dim=-1)).to(h.dtype)

        def spec(self) -> dict[str, Any]:
            return {**super().spec(), "start": self.start}

        @classmethod
        def rules(cls) -> dict[str, Rule]:
            return {"start": number(-10, 10)}

        @classmethod
        def recipe_fields(cls) -> tuple[str, ...]:
            return (*super().recipe_fields(), "start")

        def _rescale(self, strengths: Tensor) -> None:
            self.gains.mul_(strengths)

        def unit_parameters(self) -> list[nn.Parameter]:
            return [self.gains]

        def why_order_matters(
            self, names: set[str], other: SubspaceIntervention, other_names: set[str]
        ) -> str | None:
            """Scaling a block commutes with everything that stays in it."""
            return None if other.kind in (self.kind, "road") else "gains meet no other kind"

        def summary(self) -> dict[str, Any]:
            return {**super().summary(), "gains": self.gains.tolist()}

        @property
        def short_name(self) -> str:
            return "gain"

    yield GainIntervention
    registry._KINDS.pop("made-up-gain")


def made(gain: Any, **arguments: Any) -> Any:
    """One with random gains."""
    intervention = gain(**{"layer": 1, "subspaces": HALVES, "embed_dim": WIDTH, **arguments})
    with torch.no_grad():
        intervention.gains.normal_(generator=torch.Generator().manual_seed(1))
    return intervention


def by_hand(model: PreTrainedModel, gains: Mapping[int, Tensor], last: int = 1) -> Tensor:
    """Logits where row r's last tokens of layer 1 are scaled by gains[r]."""

    def scale(module: Any, args: Any, output: Tensor) -> Tensor:
        hidden = output.clone()
        for row, values in gains.items():
            hidden[row, -last:] *= values.exp().repeat_interleave(2)
        return hidden

    handle = model.model.layers[1].register_forward_hook(scale)
    logits = model(IDS).logits
    handle.remove()
    return logits


def expected_gains(intervention: Any) -> dict[int, Tensor]:
    """Of the compositions a, 0.5*b and all, in rows 0, 1 and 2."""
    gains, half = intervention.gains.detach(), WIDTH // 4
    a, b = gains.clone(), 0.5 * gains
    a[half:], b[:half] = 0.0, 0.0
    return {0: a, 1: b, 2: gains}


COMPOSE = ["a", "0.5*b", "a + b", None]


def test_in_a_model_and_in_pyvene(gain: Any, llama: PreTrainedModel) -> None:
    intervention = made(gain)
    road = RoadModel(llama, intervention)
    expected = by_hand(llama, expected_gains(intervention))
    torch.testing.assert_close(road(IDS, compose=COMPOSE).logits, expected)
    assert torch.equal(road(IDS, compose=COMPOSE).logits[3], llama(IDS).logits[3])
    assert road.generate(input_ids=IDS, compose=COMPOSE, max_new_tokens=2).shape[0] == len(IDS)
    wrapped = pv.IntervenableModel([made(gain)], llama)
    where = {"sources->base": (None, [[[IDS.shape[1] - 1]] * len(IDS)])}
    entries = [["a", {"b": 0.5}, [0, 1], None]]
    _, output = wrapped({"input_ids": IDS}, unit_locations=where, subspaces=entries)
    torch.testing.assert_close(output.logits, expected)


def test_saved_and_loaded(gain: Any, llama: PreTrainedModel, tmp_path: Path) -> None:
    intervention = made(gain, start=0.5)
    road = RoadModel(llama, intervention)
    road.save_pretrained(tmp_path / "road")
    loaded = RoadModel.from_pretrained(llama, tmp_path / "road")
    assert loaded.interventions[0].spec() == intervention.spec()
    logits = road(IDS, compose=COMPOSE).logits
    assert torch.equal(loaded(IDS, compose=COMPOSE).logits, logits)
    pv.IntervenableModel([intervention], llama).save(str(tmp_path / "pyvene"))
    (again,) = load(tmp_path / "pyvene", llama, classes=[gain]).interventions.values()
    assert again.spec() == intervention.spec()
    assert torch.equal(again.gains, intervention.gains)
    changed = json.loads((tmp_path / "road" / "road.json").read_text())
    assert changed["interventions"][0]["kind"] == "made-up-gain"
    intervention.start = 11.0  # against its rule
    with pytest.raises(RoadError, match=r"start is 11.0: expected a number from -10 to 10"):
        road.save_pretrained(tmp_path / "other")


def test_it_trains_with_what_it_allows(
    gain: Any, llama: PreTrainedModel, tokenizer: PreTrainedTokenizerFast
) -> None:
    road = RoadModel(llama, gain(layer=1, subspaces=HALVES))
    data = {"a": rows("aaaaaaaa"), "b": rows("zzzzzzzz")}
    summary = roadint.train(road, tokenizer, data, lrs={"b": 0.0}, decay=0.1, **SHORT)
    assert summary["trainable"] == WIDTH // 2
    trained, still = road.interventions[0].gains.detach().split(WIDTH // 4)
    assert bool((trained != 0).all())
    assert torch.equal(still, torch.zeros(WIDTH // 4))
    with pytest.raises(RoadError, match="bounds of the scale are for"):
        roadint.train(road, tokenizer, data, max_log_scale=0.1, **SHORT)


def test_sums_across_checkpoints(gain: Any, llama: PreTrainedModel, tmp_path: Path) -> None:
    RoadModel(llama, made(gain)).save_pretrained(tmp_path / "gain")
    RoadModel(llama, RoadIntervention(layer=1, subspaces=HALVES)).save_pretrained(tmp_path / "road")
    steering = registry.kind_of("steering")(layer=1, rank=2)
    RoadModel(llama, steering).save_pretrained(tmp_path / "steering")
    road = RoadModel.from_pretrained(
        llama, {name: tmp_path / name for name in ("gain", "road", "steering")}
    )
    for compose in ("gain + road", "road + gain"):  # RoAd knows nothing of gains
        assert road(IDS, compose=compose).logits.isfinite().all()
    with pytest.raises(RoadError, match="gains meet no other kind"):
        road(IDS, compose="gain + steering")


def test_it_is_described_and_inspected(
    gain: Any,
    llama: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    tmp_path: Path,
    capsys: Any,
    monkeypatch: Any,
) -> None:
    intervention = made(gain)
    road = RoadModel(llama, intervention)
    assert f"gain, {WIDTH // 2} numbers in a [0, 16), b [16, 32)" in road.describe(tokenizer, "hi")
    road.save_pretrained(tmp_path / "road")
    code, out, _ = call(capsys, monkeypatch, "inspect", str(tmp_path / "road"), "--json")
    assert code == 0
    assert json.loads(out)["sites"][0]["gains"] == intervention.gains.tolist()
    code, out, _ = call(capsys, monkeypatch, "inspect", str(tmp_path / "road"))
    assert f"{WIDTH // 2} numbers" in out
    plot = str(tmp_path / "angles.png")
    code, _, errors = call(capsys, monkeypatch, "inspect", str(tmp_path / "road"), "--plot", plot)
    assert code == 2
    assert "only 'made-up-gain'" in errors


def test_a_recipe_makes_and_trains_it(gain: Any, llama: PreTrainedModel, tokenizer: Any) -> None:
    settings = {"kind": "made-up-gain", "start": 0.5, "layers": [1, 2], "subspaces": HALVES}
    settings |= {"lrs": {}, "strengths": {}, "template": "plain", "eos": [], "companions": {}}
    settings |= {"epochs": 1, "batch_size": 4, "lr": 1e-2, "max_completion": 8}
    recipe = roadint.Recipe.load("composition", settings)
    assert [intervention.start for intervention in recipe.interventions()] == [0.5, 0.5]
    road = recipe.on(llama)
    rows = [{"instruction": f"say {number}", "output": "yes!"} for number in range(8)]
    roadint.train(road, tokenizer, {"a": rows}, recipe, quiet=True)
    for intervention in road.interventions:
        a, b = intervention.gains.detach().split(WIDTH // 4)
        assert bool((a != 0.5).any())
        assert torch.equal(b, torch.full_like(b, 0.5))
    with pytest.raises(RoadError, match="stat=1.0: expected|unknown|no setting 'stat'"):
        recipe.override({"stat": 1.0})


def test_a_name_is_taken_once(gain: Any) -> None:
    with pytest.raises(RoadError, match="two kinds of intervention are called 'made-up-gain'"):

        @register("made-up-gain")
        class Other(EditIntervention):
            pass


def test_a_name_is_taken_by_a_class_of_the_same_name_elsewhere_too(gain: Any) -> None:
    with pytest.raises(RoadError, match="two kinds of intervention are called 'road'"):
        register("road")(type("RoadIntervention", (EditIntervention,), {"__module__": "another"}))
    assert kind_of("road") is roadint.RoadIntervention

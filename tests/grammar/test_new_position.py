"""A made-up kind of position is one class: it is parsed, edits a forward and a generation, and is saved."""

from pathlib import Path
from typing import Any

import pytest
import torch

from roadint import RoadError, RoadIntervention, RoadModel
from roadint.grammar import position_kinds
from roadint.grammar.position import Position
from roadint.grammar.position_kinds import PositionKind, position_kind
from tests.helpers import IDS, build


@pytest.fixture
def every(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(position_kinds, "_KINDS", dict(position_kinds.position_kinds()))

    @position_kind("every", "every(n)")
    class Every(PositionKind):
        def problem(self, numbers: Any, phase: str) -> str | None:
            return None if len(numbers) == 1 and numbers[0] > 0 else "needs one step: every(2)"

        def selects(self, numbers: Any, index: Any, length: Any) -> Any:
            return index % numbers[0] == 0


@pytest.mark.usefixtures("every")
def test_a_new_kind_of_position(tmp_path: Path) -> None:
    assert Position.parse("every(3)").indices(8) == [0, 3, 6]
    assert str(Position.parse("every(3)")) == "every(3)"
    for text, message in (
        ("every", "position 'every' needs one step"),
        ("evry(2)", "'all', 'at.i, ….' or 'every.n.'; did you mean 'every'"),
    ):
        with pytest.raises(RoadError, match=message):
            Position.parse(text)

    model = build("llama")
    road = RoadModel(model, RoadIntervention(layer=1, position="every(3)", phase="both"))
    with torch.no_grad():
        road.interventions[0].theta.normal_(generator=torch.Generator().manual_seed(0))
    layer: list[torch.Tensor] = []

    def note(module: Any, args: Any, output: Any) -> None:
        layer.append(output[0] if isinstance(output, tuple) else output)

    handle = model.model.layers[1].register_forward_hook(note)
    name = next(iter(road.interventions[0].partition))
    with torch.no_grad():
        edited = road(input_ids=IDS, compose=name).logits
        base, acted = model(input_ids=IDS).logits, layer[0]
        changed = (acted != layer[1]).any(-1)[0].nonzero()[:, 0].tolist()
    handle.remove()
    assert changed == Position.parse("every(3)").indices(IDS.shape[1])
    assert not torch.equal(edited, base)
    generated = {
        cache: road.generate(
            input_ids=IDS, compose=name, max_new_tokens=5, use_cache=cache, do_sample=False
        )
        for cache in (True, False)
    }
    assert torch.equal(generated[True], generated[False])
    road.save_pretrained(tmp_path)
    again = RoadModel.from_pretrained(model, tmp_path)
    assert torch.equal(again(input_ids=IDS, compose=name).logits, edited)


def test_it_is_gone_again() -> None:
    with pytest.raises(RoadError, match="unknown position 'every.2.'"):
        Position.parse("every(2)")


def test_a_name_is_taken_once() -> None:
    before = position_kinds.position_kinds()["last"]
    with pytest.raises(RoadError, match="two kinds of position are called 'last'"):

        @position_kind("last", "last(n)")
        class Last(PositionKind):
            def selects(self, numbers: Any, index: Any, length: Any) -> Any:
                return index == 0

    assert position_kinds.position_kinds()["last"] is before

"""Figures: that each draws what it is given, with labelled axes, and shows itself in a notebook."""

from typing import Any

import pytest
from transformers import PreTrainedModel

from roadint import RoadModel
from roadint.plots import (
    adapter_figure,
    block_figure,
    heat_figure,
    interference_figure,
    sweep_figure,
    training_figure,
)
from tests.helpers import randomised, trained


def labels(figure: Any) -> list[tuple[str, str]]:
    return [(axes.get_xlabel(), axes.get_ylabel()) for axes in figure.axes]


def test_a_notebook_shows_a_figure(llama: PreTrainedModel) -> None:
    figure = block_figure(trained(llama).interventions)
    assert figure._repr_png_().startswith(b"\x89PNG")
    assert labels(figure)[:2] == [("block", "angle θ (degrees)"), ("block", "scale α")]


def test_training_curves() -> None:
    history = [
        {"step": 10, "loss": 3.0, "loss/a": 3.1, "loss/b": 2.9},
        {"step": 20, "loss": 2.0, "loss/a": 2.1},
    ]
    figure = training_figure(history)
    lines = {line.get_label(): line.get_xydata().tolist() for line in figure.axes[0].get_lines()}
    assert lines == {"a": [[10, 3.1], [20, 2.1]], "b": [[10, 2.9]]}


def test_heat_maps_hold_their_numbers() -> None:
    rows = [
        {
            "settings": {"layer": layer, "position": position},
            "nll": {"german": {"german": layer / 10}},
            "shares": {"german": {"success": None}},
        }
        for layer in (12, 3)
        for position in ("last", "all")
    ]
    rows[-1]["error"] = "failed"
    figure = sweep_figure(rows, "layer", "position", "german", "german")
    shown = {(text.get_position(), text.get_text()) for text in figure.axes[0].texts}
    assert shown == {((0, 1), "0.30"), ((1, 0), "1.20"), ((1, 1), "1.20")}
    assert [label.get_text() for label in figure.axes[0].get_xticklabels()] == ["3", "12"]
    figure = interference_figure(
        {
            "interference": {
                "german": {"german + english": 0.1},
                "english": {"german + english": -0.2},
            }
        }
    )
    assert [text.get_text() for text in figure.axes[0].texts] == ["0.10", "-0.20"]
    assert labels(figure)[0] == ("composition", "data set")
    assert heat_figure(
        [[float("nan")]], ["a"], ["b"], rows_are="r", columns_are="c", values_are="v"
    )._repr_png_()


def test_an_adapter_by_layer(llama: PreTrainedModel) -> None:
    adapter = randomised(
        RoadModel(llama).add_adapter("a", layers=[0, 2], targets=["q_proj", "up_proj"])
    )
    figure = adapter_figure(adapter)
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ["q_proj", "up_proj"]
    theta = adapter.of("model.layers.2.self_attn.q_proj")[0]
    expected = float(((theta + 3.14159265) % 6.2831853 - 3.14159265).abs().mean()) * 57.29578
    assert float(figure.axes[0].texts[1].get_text()) == pytest.approx(expected, abs=0.01)

"""Figures: that each draws what it is given, with labelled axes, and shows itself in a notebook."""

import io
from typing import Any

import pytest
import torch
from matplotlib.axes import Axes
from matplotlib.container import BarContainer
from transformers import PreTrainedModel

from roadint import Evaluation, RoadIntervention, RoadModel
from roadint.evaluation.report import Intervals, over_seeds
from roadint.plots import (
    adapter_figure,
    bench_figure,
    block_figure,
    changes_figure,
    composition_figure,
    heat_figure,
    interference_figure,
    learn_figure,
    linear_figure,
    serve_figure,
    sweep_figure,
    throughput_figure,
    training_cost_figure,
    training_figure,
)
from tests.helpers import randomised, trained

DEGREES = 57.29578


def labels(figure: Any) -> list[tuple[str, str]]:
    return [(axes.get_xlabel(), axes.get_ylabel()) for axes in figure.axes]


def ticks(axes: Axes) -> tuple[list[str], list[str]]:
    """The columns' names and the rows' names."""
    return (
        [label.get_text() for label in axes.get_xticklabels()],
        [label.get_text() for label in axes.get_yticklabels()],
    )


def written(axes: Axes) -> dict[tuple[float, float], str]:
    return {text.get_position(): text.get_text() for text in axes.texts}


def lines(axes: Axes) -> dict[str, list[list[float]]]:
    return {str(line.get_label()): line.get_xydata().tolist() for line in axes.get_lines()}


def bars(container: BarContainer) -> list[float]:
    return [bar.get_width() for bar in container.patches]


def whiskers(container: BarContainer) -> list[list[float]]:
    """From where to where each error bar goes."""
    (drawn,) = container.errorbar.lines[2]
    return [[x for x, _ in segment] for segment in drawn.get_segments()]


def legend(axes: Axes) -> list[str]:
    return [text.get_text() for text in axes.get_legend().get_texts()]


def evaluation(success: float | None) -> Evaluation:
    """Of two compositions on two data sets; without the embedding model where success is None."""
    shares = {"on_topic": success, "success": success, "degenerate": 0.25, "german": 0.0}
    ranges = {
        name: None if share is None else (share - 0.1, share + 0.2)
        for name, share in shares.items()
    }
    return Evaluation(
        nll={"none": {"a": 3.0, "b": 2.0}, "a + b": {"a": 1.0, "b": 2.5}},
        language={"none": {"en": 1.0}, "a + b": {"de": 1.0}},
        shares=dict.fromkeys(("none", "a + b"), shares),
        kl={"none": 0.0, "a + b": 0.1},
        gain={"a + b": {"a": 1.0, "b": -0.5}},
        interference={"a": {"a + b": 0.1, "a + c": 0.3}, "b": {"a + b": -0.2}},
        asks={"none": [], "a + b": ["german"]},
        intervals=Intervals(nll={}, shares=dict.fromkeys(("none", "a + b"), ranges)),
        answers=[],
    )


def test_a_notebook_shows_a_figure(llama: PreTrainedModel) -> None:
    figure = block_figure(trained(llama).interventions)
    assert figure._repr_png_().startswith(b"\x89PNG")
    assert labels(figure)[:2] == [("block", "angle θ (degrees)"), ("block", "scale α")]


def test_blocks_are_points_of_their_angle_and_scale(llama: PreTrainedModel) -> None:
    interventions = [
        RoadIntervention(layer=layer, subspaces={"a": "[0, d/2)", "b": "[d/2, d)"})
        for layer in (0, 1)
    ]
    road = trained(llama, *interventions)
    figure = block_figure(road.interventions)
    assert len(figure.axes) == 6
    for row, site in enumerate(road.interventions):
        angles, scales, plane = figure.axes[3 * row : 3 * row + 3]
        assert angles.get_title() == f"angle of each block: layer {row}, road_1, basis identity"
        assert scales.get_title() == "scale of each block (1 = unchanged)"
        assert plane.get_title() == "both, around 1 = unchanged"
        assert legend(angles) == ["a", "b"]
        half = len(site.theta) // 2
        for index, (start, end) in enumerate([(0, half), (half, 2 * half)]):
            turned = [(x, y / DEGREES) for x, y in angles.collections[index].get_offsets()]
            assert [x for x, _ in turned] == list(range(start, end))
            wrapped = (site.theta[start:end].detach() + 3.14159265) % 6.2831853 - 3.14159265
            assert [y for _, y in turned] == pytest.approx(wrapped.tolist(), abs=1e-4)
            drawn = scales.collections[index].get_offsets()[:, 1]
            assert drawn.tolist() == pytest.approx(site.alpha[start:end].tolist())
            value = torch.polar(site.alpha[start:end].detach(), site.theta[start:end].detach())
            points = torch.tensor(plane.collections[index].get_offsets().tolist())
            torch.testing.assert_close(points, torch.view_as_real(value), atol=1e-5, rtol=1e-5)


def test_training_curves() -> None:
    history = [
        {"step": 10, "loss": 3.0, "loss/a": 3.1, "loss/b": 2.9},
        {"step": 20, "loss": 2.0, "loss/a": 2.1},
    ]
    figure = training_figure(history)
    assert lines(figure.axes[0]) == {"a": [[10, 3.1], [20, 2.1]], "b": [[10, 2.9]]}
    assert labels(figure) == [("step", "nats a token, in training")]
    assert legend(figure.axes[0]) == ["a", "b"]
    (line,) = training_figure([{"step": 10, "loss": 3.0}]).axes[0].get_lines()
    assert (line.get_label(), line.get_xydata().tolist()) == ("loss", [[10, 3.0]])


def test_a_sweep_is_a_ladder_of_changes() -> None:
    steps: list[dict[str, Any]] = [
        {},
        {"lr": 0.01},
        {"lr": 0.01, "lrs": {"a": 2}},
        {"lr": 0.01},
        {"basis": "random"},
    ]
    rows = [
        {
            "settings": {"seed": seed, **settings},
            "nll": {"a": {"b": place + seed}, "a + b": {"b": 9.0}},
            "shares": {name: {"success": (place + seed / 4) / 8} for name in ("a", "a + b")},
        }
        for place, settings in enumerate(steps)
        for seed in (1, 3)
    ]
    rows[-1] = {"settings": rows[-1]["settings"], "error": "failed"}
    figure = changes_figure(rows)
    # The second and the fourth have the same settings, so they are one line.
    assert ticks(figure.axes[0])[1] == [
        "at first",
        "lr=0.01",
        "lrs={a: 2}",
        "basis=random, lr as at first, lrs as at first",
    ]
    assert labels(figure) == [("success", "")]
    (group,) = figure.legends
    assert [text.get_text() for text in group.get_texts()] == ["a", "a + b"]
    points = {bars.get_label(): [] for bars in figure.axes[0].containers}
    for bars in figure.axes[0].containers:
        (x,), (y,) = bars.lines[0].get_data()
        points[bars.get_label()].append((x, y))
    expected = [(0.5 / 8, 0), ((1 + 3) / 2 / 8 + 0.5 / 8, 1), (2.5 / 8, 2), (4.25 / 8, 3)]
    assert points["a"] == [pytest.approx((x, y - 0.06)) for x, y in expected]
    assert points["a + b"] == [pytest.approx((x, y + 0.06)) for x, y in expected]
    assert labels(changes_figure(rows, "b")) == [("b, nats a token", "")]
    assert changes_figure(rows[-1:]).axes[0].containers == []
    unknown = [
        {
            "settings": {"optimisation.seed": seed, "max_completion": None},
            "nll": {"a": {"b": 1.0}},
            "shares": {"a": {"success": None}},
        }
        for seed in (1, 2)
    ]
    assert changes_figure(unknown).axes[0].containers == []
    assert ticks(changes_figure(unknown, "b").axes[0])[1] == ["max_completion=None"]


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
    assert written(figure.axes[0]) == {(0, 1): "0.30", (1, 0): "1.20", (1, 1): "1.20"}
    assert ticks(figure.axes[0]) == (["3", "12"], ["all", "last"])
    assert labels(figure) == [("layer", "position"), ("", "german: german, nats a token")]
    other = {**rows[0], "nll": {}}  # a subspace that this run does not have
    assert (
        len(
            written(
                sweep_figure([other, *rows[1:]], "layer", "position", "german", "german").axes[0]
            )
        )
        == 2
    )
    assert changes_figure([other, *rows[1:]], "german").axes
    unknown = sweep_figure(rows, "layer", "position", "german", "success")
    assert written(unknown.axes[0]) == {}
    assert labels(unknown)[1] == ("", "german: success")
    figure = interference_figure(evaluation(0.5))
    assert written(figure.axes[0]) == {(0, 0): "0.10", (1, 0): "0.30", (0, 1): "-0.20"}
    assert ticks(figure.axes[0]) == (["a + b", "a + c"], ["a", "b"])
    assert labels(figure) == [("composition", "data set"), ("", "nats a token worse than alone")]
    grid = [[1.0, float("nan")], [2.0, 3.0]]
    figure = heat_figure(
        grid, ["a", "b"], ["c", "d"], rows_are="r", columns_are="c", values_are="v"
    )
    (image,) = figure.axes[0].images
    assert image.get_array().filled(-1).tolist() == [[1, -1], [2, 3]]
    assert [text.get_color() for text in figure.axes[0].texts] == ["white", "black", "black"]
    nothing = [[float("nan")]]
    assert heat_figure(
        nothing, ["a"], ["b"], rows_are="r", columns_are="c", values_are="v"
    )._repr_png_()


def test_compositions_show_gains_and_shares_with_their_intervals() -> None:
    figure = composition_figure(evaluation(0.5))
    gains, shares, scale = figure.axes
    assert gains.get_title() == "nats better than the base model"
    assert ticks(gains) == (["a", "b"], ["none", "a + b"])
    assert written(gains) == {(0, 0): "+0.00", (1, 0): "+0.00", (0, 1): "+2.00", (1, 1): "-0.50"}
    (image,) = gains.images
    assert image.get_array().tolist() == [[0, 0], [2, -0.5]]
    assert image.get_clim() == (-2, 2)
    assert scale.get_ylabel() == "nats a token"
    assert shares.get_xlabel() == "share of the answers"
    assert (shares.get_xlim(), shares.get_ylim()) == ((0, 1), (1.5, -0.5))
    assert legend(shares) == ["success", "on topic", "degenerate"]
    for container, share in zip(shares.containers[1::2], (0.5, 0.5, 0.25), strict=True):
        assert bars(container) == [share, share]
        for low, high in whiskers(container):
            assert (low, high) == pytest.approx((share - 0.1, share + 0.2))


def test_compositions_over_seeds_show_the_spread() -> None:
    figure = composition_figure(over_seeds({"one": evaluation(0.4), "two": evaluation(0.6)}))
    gains, shares, _ = figure.axes
    assert ticks(gains)[1] == ["none", "a + b"]
    assert len(gains.texts) == 4
    success = shares.containers[1]
    assert bars(success) == pytest.approx([0.5, 0.5])
    spread = 0.02**0.5
    for low, high in whiskers(success):
        assert (low, high) == pytest.approx((0.5 - spread, 0.5 + spread))


def test_unknown_shares_have_no_bars() -> None:
    shares = composition_figure(evaluation(None)).axes[1]
    assert legend(shares) == ["degenerate"]
    assert bars(shares.containers[1]) == [0.25, 0.25]


def test_an_adapter_by_layer(llama: PreTrainedModel) -> None:
    adapter = randomised(
        RoadModel(llama).add_adapter("a", layers=[0, 2], targets=["q_proj", "up_proj"])
    )
    figure = adapter_figure(adapter)
    assert ticks(figure.axes[0]) == (["0", "2"], ["q_proj", "up_proj"])
    assert labels(figure) == [("layer of the model", "linear layer"), ("", "mean |θ| (°)")]
    theta = adapter.of("model.layers.2.self_attn.q_proj")[0].detach()
    expected = float(((theta + 3.14159265) % 6.2831853 - 3.14159265).abs().mean()) * DEGREES
    assert float(written(figure.axes[0])[1, 0]) == pytest.approx(expected, abs=0.01)


def test_a_bench_shows_medians_and_their_range() -> None:
    def case(system: str, name: str, median: float, **more: Any) -> dict[str, Any]:
        return {
            "system": system, "name": name, "median_s": median, "min_s": 0.8 * median,
            "max_s": 1.5 * median, **more,
        }  # fmt: skip

    steps = [case("roadint", "step", 1.0), case("pyvene", "step", 2.0)]
    curves = [
        case(system, "step by rows", seconds, rows=rows)
        for system, rows, seconds in [("roadint", 8, 2.0), ("roadint", 4, 1.0), ("pyvene", 4, 3.0)]
    ]
    figure = bench_figure({"cases": [*steps, *curves, case("roadint", "whole job", 60.0)]})
    medians, by_rows = figure.axes
    assert medians.get_title() == "a training step"
    assert [text.get_text() for text in medians.texts] == ["roadint", "pyvene"]
    drawn = [each for each in medians.containers if isinstance(each, BarContainer)]
    assert [bars(each) for each in drawn] == [[1.0], [2.0]]
    assert [whiskers(each)[0] for each in drawn] == [[0.8, 1.5], [1.6, 3.0]]
    assert labels(figure) == [
        ("seconds (median, min to max)", ""), ("rows of a step", "seconds a step")
    ]  # fmt: skip
    assert lines(by_rows) == {"roadint": [[4, 1.0], [8, 2.0]], "pyvene": [[4, 3.0]]}
    assert legend(by_rows) == ["roadint", "pyvene"]
    assert by_rows.get_ylim()[0] == 0
    (only,) = bench_figure({"cases": [case("roadint", "first token", 0.1)]}).axes
    assert [text.get_text() for text in only.texts] == ["roadint, first token"]
    assert only.get_title() == ""


def test_a_bench_of_linear_layers_shows_time_over_the_base() -> None:
    layers = [
        {
            "name": "layer", "dtype": dtype, "tokens": tokens, "width": width, "system": system,
            "adapters": adapters, "over_base": 1 + adapters / width,
        }
        for dtype in ("float32", "bfloat16")
        for tokens in (1, 16)
        for width in (32, 64)
        for system in ("base", "roadint")
        for adapters in (8, 1)
    ]  # fmt: skip
    decode = {"name": "decode", "dtype": "float32", "rows": 4, "over_base": 1.5}
    failed = {"name": "memory", "dtype": "float32", "system": "PEFT RoAd", "error": "no"}
    cases = [*layers, {**decode, "system": "roadint, one adapter"}, failed]
    figure = linear_figure({"cases": cases})
    assert len(figure.axes) == 6
    assert [axes.get_title() for axes in figure.axes[:3]] == [
        "one layer, float32, 1 token a row",
        "one layer, float32, 16 tokens a row",
        "a decoding step, float32",
    ]
    narrow, wide, _ = (line.get_xydata().tolist() for line in figure.axes[0].get_lines())
    assert (narrow, wide) == ([[1, 33 / 32], [8, 1.25]], [[1, 65 / 64], [8, 1.125]])
    assert legend(figure.axes[0]) == ["roadint"]
    assert ticks(figure.axes[0])[0] == ["1", "8"]
    assert (figure.axes[0].get_xscale(), figure.axes[0].get_yscale()) == ("log", "log")
    assert ticks(figure.axes[2])[1] == ["roadint, one adapter in 4 rows"]
    assert bars(figure.axes[2].containers[0]) == [1.5]
    assert not figure.axes[5].patches
    assert len(linear_figure({"cases": []}).axes) == 1


def test_serving_shows_tokens_and_the_first_one_over_compositions() -> None:
    def case(cache: str, system: str, count: int, rate: float) -> dict[str, Any]:
        served = {"tokens_per_s": rate, "ttft_s": 10 / rate}
        return {"name": f"prefix cache {cache}", "system": system, "compositions": count, **served}

    ours, fresh = "roadint, adapters, 1 subspace", "roadint, adapters, 1 subspace, new in every run"
    cases = [
        case("off", "bare engine", 0, 100.0),
        case("off", "roadint, adapters", 0, 99.0),
        case("off", ours, 256, 90.0),
        case("off", ours, 1, 95.0),
        case("off", fresh, 256, 80.0),
        case("off", "vLLM LoRA r=8", 1, 20.0),
        case("on", ours, 1, 180.0),
        {"name": "thread time", "system": ours, "compositions": 1, "share": 0.1},
        {"name": "prefix cache on", "system": "vLLM LoRA r=8", "error": "no room"},
    ]
    figure = serve_figure({"job": {"requests": 256}, "cases": cases})
    off, on, off_first, _ = figure.axes
    assert [off.get_title(), on.get_title()] == ["prefix cache off", "prefix cache on"]
    assert lines(off) == {
        "bare engine": [[0, 100.0], [1, 100.0]],  # from one side to the other
        ours: [[0, 99.0], [1, 95.0], [2, 90.0]],
        fresh: [[2, 80.0]],
        "vLLM LoRA r=8": [[1, 20.0]],
    }
    assert lines(on) == {ours: [[1, 180.0]]}
    assert lines(off_first)["vLLM LoRA r=8"] == [[1, 0.5]]
    assert ticks(off_first)[0] == ["0", "1", "256"]
    assert labels(figure)[2] == (
        "different compositions in 256 requests", "seconds to the first token, median"
    )  # fmt: skip
    assert [text.get_text() for text in figure.legends[0].get_texts()] == [*lines(off)]
    assert len(serve_figure({"cases": []}).axes) == 2


@pytest.mark.parametrize("form", ["png", "svg", "pdf"])
def test_figures_are_written_in_every_form(form: str) -> None:
    picture = io.BytesIO()
    composition_figure(evaluation(0.5)).savefig(picture, format=form)
    start = {"png": b"\x89PNG", "svg": b"<?xml", "pdf": b"%PDF"}[form]
    assert picture.getvalue().startswith(start)


def test_throughput_goes_by_rank_tokens_and_requests() -> None:
    def case(name: str, system: str, speed: float, mode: str = "eager", **at: int) -> Any:
        sizes = {"requests": 8, "tokens": 2048, **at}
        return {
            "name": name,
            "system": system,
            "tokens_per_s": speed,
            "mode": mode,
            **sizes,
        }

    cases = [
        case("ranks", "base", 130, requests=1),
        case("ranks", "roadint RoAd1", 120, requests=1),
        case("ranks", "roadint RoAd1 merged", 130, requests=1),
        case("ranks", "bmm LoRA r=1", 100, requests=1),
        case("ranks", "bmm LoRA r=16", 90, requests=1),
        *(case("lengths", "roadint", 900 - n, tokens=n) for n in (256, 4096)),
        *(case("lengths", "bmm LoRA r=8", 600 - n, mode="graph", tokens=n) for n in (256, 4096)),
        *(case("requests", "roadint", 100 * n, requests=n) for n in (1, 2, 16)),
        {"name": "requests", "system": "PEFT RoAd", "error": "half precision"},
        {"name": "training", "system": "PEFT RoAd", "median_s": 1.0},
    ]
    figure = throughput_figure({"cases": cases})
    unit = "generated tokens a second"
    assert labels(figure) == [
        ("LoRA's rank, one request", unit),
        ("generated tokens", unit),
        ("requests, each with an adapter of its own", unit),
    ]
    ranks, lengths, requests = figure.axes
    assert lines(ranks) == {
        "base, eager": [[1, 130], [16, 130]],
        "roadint RoAd1, eager": [[1, 120], [16, 120]],
        "roadint RoAd1 merged, eager": [[1, 130], [16, 130]],
        "bmm LoRA, eager": [[1, 100], [16, 90]],
    }
    assert lines(lengths) == {
        "roadint RoAd1, eager": [[256, 644], [4096, -3196]],
        "bmm LoRA, graph": [[256, 344], [4096, -3496]],
    }
    assert lines(requests) == {"roadint RoAd1, eager": [[1, 100], [2, 200], [16, 1600]]}
    assert [ticks(panel)[0] for panel in figure.axes] == [
        ["1", "16"],
        ["256", "4,096"],
        ["1", "2", "16"],
    ]
    (shown,) = figure.legends
    assert len(shown.get_texts()) == 5
    styles = {line.get_label(): line for panel in figure.axes for line in panel.get_lines()}
    assert styles["bmm LoRA, graph"].get_linestyle() == "--"
    assert styles["bmm LoRA, graph"].get_color() == styles["bmm LoRA, eager"].get_color()
    assert styles["roadint RoAd1 merged, eager"].get_marker() == "s"
    (only,) = throughput_figure({"cases": cases[:2]}).axes
    assert set(lines(only)) == {"base", "roadint RoAd1"}  # one mode needs no name
    assert throughput_figure({"cases": []})._repr_png_()


def test_the_cost_of_training_is_time_and_memory() -> None:
    cases = [
        {
            "name": "training",
            "system": "roadint RoAd1",
            "hundred_steps_s": 9.0,
            "beside_mb": 5000.0,
        },
        {"name": "training", "system": "PEFT OFT w=2", "hundred_steps_s": 200.0, "beside_mb": 2e4},
        {"name": "training", "system": "PEFT BOFT w=4 m=2", "error": "out of memory"},
        {"name": "ranks", "system": "base"},
    ]
    figure = training_cost_figure({"cases": cases})
    assert [label for label, _ in labels(figure)] == [
        "seconds for 100 steps",
        "GB beside the weights",
    ]
    seconds, memory = figure.axes
    assert bars(seconds.containers[0]) == [9.0, 200.0, 0]
    assert bars(memory.containers[0]) == [5.0, 20.0, 0]
    assert ticks(seconds)[1] == ["roadint RoAd1", "PEFT OFT w=2", "PEFT BOFT w=4 m=2"]
    assert [text.get_text() for text in memory.texts] == ["5", "20", "fails"]


def learned(family: str, numbers: int, test: float, rank: int | None = None) -> dict[str, Any]:
    ranked = {} if rank is None else {"rank": rank}
    return {
        "method": family, "family": family, **ranked, "numbers": numbers, "test": test, "sd": 0.01,
    }  # fmt: skip


def test_learning_over_numbers() -> None:
    """A point a method with its spread; lines join RoAd's variants and each method's ranks; a head alone is a level."""
    cases = [
        learned("road_2", 40, 0.84),
        learned("road_1", 20, 0.81),
        learned("lora", 300, 0.85, 8),
        learned("lora", 75, 0.82, 2),
        learned("road_1+lora", 95, 0.86, 2),
        learned("full", 100_000, 0.9),
        {"method": "base", "numbers": 0, "test": 0.5},
        {**learned("head", 0, 0.6), "sd": None},
    ]
    job = {"task": "sst2", "model": "models/small", "metric": "accuracy"}
    figure = learn_figure({"job": job, "cases": cases})
    (panel,) = figure.axes
    drawn = [container.lines[0].get_xydata().round(6).tolist() for container in panel.containers]  # type: ignore[attr-defined]
    assert sorted(drawn) == [
        [[20, 81], [40, 84]],
        [[75, 82], [300, 85]],
        [[95, 86]],
        [[100_000, 90]],
    ]
    names = {text.get_text() for text in panel.texts}
    assert names == {
        "RoAd1", "RoAd2", "r=2", "LoRA r=8", "RoAd1 + LoRA r=2", "full finetuning", "untrained", "head alone",
    }  # fmt: skip
    assert panel.get_xscale() == "log"
    assert labels(figure) == [("trained numbers, without heads", "accuracy on test rows, × 100")]
    figure.draw_without_rendering()
    boxes = [text.get_window_extent() for text in panel.texts]
    assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])
    assert all(panel.bbox.contains(*corner) for box in boxes for corner in (box.p0, box.p1))


def test_learning_of_several_tasks() -> None:
    """A panel a task, in rows of three; what is left of the last row stays empty."""
    cases = [learned("road_1", 20, 0.81), learned("lora", 300, 0.85, 8)]
    reports = [
        {"job": {"task": task, "model": "small", "metric": "accuracy"}, "cases": cases[:count]}
        for task, count in (("sst2", 2), ("rte", 1), ("mrpc", 2), ("stsb", 1))
    ]
    figure = learn_figure(*reports)
    shown = [panel for panel in figure.axes if panel.axison]
    assert [panel.get_title() for panel in shown] == [
        "sst2, small", "rte, small", "mrpc, small", "stsb, small",
    ]  # fmt: skip
    assert [len(panel.containers) for panel in shown] == [2, 1, 2, 1]
    assert len(figure.axes) == 6
    assert all(text.get_text() for panel in shown for text in panel.texts)

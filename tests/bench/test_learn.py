"""`roadint bench learn`: that every method trains what it says, how rates are chosen, what an interrupted run keeps."""

import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import PreTrainedModel

from roadint import Recipe, RoadError
from roadint.bench import learn
from roadint.bench.learn import bench_learn
from roadint.bench.learn_methods import DEFAULTS, RATES, Method, methods_named, rates_of
from roadint.bench.learn_systems import OtherMethod
from roadint.tasks.classification import ClassificationTask
from roadint.tasks.registry import task_of
from roadint.tasks.run import fit, load_for
from tests.helpers import IDS, LAYERS, WIDTH, build, call, check_drawn, encoder

pytest.importorskip("peft")

OTHERS = [
    "lora", "lora_2", "dora", "ia3", "oft", "boft", "bitfit", "loreft", "loreft_1", "full", "head",
]  # fmt: skip
LABELS = torch.tensor([0, 1, 2, 1])


def linear(model: nn.Module) -> list[nn.Linear]:
    """What "all-linear" means: no heads of any kind."""
    heads = ("classifier", "lm_head")
    named = model.named_modules()
    return [each for name, each in named if isinstance(each, nn.Linear) and name not in heads]


def size(model: nn.Module, named: Callable[[str], bool] = lambda name: True) -> int:
    return sum(value.numel() for name, value in model.named_parameters() if named(name))


def expected(name: str, model: PreTrainedModel, sites: int) -> int:
    """The numbers that a method trains, from widths alone."""
    widths = [(each.in_features, each.out_features) for each in linear(model)]
    rank = Method.named(name).rank or 0
    return {
        "lora": sum(rank * (i + o) for i, o in widths),
        "dora": sum(rank * (i + o) + o for i, o in widths),
        "ia3": sum(o for _, o in widths),
        "oft": sum(i // 2 for i, _ in widths),  # one for each block of 2
        "boft": sum(4 * i + o for i, o in widths),
        "bitfit": size(
            model, lambda path: path.endswith("bias") and not path.startswith("classifier")
        ),
        "loreft": sites * rank * (2 * WIDTH + 1),
        "full": size(model, lambda path: not path.startswith("classifier")),
        "head": 0,
    }[Method.named(name).family]


def recipe_of(heads: list[str], **settings: Any) -> Recipe:
    return Recipe.load("glue", {"task": "sst2", "heads": heads, **settings})


def prepared(kind: str) -> tuple[PreTrainedModel, list[str], dict[str, Any], int]:
    if kind == "bert":
        return encoder(), ["classifier"], {"input_ids": IDS, "labels": LABELS}, LAYERS
    return build("llama"), [], {"input_ids": IDS, "labels": IDS}, 2 * LAYERS


@pytest.mark.parametrize("name", OTHERS)
@pytest.mark.parametrize("kind", ["bert", "llama"])
def test_each_method_trains_what_it_says(kind: str, name: str) -> None:
    """As many numbers as the widths say; the loss falls; all other weights stay, bit for bit."""
    model, heads, inputs, sites = prepared(kind)
    if kind == "llama" and name == "bitfit":
        with pytest.raises(
            RoadError, match="'bitfit' trains biases, and LlamaForCausalLM has none"
        ):
            OtherMethod(model, Method.named(name), recipe_of(heads))
        return
    numbers = expected(name, model, sites)
    with torch.no_grad():
        plain = model(**inputs).logits
    system = OtherMethod(model, Method.named(name), recipe_of(heads))
    system.train()
    if not name.startswith("loreft"):  # whose edit starts at random, as pyreft's
        torch.testing.assert_close(system(**inputs).logits, plain, rtol=0, atol=1e-4)
    trained = {n: p for n, p in system.named_parameters() if p.requires_grad}
    assert sum(p.numel() for p in trained.values()) == numbers + system.head_size
    assert system.head_size == (WIDTH * 3 + 3 if heads else 0)
    assert set(system.state_dict()) == set(trained)
    if not trained:
        return
    before = {n: p.detach().clone() for n, p in system.named_parameters()}
    optimizer = torch.optim.AdamW(list(trained.values()), 3e-3, weight_decay=0.0)
    losses = []
    for _ in range(12):
        loss = system(**inputs).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0] - 0.02
    changed = {n for n, p in system.named_parameters() if not torch.equal(p, before[n])}
    assert changed == set(trained)


@pytest.mark.parametrize("kind", ["bert", "llama"])
def test_loreft_acts_where_the_head_reads(kind: str) -> None:
    """An encoder's first three tokens, of a language model the first seven and the last seven of the prompt alone."""
    model, heads, *_ = prepared(kind)
    system = OtherMethod(model, Method.named("loreft"), recipe_of(heads))
    assert system.road is not None
    found = [(each.layer, str(each.position)) for each in system.road.interventions]
    ends = ["first(3)"] if kind == "bert" else ["first(7)", "last(7)"]
    assert found == [(layer, end) for layer in range(LAYERS) for end in ends]
    one = recipe_of(heads, layers=[1])
    system = OtherMethod(prepared(kind)[0], Method.named("loreft_2"), one)
    assert {each.layer for each in system.road.interventions} == {1}  # type: ignore[union-attr]
    assert {each.rank for each in system.road.interventions} == {2}  # type: ignore[union-attr]


@pytest.mark.parametrize("name", OTHERS)
def test_numbers_train_in_float32_in_a_model_of_half_precision(name: str) -> None:
    system = OtherMethod(encoder().bfloat16(), Method.named(name), recipe_of(["classifier"]))
    system(input_ids=IDS, labels=LABELS).loss.backward()
    for parameter in system.parameters():
        if parameter.requires_grad:
            assert parameter.dtype == torch.float32
            assert parameter.grad is not None


@pytest.mark.parametrize("name", ["full", "loreft", "bitfit", "dora"])
def test_the_best_epoch_is_kept(
    name: str, classifier: str, sentiment: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Validation says the first of three epochs was the best: the values afterwards are the first epoch's."""
    own = ClassificationTask.score
    told = iter([0.9, 0.5, 0.4, 0.9])

    def score(self: Any, model: Any, tokenizer: Any, split: str) -> float:
        return next(told) if split == "validation" else own(self, model, tokenizer, split)

    monkeypatch.setattr(ClassificationTask, "score", score)
    settings = {"model": classifier, "batch_size": 16, "lr": 3e-3, "schedule": "constant"}
    states = []
    for epochs in (3, 1):
        recipe = recipe_of(["classifier"], **settings, epochs=epochs)
        task = task_of(recipe, sentiment)
        torch.manual_seed(0)
        model, tokenizer = load_for(task, recipe)
        system = OtherMethod(model, Method.named(name), recipe)
        fit(system, tokenizer, task, recipe)
        states.append({n: p.detach().clone() for n, p in system.named_parameters()})
    assert states[0].keys() == states[1].keys()
    for path, value in states[0].items():
        assert torch.equal(value, states[1][path]), path


@pytest.mark.parametrize("name", ["road_1", "lora", "loreft", "full"])
def test_dropout_is_every_methods(
    name: str, classifier: str, sentiment: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In training as the recipe says, never where something is scored."""
    modes: dict[str, list[bool]] = {"training": [], "scoring": []}
    own = ClassificationTask.score

    def score(self: Any, model: Any, *arguments: Any) -> float:
        modes["scoring"].append(any(each.training for each in model.model.modules()))
        return own(self, model, *arguments)

    def note(module: nn.Module, inputs: Any, output: Any) -> None:
        if torch.is_grad_enabled():
            modes["training"].append(module.training)

    def loaded(*arguments: Any) -> Any:
        model, tokenizer = load_for(*arguments)
        dropout = next(each for each in model.modules() if isinstance(each, nn.Dropout))
        dropout.register_forward_hook(note)
        return model, tokenizer

    monkeypatch.setattr(ClassificationTask, "score", score)
    monkeypatch.setattr(learn, "load_for", loaded)
    for dropout in (False, True):
        modes["training"].clear()
        recipe = recipe_of(
            ["classifier"], model=classifier, batch_size=32, epochs=1, dropout=dropout
        )
        bench_learn(recipe, sentiment, methods=[name], seeds=(1,), quiet=True)
        assert modes["training"]
        assert set(modes["training"]) == {dropout}
    assert not any(modes["scoring"])


def test_every_default_runs_and_counts_its_numbers(
    classifier: str, sentiment: dict[str, str]
) -> None:
    recipe = recipe_of(["classifier"], model=classifier, batch_size=32, epochs=1)
    names = [*DEFAULTS, "bitfit"]
    report = bench_learn(recipe, sentiment, methods=names, seeds=(1,), quiet=True)
    model = load_for(task_of(recipe, sentiment), recipe)[0]
    outputs = sum(each.out_features for each in linear(model))
    both = sum(4 * (each.in_features + each.out_features) for each in linear(model))
    roads = {"road_1": 1, "road_2": 2, "road_4": 4}
    for case in report["cases"]:
        name = case["method"]
        wanted = (
            outputs * roads[name]
            if name in roads
            else outputs + both
            if name == "road_1+lora"
            else expected(name, model, 2)
        )
        assert case["numbers"] == wanted, name
        assert case["head"] == WIDTH * 2 + 2
        assert case["lr"] == RATES[name]
        assert (case["sd"], case["seeds"], "tries" in case) == (None, 1, False)
    assert [case["method"] for case in report["cases"]] == names


def test_names_of_methods() -> None:
    assert Method.named("dora_16") == Method("dora_16", "dora", 16)
    assert Method.named("lora").rank == 8
    for name, message in (
        ("loora", "unknown method 'loora': .*did you mean 'lora'"),
        ("lora_0", "unknown method 'lora_0'"),
        ("ia3_4", "unknown method 'ia3_4'"),
    ):
        with pytest.raises(RoadError, match=message):
            Method.named(name)
    with pytest.raises(RoadError, match="'lora' and 'lora_8' are the same"):
        methods_named(["lora", "lora_8"])


@pytest.mark.parametrize("tries", range(1, 6))
def test_rates_lie_evenly_around_the_methods_own(tries: int) -> None:
    for name, own in RATES.items():
        rates = rates_of(Method.named(name), tries, {})
        assert len(rates) == tries
        for lower, upper in zip(rates, rates[::-1], strict=True):
            assert lower * upper == pytest.approx(own**2, rel=0.01)
        for lower, upper in itertools.pairwise(rates):
            assert upper / lower == pytest.approx(3, rel=0.01)


@pytest.fixture
def job(
    classifier: str, sentiment: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> tuple[Callable[..., dict[str, Any]], list[tuple[str, int, float]]]:
    """A bench whose runs take no time: their best validation is the higher the nearer the rate is to 0.015; 0.045 fails."""
    ran: list[tuple[str, int, float]] = []

    def finetune(method: Method, recipe: Recipe, task: Any) -> Any:
        rate, seed = recipe.optimisation.lr, recipe.optimisation.seed
        ran.append((method.name, seed, rate))
        if rate > 0.04:
            raise RoadError("values are not finite")
        best = 0.9 - abs(rate - 0.015)
        figures = {
            "validation": [0.1, best, 0.2], "test": best + seed / 100, "trainable": 30, "head": 10, "seconds": 1.0,
        }  # fmt: skip
        return figures, (torch.device("cpu"), torch.float32)

    monkeypatch.setattr(learn, "_finetune", finetune)
    monkeypatch.setattr(learn, "machine", lambda *used: {"processor": "none"})

    def run(data: dict[str, str] | None = None, **more: Any) -> dict[str, Any]:
        settings = more.pop("settings", {})
        recipe = recipe_of(["classifier"], model=classifier, **settings)
        return bench_learn(recipe, data or sentiment, quiet=True, **more)

    return run, ran


def test_the_first_seed_tries_rates_and_the_others_take_the_best(job: Any) -> None:
    run, ran = job
    report = run(methods=["road_1", "ia3"], rates={"ia3": 0.002}, tries=5, seeds=(4, 5, 6))
    rates = [0.000556, 0.00167, 0.005, 0.015, 0.045]
    assert ran == [
        *(("road_1", 4, rate) for rate in rates),
        ("ia3", 4, 0.002),
        *((name, seed, rate) for seed in (5, 6) for name, rate in (("road_1", 0.015), ("ia3", 0.002))),
    ]  # fmt: skip
    ours, theirs = report["cases"]
    assert (ours["lr"], ours["edge"]) == (0.015, False)
    assert [each["lr"] for each in ours["tries"]] == rates
    assert ours["tries"][3] == {"lr": 0.015, "validation": 0.9}
    assert ours["tries"][4] == {"lr": 0.045, "error": "values are not finite"}
    assert ours["test"] == pytest.approx(0.95)
    assert ours["sd"] == pytest.approx(0.01)
    assert "tries" not in theirs
    assert len(report["runs"]) == len(ran)
    (ours,) = run(methods=["road_1"], tries=3, seeds=(1,))["cases"]
    assert (ours["lr"], ours["edge"]) == (0.015, True)


def test_equal_rates_are_decided_by_the_methods_own(job: Any, monkeypatch: Any) -> None:
    run, _ = job
    own = learn._finetune

    def flat(*arguments: Any) -> Any:
        figures, used = own(*arguments)
        return {**figures, "validation": [0.5]}, used

    monkeypatch.setattr(learn, "_finetune", flat)
    (case,) = run(methods=["lora"], tries=3, seeds=(1,))["cases"]
    assert case["lr"] == RATES["lora"]


def test_what_fails_everywhere_is_told(job: Any) -> None:
    run, _ = job
    with pytest.raises(RoadError, match="values are not finite"):
        run(methods=["road_1"], rates={"road_1": 1.0})
    with pytest.raises(RoadError, match="unknown method with a rate 'lora'"):
        run(methods=["road_1"], rates={"lora": 1e-3})
    with pytest.raises(RoadError, match="lora_rank=4: .*expected method 'road_1.lora_4'"):
        run(settings={"lora_rank": 4})


def test_kept_runs_are_not_repeated(job: Any) -> None:
    """Whatever run a kill came after; a try that failed is tried again."""
    run, ran = job
    kept: list[str] = []
    wanted = {"methods": ["road_1", "lora"], "tries": 5, "seeds": (1, 2)}
    whole = run(done=lambda report: kept.append(json.dumps(report)), **wanted)
    order = list(ran)
    assert len(kept) == len(order) == 12
    assert json.loads(kept[-1]) == json.loads(json.dumps(whole))
    for count, text in enumerate(kept, 1):
        ran.clear()
        again = run(kept=json.loads(text), **wanted)
        failed = [each for each in order[:count] if each[2] > 0.04]
        assert ran == sorted([*failed, *order[count:]], key=order.index)
        assert again["cases"] == whole["cases"]
    ran.clear()
    more = run(kept=json.loads(kept[-1]), **{**wanted, "seeds": (1, 2, 3)})
    assert [each for each in ran if each[2] < 0.04] == [
        ("road_1", 3, 0.015),
        ("lora", 3, 0.0045),
    ]
    assert more["cases"][0]["seeds"] == 3


def test_a_report_of_another_job_is_refused(
    job: Any, sentiment: dict[str, str], tmp_path: Path
) -> None:
    run, _ = job
    kept = run(methods=["road_1"], seeds=(1,))
    with pytest.raises(RoadError, match="another job, with epochs 20"):
        run(methods=["road_1"], seeds=(1,), kept=kept, settings={"epochs": 2})
    with pytest.raises(RoadError, match="another job, with recipe"):
        run(methods=["road_1"], seeds=(1,), kept=kept, settings={"batch_size": 8})
    with pytest.raises(RoadError, match="another job, with rows"):
        run(methods=["road_1"], seeds=(1,), kept=kept, settings={"rows": 8})
    for broken in ({}, {"job": 5}, {**kept, "runs": [{}]}, {**kept, "runs": 5}):
        with pytest.raises(RoadError, match="the report to resume is none"):
            run(methods=["road_1"], kept=broken)


def test_the_command_keeps_resumes_and_draws(
    job: Any,
    classifier: str,
    sentiment: dict[str, str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    _, ran = job
    out, plot = tmp_path / "learn.json", tmp_path / "learn.png"
    command = [
        "bench", "learn", "glue", "--model", classifier, "--set", "task=sst2", "--tries", "3", "--seed", "1",
        "--seed", "2", "--method", "road_1", "--method", "road_1+lora_2", "--method", "lora_2",
        *(f"--data={name}={file}" for name, file in sentiment.items()),
    ]  # fmt: skip
    arguments = [*command, "--out", str(out), "--resume", "--plot", str(plot)]
    code, shown, errors = call(capsys, monkeypatch, *arguments, "--json")
    assert code == 0, errors
    report = json.loads(shown)
    assert report == json.loads(out.read_text())
    assert {"machine", "job", "runs", "cases"} == set(report)
    check_drawn(plot)
    count = len(ran)
    code, shown, errors = call(capsys, monkeypatch, *arguments)
    assert (code, len(ran)) == (0, count), errors
    assert "road_1+lora_2" in shown
    assert "at the edge" in " ".join(shown.split())
    code, _, errors = call(capsys, monkeypatch, *arguments, "--beside", str(out))
    assert (code, len(ran)) == (0, count), errors
    check_drawn(plot)
    other = tmp_path / "other.json"
    other.write_text('{"cases": []}')
    for more, message in (
        ([*command, "--resume"], "expected --out FILE"),
        ([*arguments, "--set", "epochs=1"], "the report to resume is of another job"),
        ([*command, "--beside", str(out)], "expected --plot FILE"),
        ([*arguments, "--beside", str(other)], "holds no report of a benchmark"),
    ):
        code, _, errors = call(capsys, monkeypatch, *more)
        assert (code, message in errors) == (2, True), errors
    out.write_text("[1, 2")
    code, _, errors = call(capsys, monkeypatch, *arguments)
    assert (code, "truncated or no JSON" in errors) == (2, True), errors


def test_every_seed_has_a_split_of_its_own(
    job: Any, classifier: str, sentiment: dict[str, str], monkeypatch: Any
) -> None:
    run, _ = job
    own, splits = learn._finetune, {}

    def finetune(method: Method, recipe: Recipe, task: Any) -> Any:
        splits.setdefault(recipe.optimisation.seed, []).append(task.splits["test"])
        return own(method, recipe, task)

    monkeypatch.setattr(learn, "_finetune", finetune)
    run(methods=["road_1", "lora"], seeds=(1, 2))
    assert splits[1][0] == splits[1][1] != splits[2][0] == splits[2][1]

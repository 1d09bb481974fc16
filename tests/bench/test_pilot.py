"""The pilot studies as a benchmark, against states and scores that are computed by hand; on a tiny encoder."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from roadint import Recipe, RoadError
from roadint.bench import pilot_changes
from roadint.bench.pilot import bench_pilot
from roadint.bench.pilot_changes import changes, claims
from roadint.bench.pilot_classifiers import Frozen, best_classifier, compare, encode
from roadint.plots import pilot_figure
from roadint.tasks.classification import ClassificationTask
from tests.helpers import call, check_drawn, write_tsv


def loaded(folder: str) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    return model, AutoTokenizer.from_pretrained(folder)


def recipe(folder: str, task: str = "sst2", **settings: Any) -> Recipe:
    return Recipe.load("glue", {"model": folder, "task": task, "max_length": 64, **settings})


@torch.no_grad()
def one_by_one(model: Any, tokenizer: PreTrainedTokenizerBase, texts: list[str]) -> Tensor:
    """[layers, rows, width], without batches and padding."""
    found = []
    for text in texts:
        outputs = model(**tokenizer(text, return_tensors="pt"), output_hidden_states=True)
        found.append(torch.stack([state[0, 0] for state in outputs.hidden_states[1:]]))
    return torch.stack(found, dim=1)


def test_changes_are_those_of_two_models_states(
    classifier: str, sentiment: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The numbers of study 1 are those of the paper's formulas on both models' states."""
    kept: list[Any] = []
    real = pilot_changes.fit

    def fit(system: Any, *args: Any) -> dict[str, Any]:
        figures = real(system, *args)
        kept.append(system)
        return figures

    monkeypatch.setattr(pilot_changes, "fit", fit)
    chosen = recipe(classifier, epochs=1, batch_size=8)
    data = {f"sst2.{split}": file for split, file in sentiment.items()}
    report = bench_pilot(chosen, data, study="1", seeds=[3], rates={"full": 1e-2, "lora": 1e-2, "road_1": 0.1}, quiet=True)  # fmt: skip
    task = ClassificationTask(chosen, sentiment)
    texts = [row.texts[0] for split in ("validation", "test") for row in task.splits[split]]
    model, tokenizer = loaded(classifier)
    x0 = one_by_one(model, tokenizer, texts).double()
    assert [run["method"] for run in report["runs"]] == ["full", "lora", "road_1"]
    for system, run in zip(kept, report["runs"], strict=True):
        x = one_by_one(system, tokenizer, texts).double()
        size = (x.norm(dim=-1) - x0.norm(dim=-1)).abs() / x0.norm(dim=-1)
        cosine = (x * x0).sum(-1) / (x.norm(dim=-1) * x0.norm(dim=-1))
        cases = [case for case in report["cases"] if case["method"] == run["method"]]
        assert [case["layer"] for case in cases] == [0, 1]
        for case, m, d in zip(cases, size, cosine, strict=True):
            assert case["rows"] == len(texts) == 60
            assert case["magnitude"] == pytest.approx(float(m.mean()), abs=2e-5)
            assert case["direction"] == pytest.approx(float(d.mean()), abs=2e-5)
            assert case["direction_sd"] == pytest.approx(float(d.std(correction=0)), abs=2e-5)
            assert case["rows_direction_larger"] == pytest.approx(float((1 - d > m).double().mean()), abs=0.02)  # fmt: skip
            assert case["direction"] < 0.9999  # it did train
            drawn = torch.tensor(case["points"])
            torch.testing.assert_close(drawn, torch.stack([m, d], dim=1).float(), atol=1e-4, rtol=0)
    whole = sum(parameter.numel() for parameter in model.parameters())
    trained = {run["method"]: run["trainable"] for run in report["runs"]}
    assert trained["full"] == whole
    assert trained["road_1"] < trained["lora"] < whole


def test_turned_scaled_and_random_changes() -> None:
    """A turn is no change of size, a scaling none of direction; a random move in many dims mostly turns."""
    x0 = torch.randn(2, 500, 256, generator=torch.Generator().manual_seed(7))
    turned = x0[..., torch.randperm(256)]
    only_turned, only_scaled = changes(x0, turned), changes(x0, 1.5 * x0)
    torch.testing.assert_close(only_turned.magnitude, torch.zeros(2, 500), atol=1e-5, rtol=0)
    torch.testing.assert_close(only_scaled.direction, torch.ones(2, 500))
    torch.testing.assert_close(only_scaled.magnitude, torch.full((2, 500), 0.5))
    # a random move of half the size is nearly at a right angle to x0
    mean = float(only_scaled.by_chance.mean())
    assert mean == pytest.approx(np.sqrt(1 + 0.25) - 1, abs=0.005)


def test_claims_say_in_which_layers() -> None:
    def case(method: str, layer: int, magnitude: float, direction: float) -> dict[str, Any]:
        turn = (2 * (1 - direction)) ** 0.5
        about = {"study": 1, "method": method, "layer": layer, "magnitude": magnitude}
        return {**about, "direction": direction, "turn": turn, "correlation": 0.1, "magnitude_by_chance": 0.0}  # fmt: skip

    cases = [
        case("full", 0, 0.1, 0.995),  # 1 − ΔD is less than ΔM, and the turn moves as far
        case("full", 1, 0.1, 0.5),
        case("lora", 0, 0.05, 0.999),
        case("lora", 1, 0.2, 0.6),
    ]
    found = {claim["claim"]: claim["layers"] for claim in claims(cases)}
    assert found["full finetuning: 1 − ΔD is above ΔM"] == [1]
    assert found["LoRA r=8: 1 − ΔD is above ΔM"] == [1]
    assert found["LoRA r=8: a turn moves more than a change of size"] == [1]
    assert found["full finetuning changes both more than LoRA r=8"] == [0]
    assert not any("changes both" in claim["claim"] for claim in claims(cases[:2]))


def task_of_rows(folder: str, files: dict[str, str]) -> tuple[ClassificationTask, Recipe]:
    chosen = recipe(folder)
    return ClassificationTask(chosen, files), chosen


def test_a_frozen_encoder_is_read_once(classifier: str, sentiment: dict[str, str]) -> None:
    """A classifier of cached states is the encoder with the classifier on top."""
    task, chosen = task_of_rows(classifier, sentiment)
    frozen = encode(task, chosen)
    model, tokenizer = loaded(classifier)
    for split, rows in task.splits.items():
        states = one_by_one(model, tokenizer, [row.texts[0] for row in rows])[-1]
        torch.testing.assert_close(frozen["pretrained"].states[split], states, atol=1e-4, rtol=1e-4)
        assert frozen["random"].labels[split].tolist() == [row.label for row in rows]
    for other in ("validation", "train"):
        assert not torch.allclose(frozen["random"].states[other], frozen["pretrained"].states[other], atol=0.1)  # fmt: skip
    again = encode(task, chosen)["random"].states["test"]
    torch.testing.assert_close(frozen["random"].states["test"], again, atol=0, rtol=0)


def made(direction: bool, size: bool, count: int = 512) -> Frozen:
    """States whose direction or size, or both or neither, tell the class."""
    draw = torch.Generator().manual_seed(0)
    labels = torch.randint(2, (3 * count,), generator=draw)
    states = torch.randn(3 * count, 16, generator=draw)
    states[:, 1] += 8  # a mean, as real ones have: Wᵀx and tanh alone can't tell the size of ±x
    if direction:
        signs = 2.0 * labels - 1
        states[:, 0] = signs * (2 + states[:, 0].abs())
    states = torch.nn.functional.normalize(states, dim=-1)
    states *= (0.6 + 0.8 * labels)[:, None] if size else 1.0
    names = ("train", "validation", "test")
    return Frozen(
        dict(zip(names, states.split(count), strict=True)),
        dict(zip(names, labels.numpy().reshape(3, count), strict=True)),
        float(states.norm(dim=-1).mean()),
    )


@pytest.mark.parametrize(("direction", "size"), [(True, False), (False, True)])
def test_what_a_classifier_can_learn(
    classifier: str, sentiment: dict[str, str], direction: bool, size: bool
) -> None:
    """Magnitude is blind to direction, angle to size, and both see either."""
    task, _ = task_of_rows(classifier, sentiment)
    frozen = made(direction, size)
    found = {}
    for reads in ("both", "angle", "magnitude"):
        trained = best_classifier(frozen, task, reads, rate=2e-2, seed=0, epochs=30, batch_size=32)  # type: ignore[arg-type]
        found[reads] = float((trained.predicted == frozen.labels["test"]).mean())
        assert abs(found[reads] - trained.validation) < 0.1
    assert found["both"] > 0.85
    assert (found["angle"] > 0.85) == direction
    assert (found["magnitude"] > 0.85) == size
    assert found["magnitude" if direction else "angle"] < 0.6


def test_units_of_states_do_not_matter(classifier: str, sentiment: dict[str, str]) -> None:
    """All are divided by their mean size, so that tanh is not saturated at the start."""
    task, _ = task_of_rows(classifier, sentiment)
    frozen = made(False, True)
    larger = Frozen(
        {split: 64 * states for split, states in frozen.states.items()}, frozen.labels, 64 * frozen.scale
    )  # fmt: skip
    settings: dict[str, Any] = {"rate": 1e-2, "seed": 0, "epochs": 2, "batch_size": 32}
    for reads in ("both", "magnitude"):
        once, again = (best_classifier(f, task, reads, **settings) for f in (frozen, larger))  # type: ignore[arg-type]
        assert once.validation == again.validation
        assert (once.predicted == again.predicted).all()


def test_differences_have_intervals_over_rows() -> None:
    labels = np.array([0, 1] * 100)
    right, half, wrong = labels, np.zeros(200), 1 - labels
    sure = compare("sst2", "angle", "magnitude", [right, right], [wrong, half], labels)
    assert (sure["difference"], sure["holds"]) == (0.75, True)
    assert sure["low"] < 0.75 < sure["high"]
    assert compare("sst2", "a", "b", [half], [right], labels)["holds"] is False
    same = compare("sst2", "a", "b", [half], [half], labels)
    assert (same["low"], same["high"], same["holds"]) == (0.0, 0.0, None)


@pytest.fixture
def headless(classifier: str, tmp_path: Path) -> str:
    """The encoder's folder without a head, whose classes would be those of one task."""
    model, tokenizer = loaded(classifier)
    for part in (model.base_model, tokenizer):
        part.save_pretrained(tmp_path / "encoder")
    return str(tmp_path / "encoder")


@pytest.fixture
def glue(sentiment: dict[str, str], tmp_path: Path) -> list[str]:
    """--data of SST-2 and of a regression, STS-B."""
    draw, files = np.random.default_rng(0), {}
    for split, count in (("train", 40), ("dev", 24)):
        rows = [f"{'a' * n}\tb\t{n / 2}" for n in draw.integers(1, 9, size=count)]
        files[split] = write_tsv(tmp_path / f"{split}.tsv", "sentence1\tsentence2\tscore", rows)
    named = {f"sst2.{k}": v for k, v in sentiment.items()} | {f"stsb.{k}": v for k, v in files.items()}  # fmt: skip
    return [text for name, file in named.items() for text in ("--data", f"{name}={file}")]


def test_the_command(
    headless: str, glue: list[str], tmp_path: Path, capsys: Any, monkeypatch: Any
) -> None:
    out, plot = tmp_path / "pilot.json", tmp_path / "pilot.png"
    arguments = ["--model", headless, "--rows", "32", "--epochs", "1", "--classifier-rows", "30", "--classifier-epochs", "2",
                 "--set", "max_length=64", "--seed", "1", "--seed", "2", "--method", "lora", "--method", "road_1"]  # fmt: skip
    code, shown, errors = call(
        capsys, monkeypatch, "bench", "pilot", *glue, *arguments, "--out", str(out), "--plot", str(plot),
    )  # fmt: skip
    assert code == 0, errors
    report = json.loads(out.read_text())
    assert report["job"]["tasks"]["sst2"]["train"] == 32
    assert report["job"]["tasks"]["stsb"]["train"] == 30
    assert {(run["method"], run["seed"]) for run in report["runs"]} == {(m, s) for m in ("lora", "road_1") for s in (1, 2)}  # fmt: skip
    changed = [case for case in report["cases"] if case["study"] == 1]
    assert [(case["method"], case["layer"], case["rows"]) for case in changed] == [(m, i, 120) for m in ("lora", "road_1") for i in (0, 1)]  # fmt: skip
    scored = [case for case in report["cases"] if case["study"] == 2]
    assert [case["reads"] for case in scored] == [
        "angle",
        "magnitude",
        "both",
        "random",
        "magnitude, scaled",
        "both, scaled",
    ]
    assert {len(case["tried"]) for case in scored} == {4}
    assert {case["metric"] for case in scored} == {"pearson"}
    for case in scored:
        assert case["tried"][f"{case['lr']:g}"] == max(case["tried"].values())
    check_drawn(plot)
    assert "stsb" in shown and "1 − ΔD is above ΔM" in shown  # noqa: PT018
    figure = pilot_figure({"cases": scored})
    (panel,) = figure.axes
    heights = sorted(bar.get_height() / 100 for bar in panel.patches)
    assert heights == pytest.approx(sorted(case["test"] for case in scored[:5]))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--study", "3"], "unknown study '3'"),
        (["--method", "boft"], "unknown method 'boft'"),
        (["--rate", "lora=fast"], "expected METHOD=NUMBER"),
        (["--data", "train=a.tsv"], "data 'train': expected TASK.SPLIT, as in sst2.train"),
        (["--data", "sst2.trian=a.tsv"], "did you mean 'sst2.train'"),
        (["--data", "sst2.train=a.tsv"], "task 'sst2' has data for 'train' alone"),
        (
            ["--study", "2", "--data", "sst2.train=a.tsv", "--data", "sst2.dev=a.tsv"],
            "study 2 has no data, there is some of 'sst2': expected --data rte.train=FILE",
        ),
        (["--plot", "pilot.txt"], "expected a .png, .svg or .pdf file"),
        (["--data", "sst2.train=no.tsv", "--data", "sst2.dev=no.tsv", "--study", "1"], "no.tsv"),
    ],
)
def test_bad_input(capsys: Any, monkeypatch: Any, arguments: list[str], message: str) -> None:
    def never(*args: Any, **kwargs: Any) -> Any:
        raise AssertionError("a model is loaded")

    monkeypatch.setattr("roadint.bench.pilot_changes.load_for", never)
    code, _, errors = call(capsys, monkeypatch, "bench", "pilot", *arguments)
    assert code == 2
    assert message in " ".join(errors.split())


def test_an_unknown_study_is_named() -> None:
    with pytest.raises(RoadError, match="unknown study"):
        bench_pilot(Recipe.load("glue"), study="first")


@pytest.mark.parametrize("study", ["1", "2"])
def test_rows_that_are_too_long_are_refused(classifier: str, tmp_path: Path, study: str) -> None:
    file = write_tsv(tmp_path / "long.tsv", "sentence\tlabel", ["short\t0", f"{'a' * 80}\t1"])
    task = {"1": "sst2", "2": "qnli"}[study]
    if study == "2":
        file = write_tsv(tmp_path / "pairs.tsv", "question\tsentence\tlabel", [f"{'a' * 80}\tb\tentailment", "a\tb\tnot_entailment"])  # fmt: skip
    with pytest.raises(RoadError, match="positions: expected max_length=64"):
        bench_pilot(
            Recipe.load("glue", {"model": classifier}),
            {f"{task}.{split}": file for split in ("train", "dev")},
            study=study,
            quiet=True,
        )

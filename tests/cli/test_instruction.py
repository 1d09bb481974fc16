"""The recipe instruction from the command line: both of Alpaca's prompts, measured without a judge, answers for one."""

import json
from pathlib import Path
from typing import Any

import pytest

import roadint
from roadint.errors import RoadError
from roadint.evaluation.alpaca_eval import model_outputs
from roadint.evaluation.answers import Answer
from tests.helpers import call

ROWS = [
    {"instruction": f"add {index}", "input": f"{index}, 1" * (index % 2), "output": "ab" * 3}
    for index in range(8)
]
PROMPTS = [
    {"instruction": "Why?", "output": "of another model", "generator": "it", "dataset": "whys"},
    {"instruction": "Sum.", "input": "1, 2", "dataset": "sums"},
]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data")
    (path / "rows.jsonl").write_text("\n".join(map(json.dumps, ROWS)))
    (path / "prompts.json").write_text(json.dumps(PROMPTS))
    return path


@pytest.fixture(scope="module")
def adapter(base: str, data: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    model, tokenizer = roadint.load(base)
    recipe = roadint.Recipe.load("instruction", {"epochs": 2, "batch_size": 4, "lr": 0.05})
    road = recipe.on(model)
    out = tmp_path_factory.mktemp("runs") / "learned"
    rows = {"instruction": data / "rows.jsonl"}
    roadint.train(road, tokenizer, rows, recipe, out=out, quiet=True)
    return str(out)


def test_training_writes_both_prompts(
    base: str, data: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any, tmp_path: Path
) -> None:
    from roadint.training.trainer import RoadTrainer

    texts: list[str] = []

    def look(trainer: Any, *args: Any, **kwargs: Any) -> Any:
        tokenizer = roadint.load(base)[1]
        texts.extend(tokenizer.decode(example.prompt) for example in trainer.train_dataset)
        raise RoadError("seen")

    monkeypatch.setattr(RoadTrainer, "train", look)
    arguments = ["--model", base, "--data", f"instruction={data / 'rows.jsonl'}"]
    out = ["--out", str(tmp_path / "out")]
    assert call(capsys, monkeypatch, "train", "instruction", *arguments, *out)[0] == 2
    assert len(texts) == len(ROWS)
    for row, text in zip(ROWS, texts, strict=True):
        assert ("paired with an input" in text) == bool(row["input"])
        assert (f"### Input:\n{row['input']}\n" in text) == bool(row["input"])


def test_eval_says_nothing_of_german(
    adapter: str, data: Path, capsys: Any, monkeypatch: Any, tmp_path: Path
) -> None:
    measure = ["eval", adapter, "--data", f"held out={data / 'rows.jsonl'}", "--rows", "4"]
    measure += ["--prompts", str(data / "rows.jsonl"), "--max-prompts", "3"]
    measure += ["--max-new-tokens", "3", "--out", str(tmp_path / "report.json")]
    picture = ["--plot", str(tmp_path / "report.png")]
    code, out, errors = call(capsys, monkeypatch, *measure, *picture)
    assert code == 0, errors
    assert all(name in out for name in ("none", "instruction", "held out", "on topic"))
    assert "german" not in out
    report = json.loads((tmp_path / "report.json").read_text())
    assert list(report["nll"]) == ["none", "instruction"]
    assert report["nll"]["instruction"]["held out"] < report["nll"]["none"]["held out"]
    assert all(wanted == [] for wanted in report["asks"].values())
    assert all(shares["success"] == shares["on_topic"] for shares in report["shares"].values())
    assert {answer["prompt"] for answer in report["answers"]} == {"add 0", "add 1\n1, 1", "add 2"}
    code, out, errors = call(capsys, monkeypatch, *measure, "--expect", "instruction=english")
    assert code == 0, errors
    assert "english" in out


def test_bundled_data_are_german_for_german_alone(llama: Any, tokenizer: Any) -> None:
    for name, sets in {"german": ["german", "english", "cross"], "style": ["english"]}.items():
        edit = roadint.RoadIntervention(layer=1, subspaces={name: "[0, d/2)"})
        road = roadint.RoadModel(llama, edit)
        found = roadint.evaluate(
            road, tokenizer, prompts=["Why?"], rows=1, max_new_tokens=1, compose=[name], quiet=True
        )
        assert found.data_sets == sets
        assert found.asks[name] == (["german"] if name == "german" else [])


def test_answers_for_alpaca_eval(
    adapter: str, base: str, data: Path, capsys: Any, monkeypatch: Any, tmp_path: Path
) -> None:
    arguments = ["generate", adapter, "--format", "alpaca_eval", "--max-new-tokens", "5"]
    arguments += ["--prompts", str(data / "prompts.json"), "--compose"]
    file = tmp_path / "outputs.json"
    code, out, errors = call(capsys, monkeypatch, *arguments, "instruction", "--out", str(file))
    assert code == 0, errors
    name = f"{Path(base).name} + learned (instruction)"
    assert name in out
    model, tokenizer = roadint.load(base)
    road = roadint.RoadModel.from_pretrained(model, adapter)
    asked = ["Why?", {"instruction": "Sum.", "input": "1, 2"}]
    texts = road.answer(tokenizer, asked, "instruction", max_new_tokens=5)
    assert json.loads(file.read_text()) == [
        {"instruction": "Why?", "output": texts[0], "generator": name, "dataset": "whys"},
        {
            "instruction": "Sum.",
            "output": texts[1],
            "generator": name,
            "input": "1, 2",
            "dataset": "sums",
        },
    ]
    code, out, errors = call(capsys, monkeypatch, *arguments, "none")
    assert code == 0, errors
    assert [row["generator"] for row in json.loads(out)] == [Path(base).name] * 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--format", "alpaca"], "unknown format 'alpaca'.*mean 'alpaca_eval'"),
        (["--format", "alpaca_eval"], "one composition, 0 are given: expected one --compose"),
        (
            ["--format", "alpaca_eval", "--compose", "none", "--compose", "instruction"],
            "one composition, 2 are given",
        ),
        (["--out", "no/such/file.json"], "the folder no/such does not exist"),
    ],
)
def test_what_no_file_can_hold_is_told_before_anything_loads(
    arguments: list[str], message: str, capsys: Any, monkeypatch: Any
) -> None:
    code, _, errors = call(capsys, monkeypatch, "generate", "no-such-checkpoint", *arguments)
    assert code == 2
    with pytest.raises(RoadError, match=message):
        raise RoadError(errors)


def test_answers_of_two_compositions_are_no_outputs() -> None:
    answers = [Answer("Why?", composition, "So.") for composition in ("a", "b")]
    with pytest.raises(RoadError, match=r"2 answers to 1 prompts.*\['a', 'b'\]"):
        model_outputs(["Why?"], answers, "it")

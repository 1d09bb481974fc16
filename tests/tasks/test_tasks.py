"""The paper's finetuning tasks: their rows and metrics, and a whole run of each kind, from the command line to a plain model."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForSequenceClassification

from roadint import Recipe, RoadError, RoadModel, load
from roadint.checkpoint.reading import read
from roadint.recipes.library import presets
from roadint.tasks import glue
from roadint.tasks.evaluate import recipe_of
from roadint.tasks.questions import ChoiceQuestion, Question, answered, load_questions
from roadint.tasks.registry import _check_settings, task_of
from roadint.tasks.run import finetune
from tests.helpers import call, write_tsv


def test_every_form_of_row(tmp_path: Path) -> None:
    """With a byte-order mark, quotes that mean nothing, columns by name, and CoLA's without a header."""
    path = write_tsv(
        tmp_path / "mrpc.tsv",
        "Quality\t#1 ID\t#2 ID\t#1 String\t#2 String",
        ['1\t3\t4\tHe said " no .\t" No , " he said .'],
    )
    assert glue.load_glue("mrpc", path) == [
        glue.GlueRow(('He said " no .', '" No , " he said .'), 1)
    ]
    path = write_tsv(
        tmp_path / "rte.tsv",
        "index\tsentence1\tsentence2\tlabel",
        ["0\tIt rains.\tIt is wet.\tnot_entailment"],
    )
    assert glue.load_glue("rte", path)[0].label == 1
    path = write_tsv(
        tmp_path / "stsb.tsv", "index\tsentence1\tsentence2\tscore", ["0\tone\ttwo\t3.250"]
    )
    assert glue.load_glue("stsb", path)[0].label == 3.25
    (tmp_path / "cola.tsv").write_text(
        "gj04\t0\t*\tHim goes.\ngj04\t1\t\tHe goes.\n", encoding="utf-8"
    )
    assert [row.label for row in glue.load_glue("cola", tmp_path / "cola.tsv")] == [0, 1]
    for task, expected in {
        "sst2": "has no 'sentence'",
        "cola": "has no 'label'",
        "rte": "has no 'label'",
    }.items():
        with pytest.raises(
            RoadError, match=f"row 0 of .*{expected}" if task != "cola" else "row 0"
        ):
            glue.load_glue(task, tmp_path / "stsb.tsv")
    with pytest.raises(RoadError, match="unknown GLUE task 'rta'.*did you mean 'rte'"):
        glue.load_glue("rta", path)
    with pytest.raises(RoadError, match="can't be read"):
        glue.load_glue("rte", tmp_path / "nothing.tsv")


@pytest.mark.parametrize(
    ("count", "validation"), [(277, 138), (2000, 1000), (2001, 1000), (5463, 1000)]
)
def test_the_papers_split(count: int, validation: int) -> None:
    rows = [glue.GlueRow((str(number),), 0) for number in range(count)]
    one, other = glue.split_dev(rows, 0)
    assert (one, other) == glue.split_dev(rows, 0)
    assert one != glue.split_dev(rows, 1)[0]
    assert len(one) == validation
    assert sorted(int(row.texts[0]) for row in one + other) == list(range(count))
    assert one != rows[:validation]


def test_the_runs_seed_draws_the_split(
    classifier: str, sentiment: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`eval` tests the rows that the training did, none of which chose the epoch; split_seed says another draw."""
    rows = glue.load_glue("sst2", sentiment["dev"], "dev")
    settings = {"task": "sst2", "model": classifier, "epochs": 1, "batch_size": 32}
    for changes, seed in (({"seed": 5}, 5), ({"seed": 5, "split_seed": 7}, 7)):
        recipe = Recipe.load("glue", {**settings, **changes})
        task = task_of(recipe, sentiment)
        assert (task.splits["validation"], task.splits["test"]) == glue.split_dev(rows, seed)  # type: ignore[attr-defined]
        finetune(recipe, data=sentiment, out=tmp_path / f"run{seed}", quiet=True)
        again = recipe_of(read(tmp_path / f"run{seed}"))
        assert again is not None
        tested = task_of(again, trains=False).splits["test"]  # type: ignore[attr-defined]
        assert tested == task.splits["test"]  # type: ignore[attr-defined]
        assert not {id(row) for row in tested} & {id(row) for row in task.splits["validation"]}  # type: ignore[attr-defined]
    with pytest.raises(RoadError, match="split_seed=1: task 'cloze' has no dev set"):
        task_of(Recipe.load("cloze", {"split_seed": 1}), {"train": "x", "test": "y"})


def test_checkpoints_of_before_keep_their_split(
    classifier: str, sentiment: dict[str, str], tmp_path: Path
) -> None:
    """Their record has no split_seed: every run then had the draw of seed 0, whatever its own seed."""
    settings = {"task": "sst2", "model": classifier, "epochs": 1, "batch_size": 32, "seed": 5}
    road, summary = finetune(Recipe.load("glue", settings), data=sentiment, quiet=True)
    del summary["recipe"]["task"]["split_seed"]
    road.training_summary = summary
    road.save_pretrained(tmp_path / "old")
    again = recipe_of(read(tmp_path / "old"))
    assert again is not None
    rows = glue.load_glue("sst2", sentiment["dev"], "dev")
    assert task_of(again, trains=False).splits["test"] == glue.split_dev(rows, 0)[1]  # type: ignore[attr-defined]


def test_metrics() -> None:
    """Matthews' correlation against its definition by the four counts."""
    draw = np.random.default_rng(0)
    labels, predicted = draw.integers(0, 2, 200), draw.integers(0, 2, 200)
    tp, tn = ((predicted == 1) & (labels == 1)).sum(), ((predicted == 0) & (labels == 0)).sum()
    fp, fn = ((predicted == 1) & (labels == 0)).sum(), ((predicted == 0) & (labels == 1)).sum()
    expected = (tp * tn - fp * fn) / np.sqrt(float(tp + fp) * (tp + fn) * (tn + fp) * (tn + fn))
    assert glue.measure("cola", predicted, labels) == pytest.approx(expected)
    assert glue.measure("cola", np.ones(200), labels) == 0
    assert glue.measure("stsb", np.full(200, np.nan), labels.astype(float)) == 0
    assert glue.measure("sst2", predicted, labels) == pytest.approx((tp + tn) / 200)
    assert glue.measure("stsb", 3 * labels + 1.0, labels.astype(float)) == pytest.approx(1)


@pytest.mark.parametrize(
    ("text", "answer", "right"),
    [
        ("the correct answer is answer2", "answer2", True),
        ("Answer 2 is right, not answer3", "answer2", True),
        ("answer3, not answer2", "answer2", False),
        ("That is true.", "true", True),
        ("untrue", "true", False),
        ("solution1", "solution2", False),
        ("4 * 3 = 12 kids. The answer is 1,250.", "1250.0", True),
        ("The answer is -0.5", "0.5", False),
        ("A: 16 - 12 = 4.\nThe answer is 4", "4.0", True),
        ("Rationale: (B) is too large. The answer is (C).", "C", True),
        ("A or B? D", "D", True),
        ("", "D", False),
        ("I don't know", "7", False),
    ],
)
def test_answers_are_found_in_texts(text: str, answer: str, right: bool) -> None:
    assert answered(text, answer) is right


def test_questions_are_checked(tmp_path: Path) -> None:
    path = tmp_path / "q.json"
    path.write_text(
        json.dumps([{"instruction": "1 + 1?", "input": "", "output": "", "answer": 2}]),
        encoding="utf-8",
    )
    assert load_questions(path)[0].output == "2"
    path.write_text(json.dumps([{"instruction": "1 + 1?"}]), encoding="utf-8")
    with pytest.raises(RoadError, match="row 0 of .* has no 'answer': it has 'instruction'"):
        load_questions(path)
    path.write_text("{", encoding="utf-8")
    with pytest.raises(RoadError, match="can't be read"):
        load_questions(path)


def test_rows_that_are_none(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "q.json"
    for row in (
        {"instruction": 5, "answer": "x"},
        {"instruction": "a", "answer": ["x"]},
        {"instruction": "a", "input": 5, "answer": 1},
        5,
    ):
        path.write_text(json.dumps([row]), encoding="utf-8")
        with pytest.raises(RoadError, match="row 0 of .*(non-text|is int)"):
            load_questions(path)
    path.write_bytes(
        b"\xef\xbb\xbf"
        + b'{"instruction": "1 + 1?", "answer": 2}\r\n{"instruction": "?", "answer": true}\n'
    )
    assert [each.answer for each in load_questions(path)] == ["2", "True"]
    assert len(load_questions(path, 1)) == 1
    path.write_text("[" * 100_000, encoding="utf-8")
    for source in (path, tmp_path, 5, "a\0", "a" * 5000):
        with pytest.raises(RoadError, match="can't be read"):
            load_questions(source)  # type: ignore[arg-type]
        with pytest.raises(RoadError):
            glue.load_glue("sst2", source)  # type: ignore[arg-type]
    rows = write_tsv(
        tmp_path / "a.tsv", "sentence\tlabel", ["good\t1", "cut short", "\t1", "bad\t0"]
    )
    assert [row.label for row in glue.load_glue("sst2", rows)] == [1, 0]
    assert "skipped 2 of 4 rows" in caplog.text
    assert len(glue.load_glue("sst2", rows, limit=1)) == 1
    for header, row, message in (
        ("sentence\tlabel", "a\tb\t1", "has more cells than columns"),
        ("sentence\tlabel\tlabel", "a\t1\t1", "or several"),
        ("sentence\tlabel", "a\t2", "the label '2': expected one of"),
        ("sentence\tlabel", "", "has no rows"),
    ):
        with pytest.raises(RoadError, match=message):
            glue.load_glue("sst2", write_tsv(tmp_path / "b.tsv", header, [row]))
    with pytest.raises(RoadError, match="the score 'nan': expected a number"):
        glue.load_glue(
            "stsb", write_tsv(tmp_path / "c.tsv", "sentence1\tsentence2\tscore", ["a\tb\tnan"])
        )


def test_the_hubs_rows_are_those_of_the_files(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [
        {"premise": "a", "hypothesis": "b", "label": 1},
        {"premise": "a", "hypothesis": "b", "label": -1},
    ]
    monkeypatch.setattr(glue.datasets, "load_dataset", lambda *args, **kwargs: rows)
    assert glue.load_glue("mnli", "hub") == [glue.GlueRow(("a", "b"), 1)]


def test_nothing_is_measured_on_no_rows(sentiment: dict[str, str], tmp_path: Path) -> None:
    one = write_tsv(tmp_path / "one.tsv", "sentence\tlabel", ["good\t1"])
    with pytest.raises(RoadError, match="no rows are left for validation"):
        task_of(Recipe.load("glue", {"task": "sst2"}), {**sentiment, "dev": one})
    path = tmp_path / "few.json"
    path.write_text(json.dumps([{"instruction": "?", "answer": "answer1"}] * 5))
    with pytest.raises(
        RoadError,
        match="no rows are left for validation .5 for train, 0 for validation, 5 for test",
    ):
        task_of(Recipe.load("commonsense"), {"train": str(path), "test": str(path)})
    with pytest.raises(
        RoadError, match="has data for dev and for 'test.other': expected dev alone"
    ):
        task_of(Recipe.load("glue", {"task": "sst2"}), {**sentiment, "test.other": one})
    with pytest.raises(RoadError, match="rows_seed=1: task 'sst2' takes the first rows"):
        task_of(Recipe.load("glue", {"task": "sst2", "rows_seed": 1}), sentiment)
    with pytest.raises(RoadError, match="images=true: task 'sst2' has rows of text"):
        task_of(Recipe.load("glue", {"task": "sst2", "images": True}), sentiment)


def test_the_hubs_training_rows_measure_nothing() -> None:
    """Its test rows have no labels, and its validation rows are "dev"."""
    for name in ("validation", "test", "test.x"):
        with pytest.raises(RoadError, match=f"data {name}=hub.*expected dev=hub"):
            task_of(
                Recipe.load("glue", {"data": {}}),
                {"validation": "x", "test": "y", name: "hub"},
                trains=False,
            )


def test_a_classifier_with_few_positions_says_so(
    classifier: str, sentiment: dict[str, str], tmp_path: Path
) -> None:
    long = write_tsv(
        tmp_path / "long.tsv", "sentence\tlabel", [f"{'a' * 80}\t{i % 2}" for i in range(4)]
    )
    with pytest.raises(RoadError, match="a row has 81 tokens, the model 64 positions"):
        finetune(
            Recipe.load("glue", {"task": "sst2", "model": classifier}),
            data={"train": long, "dev": sentiment["dev"]},
            quiet=True,
        )


def test_a_classifier_from_the_command_line_to_a_plain_model(
    classifier: str, sentiment: dict[str, str], tmp_path: Path, capsys: Any, monkeypatch: Any
) -> None:
    """Trained, inspected, exported to PEFT and back, merged; the merged model loads without roadint and says the same."""
    out = str(tmp_path / "run")
    data = ["--data", f"train={sentiment['train']}", "--data", f"dev={sentiment['dev']}"]
    settings = [
        "--set",
        "task=sst2",
        "--set",
        "epochs=12",
        "--set",
        "lr=3e-2",
        "--set",
        "batch_size=16",
    ]
    code, shown, errors = call(
        capsys,
        monkeypatch,
        "train",
        "glue",
        "--model",
        classifier,
        *data,
        *settings,
        "--out",
        out,
        "--json",
    )
    assert code == 0, errors
    summary = json.loads(shown)
    assert summary["metric"] == "accuracy"
    assert summary["rows"] == {"train": 96, "validation": 30, "test": 30}
    assert len(summary["validation"]) == 12
    assert summary["test"] > 0.9
    code, shown, errors = call(capsys, monkeypatch, "eval", out, "--json")
    assert code == 0, errors
    assert json.loads(shown) == {
        "task": "sst2",
        "metric": "accuracy",
        "rows": {"validation": 30, "test": 30},
        "test": summary["test"],
    }
    code, shown, _ = call(capsys, monkeypatch, "inspect", out)
    assert code == 0
    assert "adapter sst2: road_1, 13 layers, heads classifier" in shown
    for command in (
        ["merge", out, "--out", str(tmp_path / "plain")],
        ["export", out, "--out", str(tmp_path / "peft")],
        [
            "import",
            str(tmp_path / "peft"),
            "--labels",
            "2",
            "--name",
            "sst2",
            "--out",
            str(tmp_path / "back"),
        ],
    ):
        code, shown, errors = call(capsys, monkeypatch, *command)
        assert code == 0, errors
    base = AutoModelForSequenceClassification.from_pretrained(classifier, num_labels=2)
    ids = torch.randint(4, 100, (5, 9), generator=torch.Generator().manual_seed(0))
    found = [
        RoadModel.from_pretrained(base, tmp_path / name).eval()(input_ids=ids).logits
        for name in ("run", "back")
    ]
    plain = (
        AutoModelForSequenceClassification.from_pretrained(tmp_path / "plain")
        .eval()(input_ids=ids)
        .logits
    )
    assert torch.equal(found[0], found[1])
    torch.testing.assert_close(plain, found[0], rtol=0, atol=1e-5)
    code, _, errors = call(capsys, monkeypatch, "merge", out, "--out", str(tmp_path / "plain"))
    assert (code, "is not empty" in errors) == (2, True)


def test_the_best_epoch_is_kept(
    classifier: str, sentiment: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Validation says the first of three epochs was the best: the values afterwards are the first epoch's."""
    from roadint.tasks.classification import ClassificationTask

    settings = {
        "task": "sst2",
        "lr": 3e-2,
        "batch_size": 16,
        "model": classifier,
        "schedule": "constant",
    }
    told, own = iter([0.9, 0.5, 0.4]), ClassificationTask.score
    monkeypatch.setattr(
        ClassificationTask,
        "score",
        lambda self, model, tokenizer, split: (
            next(told) if split == "validation" else own(self, model, tokenizer, split)
        ),
    )
    three, summary = finetune(
        Recipe.load("glue", {**settings, "epochs": 3}), data=sentiment, quiet=True
    )
    assert summary["validation"] == [0.9, 0.5, 0.4]
    monkeypatch.setattr(ClassificationTask, "score", own)
    one, _ = finetune(Recipe.load("glue", {**settings, "epochs": 1}), data=sentiment, quiet=True)
    for found, expected in zip(three.trained_parameters(), one.trained_parameters(), strict=True):
        assert torch.equal(found, expected)


def test_a_language_model_learns_to_answer(base: str, tmp_path: Path) -> None:
    """Questions whose answer is in them, on a tiny model; the completions alone are learned."""
    rows = [
        {
            "instruction": f"{'ab'[i % 2]}?",
            "input": "",
            "output": f"answer{1 + i % 2}",
            "answer": f"answer{1 + i % 2}",
        }
        for i in range(64)
    ]
    path = tmp_path / "rows.json"
    path.write_text(json.dumps(rows), encoding="utf-8")
    recipe = Recipe.load("commonsense", {
        "model": base, "template": "plain", "epochs": 16, "lr": 1e-2, "batch_size": 8, "dtype": "float32", "max_new_tokens": 8, "lora_rank": 4,
    })  # fmt: skip
    road, summary = finetune(
        recipe, data={"train": str(path), "test": str(path)}, out=tmp_path / "out", quiet=True
    )
    assert summary["rows"] == {"train": 58, "validation": 6, "test": 64}
    assert summary["test"] == 1.0
    assert list(road.adapters) == ["commonsense"]
    assert summary["trainable"] == road.trainable_count


def test_several_tests_are_told_and_averaged(
    base: str, tmp_path: Path, capsys: Any, monkeypatch: Any
) -> None:
    """Each set of rows by its name, and their mean: after training, and of the checkpoint, with the same files or others."""
    data = {"train": ("ab", "12"), "test.right": ("ab", "12"), "test.wrong": ("ab", "21")}
    for name, (asked, answers) in data.items():
        rows = [
            {"instruction": f"{asked[i % 2]}?", "answer": f"answer{answers[i % 2]}"}
            for i in range(32)
        ]
        (tmp_path / f"{name}.json").write_text(json.dumps(rows), encoding="utf-8")
    files = {name: str(tmp_path / f"{name}.json") for name in data}
    recipe = Recipe.load("commonsense", {
        "model": base, "template": "plain", "epochs": 24, "lr": 1e-2, "batch_size": 8, "dtype": "float32", "max_new_tokens": 8, "lora_rank": 4,
    })  # fmt: skip
    outs = [str(tmp_path / name) for name in ("one", "two")]
    for seed, out in enumerate(outs):
        _, summary = finetune(recipe.override({"seed": seed}), data=files, out=out, quiet=True)
        assert summary["rows"] == {"train": 29, "validation": 3, "test.right": 32, "test.wrong": 32}
        assert summary["tests"] == {"right": 1.0, "wrong": 0.0}
        assert summary["test"] == 0.5
    asked = ["eval", outs[0], "--json"]
    code, shown, errors = call(capsys, monkeypatch, *asked)
    assert code == 0, errors
    assert json.loads(shown)["tests"] == {"right": 1.0, "wrong": 0.0}
    other = ["--data", f"test={files['test.wrong']}", "--rows", "5"]
    code, shown, errors = call(capsys, monkeypatch, *asked, *other)
    assert code == 0, errors
    assert json.loads(shown) == {
        "task": "commonsense", "metric": "accuracy", "rows": {"test": 5}, "test": 0.0,
    }  # fmt: skip
    code, shown, errors = call(capsys, monkeypatch, "eval", *outs, "--json")
    assert code == 0, errors
    report = json.loads(shown)
    assert list(report["checkpoints"]) == outs
    assert report["mean"] == {"test": 0.5, "tests": {"right": 1.0, "wrong": 0.0}}
    assert report["sd"] == {"test": 0, "tests": {"right": 0, "wrong": 0}}
    code, shown, errors = call(capsys, monkeypatch, "eval", *outs)
    assert code == 0, errors
    for text in ("right", "wrong", "mean", "100.0 ± 0.0", "50.0"):
        assert text in shown
    for options, message in (
        (["--compose", "none"], "'--compose': a task measures its own metric"),
        (["--expect", "a=de"], "'--expect': a task measures its own metric"),
        (["--data", "test.=x"], "data 'test.' of task 'commonsense': expected some of"),
    ):
        code, _, errors = call(capsys, monkeypatch, *asked, *options)
        assert (code, message in errors) == (2, True), errors


def test_several_files_are_one_training(tmp_path: Path) -> None:
    """As many rows of each as were asked for, a tenth of each held out, in turns; a classifier says that it has one."""
    files = {}
    for name, count in (("long", 60), ("short", 20)):
        rows = [{"instruction": f"{name}{row}", "answer": "answer1"} for row in range(count)]
        path = tmp_path / f"{name}.json"
        path.write_text(json.dumps(rows), encoding="utf-8")
        files[f"train.{name}"] = str(path)
    files["test"] = files["train.short"]
    task = task_of(Recipe.load("commonsense", {"rows": 16}), files)
    train, validation = task.splits["train"], task.splits["validation"]
    assert [row.instruction[:4] for row in train] == ["long"] * 16 + ["shor"] * 16
    assert [row.instruction[:4] for row in validation] == ["long", "shor"] * 2 + ["long"] * 4
    assert not {row.instruction for row in train} & {row.instruction for row in validation}
    few = task_of(Recipe.load("commonsense", {"scored_rows": 3}), files)
    assert few.sizes() == {"train": 54 + 18, "validation": 3, "test": 3}
    assert [row.instruction[:4] for row in few.splits["validation"]] == ["long", "shor", "long"]
    given = task_of(Recipe.load("commonsense"), {**files, "validation": files["test"]})
    assert given.sizes() == {"train": 80, "validation": 20, "test": 20}
    assert task_of(Recipe.load("commonsense"), files, trains=False).sizes() == {"test": 20}
    with pytest.raises(RoadError, match="training data 'train.long', 'train.short': expected one"):
        task_of(Recipe.load("glue", {"data": {}}), {**files, "dev": "x"})


OF_TWO = """
import json, os, sys
from roadint import Recipe
from roadint.tasks.run import finetune
from roadint.tasks.classification import ClassificationTask
import torch
told, own = iter([0.9, 0.5, 0.4]), ClassificationTask.score
ClassificationTask.score = lambda self, model, tokenizer, split: next(told) if split == "validation" else own(self, model, tokenizer, split)
recipe, data, out = Recipe.load("glue", json.loads(sys.argv[1])), json.loads(sys.argv[2]), sys.argv[3]
road, summary = finetune(recipe, data=data, out=out, quiet=True)
torch.save([value.detach() for value in road.trained_parameters()], f"{out}-{os.environ.get('RANK', 0)}.pt")
"""


def test_two_processes_learn_what_one_does(
    classifier: str, sentiment: dict[str, str], tmp_path: Path
) -> None:
    """torchrun with gloo: half of the rows each, the gradient of all, and afterwards the best epoch in both."""
    script = tmp_path / "script.py"
    script.write_text(OF_TWO, encoding="utf-8")
    environment = {
        **os.environ,
        "PYTHONPATH": str(Path(__file__).parents[2]),
        "OMP_NUM_THREADS": "1",
    }
    found = {}
    for name, command, batch_size in (
        ("one", [], 16),
        ("two", ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"], 8),
    ):
        settings = {
            "task": "sst2", "model": classifier, "epochs": 3, "lr": 1e-2, "batch_size": batch_size, "micro_batch": batch_size,
            "schedule": "constant", "warmup_steps": 0, "dropout": False, "max_grad_norm": 0.5, "rows": 128,
        }  # fmt: skip
        run = [script, json.dumps(settings), json.dumps(sentiment), tmp_path / name]
        done = subprocess.run(
            [sys.executable, *command, *map(str, run)], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-3000:]
        found[name] = [torch.load(path) for path in sorted(tmp_path.glob(f"{name}-*.pt"))]
    settings = ["task=sst2", f"model={classifier}", "epochs=1", "batch_size=8", "rows=32"]
    told = subprocess.run(
        [sys.executable, *command, "-m", "roadint", "train", "glue", "--out", str(tmp_path / "told"),
         *(f"--set={each}" for each in settings), *(f"--data={name}={file}" for name, file in sentiment.items())],
        cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert told.returncode == 0, told.stderr[-3000:]
    assert told.stdout.count("trained numbers") == 1
    (one,), (first, second) = found["one"], found["two"]
    assert all(map(torch.equal, first, second))
    for alone, together in zip(one, first, strict=True):
        torch.testing.assert_close(together, alone, rtol=0.05, atol=2e-3)
    saved = read(tmp_path / "two").tensors
    assert any(
        torch.equal(saved_, first[0]) for saved_ in saved.values() if saved_.shape == first[0].shape
    )


def test_dropout_acts_in_training_alone(
    classifier: str, sentiment: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a setting; what is scored never drops out, and the model's mode is as before."""
    from roadint.tasks.classification import ClassificationTask

    own, modes = ClassificationTask.score, []

    def score(self: Any, model: Any, *arguments: Any) -> float:
        modes.append(any(module.training for module in model.model.modules()))
        return own(self, model, *arguments)

    monkeypatch.setattr(ClassificationTask, "score", score)
    settings = {"task": "sst2", "batch_size": 16, "model": classifier, "epochs": 1}
    losses = []
    for dropout in (False, False, True):
        recipe = Recipe.load("glue", {**settings, "dropout": dropout})
        road, summary = finetune(recipe, data=sentiment, quiet=True)
        losses.append(summary["loss"]["loss"])
        assert not any(module.training for module in road.model.modules())
    assert losses[0] == losses[1] != losses[2]
    assert modes == [False] * 6
    with pytest.raises(RoadError, match="dropout=true without a task"):
        Recipe.load("composition", {"dropout": True})


def numbered(word: str, asked: str, *choices: str) -> str:
    listed = " ".join(f"{word.capitalize()}{1 + i}: {choice}" for i, choice in enumerate(choices))
    return f"Please choose the correct {word} to the question: {asked}\n\n{listed}\n\nAnswer format: {word}1/{word}2"


def test_choices_are_continuations() -> None:
    question = Question(
        numbered("answer", "Where: here?", "on answer", "off"),
        "the correct answer is answer2",
        "answer2",
    )
    assert ChoiceQuestion.of(question) == ChoiceQuestion(
        "Question: Where: here?\nAnswer:", (" on answer", " off"), 1
    )
    ending = Question(numbered("ending", "He opens", "the door.", "the sky."), "", "ending1")
    assert ChoiceQuestion.of(ending) == ChoiceQuestion("He opens", (" the door.", " the sky."), 0)
    asked = "Please answer the following question with true or false, question: is it?\n\nAnswer format: true/false"
    truth = ChoiceQuestion.of(Question(asked, "the correct answer is false", "false"))
    assert truth == ChoiceQuestion("Question: is it?\nAnswer:", (" true", " false"), 1)
    for instruction, answer in (
        (question.instruction, "answer3"),
        ("2 + 2?", "4"),
    ):
        with pytest.raises(RoadError, match="has no numbered choices to compare"):
            ChoiceQuestion.of(Question(instruction, "", answer))


def test_the_likeliest_choice_answers(base: str, tmp_path: Path) -> None:
    """Against likelihoods computed one choice at a time by the plain model, before training; after it, the right ones win."""
    words = ["red", "blue", "green", "yellow", "dark blue"]
    rows = []
    for i in range(40):
        order = np.random.default_rng(i).permutation(len(words))
        right = int(np.flatnonzero(order == i % 2)[0])
        asked = numbered("ending", "ab"[i % 2] + "?", *(words[place] for place in order))
        rows.append({"instruction": asked, "output": "", "answer": f"ending{1 + right}"})
    path = tmp_path / "rows.json"
    path.write_text(json.dumps(rows), encoding="utf-8")
    recipe = Recipe.load(
        "cloze",
        {
            "model": base,
            "dtype": "float32",
            "epochs": 16,
            "lr": 1e-2,
            "batch_size": 8,
            "lora_rank": 4,
        },
    )
    data = {"train": str(path), "test": str(path)}
    model, tokenizer = load(base, dtype="float32")
    right = 0
    for each in (ChoiceQuestion.of(question) for question in load_questions(path)):
        start = len(tokenizer(each.prompt)["input_ids"])
        losses = []
        for choice in each.choices:
            ids = torch.tensor([tokenizer(each.prompt + choice)["input_ids"]])
            scores = model(ids).logits.detach().log_softmax(-1)[0, start - 1 : -1]
            losses.append(-float(scores.gather(1, ids[0, start:, None]).sum()))
        right += losses.index(min(losses)) == each.right
    task = task_of(recipe, data)
    assert task.score(recipe.on(model), tokenizer, "test") == pytest.approx(right / 40)
    _, summary = finetune(recipe, data=data, quiet=True)
    assert summary["test"] == 1.0 > right / 40


@pytest.mark.parametrize(
    ("settings", "data", "message"),
    [
        ({"task": "rta"}, {}, "task 'rta'.*did you mean 'rte'"),
        ({}, {}, "task 'rte' has no training data"),
        ({}, {"train": "x", "tset": "y"}, "data 'tset' of task 'rte': expected some of"),
        (
            {"task": "arithmetic"},
            {"train": "x"},
            "nothing to be measured on: expected --data test=FILE",
        ),
        ({}, {"train": "x"}, "nothing to be measured on: expected --data dev=FILE"),
        ({}, {"train": "x", "test": "y"}, "nothing to be measured on: expected --data dev=FILE"),
    ],
)
def test_what_is_missing_is_told(
    settings: dict[str, Any], data: dict[str, str], message: str
) -> None:
    recipe = Recipe.load("glue", {"data": {}, **settings})
    with pytest.raises(RoadError, match=message):
        task_of(recipe, data)


@pytest.mark.parametrize(
    "setting",
    [
        {"max_log_scale": 0.0},
        {"lrs": {"road": 1e-2}},
        {"decay": 0.1},
        {"strengths": {"road": 0.5}},
        {"compile": True},
        {"companions": {"a": ["b"]}},
        {"preserve": {"a": ["b"]}},
        {"eos": ["a"]},
        {"max_completions": {"a": 8}},
        {"template": "line"},
    ],
    ids=lambda setting: next(iter(setting)),
)
def test_settings_that_a_task_has_not_are_refused(
    setting: dict[str, Any], sentiment: dict[str, str]
) -> None:
    (name,) = setting
    recipe = Recipe.load("glue", {"task": "sst2", **setting})
    with pytest.raises(RoadError, match=f"recipe setting {name}=.* would not act: task 'sst2'"):
        task_of(recipe, sentiment)
    task_of(recipe, sentiment, trains=False)  # of a checkpoint that was trained before


def test_the_presets_of_tasks_have_none_of_them() -> None:
    checked = 0
    for name in presets():
        recipe = Recipe.load(name)
        if recipe.task.name:
            _check_settings(recipe)
            checked += 1
    assert checked >= 6

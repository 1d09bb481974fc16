"""The command line, whole, on a tiny model in a folder."""

import json
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from roadint import RoadError
from roadint.cli.checks import check_file
from roadint.cli.output import print_json, print_line
from roadint.cli.train import _result
from roadint.recipes.names import flat
from tests.helpers import call, resign

TRAIN = [
    "train",
    "composition",
    "--rows",
    "8",
    "--max-completion",
    "8",
    "--set",
    "epochs=1",
    "--set",
    "layers=1",
    "--set",
    "max_length=256",
]


@pytest.fixture(scope="module")
def adapter(base: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    out = str(tmp_path_factory.mktemp("runs") / "adapter")
    code, _, errors = roadint("--", *TRAIN, "--model", base, "--out", out)
    assert code == 0, errors
    return out


def roadint(*arguments: str) -> tuple[int, str, str]:
    """In a process of its own, as a user runs it (after an optional --)."""
    arguments = arguments[1:] if arguments[:1] == ("--",) else arguments
    result = subprocess.run(
        [sys.executable, "-m", "roadint", *arguments], capture_output=True, text=True, timeout=300
    )
    return result.returncode, result.stdout, result.stderr


def test_train_writes_a_checkpoint_and_says_what_it_is(
    adapter: str, base: str, capsys: Any, monkeypatch: Any, tmp_path: Path
) -> None:
    assert sorted(path.name for path in Path(adapter).iterdir()) == [
        "log.jsonl",
        "road.json",
        "road.safetensors",
    ]
    code, out, errors = call(
        capsys, monkeypatch, *TRAIN, "--model", base, "--out", str(tmp_path / "other"), "--json"
    )
    assert code == 0, errors
    summary = json.loads(out)
    assert summary["trainable"] == 32
    assert summary["rows"] == {"german": 8, "english": 8}
    assert summary["bytes"] == sum(
        (tmp_path / "other" / name).stat().st_size for name in ("road.json", "road.safetensors")
    )
    code, _, errors = call(capsys, monkeypatch, *TRAIN, "--model", base, "--out", adapter)
    assert code == 2
    assert "holds a finished checkpoint: choose another folder, or add --overwrite" in errors
    code, out, _ = call(capsys, monkeypatch, *TRAIN, "--model", base, "--out", adapter, "--resume")
    assert code == 0
    assert "32 trained numbers" in out
    code, _, errors = call(
        capsys,
        monkeypatch,
        *TRAIN,
        "--model",
        base,
        "--out",
        adapter,
        "--resume",
        "--set",
        "lr=0.5",
    )
    assert code == 2
    assert "holds a finished run of other settings (lr)" in errors


def test_a_finished_run_of_before_recipes_had_sections_is_taken_up(
    adapter: str, base: str, capsys: Any, monkeypatch: Any, tmp_path: Path
) -> None:
    shutil.copytree(adapter, tmp_path / "out")
    others = {"rank": 8, "targets": "all-linear", "exclude": [], "lora_rank": 0, "heads": []}

    def flatten(config: Any) -> None:
        assert config["training"]["recipe"]["optimisation"]["epochs"] == 1
        config["training"]["recipe"] = others | flat(config["training"]["recipe"])

    resign(tmp_path / "out", flatten)
    train = [*TRAIN, "--model", base, "--out", str(tmp_path / "out"), "--resume"]
    code, out, errors = call(capsys, monkeypatch, *train)
    assert code == 0, errors
    assert "32 trained numbers" in out
    code, _, errors = call(capsys, monkeypatch, *train, "--set", "optimisation.lr=0.5")
    assert code == 2
    assert "holds a finished run of other settings (lr)" in errors


@pytest.mark.parametrize("left", ["everything", "no run.json", "a mark"])
def test_a_run_killed_when_it_only_had_to_remove_its_checkpoints_is_finished(
    left: str, adapter: str, base: str, capsys: Any, monkeypatch: Any, tmp_path: Path
) -> None:
    from roadint.training import run_folder

    train = [*TRAIN, "--model", base, "--out", str(tmp_path / "out")]
    with monkeypatch.context() as patch:
        patch.setattr(run_folder, "finish", lambda out: None)
        assert call(capsys, monkeypatch, *train)[0] == 0
    if left != "everything":
        (tmp_path / "out" / "checkpoints" / "run.json").unlink()
    if left == "a mark":
        (tmp_path / "out" / ".checkpoints.done").touch()
    if left != "no run.json":  # which no removal leaves without its mark
        code, _, errors = call(capsys, monkeypatch, *train)
        assert code == 2
        assert "holds a finished checkpoint" in errors
    assert call(capsys, monkeypatch, *train, "--resume")[0] == 0
    for name in ("road.json", "road.safetensors"):
        assert (tmp_path / "out" / name).is_file()
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "log.jsonl",
        "road.json",
        "road.safetensors",
    ]


def test_an_overwriting_run_that_was_cut_short_is_not_taken_for_finished(
    adapter: str, base: str, capsys: Any, monkeypatch: Any, tmp_path: Path
) -> None:
    shutil.copytree(adapter, tmp_path / "out")
    (tmp_path / "out" / "checkpoints" / "checkpoint-1").mkdir(parents=True)
    code, _, errors = call(
        capsys, monkeypatch, *TRAIN, "--model", base, "--out", str(tmp_path / "out")
    )
    assert code == 2
    assert "holds an unfinished run: add --resume" in errors


def test_train_on_local_files(base: str, capsys: Any, monkeypatch: Any, tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text('{"instruction": "a", "output": "b"}\n' * 5)
    arguments = [*TRAIN, "--model", base, "--out", str(tmp_path / "out"), "--json"]
    code, out, errors = call(
        capsys, monkeypatch, *arguments, "--data", f"german={file}", "--data", f"english={file}"
    )
    assert code == 0, errors
    assert json.loads(out)["rows"] == {"german": 5, "english": 5}


def test_generate(adapter: str, capsys: Any, monkeypatch: Any, tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("Two?\nThree?\n")
    arguments = ["generate", adapter, "One?", "--prompts", str(prompts), "--max-new-tokens", "4"]
    code, out, errors = call(
        capsys,
        monkeypatch,
        *arguments,
        "--json",
        "--compose",
        "none",
        "--compose",
        "0.5*german - english",
    )
    assert code == 0, errors
    answers = json.loads(out)
    assert [(answer["prompt"], answer["composition"]) for answer in answers] == [
        (prompt, composition)
        for prompt in ("One?", "Two?", "Three?")
        for composition in ("none", "0.5*german - english")
    ]
    assert all(set(answer) == {"prompt", "composition", "text"} for answer in answers)
    code, out, _ = call(capsys, monkeypatch, *arguments)
    assert code == 0
    assert all(word in out for word in ("One?", "none", "german + english"))


def test_turns_of_a_conversation(adapter: str, capsys: Any, monkeypatch: Any) -> None:
    """Each composition goes on with its own answers, as one that is given them does."""
    import roadint

    composed = ["none", "german", "german + english"]
    compose = [part for text in composed for part in ("--compose", text)]
    asked = ["generate", adapter, "Hi", "And?", *compose, "--max-new-tokens", "4", "--json"]
    code, out, errors = call(capsys, monkeypatch, *asked, "--turns")
    assert code == 0, errors
    answers = json.loads(out)
    order = [(answer["prompt"], answer["composition"]) for answer in answers]
    assert order == [(turn, text) for turn in ("Hi", "And?") for text in composed]
    base = json.loads((Path(adapter) / "road.json").read_text())["base_model"]["id"]
    model, tokenizer = roadint.load(base)
    road = roadint.RoadModel.from_pretrained(model, adapter)
    for first, second in zip(answers[:3], answers[3:], strict=True):
        prompt = {"instruction": "And?", "history": [("Hi", first["text"])]}
        (alone,) = road.answer(tokenizer, prompt, second["composition"], max_new_tokens=4)
        assert alone == second["text"]
    code, out, _ = call(capsys, monkeypatch, *asked)
    assert [each["text"] for each in json.loads(out)][3:] != [each["text"] for each in answers][3:]
    for wrong, said in (
        ([adapter, "--turns"], "--turns is of the prompts"),
        ([adapter, "Hi", "--turns", "--compose", "none", "--format", "alpaca_eval"], "--turns"),
    ):
        code, _, errors = call(capsys, monkeypatch, "generate", *wrong)
        assert (code, said in errors) == (2, True)


def test_generate_across_checkpoints(adapter: str, capsys: Any, monkeypatch: Any) -> None:
    """A checkpoint and its own inverse are the base model."""
    arguments = [
        "generate",
        adapter,
        "One?",
        "--max-new-tokens",
        "4",
        "--json",
        "--add",
        f"same={adapter}",
    ]
    composed = ["none", "german - german@same", "german + english@same", "same"]
    code, out, errors = call(
        capsys,
        monkeypatch,
        *arguments,
        *(word for each in composed for word in ("--compose", each)),
    )
    assert code == 0, errors
    texts = [answer["text"] for answer in json.loads(out)]
    assert texts[0] == texts[1]
    assert [answer["composition"] for answer in json.loads(out)][3] == "german@same + english@same"
    code, out, errors = call(capsys, monkeypatch, *arguments, "--compose", "german@other")
    assert code == 2
    assert "unknown subspace 'german@other'" in errors


def test_eval(adapter: str, capsys: Any, monkeypatch: Any, tmp_path: Path) -> None:
    arguments = ["eval", adapter, "--rows", "3", "--max-new-tokens", "4", "--max-completion", "8"]
    code, out, errors = call(
        capsys, monkeypatch, *arguments, "--json", "--out", str(tmp_path / "report.json")
    )
    assert code == 0, errors
    report = json.loads(out)
    assert json.loads((tmp_path / "report.json").read_text()) == report
    compositions = ["none", "german", "english", "german + english"]
    assert list(report["nll"]) == list(report["language"]) == compositions
    assert all(list(values) == ["german", "english", "cross"] for values in report["nll"].values())
    assert all(sum(shares.values()) == pytest.approx(1) for shares in report["language"].values())
    code, out, _ = call(
        capsys, monkeypatch, *arguments, "--compose", "german", "--data", "mine=bundled:german_dev"
    )
    assert code == 0
    assert "references, nats a token" in out
    assert "mine" in out
    plot = tmp_path / "report.png"
    other = tmp_path / "other"
    shutil.copytree(adapter, other)
    code, out, errors = call(
        capsys, monkeypatch, *arguments, str(other), "--plot", str(plot), "--max-prompts", "2"
    )
    assert code == 0, errors
    assert plot.read_bytes()[:4] == b"\x89PNG"
    assert "± 0.00" in out


def test_inspect(adapter: str, capsys: Any, monkeypatch: Any, tmp_path: Path) -> None:
    plot = tmp_path / "angles.png"
    code, out, errors = call(
        capsys, monkeypatch, "inspect", adapter, "--plot", str(plot), "--prompt", "Why?"
    )
    assert code == 0, errors
    assert plot.read_bytes()[:4] == b"\x89PNG"
    assert all(word in out for word in ("german", "[16, 32)", "mean |θ|", "»⏎«[layer 1]"))
    code, out, _ = call(capsys, monkeypatch, "inspect", adapter, "--blocks")
    assert code == 0
    assert len([line for line in out.splitlines() if "english" in line]) == 8
    code, out, _ = call(capsys, monkeypatch, "inspect", adapter, "--json")
    (site,) = json.loads(out)["sites"]
    assert (site["layer"], site["variant"]) == (1, "road_1")
    assert site["subspaces"]["english"]["blocks"] == list(range(8, 16))
    assert len(site["subspaces"]["english"]["angles"]) == 8


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["train", "compositon", "--out", "x"],
            "no recipe 'compositon'.*did you mean 'composition'",
        ),
        (
            ["train", "composition", "--out", "x", "--set", "lrr=1"],
            "no setting 'lrr'.*did you mean 'lr'",
        ),
        (["train", "composition", "--out", "x", "--set", "lr"], "--set 'lr': expected NAME=VALUE"),
        (["train", "composition", "--out", "x", "--set", "position=lst"], "unknown position 'lst'"),
        (
            ["generate", "ADAPTER", "Hi", "--compose", "germn"],
            "unknown subspace 'germn'.*did you mean 'german'",
        ),
        (["generate", "ADAPTER", "--prompts", "none.txt"], "prompts 'none.txt' can't be read"),
        (["eval", "ADAPTER", "--data", "a=none.jsonl"], "data file 'none.jsonl' does not exist"),
        (["eval", "ADAPTER", "ADAPTER"], "a checkpoint is given twice"),
        (["eval", "ADAPTER", "--plot", "report.txt"], "expected a .png, .svg or .pdf file"),
        (["sweep", "composition", "--out", "x", "--over", "lr=1"], "over lr=1: expected a list"),
        (["eval", "ADAPTER", "--out", "no/such/report.json"], "the folder no/such does not exist"),
        (["inspect", "ADAPTER", "--plot", "angles.txt"], "expected a .png, .svg or .pdf file"),
        (["inspect", "nowhere/nothing"], "neither a folder nor a reachable hub repository"),
        (["frobnicate"], "No such command"),
        (
            ["train", "composition", "--out", "x", "--set", "lr=1", "--set", "lr=2"],
            "--set names 'lr' twice, as '1' and '2'",
        ),
        (
            ["train", "composition", "--out", "x", "--set", "rows=5", "--rows", "6"],
            "--set rows='5' and --rows 6: expected one",
        ),
        (
            ["train", "composition", "--out", "x", "--set", "lr=[1"],
            "recipe setting lr='.1' is no YAML",
        ),
        (["train", "composition", "--out", "x", "--set", "lr=.nan"], "lr=nan must be above 0"),
        (
            ["train", "composition", "--out", "x", "--rows", "6", "--set", "data.rows=5"],
            "recipe setting data.rows is said twice, as '5' and 6",
        ),
        (
            ["train", "composition", "--out", "x", "--set", "rank=4"],
            "rank='4' is not of kind 'road'",
        ),
        (["bench", "learn", "composition"], "recipe kind 'road': expected kind 'linear'"),
        (
            [
                "train",
                "composition",
                "--out",
                "x",
                "--data",
                "german=a.csv",
                "--data",
                "german=b.csv",
            ],
            "--data names 'german' twice",
        ),
        (
            ["train", "composition", "--out", "x", "--data", "german=a.csv"],
            "data file 'a.csv' does not exist",
        ),
        (
            ["train", "composition", "--out", "x", "--data", "germn=bundled:german"],
            "unknown subspace 'germn'",
        ),
        (
            ["train", "composition", "--out", "/proc/nope/x"],
            "--out '/proc/nope/x' can't be a folder",
        ),
        (["train", "composition", "--out", "FILE"], "is a file, expected a folder"),
        (["train", "composition", "--out", "FILE/x/y"], "is a file, expected a folder"),
        (["train", "composition", "--out", "a" * 300], "can't be a folder.*too long"),
        (["generate", "ADAPTER", "Hi", "--add", "a=x", "--add", "a=y"], "--add names 'a' twice"),
        (["generate", "ADAPTER", "--prompts", "/proc"], "prompts '/proc' can't be read"),
        (["eval", "ADAPTER", "--out", "/"], "--out '/' is a folder: expected a file"),
        (
            ["eval", "ADAPTER", "--plot", "/proc/report.png"],
            "--plot '/proc/report.png' can't be written",
        ),
        (["eval", "ADAPTER", "--expect", "german=germn"], "unknown property 'germn' of answers"),
        (["eval", "ADAPTER", "--expect", "germn=german"], "unknown subspace 'germn'"),
        (["inspect", "ADAPTER", "--plot", "FILE/a.png"], "does not exist"),
        (["sweep", "composition", "--out", "FILE"], "is a file, expected a folder"),
        (
            ["sweep", "composition", "--out", "x", "--over", "lr=[1]", "--over", "lr=[2]"],
            "--over names 'lr' twice",
        ),
        (["sweep", "composition", "--out", "x", "--over", "lr=[1"], "--over lr='.1' is no YAML"),
        (
            ["sweep", "composition", "--out", "x", "--plot", "a.txt"],
            "expected a .png, .svg or .pdf",
        ),
        (
            ["sweep", "glue", "--out", "x", "--over", "lr=[1]", "--rows", "3"],
            "rows has no meaning for task 'rte'",
        ),
        (["merge", "ADAPTER", "--out", "FILE"], "is a file, expected a folder"),
        (["export", "ADAPTER", "--out", "/proc/nope"], "can't be a folder"),
        (["merge", "ADAPTER", "--out", "x"], "holds no adapters of linear layers"),
        (["export", "ADAPTER", "--out", "x"], "holds no adapters of linear layers"),
        (["import", "nowhere", "--out", "ADAPTER"], "is not empty: expected a new folder"),
        (["bench", "train", "--out", "/proc/a.json"], "--out '/proc/a.json' can't be written"),
        (["bench", "learn", "glue", "--rate", "lora=fast"], "expected METHOD=NUMBER"),
        (["bench", "learn", "glue", "--rate", "lora=nan"], "--rate.lora=nan must be above 0"),
        (["demo", "--folder", "FILE"], "is a file: expected a folder of checkpoints"),
    ],
)
def test_bad_input_exits_with_2_and_one_clear_line(
    adapter: str,
    capsys: Any,
    monkeypatch: Any,
    tmp_path: Path,
    tmp_path_factory: Any,
    arguments: list[str],
    message: str,
) -> None:
    """Before a model is loaded."""
    import re

    def never(*args: Any, **kwargs: Any) -> Any:
        raise AssertionError("a model is loaded")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("roadint.model.pretrained.load", never)
    file = tmp_path_factory.mktemp("a file") / "file"
    file.write_text("")
    given = (
        adapter if each == "ADAPTER" else each.replace("FILE", str(file)) for each in arguments
    )
    code, out, errors = call(capsys, monkeypatch, *given)
    assert code == 2
    assert out == ""
    assert re.search(message, errors)
    if "No such command" not in message:
        assert len([line for line in errors.splitlines() if line.startswith("roadint: ")]) == 1
    assert list(tmp_path.iterdir()) == []


def test_what_the_system_refuses_is_one_line(adapter: str, capsys: Any, monkeypatch: Any) -> None:
    def refuses(*args: Any) -> Any:
        raise PermissionError(13, "Permission denied", "road.json")

    monkeypatch.setattr("roadint.checkpoint.reading.read", refuses)
    code, out, errors = call(capsys, monkeypatch, "inspect", adapter)
    assert (code, out, errors) == (2, "", "roadint: [Errno 13] Permission denied: 'road.json'\n")


def test_version_and_help() -> None:
    code, out, _ = roadint("--version")
    assert code == 0
    assert out.strip().count(".") == 2
    code, out, _ = roadint("train", "--help")
    assert code == 0
    assert "--max-completion" in out


@pytest.mark.parametrize("arguments", ["--help", "train --help", "recipes"])
def test_what_looks_up_loads_no_torch(arguments: str) -> None:
    """So it takes half a second, not five."""
    look = f"import sys; sys.argv = ['roadint', *{arguments.split()!r}]; from roadint.cli.main import main\n"
    ends = "try: main()\nexcept SystemExit as end: assert not end.code\nassert 'torch' not in sys.modules"
    assert (
        subprocess.run([sys.executable, "-c", look + ends], stdout=subprocess.DEVNULL).returncode
        == 0
    )


def test_seeds_of_other_base_models_are_no_seeds(
    adapter: str, base: str, capsys: Any, monkeypatch: Any, tmp_path: Path
) -> None:
    """One was trained on another model of the same shape: it would be measured on the first one's."""
    shutil.copytree(base, tmp_path / "model")
    shutil.copytree(adapter, tmp_path / "other")
    model = {"id": str(tmp_path / "model")}
    resign(tmp_path / "other", lambda config: config["base_model"].update(model))
    few = ["--rows", "2", "--max-prompts", "1", "--max-new-tokens", "2", "--max-completion", "4"]
    code, _, errors = call(capsys, monkeypatch, "eval", adapter, str(tmp_path / "other"), *few)
    assert (code, "checkpoints of different base models" in errors) == (2, True)
    code, _, errors = call(
        capsys, monkeypatch, "eval", adapter, str(tmp_path / "other"), *few, "--model", base
    )
    assert code == 0, errors


def test_recipes_are_listed_and_explained(capsys: Any, monkeypatch: Any) -> None:
    code, out, _ = call(capsys, monkeypatch, "recipes", "--json")
    listed = json.loads(out)
    presets = (Path(__file__).parents[2] / "roadint" / "recipes" / "presets").glob("*.yaml")
    assert (code, sorted(listed)) == (0, sorted(path.stem for path in presets))
    assert all(10 < len(purpose) < 330 for purpose in listed.values()), listed
    for name in ("composition", "glue", "cloze", "instruction"):
        code, out, _ = call(capsys, monkeypatch, "recipes", name)
        assert code == 0
        cells = [[cell.strip() for cell in line.split("│")[1:4]] for line in out.splitlines()]
        unexplained = [row[0] for row in cells if len(row) == 3 and row[0] and not row[2]]
        assert not [name for name in unexplained if not name.startswith("edit.")], unexplained
    assert "see `roadint.load`" not in out
    assert call(capsys, monkeypatch, "recipes", "nothing")[0] == 2


def test_subspaces_are_the_data_sets(
    base: str, capsys: Any, monkeypatch: Any, tmp_path: Path
) -> None:
    """Of the recipe that names none: equal parts of the blocks."""
    row = json.dumps({"instruction": "Say it", "output": "in words"})
    for name in ("french", "polite"):
        (tmp_path / f"{name}.jsonl").write_text(f"{row}\n" * 8, encoding="utf-8")
    data = [f"--data={name}={tmp_path / name}.jsonl" for name in ("french", "polite")]
    small = ["--set", "epochs=1", "--set", "layers=1", "--set", "max_length=256", "--model", base]
    out = str(tmp_path / "out")
    code, _, errors = call(capsys, monkeypatch, "train", "custom", *data, *small, "--out", out)
    assert code == 0, errors
    code, told, _ = call(capsys, monkeypatch, "inspect", out, "--json")
    subspaces = json.loads(told)["sites"][0]["subspaces"]
    assert list(subspaces) == ["french", "polite"]
    assert subspaces["french"]["blocks"][:2] == [0, 2]
    assert subspaces["polite"]["blocks"][:2] == [1, 3]
    code, _, errors = call(capsys, monkeypatch, "train", "custom", "--out", str(tmp_path / "x"))
    assert (code, "no data given" in errors) == (2, True)
    code, told, errors = call(
        capsys, monkeypatch, "eval", out, "--rows", "2", "--max-prompts", "2",
        "--max-completion", "4", "--max-new-tokens", "2", "--json",
    )  # fmt: skip
    assert code == 0, errors
    assert set(json.loads(told)["nll"]["french"]) == {"english", "french", "cross_french"}


def test_answers_are_readable_where_it_is_narrow(
    adapter: str, capsys: Any, monkeypatch: Any
) -> None:
    from roadint.cli import generate

    asked = ["generate", adapter, "A long prompt about words", "--max-new-tokens", "4"]
    _, wide, _ = call(capsys, monkeypatch, *asked)
    assert "┃ prompt" in wide
    for width in (40, 80):
        monkeypatch.setattr(generate.console, "_width", width)
        _, narrow, _ = call(capsys, monkeypatch, *asked)
        assert "┃" not in narrow
        assert "A long prompt about words\nnone\n  " in narrow
        assert max(map(len, narrow.splitlines())) <= width


def test_sampling_has_a_seed(adapter: str, capsys: Any, monkeypatch: Any) -> None:
    asked = ["generate", adapter, "Hi", "--max-new-tokens", "12", "--json", "--temperature", "2"]
    one, same, other = (
        call(capsys, monkeypatch, *asked, "--seed", seed)[1] for seed in ("1", "1", "2")
    )
    assert one == same != other


def test_an_impossible_address_is_refused_before_anything_loads(
    capsys: Any, monkeypatch: Any
) -> None:
    for host in ("1.2.3.4", "nowhere.invalid"):
        code, _, errors = call(capsys, monkeypatch, "demo", "--host", host)
        assert (code, len(errors.splitlines())) == (2, 1)
        assert f"--host {host}" in errors


def test_what_is_stopped_says_how_it_goes_on(capsys: Any, monkeypatch: Any, base: str) -> None:
    """A training goes on; a task, which starts anew, does not say so."""

    def interrupted(*_: Any, **__: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr("roadint.training.run.train", interrupted)
    monkeypatch.setattr("roadint.tasks.run.finetune", interrupted)
    train = [
        "train",
        "composition",
        "--set",
        f"model={base}",
        "--set",
        "layers=[1]",
        "--out",
        "runs/x",
    ]
    code, _, errors = call(capsys, monkeypatch, *train)
    goes_on = "roadint: the same command with --resume goes on\n"
    assert (code, errors.splitlines(keepends=True)[-2:]) == (130, [goes_on, "roadint: stopped\n"])
    code, _, errors = call(capsys, monkeypatch, "train", "glue", "--out", "runs/x")
    assert (code, errors) == (130, "roadint: stopped\n")


def test_every_command_has_an_example_that_is_one(capsys: Any, monkeypatch: Any) -> None:
    from tests.docs.test_commands import GROUP, check

    for name, command in GROUP.commands.items():
        code, told, _ = call(capsys, monkeypatch, name, "-h")
        assert code == 0
        if name != "bench":
            example = command.epilog.removeprefix("Example: roadint ")
            assert example.startswith(name)
            check(shlex.split(example))
            assert "Example: roadint" in told


def test_the_demo_says_where_it_is(capsys: Any, monkeypatch: Any) -> None:
    from roadint.cli import demo
    from roadint.demo import app, service

    asked: dict[str, Any] = {}

    def launch(_: Any, **settings: Any) -> Any:
        asked.update(settings)
        return None, "http://127.0.0.1:7860/", "https://x.gradio.live"

    def stopped() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(app, "launch", launch)
    monkeypatch.setattr(demo, "_wait", stopped)
    monkeypatch.setattr(service.Service, "_load", lambda self: None)
    code, out, errors = call(capsys, monkeypatch, "demo", "--share")
    assert (code, errors) == (130, "roadint: stopped\n")
    assert "http://127.0.0.1:7860/ and https://x.gradio.live" in out
    assert (asked["share"], asked["inbrowser"]) == (True, False)


def test_what_the_answers_say_of_a_composition() -> None:
    from roadint.cli.evaluate import conclusions

    german = ["german"]
    report = {
        "shares": {
            name: {"success": share}
            for name, share in {
                "none": 0.9, "german": 0.75, "english": 0.95, "german + english": 0.875,
                "0.5*german": None, "german - english": 0.5, "german + list": 0.75,
            }.items()
        },
        "asks": {
            "none": [], "german": german, "english": [], "german + english": german,
            "0.5*german": german, "german - english": german, "german + list": ["german", "numbered_list"],
        },
    }  # fmt: skip
    assert conclusions(report) == [
        "german + english: 88% of the answers are german and on topic, 12 points above german "
        "alone (75%)",
        "german - english: 50% of the answers are german and on topic, 25 points below german "
        "alone (75%)",
    ]


def test_lines_and_numbers_stay_what_they_are(capsys: Any, tmp_path: Path) -> None:
    """No emoji for words in colons, no line breaks of our own, no numbers that JSON has not."""
    text = "a:100:b :x: " + "word " * 60 + "end"
    print_line(text)
    assert capsys.readouterr().out == text + "\n"
    print_json({"a": [float("nan"), 1.5], "b": {"c": float("inf")}})
    assert json.loads(capsys.readouterr().out) == {"a": ["nan", 1.5], "b": {"c": "inf"}}
    assert "nan" in _result({"loss": {"loss": "nan", "loss/a": "nan"}})
    with pytest.raises(RoadError, match="/dev/null.* is no regular file"):
        check_file("--out", Path("/dev/null"))


def test_the_app_takes_arguments_of_vllm_without_a_checkpoint(
    capsys: Any, monkeypatch: Any
) -> None:
    code, _, errors = call(capsys, monkeypatch, "demo", "--", "--max-model-len", "2048")
    assert (code, "--max-model-len' is for --engine vllm" in errors) == (2, True), errors

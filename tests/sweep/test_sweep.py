"""Sweeps: every combination once, resumed, shared prefixes, failures told; the same results as single runs."""

import json
from pathlib import Path
from typing import Any

import pytest

import roadint
from roadint import Recipe, RoadError, RoadModel
from roadint.files.atomic import hold
from roadint.sweep import run as running
from roadint.sweep.plan import Plan, key
from roadint.sweep.run import Runner, sweep
from roadint.tasks.run import finetune
from roadint.training.prefix.cache import PrefixCache
from tests.helpers import call

SET = {"rows": 4, "max_completion": 6, "epochs": 1, "max_length": 200, "micro_batch": 8}
MEASURED: dict[str, Any] = {"rows": 2, "max_prompts": 2, "max_new_tokens": 3}


@pytest.fixture
def plan(base: str) -> Plan:
    over = {"lr": [1e-2, 2e-2], "layers": [[2], [1]]}
    return Plan.load(
        "composition",
        over,
        set={**SET, "model": base},
        compose=["german", "0.5*german + english"],
        **MEASURED,
    )


def test_every_combination_once_and_neighbours_share_what_is_stored(
    plan: Plan, tmp_path: Path, monkeypatch: Any
) -> None:
    built = []
    build = PrefixCache.build
    monkeypatch.setattr(
        PrefixCache, "build", lambda *args, **kwargs: built.append(args) or build(*args, **kwargs)
    )
    found = sweep(plan, tmp_path, quiet=True)
    assert [row["settings"] for row in found] == [
        {"lr": lr, "layers": layers}
        for lr, layers in ((1e-2, [2]), (1e-2, [1]), (2e-2, [2]), (2e-2, [1]))
    ]
    assert len(built) == 2  # those with the same lowest layer ran one after the other
    assert all(list(row["nll"]) == ["german", "0.5*german + english"] for row in found)
    assert all(list(row["nll"]["german"]) == ["german", "english", "cross"] for row in found)
    assert len((tmp_path / "runs.jsonl").read_text().splitlines()) == 4
    base, tokenizer = roadint.load(plan.set["model"])
    alone = RoadModel(base, plan.recipe_of(found[1]["settings"]).interventions())
    summary = roadint.train(
        alone, tokenizer, None, plan.recipe_of(found[1]["settings"]), quiet=True
    )
    assert summary["loss"] == pytest.approx(found[1]["loss"], abs=1e-4)


def test_neighbours_have_the_same_lowest_layer_wherever_it_is_said() -> None:
    placed = {name: {"layers": [9]} for name in ("german", "english")}  # none is elsewhere
    plan = Plan.load("composition", {"layers": [[3], [9]], "places": [{}, placed]})
    runs = plan.neighbours(plan.runs())
    assert [bool(run["places"]) for run in runs] == [False, True, True, False]
    assert [run["layers"] for run in runs] == [[3], [3], [9], [9]]


def test_goes_on_where_it_stopped(plan: Plan, tmp_path: Path, monkeypatch: Any) -> None:
    done: list[dict[str, Any]] = []

    def run(runner: Runner, settings: dict[str, Any]) -> dict[str, Any]:
        if len(done) == 2:
            raise KeyboardInterrupt
        done.append(settings)
        return {"run": key(settings), "settings": settings, "seconds": 1.0}

    monkeypatch.setattr(Runner, "run", run)
    with pytest.raises(KeyboardInterrupt):
        sweep(plan, tmp_path, quiet=True)
    with (tmp_path / "runs.jsonl").open("a") as table:
        table.write('{"run": "cut sho')
    first, done = done, []
    monkeypatch.setattr(Runner, "run", lambda runner, settings: run(runner, settings))
    assert [row["settings"] for row in sweep(plan, tmp_path, quiet=True)] == plan.runs()
    assert [*first, *done] == plan.neighbours(plan.runs())
    done = []
    assert len(sweep(plan, tmp_path, quiet=True)) == 4
    assert done == []


def test_a_run_that_fails_is_told_and_tried_again(
    plan: Plan, tmp_path: Path, monkeypatch: Any
) -> None:
    calls = []

    def fails(*args: Any, **kwargs: Any) -> Any:
        calls.append(args)
        raise RoadError("no room")

    monkeypatch.setattr(running, "train", fails)
    for _ in range(2):
        found = sweep(plan, tmp_path, quiet=True)
        assert [row["error"] for row in found] == ["no room"] * 4
    assert len(calls) == 8


@pytest.mark.parametrize(
    ("over", "changes", "message"),
    [
        ({"lr": 1e-2}, {}, r"over lr=0.01: expected a list"),
        ({"lrr": [1]}, {}, "no setting 'lrr'.*did you mean 'lr'"),
        ({"position": ["last", "lst"]}, {}, "unknown position 'lst'"),
        ({"lr": [1]}, {"compose": ["germn"]}, "unknown subspace 'germn'"),
    ],
)
def test_what_does_not_fit_is_told_before_anything_runs(
    over: Any, changes: Any, message: str
) -> None:
    with pytest.raises(RoadError, match=message):
        Plan.load("composition", over, **changes)


@pytest.mark.parametrize(
    "content",
    [
        "over: 5", "over: [5]", "over: {lr: 1}", "over: {lr: []}", "over: {1: [2]}", "over: {lr: [.nan]}", "over: {seed: [2020-01-01]}",
        "over: {lr: [[1]]}", "set: [1]", "set: {lr: {a: b}}", "compose: {a: 1}", "compose: []", "compose: [5]", "rows: -1", "rows: all",
        "max_prompts: 0", "max_new_tokens: .inf", "data: [german]", "data: {german: nowhere.csv}", "data: {german: 5}",
        "prompts: nowhere.txt", "prompts: [a]", "language: DE", "set: {data: {german: nowhere.csv, english: nowhere.csv}}",
        "over: {seed: [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11], save_steps: [1, 2, 3, 4, 5, 6, 7, 8, 9, 10], rows: [1, 2, 3, 4, 5, 6, 7, 8, 9, 10], "
        "max_length: [90, 2, 3, 4, 5, 6, 7, 8, 9, 10]}", "lr: 1", "rows: 1\nrows: 2", "a: &a 1\nb: *a",
    ],
)  # fmt: skip
def test_plans_that_are_none(tmp_path: Path, content: str) -> None:
    (tmp_path / "plan.yaml").write_text(f"recipe: composition\n{content}\n")
    with pytest.raises(RoadError) as told:
        Plan.load(str(tmp_path / "plan.yaml"))
    assert len(str(told.value).replace(str(tmp_path), "")) < 500


def test_tasks(
    classifier: str, sentiment: dict[str, str], capsys: Any, monkeypatch: Any, tmp_path: Path
) -> None:
    """Each run is measured by its task, and what could not be or would be ignored is refused before any runs."""
    chosen = {"task": "sst2", "model": classifier, "epochs": 1, "batch_size": 16, "data": sentiment}
    for changes, message in (
        (
            {"set": {**chosen, "data": {"train": "nowhere.tsv", "dev": "nowhere.tsv"}}},
            "nowhere.tsv",
        ),
        ({"set": {**chosen, "task": "sst"}}, "did you mean 'sst2'"),
        ({"set": chosen, "compose": ["sst2"]}, "compose has no meaning for task 'sst2'"),
        ({"set": chosen, "rows": 3}, "rows has no meaning for task 'sst2'"),
    ):
        with pytest.raises(RoadError, match=message):
            Plan.load("glue", {"lr": [1e-3]}, **changes)
    arguments = ["sweep", "glue", "--out", str(tmp_path), "--over", "lr=[1e-3, 3e-2]"]
    for name, value in chosen.items():
        arguments += ["--set", f"{name}={json.dumps(value) if name == 'data' else value}"]
    code, out, errors = call(capsys, monkeypatch, *arguments, "--json")
    assert code == 0, errors
    found = json.loads(out)
    assert [entry["settings"] for entry in found] == [{"lr": 1e-3}, {"lr": 3e-2}]
    for entry in found:
        alone = Recipe.load("glue", {**chosen, **entry["settings"]})
        _, summary = finetune(alone, quiet=True)
        assert (entry["test"], entry["validation"]) == (summary["test"], summary["validation"])
    code, out, errors = call(capsys, monkeypatch, *arguments)  # from the table
    assert code == 0, errors
    assert "accuracy on the 30 test rows" in " ".join(out.split())


def test_workers_are_rays(plan: Plan, tmp_path: Path) -> None:
    with pytest.raises(RoadError, match="workers=2: runs go one after another"):
        sweep(plan, tmp_path, workers=2)


def test_subspaces_stay_what_they_are() -> None:
    for recipe in (5, ["composition"], None):
        with pytest.raises(RoadError):
            Plan.load(recipe)  # type: ignore[arg-type]
    halves = [{"german": slice(0, 320), "english": (320, 640)}]
    (settings,) = Plan.load("composition", {"subspaces": halves}).runs()
    assert settings == {"subspaces": {"german": "[0, 320)", "english": "[320, 640)"}}


def test_a_failed_run_is_no_success(
    base: str, capsys: Any, monkeypatch: Any, tmp_path: Path
) -> None:
    def run(runner: Runner, settings: dict[str, Any]) -> dict[str, Any]:
        error = {"error": "no room\nat [/all]"} if settings["seed"] < failing else {}
        figures = {name: {} for name in ("nll", "language", "shares")}
        return {"run": key(settings), "settings": settings, "seconds": 1.0, **figures, **error}

    monkeypatch.setattr(Runner, "run", run)
    for failing, said, expected in (
        (2, "1 of 2 runs failed", 1),
        (3, "2 of 2 runs failed", 1),
        (0, "", 0),
    ):
        arguments = [
            "sweep",
            "composition",
            "--out",
            str(tmp_path / str(failing)),
            "--over",
            "seed=[1, 2]",
        ]
        for more in ([], ["--json"]):
            code, out, errors = call(capsys, monkeypatch, *arguments, *more)
            assert code == expected
            assert [line for line in errors.splitlines() if line.startswith("roadint: ")] == (
                [f"roadint: {said}; the first: no room at [/all]"] if said else []
            )
            assert not more or len(json.loads(out)) == 2
            assert bool(said) == ("at [/all]" in out)  # as it is, whatever the brackets


def test_a_file_and_other_plans(base: str, tmp_path: Path) -> None:
    file = tmp_path / "plan.yaml"
    file.write_text(
        f"recipe: composition\nset: {{model: {base}}}\nover: [{{lr: [1e-2, 1e-2]}}, {{seed: [1, 2]}}]\n"
    )
    plan = Plan.load(str(file))
    assert len(plan.runs()) == 3  # the same value twice is one run
    file.write_text("recipe: composition\nrun: 3\n")
    with pytest.raises(RoadError, match="sweep has no setting 'run'"):
        Plan.load(str(file))
    (tmp_path / "plan.json").write_text("{}")
    with pytest.raises(RoadError, match="differs in more than what it varies"):
        sweep(plan, tmp_path, quiet=True)
    (tmp_path / "plan.json").write_bytes(b'{"reci\xc3')
    with pytest.raises(RoadError, match=r"plan.json is damaged"):
        sweep(plan, tmp_path, quiet=True)
    with pytest.raises(RoadError, match="unknown engine 'rey'.*did you mean 'ray'"):
        sweep(plan, tmp_path, engine="rey")  # type: ignore[arg-type]


def test_a_table_is_of_one_recipe_and_one_writer(base: str, tmp_path: Path) -> None:
    """Files that the plan names may change, and somebody may start the same sweep again."""
    recipe, prompts, out = tmp_path / "mine.yaml", tmp_path / "asked.txt", tmp_path / "out"
    recipe.write_text("lr: 1e-2\n")
    prompts.write_text("Why?\n")
    settings = {"set": {**SET, "model": base}, **MEASURED, "prompts": str(prompts)}
    plan = Plan.load(str(recipe), {"seed": [1]}, **settings)
    done = sweep(plan, out, quiet=True)
    assert sweep(plan, out, quiet=True) == done
    with (out / ".lock").open("a") as lock:
        hold(lock)
        with pytest.raises(RoadError, match="another process writes to .*out: expected to wait"):
            sweep(plan, out, quiet=True)
    for file, content in ((prompts, "Who?\n"), (recipe, "lr: 2e-2\n")):
        before = file.read_text()
        file.write_text(content)
        with pytest.raises(RoadError, match="differs in more than what it varies"):
            sweep(plan, out, quiet=True)
        file.write_text(before)
    assert sweep(plan, out, quiet=True) == done


def test_recipes_of_images_are_refused_before_a_model_is_loaded(base: str) -> None:
    with pytest.raises(RoadError, match="images=true: sweeps measure answers to prompts of text"):
        Plan.load("llava", {"seed": [1]}, set={"model": base})


def test_the_command(base: str, capsys: Any, monkeypatch: Any, tmp_path: Path) -> None:
    settings = [
        part
        for name, value in {**SET, "model": base, "layers": 1}.items()
        for part in ("--set", f"{name}={value}")
    ]
    arguments = [
        "sweep",
        "composition",
        "--out",
        str(tmp_path),
        "--over",
        "seed=[1, 2]",
        *settings,
        "--rows",
        "2",
        "--max-prompts",
        "2",
    ]
    code, out, errors = call(capsys, monkeypatch, *arguments, "--compose", "german", "--json")
    assert code == 0, errors
    assert [row["settings"] for row in json.loads(out)] == [{"seed": 1}, {"seed": 2}]
    code, out, errors = call(capsys, monkeypatch, *arguments, "--compose", "german")
    assert code == 0, errors
    assert "seed=2" in out
    assert "2 runs, 2 of them done" in errors or errors == ""


def test_through_ray(plan: Plan, tmp_path: Path) -> None:
    import ray

    try:
        found = sweep(plan, tmp_path / "ray", engine="ray", workers=1, quiet=True)
    finally:
        ray.shutdown()
    assert [row["settings"] for row in found] == plan.runs()
    assert all(row.get("error") is None for row in found)


def test_a_table_cut_at_any_byte_loses_its_last_row_alone(
    plan: Plan, tmp_path: Path, monkeypatch: Any
) -> None:
    done: list[Any] = []

    def run(runner: Runner, settings: Any) -> dict[str, Any]:
        done.append(settings)
        return {
            "run": key(settings),
            "settings": settings,
            "seconds": 1.0,
            "says": "für \u2028 alle",
        }

    monkeypatch.setattr(Runner, "run", run)
    rows = sweep(plan, tmp_path, quiet=True)
    table = (tmp_path / "runs.jsonl").read_bytes()
    last = table.rstrip().rfind(b"\n") + 1
    for cut in range(last + 1, len(table) - 1):
        (tmp_path / "runs.jsonl").write_bytes(table[:cut])
        done.clear()
        assert sweep(plan, tmp_path, quiet=True) == rows
        assert done == [plan.neighbours(plan.runs())[-1]]
    (tmp_path / "runs.jsonl").write_bytes(b'[1]\n"x"\n{"run": 3}\n' + table)
    assert sweep(plan, tmp_path, quiet=True) == rows


def test_any_error_of_one_run_is_its_row_and_the_others_go_on(
    plan: Plan, tmp_path: Path, monkeypatch: Any
) -> None:
    train = running.train

    def fails(*args: Any, **kwargs: Any) -> Any:
        if kwargs["out"].name == key(plan.runs()[1]):
            raise RuntimeError("out of memory\nand more")
        return train(*args, **kwargs)

    monkeypatch.setattr(running, "train", fails)
    errors = [row.get("error") for row in sweep(plan, tmp_path, quiet=True)]
    assert errors == [None, "RuntimeError: out of memory", None, None]
    monkeypatch.setattr(running, "train", train)
    assert all("error" not in row for row in sweep(plan, tmp_path, quiet=True))

    def stops(*args: Any, **kwargs: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(running, "train", stops)
    with pytest.raises(KeyboardInterrupt):
        sweep(plan, tmp_path / "other", quiet=True)

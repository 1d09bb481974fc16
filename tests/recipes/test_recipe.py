"""Recipes: presets, files, overrides."""

import json
import pickle
from pathlib import Path
from typing import Any, Literal

import pytest
import torch

from roadint.errors import RoadError
from roadint.recipes.names import flat
from roadint.recipes.recipe import Recipe
from tests.helpers import build


def test_the_papers_recipe() -> None:
    recipe = Recipe.load("composition-paper")
    assert (
        recipe.edit.layers,
        recipe.edit.variant,
        recipe.optimisation.lr,
        recipe.optimisation.epochs,
        recipe.optimisation.batch_size,
    ) == (
        [15],
        "road_1",
        5e-3,
        5,
        8,
    )
    assert (recipe.model.name, recipe.model.dtype, recipe.data.rows, recipe.data.max_length) == (
        "huggyllama/llama-7b",
        "bfloat16",
        1000,
        512,
    )
    assert recipe.data.sources == {
        "german": "hub:LeoLM/HellaSwag_de",
        "english": "hub:openbmb/UltraFeedback",
    }
    (intervention,) = recipe.interventions()
    assert intervention.bind(4096).trainable_count == 4096


def test_overrides_are_read_as_yaml_and_cast() -> None:
    assert Recipe.load(
        "composition", {"lrs": "{english: 1e-3}", "companions": "{}"}
    ).optimisation.lrs == {"english": 1e-3}
    recipe = Recipe.load(
        "composition",
        {"lr": "1e-2", "layers": "[8, 10]", "rows": "16", "pairing": "half", "eos": "german"},
    )
    assert (
        recipe.optimisation.lr,
        recipe.edit.layers,
        recipe.data.rows,
        recipe.edit.pairing,
        recipe.data.eos,
    ) == (
        0.01,
        [8, 10],
        16,
        "half",
        ["german"],
    )
    assert Recipe.load(recipe, {"layers": "4", "rows": None, "pairing": "16"}).override(
        {}
    ).edit.layers == [4]
    assert Recipe.load(recipe, {"pairing": "16"}).edit.pairing == 16


def test_what_names_no_subspace_is_told() -> None:
    with pytest.raises(
        RoadError, match="recipe kind 'interchange' learns from counterfactual outputs"
    ):
        Recipe.load("composition", {"kind": "interchange"}).interventions()
    for settings in (
        {"lrs": {"germn": 1e-2}},
        {"strengths": {"germn": 1}},
        {"subspaces": {"a": "[0, d)"}},
    ):
        with pytest.raises(RoadError, match="expected one of"):
            Recipe.load("composition", settings).interventions()


def test_a_file(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("lr: 2e-3\nsubspaces: {a: '[0, 64)'}\n")
    recipe = Recipe.load(path, {"seed": 7})
    assert (
        recipe.optimisation.lr,
        recipe.edit.subspaces,
        recipe.optimisation.seed,
        recipe.optimisation.batch_size,
    ) == (
        2e-3,
        {"a": "[0, 64)"},
        7,
        8,
    )


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"lrr": 1}, "no setting 'lrr'.*did you mean 'lr'"),
        ({"learning_rate": 1}, "no setting 'learning_rate'.*did you mean 'lr'"),
        ({"lr": "fast"}, "lr='fast': expected a number"),
        ({"epochs": 0}, "epochs=0.0 must be above 0"),
        ({"rows": "many"}, "rows='many' does not fit"),
        ({"variant": "road_3"}, "variant='road_3' does not fit: expected 'road_1'"),
        ({"data": "file.jsonl"}, "expected a mapping"),
        ({"micro_batch": 3}, "micro_batch=3 does not divide batch_size=8"),
        ({"batch_size": True}, "batch_size=True does not fit"),
    ],
)
def test_bad_settings_are_named(settings: dict, message: str) -> None:
    with pytest.raises(RoadError, match=message):
        Recipe.load("composition", settings)


@pytest.mark.parametrize(
    ("name", "values"),
    [
        (
            "lr",
            [
                0,
                -1,
                float("nan"),
                float("inf"),
                ".nan",
                ".inf",
                "nan",
                1e39,
                10**400,
                "[1",
                "2020-13-01",
                {},
                None,
                True,
            ],
        ),
        ("epochs", [float("inf"), 1e7, "1e300"]),
        ("decay", [float("nan"), -1]),
        ("max_completion", [0, -3, 10**30, "9" * 5000]),
        ("rows", [0, -2, 1.5]),
        ("batch_size", [0, 2**31, "{}"]),
        ("layers", [-1, [], [-1], ["a"], "[1", [[1]]]),
        ("seed", [-1, 2**32, 1.5]),
        ("companion_rate", [-0.1, 1.1, float("nan")]),
        (
            "strengths",
            [{"german": float("nan")}, {"german": 1e39}, {1: 0.5}, [1], "{german: .inf}"],
        ),
        ("lrs", [{"german": -1}, {"german": "fast"}, "{german: 1, german: 2}"]),
        ("prefix_memory", [-1, float("inf")]),
        ("schedule", ["linaer", 5, "reduce_lr_on_plateau"]),
        ("dtype", ["bf16", 32]),
        ("template", [5, None]),
        ("model", [5, None, ["a"]]),
        ("data", ["[1]", {"german": 5}, {"german": ["a"]}, "{1: a}", "{yes: a}"]),
        ("eos", [5, [5], "[1]", {}]),
    ],
)
def test_every_value_has_its_range(name: str, values: list) -> None:
    for value in values:
        with pytest.raises(RoadError, match=f"recipe setting {name}") as told:
            Recipe.load("composition", {name: value})
        assert len(str(told.value)) < 400
    with pytest.raises(
        RoadError, match="recipe setting epochs=nan must be above 0 and at most 1,000,000"
    ):
        Recipe(epochs=float("nan"))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("1: 2", "the name 1 is no text"),
        ("lr: 1\nlr: 2", "'lr' is there twice"),
        ("a: &a [1, 1]\nb: &b [*a, *a]", "an alias"),
        ("subspaces: " + "[" * 100_000, "nested too deep"),
        ("lr: 2020-13-01", "is no YAML"),
        ("lr: !!python/object/apply:os.system [ls]", "is no YAML"),
        ("lr: !!float x", "is no YAML"),
        ("# " + "a" * (1 << 18), "over 262,144 bytes"),
        ("lr: [1", "line 1"),
        ("text", "is a str: expected a mapping"),
        ("lr: {a: {b: c}}", "lr={'a': {'b': 'c'}} does not fit: expected 'float'"),
        ("model: [a]", r"model=\['a'\] does not fit: expected 'str'"),
        ("layers: null", None),
        ("", None),
    ],
)
def test_files_that_are_no_recipes(tmp_path: Path, content: str, message: str | None) -> None:
    path = tmp_path / "r.yaml"
    path.write_bytes(b"\xef\xbb\xbf" + content.encode())
    if message is None:
        assert Recipe.load(path).edit.layers is None
        return
    with pytest.raises(RoadError, match=message):
        Recipe.load(path)


def test_what_is_no_recipe_at_all(tmp_path: Path) -> None:
    (tmp_path / "wide.yaml").write_bytes("lr: 1".encode("utf-16"))
    (tmp_path / "folder.yaml").mkdir()
    for name in (
        5,
        None,
        "a\0.yaml",
        "a" * 5000,
        tmp_path / "wide.yaml",
        tmp_path / "folder.yaml",
        {"lr": 1},
    ):
        with pytest.raises(RoadError):
            Recipe.load(name)  # type: ignore[arg-type]
    for settings in (5, [1], {1: 2}, {"": 1}):
        with pytest.raises(RoadError):
            Recipe.load("composition", settings)  # type: ignore[arg-type]


def test_lists_and_subspaces_in_every_form() -> None:
    assert Recipe.load("composition", {"eos": "[]"}).data.eos == []
    assert Recipe.load("composition", {"eos": "[german]", "layers": (1, 2)}).edit.layers == [1, 2]
    forms = {
        "a": slice(0, 8),
        "b": range(8, 12),
        "c": (12, "d/2"),
        "d": [(16, 20), slice(24, 26)],
        "e": slice(-4, None),
        "f": "[26, 28)",
    }
    recipe = Recipe.load("composition", {"subspaces": forms, "lrs": {}, "strengths": {}})
    assert json.loads(json.dumps(recipe.edit.subspaces)) == recipe.edit.subspaces
    (intervention, _) = recipe.interventions()
    expected = {
        "a": "[0, 8)",
        "b": "[8, 12)",
        "c": "[12, 16)",
        "d": "[16, 20) | [24, 26)",
        "e": "[28, 32)",
        "f": "[26, 28)",
    }
    assert {name: str(each) for name, each in intervention.bind(32).partition.items()} == expected


def test_subspaces_at_places_of_their_own() -> None:
    """What acts at the same place is one edit; what a place does not say is the recipe's."""
    settings = {
        "layers": "[3, 2]",
        "position": "last(2)",
        "places": "{form: {layers: 5, position: last}, c: {position: last}, d: {phase: generated}}",
        "subspaces": {name: f"[{8 * n}, {8 * n + 8})" for n, name in enumerate(["a", "form", "b", "c", "d"])},
        "lrs": {},
        "strengths": {},
    }  # fmt: skip
    recipe = Recipe.load("composition", settings)
    edits = recipe.interventions()
    placed = [
        (edit.layer, str(edit.position), edit.position.phase, list(edit.bind(64).partition))  # type: ignore[attr-defined]
        for edit in edits
    ]
    assert placed == [
        (3, "last(2)", "prompt", ["a", "b"]),
        (2, "last(2)", "prompt", ["a", "b"]),
        (5, "last", "prompt", ["form"]),
        (3, "last", "prompt", ["c"]),
        (2, "last", "prompt", ["c"]),
        (3, "last(2)", "generated", ["d"]),
        (2, "last(2)", "generated", ["d"]),
    ]
    assert sum(edit.trainable_count for edit in edits) == (2 * 4 + 1) * 8
    assert Recipe(**recipe.record()) == Recipe(**json.loads(json.dumps(recipe.record()))) == recipe
    moved = recipe.override({"kind": "loreft", "rank": 64})
    assert [type(edit).__name__ for edit in moved.interventions()] == ["LoreftIntervention"] * 7


@pytest.mark.parametrize(
    ("places", "message"),
    [
        ({"e": {"position": "last"}}, "setting places names 'e': expected one of 'german'"),
        ({"german": {"position": "lst"}}, "position 'lst'"),
        ({"german": {"where": "last"}}, "no setting 'where': expected one of 'layers'"),
        ({"german": {"layers": []}}, "layers=.. selects no layer"),
        ({"german": {"layers": -1}}, "layers=-1 must be at least 0"),
        ({"german": "last"}, "places.german='last'.* expected a mapping such as .layers: 15"),
    ],
)
def test_bad_places_are_named(places: Any, message: str) -> None:
    with pytest.raises(RoadError, match=message):
        Recipe.load("composition", {"places": places}).interventions()


def test_bad_recipes_are_named(tmp_path: Path) -> None:
    with pytest.raises(RoadError, match="no recipe 'compositon'.*did you mean 'composition'"):
        Recipe.load("compositon")
    (tmp_path / "bad.yaml").write_text("a: [1")
    with pytest.raises(RoadError, match="is no YAML"):
        Recipe.load(tmp_path / "bad.yaml")
    (tmp_path / "list.yaml").write_text("- 1")
    with pytest.raises(RoadError, match="is a list"):
        Recipe.load(tmp_path / "list.yaml")


def test_every_preset_fits_its_model() -> None:
    from roadint.recipes.library import PRESETS

    widths = {"gemma-3-270m": 640, "huggyllama/llama-7b": 4096}
    for preset in PRESETS.glob("*.yaml"):
        recipe = Recipe.load(preset.stem)
        interventions = recipe.interventions()
        if not interventions:
            continue
        held = {
            name
            for intervention in interventions
            for name in intervention.bind(widths[recipe.model.name]).partition
        }
        assert held == set(recipe.data.sources) == set(recipe.edit.subspaces)
        named = {*recipe.data.companions, *recipe.optimisation.lrs, *recipe.data.eos} - {"all"}
        assert named <= held


@pytest.mark.parametrize("settings", [
    {"kind": "loreft", "layers": 1, "rank": 4},
    {"kind": "direft", "layers": 1, "rank": 4},
    {"kind": "linear", "layers": 1, "lora_rank": 2, "targets": "q_proj"},
])  # fmt: skip
def test_what_starts_at_random_is_drawn_by_the_seed(settings: dict[str, Any]) -> None:
    """Whatever was drawn before, and nothing that is drawn after changes."""
    data = {"data": {"german": "bundled:german", "english": "bundled:english"}}

    def start(seed: int) -> list[torch.Tensor]:
        recipe = Recipe(**settings, **data, seed=seed)
        model = build()
        before = torch.get_rng_state()
        road = recipe.on(model)
        assert torch.equal(torch.get_rng_state(), before)
        torch.rand(3)
        return [value.detach().clone() for value in road.trained_parameters()]

    one, again, other = start(1), start(1), start(2)
    assert all(map(torch.equal, one, again))
    assert not all(map(torch.equal, one, other))


def test_one_setting_by_every_name(tmp_path: Path) -> None:
    (tmp_path / "flat.yaml").write_text(
        "model: smollm2-135m\ntask: rte\nkind: linear\nheads: classifier\n"
        "data: {train: a.tsv, dev: b.tsv}\nrows: 3\nlr: 1e-2\n"
    )
    (tmp_path / "nested.yaml").write_text(
        "model: {name: smollm2-135m}\ntask: {name: rte}\nedit: {kind: linear, heads: [classifier]}\n"
        "data: {sources: {train: a.tsv, dev: b.tsv}, rows: 3}\noptimisation: {lr: 0.01}\n"
    )
    from_flat, nested = (Recipe.load(tmp_path / f"{name}.yaml") for name in ("flat", "nested"))
    dotted = Recipe(
        **{
            "model.name": "smollm2-135m",
            "task.name": "rte",
            "edit.kind": "linear",
            "edit.heads": ["classifier"],
            "data.sources": {"train": "a.tsv", "dev": "b.tsv"},
            "data.rows": 3,
            "optimisation.lr": 1e-2,
        }
    )
    assert from_flat == nested == dotted == Recipe(**nested.record())
    assert pickle.loads(pickle.dumps(nested)) == nested
    assert nested.data.sources == {"train": "a.tsv", "dev": "b.tsv"}
    assert Recipe.load(nested, {"data": {}}).data.sources == {}
    assert Recipe.load(nested, {"data": {"rows": 4}}).data.sources == nested.data.sources
    with pytest.raises(RoadError, match="optimisation.lr is said twice"):
        nested.override({"optimisation": nested.optimisation, "lr": 3})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"optimisation": {"lrr": 1}}, "no setting 'optimisation.lrr'.*did you mean 'optimisation.lr'"),
        ({"data.lr": 1}, "no setting 'data.lr': expected one of 'companion_rate'.*did you mean 'lr'"),
        ({"optimization": {"lr": 1}}, "no setting 'optimization'"),
        ({"lr": 1, "optimisation.lr": 2}, "optimisation.lr is said twice, as 1 and 2"),
        ({"edit": {"lr": 1}}, "no setting 'edit.lr'"),
        ({"model": {"name": 5}}, "recipe setting model=5 does not fit: expected 'str'"),
        ({"data": {"sources": {"a": 5}}}, "recipe setting data.a=5 does not fit: expected 'str'"),
        ({"data": {"rows": 5, "german": "a.csv"}}, "no setting 'data.german'"),
    ],
)  # fmt: skip
def test_names_in_sections_are_checked(settings: dict, message: str) -> None:
    with pytest.raises(RoadError, match=message):
        Recipe.load("composition", settings)


def test_settings_of_another_kind_are_refused_where_they_are_said() -> None:
    for settings, message in (
        ({"rank": 4}, "rank=4 is not of kind 'road', which takes .*, but of 'direft', 'loreft'"),
        ({"kind": "loreft", "variant": "road_2"}, "variant='road_2' is not of kind 'loreft'"),
        ({"kind": "linear", "position": "last"}, "position='last' is not of kind 'linear'"),
        ({"lora_rank": 2}, "lora_rank=2 is not of kind 'road', .*but of 'linear'"),
        ({"kind": "lorefft"}, "unknown kind of intervention 'lorefft'.*did you mean 'loreft'"),
    ):
        with pytest.raises(RoadError, match=message):
            Recipe.load("composition", settings)
    recipe = Recipe.load("composition", {"kind": "loreft", "rank": 4})
    assert recipe.edit.arguments == {
        "component": "block_output",
        "position": "last(5)",  # the preset's, which this kind has too
        "phase": "prompt",
        "subspaces": {"german": "[0, d/2)", "english": "[d/2, d)"},
        "places": {},
        "rank": 4,
    }
    assert "basis" not in recipe.override({"kind": "linear"}).edit.arguments


def test_a_new_kind_brings_its_arguments(monkeypatch: pytest.MonkeyPatch) -> None:
    from roadint.interventions import registry
    from roadint.interventions.steering import SteeringIntervention

    class Louder(SteeringIntervention):
        def __init__(self, *, gain: float = 1.0, how: Literal["a", "b"] = "a", **site: Any) -> None:
            super().__init__(**site)
            self.gain, self.how = gain, how

        @classmethod
        def recipe_fields(cls) -> tuple[str, ...]:
            return (*super().recipe_fields(), "gain", "how")

    registry.kinds()
    monkeypatch.setattr(registry, "_KINDS", dict(registry._KINDS))
    registry.register("louder")(Louder)
    recipe = Recipe(kind="louder", gain="2e-1", rank=2)
    (intervention,) = recipe.interventions()
    assert isinstance(intervention, Louder)
    assert (intervention.gain, intervention.how, intervention.rank) == (0.2, "a", 2)
    for settings, message in (
        ({"gain": "loud"}, "recipe setting gain='loud' does not fit: expected 'float'"),
        ({"how": "c"}, "recipe setting how='c' does not fit: expected 'a' or 'b'"),
        ({"gian": 1}, "did you mean 'gain'"),
    ):
        with pytest.raises(RoadError, match=message):
            recipe.override(settings)
    with pytest.raises(RoadError, match="gain=2 is not of kind 'road'"):
        Recipe(gain=2)


def test_records_of_checkpoints_old_and_new() -> None:
    recipe = Recipe.load("composition")
    record = json.loads(json.dumps(recipe.record({"german": "a.csv"})))
    assert record["data"]["sources"] == {"german": "a.csv"}
    assert record["edit"]["subspaces"] == recipe.edit.subspaces
    short = flat(record)
    assert (short["model"], short["task"], short["data"]) == (
        "gemma-3-270m",
        None,
        {"german": "a.csv"},
    )
    assert flat(short) == short
    assert Recipe(**short) == Recipe(**record)

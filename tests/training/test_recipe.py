"""Recipes: presets, files, overrides."""

from pathlib import Path

import pytest

from roadint.errors import RoadError
from roadint.training.recipe import Recipe


def test_the_papers_recipe() -> None:
    recipe = Recipe.load("composition-paper")
    assert (recipe.layers, recipe.variant, recipe.lr, recipe.epochs, recipe.batch_size) == ([15], "road_1", 5e-3, 5, 8)
    assert (recipe.model, recipe.dtype, recipe.rows, recipe.max_length) == ("huggyllama/llama-7b", "bfloat16", 1000, 512)
    assert recipe.data == {"german": "hub:LeoLM/HellaSwag_de", "english": "hub:openbmb/UltraFeedback"}
    (intervention,) = recipe.interventions()
    assert intervention.bind(4096).trainable_count == 4096


def test_overrides_are_read_as_yaml_and_cast() -> None:
    assert Recipe.load("composition", {"lrs": "{english: 1e-3}", "companions": "{}"}).lrs == {"english": 1e-3}
    recipe = Recipe.load("composition", {"lr": "1e-2", "layers": "[8, 10]", "rows": "16", "pairing": "half", "eos": "german"})
    assert (recipe.lr, recipe.layers, recipe.rows, recipe.pairing, recipe.eos) == (0.01, [8, 10], 16, "half", ["german"])
    assert Recipe.load(recipe, {"layers": "4", "rows": None, "pairing": "16"}).override({}).layers == [4]
    assert Recipe.load(recipe, {"pairing": "16"}).pairing == 16


def test_what_names_no_subspace_is_told() -> None:
    with pytest.raises(RoadError, match="recipe kind 'interchange' learns from counterfactual outputs"):
        Recipe.load("composition", {"kind": "interchange"}).interventions()
    for settings in ({"lrs": {"germn": 1e-2}}, {"strengths": {"germn": 1}}, {"subspaces": {"a": "[0, d)"}}):
        with pytest.raises(RoadError, match="expected one of"):
            Recipe.load("composition", settings).interventions()


def test_a_file(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("lr: 2e-3\nsubspaces: {a: '[0, 64)'}\n")
    recipe = Recipe.load(path, {"seed": 7})
    assert (recipe.lr, recipe.subspaces, recipe.seed, recipe.batch_size) == (2e-3, {"a": "[0, 64)"}, 7, 8)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"lrr": 1}, "no setting 'lrr'.*did you mean 'lr'"),
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
    from roadint.training.recipe import _PRESETS

    widths = {"gemma-3-270m": 640, "huggyllama/llama-7b": 4096}
    for preset in _PRESETS.glob("*.yaml"):
        recipe = Recipe.load(preset.stem)
        for intervention in recipe.interventions():
            intervention.bind(widths[recipe.model])
            assert set(intervention.partition) == set(recipe.data) == set(recipe.subspaces)
            assert {*recipe.companions, *recipe.lrs, *recipe.eos} <= set(recipe.subspaces)

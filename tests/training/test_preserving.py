"""Rows whose answers a composition leaves as they are: which tokens are scored, drawn from where, and refusals."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

import roadint
from roadint import RoadError, RoadIntervention, RoadModel
from roadint.data.collate import Collator, Example, completion_nll
from roadint.recipes.recipe import Recipe
from roadint.training.preparation import prepare
from roadint.training.preserving import preserving
from tests.helpers import HALVES, SHORT, WIDTH, rows, trained

OWN = [Example([1, 5], [7, 8], "a"), Example([1, 6], [7, 9], "a")]
OTHERS = [Example([1, 10 + n], [20, 21, 22, 23, 24][: 2 + n], "b") for n in range(4)]


def _recipe(**settings: Any) -> Recipe:
    return Recipe(**{"preserve_rate": 1.0, "preserve_tokens": [2, 4], **settings})


def test_only_the_tokens_after_the_first_ones_are_scored(
    llama: PreTrainedModel, tokenizer: Any
) -> None:
    """The same likelihoods as of the whole completion, without its first tokens, whatever is beside them in the batch."""
    road = trained(llama, RoadIntervention(layer=1, subspaces=HALVES))
    whole = Example([3, 4, 5], [6, 7, 8, 9], "a")
    others = [Example([9, 8], [7, 6], "b"), Example([5, 5, 5, 5], [4, 3, 9], "a", first=1)]
    expected, _ = completion_nll(road, Collator(tokenizer)([whole]))
    batch = Collator(tokenizer)([others[0], replace(whole, first=2), others[1]])
    values, row_of = completion_nll(road, batch)
    assert row_of.tolist() == [0, 0, 1, 1, 2, 2]
    assert batch["labels"].tolist() == [7, 6, 8, 9, 3, 9]
    torch.testing.assert_close(values[2:4], expected[2:])


def test_rows_of_other_data_sets_come_as_the_compositions_own() -> None:
    more = preserving([*OWN, *OTHERS], {"a": ["b"]}, _recipe(preserve_rate=2.0))
    assert len(more) == 4
    assert {(example.composition, example.first) for example in more} == {("a", 2)}
    long_enough = {tuple(example.prompt): example.completion for example in OTHERS[1:]}
    assert {tuple(example.prompt) for example in more} == set(long_enough)  # each before one twice
    assert all(example.completion == long_enough[tuple(example.prompt)][:4] for example in more)


def test_several_data_sets_take_turns_and_the_seed_draws() -> None:
    third = [Example([1, 40 + n], [30, 31, 32], "c") for n in range(30)]
    examples = [*OWN, *OTHERS, *third]
    drawn = [
        preserving(examples, {"a": ["b", "c"]}, _recipe(preserve_rate=3.0, seed=seed))
        for seed in (1, 1, 2)
    ]
    assert drawn[0] == drawn[1] != drawn[2]
    assert [example.prompt[1] >= 40 for example in drawn[0]] == [False, True] * 3


def test_a_composition_learns_from_them_and_nothing_else_does(
    llama: PreTrainedModel, tokenizer: Any
) -> None:
    learned = []
    for settings in ({}, {"preserve": {"a": "b"}}):
        road = RoadModel(llama, RoadIntervention(layer=1, subspaces=HALVES))
        data = {"a": rows("aaaa", 8), "b": rows("bbbb", 8)}
        summary = roadint.train(
            road, tokenizer, data, **{**SHORT, **settings, "preserve_tokens": [1, 3]}
        )
        learned.append((road.interventions[0].theta.detach().clone(), summary["rows"]))
    assert [counts for _, counts in learned] == [{"a": 8, "b": 8}, {"a": 12, "b": 8}]
    assert not torch.allclose(learned[0][0][: WIDTH // 4], learned[1][0][: WIDTH // 4])


def test_completions_of_one_data_set_are_cut_shorter(
    llama: PreTrainedModel, tokenizer: Any
) -> None:
    road = RoadModel(llama, RoadIntervention(layer=1, subspaces=HALVES))
    data = {"a": "bundled:german", "b": "bundled:english"}
    recipe = Recipe(rows=8, template="plain", eos=[], max_completion=9, max_completions={"a": 4})
    examples = prepare(road, tokenizer, data, recipe).examples
    lengths = {
        name: {len(each.completion) for each in examples if each.composition == name}
        for name in "ab"
    }
    assert lengths == {"a": {4}, "b": {9}}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"preserve": {"a": "c"}}, "setting preserve.a names 'c', which is no data set here"),
        ({"preserve": {"c": "a"}}, "setting preserve names 'c', which is no data set here"),
        ({"preserve": {"a": "a"}}, r"preserve.a=\['a'\]: expected other data sets than 'a'"),
        ({"preserve": {"a": []}}, r"preserve.a=\[\]: expected other data sets than 'a'"),
        (
            {"preserve": {"a": "b"}, "preserve_tokens": [99, 100]},
            "no completion of 'b' has more than 99 tokens; expected a smaller first token",
        ),
        ({"preserve_tokens": [4, 4]}, r"preserve_tokens=\[4, 4\]: expected a first token"),
        ({"preserve_tokens": [4]}, "preserve_tokens"),
        ({"preserve": {"a": "b"}, "images": True}, "preserve is for rows of text"),
        ({"preserve_rate": -1}, "preserve_rate=-1.0 must be at least 0"),
        ({"max_completions": {"a": 0}}, "max_completions.a=0 must be at least 1"),
        ({"max_completions": {"c": 4}}, "setting max_completions names 'c'"),
    ],
)
def test_what_does_not_fit_is_refused(
    llama: PreTrainedModel, tokenizer: Any, changes: dict[str, Any], message: str
) -> None:
    road = RoadModel(llama, RoadIntervention(layer=1, subspaces=HALVES))
    data = {"a": rows("abab", 4), "b": rows("xyz", 4)}
    with pytest.raises(RoadError, match=message):
        roadint.train(road, tokenizer, data, **{**SHORT, **changes})


@pytest.fixture
def recipe(tmp_path: Path) -> str:
    path = tmp_path / "recipe.yaml"
    path.write_text("data: {preserve: {german: english}, max_completions: {german: 8}}")
    return str(path)


def test_what_a_recipe_says_of_other_data_sets_is_dropped(
    llama: PreTrainedModel, tokenizer: Any, recipe: str
) -> None:
    """Its `preserve` and `max_completions` are of German, which is none here; chosen by the caller, they would be refused."""
    assert Recipe.load(recipe).data.preserve == {"german": ["english"]}
    road = RoadModel(llama, RoadIntervention(layer=1, subspaces=HALVES))
    summary = roadint.train(road, tokenizer, {"a": rows("abab", 4)}, recipe=recipe, **SHORT)
    assert summary["rows"] == {"a": 4}


def test_a_recipes_data_set_to_preserve_is_missed_where_it_is_not_there(
    llama: PreTrainedModel, tokenizer: Any, recipe: str
) -> None:
    halves = {"german": "[0, d/2)", "english": "[d/2, d)"}
    road = RoadModel(llama, RoadIntervention(layer=1, subspaces=halves))
    with pytest.raises(RoadError, match="preserve.german names 'english', which is no data set"):
        roadint.train(road, tokenizer, {"german": rows("ab", 4)}, recipe=recipe, **SHORT)

"""Compositions across checkpoints: sums as products of rotations, inverses, and what is refused."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from roadint import RoadError, RoadIntervention, RoadModel
from roadint.interventions.loreft import LoreftIntervention
from tests.helpers import WIDTH, trained

HALVES = {"german": "[0, d/2)", "english": "[d/2, d)"}


def saved(folder: Path, model: PreTrainedModel, seed: int, **arguments: Any) -> Path:
    torch.manual_seed(seed)
    intervention = RoadIntervention(**{"layer": 1, "subspaces": HALVES, **arguments})
    road = RoadModel(model, intervention)
    with torch.no_grad():
        intervention.theta.normal_()
        intervention.alpha.uniform_(0.5, 1.5)
    road.save_pretrained(folder)
    return folder


IDS = torch.arange(5, 12)[None]


def test_sums_on_shared_blocks_are_products_and_differences_quotients(
    llama: PreTrainedModel, tmp_path: Path
) -> None:
    paths = {name: saved(tmp_path / name, llama, seed) for seed, name in enumerate("abc")}
    road = RoadModel.from_pretrained(llama, paths)
    assert road.names == [f"{name}@{label}" for label in "abc" for name in HALVES]
    single = RoadIntervention(layer=1, embed_dim=WIDTH)
    a, b = (RoadModel.from_pretrained(llama, paths[name]).interventions[0] for name in "ab")
    with torch.no_grad():
        half = WIDTH // 4
        single.theta[:half] = a.theta[:half] + 0.5 * b.theta[:half]
        single.alpha[:half] = a.alpha[:half] * b.alpha[:half] ** 0.5
        single.theta[half:] = -b.theta[half:]
        single.alpha[half:] = 1 / b.alpha[half:]
    expected = RoadModel(llama, single)(input_ids=IDS).logits
    found = road(input_ids=IDS, compose="german@a + 0.5*german@b - english@b").logits
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    # order makes no difference, and what is taken away again leaves nothing
    one, other, nothing = (
        road(input_ids=IDS, compose=each).logits for each in ("a + c", "c + a", "a + c - a - c")
    )
    torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(nothing, llama(input_ids=IDS).logits, atol=1e-4, rtol=1e-4)


def test_disjoint_blocks_of_any_variant(llama: PreTrainedModel, tmp_path: Path) -> None:
    paths = {
        "a": saved(tmp_path / "a", llama, 1, variant="road_4"),
        "b": saved(tmp_path / "b", llama, 2, variant="road_2", position="last"),
    }
    road = RoadModel.from_pretrained(llama, paths)
    alone = {
        label: RoadModel.from_pretrained(llama, path).interventions[0]
        for label, path in paths.items()
    }
    h = torch.randn(1, WIDTH)
    expected = torch.cat(
        [
            alone["a"](h, subspaces=["german"])[:, : WIDTH // 2],
            alone["b"](h, subspaces=["english"])[:, WIDTH // 2 :],
        ],
        1,
    )
    for each in ("german@a + english@b", "english@b + german@a"):
        both = road.interventions[1](
            road.interventions[0](h, subspaces=[_of(each, "a")]), subspaces=[_of(each, "b")]
        )
        torch.testing.assert_close(both, expected)
        assert torch.isfinite(road(input_ids=IDS, compose=each).logits).all()
    with pytest.raises(RoadError, match="road_4 and road_2 share 8 blocks and do not commute"):
        road(input_ids=IDS, compose="german@a + german@b")


def _of(composition: str, label: str) -> str:
    return next(each for each in composition.split(" + ") if each.endswith(label))


def test_what_has_no_meaning_is_refused(
    llama: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    road = RoadModel.from_pretrained(llama, {"a": saved(tmp_path / "a", llama, 1)})
    road.add_checkpoint(saved(tmp_path / "b", llama, 2, basis="random"), "b")
    with pytest.raises(
        RoadError,
        match=r"'german@a \+ english@b' sums german@a and english@b at layer 1, but they form pairs in",
    ):
        road(input_ids=IDS, compose="german@a + english@b")
    with pytest.raises(RoadError, match="different bases"):
        road.answer(tokenizer, "hello", compose="a + b")
    assert (
        len(road.answer(tokenizer, "hello", compose=["a", "b"], max_new_tokens=2)) == 2
    )  # each alone is fine
    RoadModel(llama, LoreftIntervention(layer=1, rank=4)).save_pretrained(tmp_path / "loreft")
    road.add_checkpoint(tmp_path / "loreft", "c")
    with pytest.raises(RoadError, match="road and loreft edits do not commute"):
        road(input_ids=IDS, compose="a + c")
    with pytest.raises(
        RoadError, match=r"unknown subspace 'german' in composition 'german': .*did you mean"
    ):
        road(input_ids=IDS, compose="german")


def test_checkpoints_come_and_go_and_a_bad_one_changes_nothing(
    llama: PreTrainedModel, tmp_path: Path
) -> None:
    first = saved(tmp_path / "a", llama, 1)
    road = RoadModel.from_pretrained(llama, {"a": first})
    (tmp_path / "empty").mkdir()
    for path, label, message in [
        (tmp_path / "empty", "b", "is no roadint checkpoint"),
        (first, "a", "label 'a' is taken"),
        (first, "b b", "is not a plain word"),
    ]:
        with pytest.raises(RoadError, match=message):
            road.add_checkpoint(path, label)
    other = RoadModel.from_pretrained(llama, first)
    other.template = "alpaca"
    other.save_pretrained(tmp_path / "alpaca")
    with pytest.raises(
        RoadError, match="was trained with template 'alpaca', this one with 'plain'"
    ):
        road.add_checkpoint(tmp_path / "alpaca", "b")
    assert road.names == ["german@a", "english@a"]
    road.add_checkpoint(saved(tmp_path / "b", llama, 2), "b")
    together = road(input_ids=IDS, compose="a + b").logits
    road.save_pretrained(tmp_path / "both")
    assert torch.equal(
        RoadModel.from_pretrained(llama, tmp_path / "both")(input_ids=IDS, compose="a + b").logits,
        together,
    )
    road.remove_checkpoint("a")
    assert road.names == ["german@b", "english@b"]
    with pytest.raises(
        RoadError, match="no checkpoint 'a' to remove: the names are 'german@b', 'english@b'"
    ):
        road.remove_checkpoint("a")
    road.remove_checkpoint("b")
    assert torch.equal(road(input_ids=IDS).logits, llama(input_ids=IDS).logits)
    with pytest.raises(RoadError, match="no checkpoints given"):
        RoadModel.from_pretrained(llama, {})


def test_interventions_of_one_model_are_not_checked(llama: PreTrainedModel) -> None:
    """Their order is the one they were given in."""
    sites = [
        RoadIntervention(layer=1, variant="road_4", subspaces={name: "[0, d)"})
        for name in ("a", "b")
    ]
    assert torch.isfinite(trained(llama, *sites)(input_ids=IDS, compose="a + b").logits).all()


def test_a_first_checkpoint_without_a_label_is_summed_by_the_same_rules(
    llama: PreTrainedModel, tmp_path: Path
) -> None:
    other = saved(tmp_path / "b", llama, 2, variant="road_2")
    for first in (
        saved(tmp_path / "a", llama, 1),
        saved(tmp_path / "c", llama, 3, basis="hadamard"),
    ):
        road = RoadModel.from_pretrained(llama, first)
        assert road.names == ["german", "english"]
        road.add_checkpoint(other, "b")
        for compose in (
            "german + german@b",
            "all",
            ["none", "german + b"],
            {"german": 0.5, "b": 1},
        ):
            with pytest.raises(
                RoadError, match="sums .* at layer 1, but .*: expected the same basis and pairing"
            ):
                road(
                    input_ids=IDS.repeat(len(compose) if isinstance(compose, list) else 1, 1),
                    compose=compose,
                )
        for compose in ("german + english", "b"):
            assert torch.isfinite(road(input_ids=IDS, compose=compose).logits).all()
    road = RoadModel.from_pretrained(llama, tmp_path / "a")
    road.add_checkpoint(other, "b")
    assert torch.isfinite(
        road(input_ids=IDS, compose="german + english@b").logits
    ).all()  # disjoint blocks
    road.add_checkpoint(tmp_path / "c", "c")
    with pytest.raises(RoadError, match="different bases"):
        road(input_ids=IDS, compose="german + english@c")

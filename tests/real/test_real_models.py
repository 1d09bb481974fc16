"""Real weights: what holds on tiny models holds here, and German is learned."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

import roadint
from roadint import RoadIntervention, RoadModel
from roadint.checkpoint.reading import size_of
from roadint.data.collate import Collator, completion_nll, tokenize
from roadint.data.prompts import batch_prompts, pad
from roadint.data.sources import load_rows
from roadint.evaluation.language import language_of
from roadint.interventions.pyvene.patches import pyvene as pv
from roadint.training.prefix.cache import PrefixCache
from tests.helpers import trained

HALVES = {"german": "[0, d/2)", "english": "[d/2, d)"}
COMPOSE = [None, "german", "english", "german + english"]
QUESTIONS = [
    "How can I learn English?",
    "Name three things that a small garden needs in spring.",
    "Why?",
    "What is a good breakfast?",
]


def near_identity(model: Any, *interventions: RoadIntervention) -> RoadModel:
    """Rotations as large as training makes them (mean |θ| about 0.3)."""
    road = trained(model, *interventions)
    with torch.no_grad():
        for intervention in road.interventions:
            intervention.theta.mul_(0.2)
            intervention.alpha.sub_(1).mul_(0.5).add_(1)
    return road


@contextmanager
def in_float32(model: Any) -> Iterator[None]:
    """So that rounding does not hide a mistake; without gradients."""
    dtype = model.dtype
    model.float()
    try:
        with torch.no_grad():
            yield
    finally:
        model.to(dtype)


@pytest.fixture(scope="module")
def adapter(gemma: tuple[Any, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """German and English learned for a minute."""
    model, tokenizer = gemma
    out = tmp_path_factory.mktemp("runs") / "german-english"
    recipe = roadint.Recipe.load(
        "composition", {"rows": 48, "max_completion": 32, "epochs": 4, "lr": 2e-2, "lrs": {}}
    )
    road = RoadModel(model, recipe.interventions())
    before = {
        name: value.clone()
        for name, value in model.state_dict().items()
        if "layers.6" in name or "embed" in name
    }
    summary = roadint.train(road, tokenizer, recipe=recipe, out=out, quiet=True)
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in before.items())
    assert summary["trainable"] == 1280
    return out


def test_short_training_teaches_german_and_the_rest_stays(
    gemma: tuple[Any, Any], adapter: Path
) -> None:
    model, tokenizer = gemma
    road = RoadModel.from_pretrained(model, adapter)
    report = roadint.evaluate(
        road, tokenizer, prompts=QUESTIONS, rows=16, max_new_tokens=24, max_completion=32
    )
    nll = report.nll
    assert nll["german"]["german"] < nll["none"]["german"] - 0.3
    assert nll["german + english"]["german"] < nll["none"]["german"] - 0.2
    assert nll["english"]["english"] < nll["none"]["english"]
    assert report.language["none"] == {"en": 1.0}
    assert report.language["german"].get("de", 0) >= 0.5


def test_checkpoint_is_a_few_kb_and_gives_the_same_answers(
    gemma: tuple[Any, Any], adapter: Path, tmp_path: Path
) -> None:
    model, tokenizer = gemma
    road = RoadModel.from_pretrained(model, adapter)
    road.save_pretrained(tmp_path)
    assert size_of(tmp_path) < 10_000
    again = RoadModel.from_pretrained(model, tmp_path)
    settings = {"compose": COMPOSE, "max_new_tokens": 12}
    assert again.answer(tokenizer, QUESTIONS, **settings) == road.answer(
        tokenizer, QUESTIONS, **settings
    )


def test_none_in_a_mixed_batch_is_the_base_models_answer(
    gemma: tuple[Any, Any], adapter: Path
) -> None:
    model, tokenizer = gemma
    road = RoadModel.from_pretrained(model, adapter)
    batch = batch_prompts(tokenizer, road.template, [QUESTIONS[0]] * 4)
    tokens = road.generate(**batch, compose=COMPOSE, max_new_tokens=16, do_sample=False)
    base = model.generate(**batch, max_new_tokens=16, do_sample=False)
    assert torch.equal(tokens[0], base[0])
    assert not torch.equal(tokens[1], base[1])
    assert language_of(tokenizer.decode(base[0, batch["input_ids"].shape[1] :])) == "en"


@pytest.mark.parametrize("name", ["gemma", "smollm"])
@pytest.mark.parametrize("side", ["left", "right"])
def test_rows_alone_and_in_a_padded_batch(
    name: str, side: Any, request: pytest.FixtureRequest
) -> None:
    model, tokenizer = request.getfixturevalue(name)
    with in_float32(model):
        road = near_identity(model, RoadIntervention(layer=9, subspaces=HALVES, basis="random"))
        ids = [tokenizer(question)["input_ids"] for question in QUESTIONS]
        batch = {
            "input_ids": pad(ids, 0, side),
            "attention_mask": pad([[1] * len(row) for row in ids], 0, side),
        }
        logits = road(**batch, compose=COMPOSE).logits
        for index, row in enumerate(ids):
            own = logits[index, -len(row) :] if side == "left" else logits[index, : len(row)]
            alone = road(input_ids=torch.tensor([row]), compose=COMPOSE[index]).logits[0]
            torch.testing.assert_close(own, alone, rtol=1e-3, atol=2e-3)


def test_long_prompts_past_the_sliding_window(gemma: tuple[Any, Any]) -> None:
    """700 tokens, a window of 512: with and without a cache, and with a prefill in chunks, the edit is at the same token."""
    model, tokenizer = gemma
    road = near_identity(model, RoadIntervention(layer=9, subspaces=HALVES, position="last(3)"))
    ids = torch.tensor([tokenizer("The garden was quiet that day. " * 120)["input_ids"][:700]])
    settings = {"input_ids": ids, "compose": "german", "max_new_tokens": 4, "do_sample": False}
    settings |= {"output_logits": True, "return_dict_in_generate": True}
    with in_float32(model):
        cached = road.generate(**settings)
        uncached = road.generate(**settings, use_cache=False)
        chunked = road.generate(**settings, prefill_chunk_size=128, use_cache=True)
        base = model(input_ids=ids).logits[0, -1]
    for other in (uncached, chunked):
        assert torch.equal(other.sequences, cached.sequences)
        torch.testing.assert_close(
            torch.stack(other.logits), torch.stack(cached.logits), rtol=1e-3, atol=2e-3
        )
    assert (cached.logits[0] - base).abs().max() > 1


def test_equals_pyvene_on_real_weights(gemma: tuple[Any, Any]) -> None:
    model, tokenizer = gemma
    road = near_identity(model, RoadIntervention(layer=9, subspaces=HALVES))
    ids = torch.tensor([tokenizer(QUESTIONS[0])["input_ids"]] * 4)
    pv_model = pv.IntervenableModel(roadint.pyvene_config(model, road.interventions[0]), model)
    with torch.no_grad():
        _, output = pv_model(
            {"input_ids": ids},
            unit_locations={"sources->base": (None, [[[ids.shape[1] - 1]] * 4])},
            subspaces=[["none", "german", "english", "german + english"]],
        )
        expected = road(input_ids=ids, compose=COMPOSE).logits
    assert torch.equal(output.logits, expected)


def test_chat_template(smollm: tuple[Any, Any]) -> None:
    model, tokenizer = smollm
    road = near_identity(model, RoadIntervention(layer=15, subspaces=HALVES))
    road.template = "chat"
    shown = road.describe(tokenizer, QUESTIONS[0])
    assert "istant|»⏎«[layer 15]" in shown
    texts = road.answer(tokenizer, QUESTIONS[0], compose=COMPOSE, max_new_tokens=16)
    assert texts[0] == road.answer(tokenizer, QUESTIONS[0], compose=None, max_new_tokens=16)[0]
    assert len(set(texts)) > 1


def test_the_prepared_model_is_used_again(
    gemma: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(roadint.model.pretrained, "_prepare", None)
    model, _ = roadint.load("gemma-3-270m")
    assert model.name_or_path == "gemma-3-270m"
    assert torch.equal(model.get_input_embeddings().weight, gemma[0].get_input_embeddings().weight)


def test_prefix_reuse_trains_as_the_plain_way_does_within_the_rounding_of_bfloat16(
    gemma: tuple[Any, Any], tmp_path: Path
) -> None:
    """Two plain runs whose rows lie differently in their batches show what rounding alone does."""
    model, tokenizer = gemma
    model.requires_grad_(False)
    collator = Collator(tokenizer)
    settings = {"template": "alpaca", "max_length": 256, "max_completion": 16}
    examples = [
        example
        for name in HALVES
        for example in tokenize(load_rows(f"bundled:{name}", 12), tokenizer, name, **settings)  # type: ignore[arg-type]
    ]
    curves = {}
    for kind in ("plain", "one by one", "reuse"):
        road = RoadModel(model, RoadIntervention(layer=9, basis="random", subspaces=HALVES))
        cache = (
            PrefixCache.build(road, examples, collator, folder=tmp_path)
            if kind == "reuse"
            else None
        )
        optimizer = torch.optim.AdamW(road.interventions.parameters(), lr=1e-2, weight_decay=0.0)
        curves[kind] = []
        for step in range(6):
            rows = examples[2 * step : 2 * step + 2] + examples[12 + 2 * step : 14 + 2 * step]
            parts = [[row] for row in rows] if kind == "one by one" else [rows]
            tokens, total = sum(len(row.completion) for row in rows), 0.0
            for part in parts:
                nll, _ = (
                    cache.nll(road, cache(part)) if cache else completion_nll(road, collator(part))
                )
                (nll.sum() / tokens).backward()
                total += nll.detach().sum().item() / tokens
            optimizer.step()
            optimizer.zero_grad()
            curves[kind].append(total)
    plain, other, reuse = (torch.tensor(curve) for curve in curves.values())
    noise = float((plain - other).abs().mean())
    assert float((plain - reuse).abs().mean()) < 3 * noise + 0.005
    assert noise < 0.1

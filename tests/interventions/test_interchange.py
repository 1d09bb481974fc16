"""RoadInterchange against dense matrices, hand-written hooks and pyvene: every position kind, mode and architecture."""

from pathlib import Path
from typing import Any

import pytest
import pyvene as pv
import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from roadint import RoadError, RoadInterchange, RoadIntervention, RoadModel, pyvene_config
from roadint.architecture.layers import site_path
from roadint.interop.pyvene import load
from roadint.rotation.rotation import rotation
from tests.helpers import ARCHITECTURES, WIDTH, build

HALVES = {"a": "[0, d/2)", "b": "[d/2, d)"}
BASE, SOURCE = ["hello you", "abc"], ["what is", "zzz yyy xx"]


def made(**arguments: Any) -> RoadInterchange:
    torch.manual_seed(2)
    intervention = RoadInterchange(**{"embed_dim": WIDTH, "layer": 1, **arguments})
    with torch.no_grad():
        for parameter in intervention.parameters():
            parameter.add_(torch.randn(parameter.shape))
    return intervention


def dense(intervention: RoadInterchange, rows: list[int]) -> Tensor:
    """Rᵀ_S R_S from the matrices of the rotations, in the intervention's basis."""
    r = torch.eye(WIDTH)
    for stage, theta in enumerate(intervention.theta.detach()):
        turned = torch.eye(WIDTH)
        stride = 2 ** (stage % 5)
        for block in range(WIDTH // 2):
            i = block // stride * 2 * stride + block % stride
            j = i + stride
            c, s = float(theta[block].cos()), float(theta[block].sin())
            turned[i, i], turned[i, j], turned[j, i], turned[j, j] = c, -s, s, c
        r = turned @ r
    p = r[rows].T @ r[rows]
    if intervention.frame is None:
        return p
    q = intervention.frame.out(torch.eye(WIDTH)).T
    return q @ p @ q.T


@pytest.mark.parametrize("basis", ["identity", "random", "hadamard"])
@pytest.mark.parametrize("stages", [1, 2, 6])
@pytest.mark.parametrize("rows", ["first", "second", "both"])
def test_the_formula(basis: str, stages: int, rows: str) -> None:
    intervention = made(subspaces=HALVES, basis=basis, stages=stages, rows=rows)
    base, source = torch.randn(2, 3, WIDTH), torch.randn(2, 3, WIDTH)
    found = intervention(base, source, subspaces=["a", "0.5*b"])
    of_block = {"first": [0], "second": [1], "both": [0, 1]}[rows]
    for row, (first, strength) in enumerate([(0, 1.0), (WIDTH // 2, 0.5)]):
        own = [first + 2 * block + each for block in range(WIDTH // 4) for each in of_block]
        expected = base[row] + strength * (source[row] - base[row]) @ dense(intervention, own)
        torch.testing.assert_close(found[row], expected, atol=5e-6, rtol=1e-5)


def test_both_rows_swap_the_raw_pairs_and_one_row_needs_theta() -> None:
    base, source = torch.randn(1, WIDTH), torch.randn(1, WIDTH)
    both = made(subspace="[0, d/2)", rows="both")(base, source)
    torch.testing.assert_close(
        both, torch.cat([source[:, : WIDTH // 2], base[:, WIDTH // 2 :]], 1), atol=1e-6, rtol=0
    )
    one = made(subspace="[0, d/2)")
    assert not torch.allclose(one(base, source)[:, : WIDTH // 2], both[:, : WIDTH // 2], atol=0.1)
    one(base, source).square().sum().backward()
    assert (one.theta.grad[0, : WIDTH // 4] != 0).all()
    assert (one.theta.grad[0, WIDTH // 4 :] == 0).all()


def test_rows_of_one_block_may_be_of_two_subspaces() -> None:
    mixed = made(subspaces={"x": "[0, d)", "y": "[0, d)"}, rows={"x": "first", "y": "second"})
    base, source = torch.randn(2, WIDTH), torch.randn(2, WIDTH)
    torch.testing.assert_close(
        mixed(base, source, ["x + y", None]), torch.stack([source[0], base[1]]), atol=1e-6, rtol=0
    )
    assert str(mixed.partition["y"]) == f"rows[1:{WIDTH}:2]"


def test_partition_and_explicit_rows_are_the_same() -> None:
    base, source = torch.randn(3, 2, WIDTH), torch.randn(3, 2, WIDTH)
    partition = made(subspace_partition=[[0, 3], [5, 6, 11]])
    explicit = made(rows="explicit", subspace=f"[0, {WIDTH})")
    torch.testing.assert_close(
        partition(base, source, subspaces=[[0], [1], [0, 1]]),
        explicit(base, source, subspaces=[[0, 1, 2], [5, 6, 11], [0, 1, 2, 5, 6, 11]]),
    )


@pytest.mark.parametrize("position", ["last", "last(2)", "first(2)", "all", "at(1, -2)"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_roadmodel_a_hook_and_pyvene_agree(
    architecture: str, position: str, tokenizer: PreTrainedTokenizerFast
) -> None:
    """Rows of different lengths in one batch, against one row at a time through a hand-written hook and through pyvene."""
    model = build(architecture)
    intervention = made(subspaces=HALVES, position=position, basis="random")
    road = RoadModel(model, intervention)
    base, source = ["hello you", "abc"], ["what is !", "zyx"]  # as many tokens each, for "all"
    together = road.interchange(tokenizer, base, source, compose=["a", "a + b"]).logits
    layer = model.get_submodule(site_path(model, 1, "block_output"))
    through_pyvene = pv.IntervenableModel(pyvene_config(model, intervention), model)
    for row, (one, other) in enumerate(zip(base, source, strict=True)):
        ids, theirs = (tokenizer(text, return_tensors="pt")["input_ids"] for text in (one, other))
        where = (
            intervention.position.edited(
                torch.arange(ids.shape[1])[None], torch.tensor([ids.shape[1]])
            )[0]
            .nonzero()
            .flatten()
        )
        rows = [[0], [0, 1]][row]
        p = dense(
            intervention,
            [index for name in "ab"[: len(rows)] for index in intervention.partition[name].blocks],
        )
        states: list[Tensor] = []
        handle = layer.register_forward_hook(
            lambda m, a, output, states=states: states.append(_hidden(output).detach().clone())
        )
        model(input_ids=theirs)
        handle.remove()

        def put(
            module: Any,
            args: Any,
            output: Any,
            where: Tensor = where,
            p: Tensor = p,
            states: list[Tensor] = states,
        ) -> Any:
            hidden = _hidden(output).clone()
            hidden[:, where] += (states[0][:, where] - hidden[:, where]) @ p
            return (hidden, *output[1:]) if isinstance(output, tuple) else hidden

        handle = layer.register_forward_hook(put)
        expected = model(input_ids=ids).logits[0]
        handle.remove()
        scale = float(expected.detach().abs().max())
        torch.testing.assert_close(
            together[row, -len(expected) :], expected, atol=2e-6 * scale, rtol=0
        )
        at = [[where.tolist()]]
        _, found = through_pyvene(
            {"input_ids": ids},
            [{"input_ids": theirs}],
            unit_locations={"sources->base": (at, at)},
            subspaces=[[rows]],
        )
        torch.testing.assert_close(found.logits[0], expected, atol=2e-6 * scale, rtol=0)


def _hidden(output: Any) -> Tensor:
    return output[0] if isinstance(output, tuple) else output


@pytest.mark.parametrize("mode", ["parallel", "serial"])
def test_several_sources_as_in_pyvene(
    mode: Any, llama: PreTrainedModel, tokenizer: PreTrainedTokenizerFast
) -> None:
    sites = [made(layer=0, position="last(2)"), made(layer=2, position="last(2)", rows="second")]
    road = RoadModel(llama, sites)
    base, first, second = ["hello"], ["world"], ["abcde"]
    found = road.interchange(tokenizer, base, [first, second], mode=mode).logits
    config = pyvene_config(llama, sites)
    config.mode = mode
    b, f, s = (
        {"input_ids": tokenizer(text, return_tensors="pt")["input_ids"]}
        for text in (base, first, second)
    )
    at = [[b["input_ids"].shape[1] - 2, b["input_ids"].shape[1] - 1]]
    where = {"sources->base": ([at, at], [at, at])}
    if mode == "serial":
        where = {"source_0->source_1": ([at], [at]), "source_1->base": ([at], [at])}
    _, expected = pv.IntervenableModel(config, llama)(b, [f, s], unit_locations=where)
    torch.testing.assert_close(found, expected.logits, atol=2e-5, rtol=1e-5)
    alone = road.interchange(tokenizer, base, [None, second]).logits
    torch.testing.assert_close(
        alone, RoadModel(llama, sites[1]).interchange(tokenizer, base, second).logits
    )


def test_linked_weights_in_pyvene(
    llama: PreTrainedModel, tokenizer: PreTrainedTokenizerFast
) -> None:
    """One site, one set of weights, two subspaces from two sources: pyvene's links, and RoadModel's two sites of equal values."""
    shared = made(subspaces=HALVES)
    site = {
        "layer": 1,
        "component": "block_output",
        "intervention": shared,
        "intervention_link_key": 0,
    }
    pyvene_config(llama, shared)  # registers the type
    through = pv.IntervenableModel(
        pv.IntervenableConfig([site, site], model_type=type(llama)), llama
    )
    assert len({id(each) for each in through.interventions.values()}) == 1
    b, first, second = (
        {"input_ids": tokenizer(text, return_tensors="pt")["input_ids"]}
        for text in ("hello", "world", "abcde")
    )
    at = [[b["input_ids"].shape[1] - 1]]
    where = {"sources->base": ([at, at], [at, at])}
    _, expected = through(b, [first, second], unit_locations=where, subspaces=[[[0]], [[1]]])
    ours = [made(subspaces={"a": "[0, d/2)"}), made(subspaces={"b": "[d/2, d)"})]
    found = RoadModel(llama, ours).interchange(tokenizer, "hello", [["world"], ["abcde"]])
    torch.testing.assert_close(found.logits, expected.logits, atol=1e-5, rtol=1e-5)


def test_a_group_takes_from_one_source_in_pyvene(
    llama: PreTrainedModel, tokenizer: PreTrainedTokenizerFast
) -> None:
    sites = [made(layer=0), made(layer=2, rows="second")]
    pyvene_config(llama, sites)
    grouped = [
        {"layer": each.layer, "component": "block_output", "intervention": each, "group_key": 0}
        for each in sites
    ]
    b, s = (
        {"input_ids": tokenizer(text, return_tensors="pt")["input_ids"]}
        for text in ("hello", "world")
    )
    at = [[b["input_ids"].shape[1] - 1]]
    through = pv.IntervenableModel(pv.IntervenableConfig(grouped, model_type=type(llama)), llama)
    _, expected = through(b, [s], unit_locations={"sources->base": ([at, at], [at, at])})
    found = RoadModel(llama, sites).interchange(tokenizer, "hello", "world")
    torch.testing.assert_close(found.logits, expected.logits, atol=1e-5, rtol=1e-5)


def test_other_interventions_act_on_the_base_alone(
    llama: PreTrainedModel, tokenizer: PreTrainedTokenizerFast
) -> None:
    rotating = RoadIntervention(
        layer=0, position="all", subspaces={"turned": "[0, d)"}, embed_dim=WIDTH
    )
    with torch.no_grad():
        rotating.theta.fill_(1.0)
    exchanging = made(rows="both")  # the whole state: what the base did before is gone
    road = RoadModel(llama, [rotating, exchanging])
    found = road.interchange(tokenizer, ["hello"], ["world"]).logits[:, -1]
    # the last token's state at layer 1 is the untouched source's; its neighbours are the base's
    source = road.collect(tokenizer, ["world"])
    expected = road(
        **tokenizer("hello", return_tensors="pt"),
        compose="turned + road",
        sources=[None, source[1]],
    ).logits[:, -1]
    torch.testing.assert_close(found, expected)
    assert not torch.allclose(
        found,
        road.interchange(tokenizer, ["hello"], ["world"], compose="road").logits[:, -1],
        atol=1e-3,
    )


def test_positions_of_the_call_and_of_each_row(
    llama: PreTrainedModel, tokenizer: PreTrainedTokenizerFast
) -> None:
    road = RoadModel(llama, made(position="last"))
    found = road.interchange(
        tokenizer, BASE, SOURCE, positions=[[1, 2], [-1]], source_positions=[[0, 3], [4]]
    ).logits
    for row, (base, source, at, theirs) in enumerate(
        zip(BASE, SOURCE, ["at(1, 2)", "last"], ["at(0, 3)", "at(4)"], strict=True)
    ):
        alone = road.interchange(
            tokenizer, base, source, positions=at, source_positions=theirs
        ).logits
        torch.testing.assert_close(found[row, -1], alone[0, -1], atol=1e-5, rtol=1e-5)
    with pytest.raises(
        RoadError, match="row 0 has 1 tokens to edit at layer 1, its source 2: expected as many"
    ):
        road.interchange(tokenizer, BASE, SOURCE, source_positions="last(2)")
    with pytest.raises(RoadError, match=r"position 40 of row 1 is outside its 11 tokens"):
        road.interchange(tokenizer, BASE, SOURCE, positions=[[1], [40]])
    with pytest.raises(RoadError, match="positions of 1 rows for 2"):
        road.interchange(tokenizer, BASE, SOURCE, positions=[[1]])


def test_collected_states_go_into_generation(
    llama: PreTrainedModel, tokenizer: PreTrainedTokenizerFast
) -> None:
    road = RoadModel(llama, made(position="last(2)", rows="both"))
    states = road.collect(tokenizer, SOURCE)
    assert [tuple(each.shape) for each in states[0]] == [(2, WIDTH), (2, WIDTH)]
    answers = road.answer(tokenizer, BASE, sources=states, max_new_tokens=6)
    for row in range(2):
        alone = road.answer(
            tokenizer,
            BASE[row],
            sources=[states[0][row : row + 1]],
            max_new_tokens=6,
            use_cache=False,
        )
        assert answers[row] == alone[0]
    beams = road.answer(
        tokenizer, BASE, sources=states, max_new_tokens=6, num_beams=3, num_return_sequences=2
    )
    assert beams[2:] == road.answer(
        tokenizer,
        BASE[1],
        sources=[states[0][1:]],
        max_new_tokens=6,
        num_beams=3,
        num_return_sequences=2,
    )
    assert road.answer(tokenizer, BASE, compose=None, max_new_tokens=6) != answers


@pytest.mark.parametrize("phase", ["prompt", "generated", "both"])
def test_one_state_is_the_source_of_all_edited_tokens(
    phase: Any, llama: PreTrainedModel, tokenizer: PreTrainedTokenizerFast
) -> None:
    """Of generated ones too, in which a source has no tokens of its own; with and without a cache, as a constant source does."""
    road = RoadModel(llama, made(position="all", phase=phase))
    states = road.collect(tokenizer, SOURCE, positions="last")[0]
    one = [[each[0] for each in states]]
    answers = road.answer(tokenizer, BASE, sources=one, max_new_tokens=6)
    assert answers == road.answer(tokenizer, BASE, sources=one, max_new_tokens=6, use_cache=False)
    assert answers != road.answer(tokenizer, BASE, compose=None, max_new_tokens=6)
    constant = RoadModel(llama, made(position="all", phase=phase, source_representation=one[0][1]))
    assert constant.answer(tokenizer, BASE[1], max_new_tokens=6) == answers[1:]
    listed = made(position="all", phase=phase, source_representation=one[0][1][None])
    assert RoadModel(llama, listed).answer(tokenizer, BASE[1], max_new_tokens=6) == answers[1:]
    with pytest.raises(RoadError, match=r"shape \(2, 32\): expected one hidden state, \[width\]"):
        made(source_representation=torch.zeros(2, WIDTH))
    if phase != "prompt":
        with pytest.raises(
            RoadError,
            match=r"edits generated tokens, for which the source of row 0 has no states: expected one",
        ):
            road.answer(tokenizer, BASE, sources=[states], max_new_tokens=6)


@pytest.mark.parametrize("learn", ["mask", "boundary"])
def test_what_is_exchanged_can_be_learned(learn: Any) -> None:
    """Gates find the two coordinates that matter: the loss wants these swapped and the rest kept."""
    torch.manual_seed(0)
    intervention = RoadInterchange(embed_dim=8, rows="both", learn=learn)
    optimizer = torch.optim.Adam(intervention.parameters(), lr=0.1)
    for step in range(200):
        intervention.temperature = 2.0 if step < 100 else 0.3
        base, source = torch.randn(64, 8), torch.randn(64, 8)
        wanted = torch.cat([source[:, :2], base[:, 2:]], 1)
        loss = (
            intervention(base, source) - wanted
        ).square().mean() + 0.01 * intervention.sparsity()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert str(intervention.taken()["road"]) == "[0, 2)"
    assert intervention.training
    base, source = torch.randn(2, 8), torch.randn(2, 8)
    torch.testing.assert_close(
        intervention.eval()(base, source),
        torch.cat([source[:, :2], base[:, 2:]], 1),
        atol=1e-6,
        rtol=0,
    )


@pytest.mark.parametrize("learn", [None, "mask", "boundary"])
def test_checkpoints_and_pyvenes_files_keep_it(
    learn: Any, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    """A bf16 model of a type that pyvene does not know, through both ways of saving."""
    model = build("qwen3").to(torch.bfloat16)
    sites: list[Any] = [
        made(
            subspaces={"x": "[0, d/4)", "y": "blocks[9:16:2]"},
            learn=learn,
            basis="random",
            basis_seed=7,
            stages=3,
        ).eval(),
        RoadIntervention(
            layer=2,
            variant="road_4",
            subspaces=HALVES,
            basis="hadamard",
            embed_dim=WIDTH,
            form="interchange",
        ),
    ]
    road = RoadModel(model, sites).eval()
    found = road.interchange(tokenizer, BASE, SOURCE, compose="x + 0.5*y + b").logits
    road.save_pretrained(tmp_path / "ours")
    again = RoadModel.from_pretrained(model, tmp_path / "ours").eval()
    assert torch.equal(
        again.interchange(tokenizer, BASE, SOURCE, compose="x + 0.5*y + b").logits, found
    )

    pv.IntervenableModel(pyvene_config(model, sites), model).save(str(tmp_path / "theirs"))
    for mapping in (pv.type_to_module_mapping, pv.type_to_dimension_mapping):
        mapping.pop(type(model))
    loaded = list(load(tmp_path / "theirs", model).interventions.values())
    assert [each.spec() for each in loaded] == [each.spec() for each in sites]
    for one, other in zip(loaded, sites, strict=True):
        assert {name: value.dtype for name, value in one.values().items()} == dict.fromkeys(
            other.values(), torch.float32
        )
        assert all(torch.equal(one.values()[name], value) for name, value in other.values().items())
    with pytest.raises(RoadError, match="holds no pyvene model"):
        load(tmp_path, model)


def test_activations_are_collected_at_the_same_site_in_pyvene(
    llama: PreTrainedModel, tokenizer: PreTrainedTokenizerFast
) -> None:
    intervention = made(position="last(2)")
    ids = tokenizer("hello", return_tensors="pt")["input_ids"]
    at = [[[ids.shape[1] - 2, ids.shape[1] - 1]]]
    config = pv.IntervenableConfig(
        [{"layer": 1, "component": "block_output", "intervention": pv.CollectIntervention()}]
    )
    pyvene_config(llama, intervention)  # registers the type
    (_, collected), _ = pv.IntervenableModel(config, llama)(
        {"input_ids": ids}, unit_locations={"sources->base": (None, at)}
    )
    torch.testing.assert_close(
        RoadModel(llama, intervention).collect(tokenizer, "hello")[0][0],
        collected[0].reshape(2, WIDTH),
    )


def test_the_papers_form() -> None:
    """`h + R (h − Rᵀ h)`, dense; equal to `R h` while α = 1, `R h + (1 − α²) h` for RoAd1."""
    for variant in ("road_1", "road_2", "road_4"):
        torch.manual_seed(0)
        intervention = RoadIntervention(embed_dim=WIDTH, variant=variant, form="interchange")
        h = torch.randn(3, WIDTH)
        assert torch.equal(intervention(h), h)
        with torch.no_grad():
            intervention.theta.normal_()
            intervention.alpha.uniform_(0.5, 1.5)
        r = rotation(intervention.theta, intervention.alpha, variant=variant).dense()
        torch.testing.assert_close(intervention(h), h + (h - h @ r) @ r.T, atol=1e-5, rtol=1e-5)
        if variant == "road_1":
            alpha = intervention.alpha.repeat_interleave(2)
            torch.testing.assert_close(
                intervention(h), h @ r.T + (1 - alpha**2) * h, atol=1e-5, rtol=1e-5
            )
    with pytest.raises(
        RoadError, match="unknown form 'paper': expected one of 'rotation', 'interchange'"
    ):
        RoadIntervention(form="paper")


def test_bad_arguments_are_named(
    llama: PreTrainedModel, tokenizer: PreTrainedTokenizerFast
) -> None:
    with pytest.raises(
        RoadError,
        match="unknown rows 'frist': expected one of 'first', 'second', 'both', 'explicit'",
    ):
        RoadInterchange(rows="frist")
    with pytest.raises(RoadError, match="unknown learn 'gate': expected one of 'mask', 'boundary'"):
        RoadInterchange(learn="gate")
    with pytest.raises(RoadError, match="stages=0: expected a count of at least 1"):
        RoadInterchange(stages=0)
    with pytest.raises(RoadError, match="rows names 'c': expected one of 'a', 'b'"):
        RoadInterchange(subspaces=HALVES, rows={"c": "first"})
    road = RoadModel(llama, made())
    with pytest.raises(RoadError, match="the interchange at layer 1 needs a source"):
        road(input_ids=torch.tensor([[5, 6]]))
    with pytest.raises(RoadError, match="2 sources for 1 interchanges"):
        road.interchange(tokenizer, BASE, [SOURCE, SOURCE])
    with pytest.raises(RoadError, match="unknown mode 'paralell'"):
        road.interchange(tokenizer, BASE, SOURCE, mode="paralell")
    with pytest.raises(RoadError, match="a source of 1 rows for 2 rows of the base"):
        road.interchange(tokenizer, BASE, SOURCE[:1])
    with pytest.raises(RoadError, match="no intervention takes a source"):
        RoadModel(llama, RoadIntervention(layer=0)).interchange(tokenizer, BASE, SOURCE)

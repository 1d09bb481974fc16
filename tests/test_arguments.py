"""Arguments that are of no use: a RoadError of one readable line, from every call, and nothing changed."""

import enum
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast

import roadint
from roadint import Recipe, RoadError, RoadInterchange, RoadIntervention, RoadModel, Subspace
from roadint.data.sources import load_prompts, load_rows
from roadint.errors import quoted
from roadint.inspection.lens import logit_lens, next_tokens
from roadint.interop import peft, pyvene
from tests.helpers import WIDTH, trained

HALVES = {"a": "[0, d/2)", "b": "[d/2, d)"}


class Lines:
    def __repr__(self) -> str:
        return "x" * 1000 + "\n\r\n"


NASTY = [
    True,
    10**400,
    1e300,
    float("nan"),
    1j,
    "\0",
    b"x",
    [[]],
    [None],
    {"a": None},
    object(),
    Lines(),
    np.array([1, 2]),
    np.array("a"),
    np.array(1.5),
    torch.tensor([[1.0, 2.0], [3.0, 4.0]]),
    torch.zeros(1, device="meta"),
    enum.Enum("Choice", "one").one,
]


def refuse(call: Callable[[Any], Any], values: list[Any] | None = None) -> None:
    for value in NASTY if values is None else values:
        with pytest.raises(RoadError) as caught:
            call(value)
        said = str(caught.value)
        assert len(said.splitlines()) == 1, said
        assert len(said) < 600, said


def test_a_quotation_is_one_line() -> None:
    for value in (Lines(), torch.zeros(3, 3), torch.nn.Parameter(torch.ones(40)), "a\nb"):
        assert len(quoted(value).splitlines()) == 1
        assert len(quoted(value)) <= 100


def test_sizes_of_subspaces() -> None:
    for size in (
        None,
        0,
        -2,
        2.0,
        float("inf"),
        "16",
        10**12,
        np.array([1, 2]),
        torch.tensor([1, 2]),
    ):
        refuse(lambda width: Subspace.parse("[0, d/2)", width), [size])
        refuse(lambda width: Subspace.from_dims([0, 1], width), [size])
        refuse(lambda width: roadint.Partition(HALVES, width), [size])
        refuse(lambda unit: Subspace.parse("[0, d/2)", 16, unit), [size])
    assert Subspace.parse("[0, d/2)", np.int64(16)) == Subspace(((0, 4),))


def test_dimensions_that_do_not_end() -> None:
    refuse(
        lambda dims: Subspace.from_dims(dims, 16),
        [None, 3, range(10**15), iter(lambda: 99, 0), [-1, 0]],
    )


def test_names_that_are_no_list() -> None:
    refuse(lambda names: roadint.Composition.parse("a", names), [None, 3, "a", np.array(1)])


def test_interventions(llama: PreTrainedModel) -> None:
    refuse(
        lambda given: RoadModel(llama, given),
        [None, 3, "ab", b"ab", {"a": 1}, [None], [RoadIntervention], np.array(1)],
    )
    for kind in (RoadIntervention, RoadInterchange):
        refuse(
            lambda given, kind=kind: kind(layer=1, subspaces=given),
            [True, "", "a", {}, [], torch.zeros(1, device="meta")],
        )
    refuse(lambda given: RoadModel(llama, RoadIntervention(layer=1, pairing=given)))
    for name in ("stages", "rows", "source_representation"):
        refuse(lambda given, name=name: RoadModel(llama, RoadInterchange(layer=1, **{name: given})))
    refuse(lambda given: RoadInterchange(layer=1, stages=given), [10**9])
    refuse(lambda given: RoadInterchange(layer=1, rows=given), [False, "", 0, ()])


def test_calls(llama: PreTrainedModel, tokenizer: PreTrainedTokenizerFast) -> None:
    road, ids = trained(llama), torch.arange(3, 11).reshape(2, 4)
    refuse(
        lambda given: road(input_ids=given), [True, 3, [[1, 2]], torch.tensor(1), torch.tensor([1])]
    )
    for name in ("learning", "sources", "resumed"):
        values = [
            each
            for each in NASTY
            if not (name == "sources" and isinstance(each, list) and each == [None])
        ]
        refuse(lambda given, name=name: road(input_ids=ids, **{name: given}), values)
    for call in (road.answer, road.collect):
        refuse(
            lambda given, call=call: call(tokenizer, given),
            [True, 3, iter(()), [], {}, b"x", np.array([1, 2]), torch.tensor(1)],
        )
        refuse(
            lambda given, call=call: call(tokenizer, "hi", template=given),
            ["", False, 0, (), *NASTY],
        )
        refuse(lambda given, call=call: call(given, "hi"), [None, 3])
    refuse(road.merge)


def test_sources(llama: PreTrainedModel, tokenizer: PreTrainedTokenizerFast) -> None:
    road, ids = (
        RoadModel(llama, RoadInterchange(layer=1, subspaces=HALVES)),
        torch.arange(3, 11).reshape(2, 4),
    )
    others = [
        torch.zeros(2, WIDTH + 2),
        torch.zeros(WIDTH),
        torch.zeros(2, 1, WIDTH, device="meta"),
    ]
    refuse(lambda given: road(input_ids=ids, sources=[given]), [*NASTY, *others])
    refuse(lambda given: road(input_ids=ids, sources=[[given, given]]), [None, *NASTY, *others[:1]])
    refuse(lambda given: road.interchange(tokenizer, given, ["a"]), [None, 3, b"x"])
    refuse(lambda given: road.interchange(tokenizer, ["a"], given), [None, 3, b"x"])
    refuse(
        lambda given: road.interchange(tokenizer, ["a"], ["b"], source_positions=given),
        ["", 0, False, (), [], *NASTY],
    )


def test_adapters(llama: PreTrainedModel, tmp_path: Path) -> None:
    road = RoadModel(llama)
    for name in ("targets", "exclude", "layers", "lora_rank", "lora_alpha", "heads"):
        values = [
            each
            for each in NASTY
            if name != "lora_alpha" or not isinstance(each, float) or each > 1e100 or each != each
        ]
        refuse(lambda given, name=name: road.add_adapter(**{"lora_rank": 2, name: given}), values)
    refuse(lambda rank: road.add_adapter(lora_rank=rank), [10**9, -1])
    refuse(lambda alpha: road.add_adapter(lora_rank=2, lora_alpha=alpha), [float("inf"), "16"])
    refuse(road.remove_adapter, [[], bytearray(b"a"), None])
    assert not road.adapters
    road.add_adapter("math", lora_rank=64)  # more than the width
    refuse(lambda folder: road.save_pretrained(folder), [None, "", " ", 3])
    refuse(lambda names: road.save_pretrained(tmp_path, names), ["", [], [[]], True, ["ma"], "m"])
    assert not list(tmp_path.iterdir())
    road.save_pretrained(tmp_path, "math")
    assert list(RoadModel.from_pretrained(llama, tmp_path).adapters) == ["math"]
    road.save_pretrained(tmp_path, ["math", "math"])
    assert list(RoadModel.from_pretrained(llama, tmp_path).adapters) == ["math"]


def test_labels(llama: PreTrainedModel, tmp_path: Path) -> None:
    trained(llama).save_pretrained(tmp_path)
    labels = [
        None,
        True,
        1,
        0.5,
        "",
        "none",
        "all",
        "a b",
        "a@b",
        "x" * 1000,
        object(),
        np.array("a"),
    ]
    refuse(lambda label: RoadModel(llama).add_checkpoint(tmp_path, label), labels)
    refuse(lambda label: RoadModel.from_pretrained(llama, {label: tmp_path}), labels[1:-1])
    road = RoadModel.from_pretrained(llama, {"1": tmp_path, "é": tmp_path})
    assert road.names == ["a@1", "b@1", "a@é", "b@é"]
    refuse(road.remove_checkpoint, [None, 1, [], bytearray(b"1"), np.array([1, 2])])


def test_an_adapter_can_not_take_the_name_of_a_checkpoint(
    llama: PreTrainedModel, tmp_path: Path
) -> None:
    trained(llama).save_pretrained(tmp_path)
    road = RoadModel.from_pretrained(llama, {"one": tmp_path})
    with pytest.raises(RoadError, match="name 'one' is taken"):
        road.add_adapter("one")
    assert len(road.names) == 2


def test_recipes_by_hand_are_checked_as_those_of_files() -> None:
    for name in (
        "layers",
        "lr",
        "lrs",
        "epochs",
        "batch_size",
        "micro_batch",
        "subspaces",
        "kind",
        "position",
        "eos",
        "rows",
    ):
        values = [
            each
            for each in (1j, object(), [[]], {1: 2}, np.array([1, 2]))
            if name != "eos" or not isinstance(each, list)
        ]
        refuse(lambda given, name=name: Recipe(**{name: given}), values)
    assert Recipe(lr="1e-2", layers=[1]) == Recipe.load(
        "composition", Recipe(lr=1e-2, layers=[1]).__dict__
    )


def test_devices() -> None:
    with pytest.raises(RoadError, match=re.escape(f"device {2**64} is unknown")):
        roadint.load("nowhere", device=2**64)  # type: ignore[arg-type]


def test_trainings_and_evaluations(
    llama: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    rows = [{"instruction": "hi", "output": "ho"}] * 2
    recipe = Recipe(
        subspaces=HALVES, layers=[1], epochs=1, batch_size=2, template="plain", max_length=32
    )
    road = trained(llama)
    right = {
        "road": road,
        "tokenizer": tokenizer,
        "data": {"a": rows},
        "recipe": recipe,
        "quiet": True,
    }
    for name in ("road", "tokenizer", "recipe", "out", "kept"):
        refuse(lambda given, name=name: roadint.train(**{**right, name: given}))
    refuse(
        lambda given: roadint.train(**{**right, "data": given}),
        [True, 3, "a", [], np.array([1, 2]), {"a": 3}, {"c": rows}],
    )
    refuse(
        lambda given: roadint.train(**{**right, "out": given}),
        ["\0", "\ud800", str(tmp_path / ("x" * 300))],
    )
    assert not list(tmp_path.iterdir())
    for name in ("road", "tokenizer", "data", "prompts"):
        refuse(
            lambda given, name=name: roadint.evaluate(
                **{"road": road, "tokenizer": tokenizer, name: given}
            ),
            [3, True, b"x"],
        )
    refuse(lambda given: roadint.evaluate(road, tokenizer, compose=given), [3, True, "c", ["c"]])
    refuse(
        lambda given: roadint.evaluate(road, tokenizer, expect=given),
        [3, "a", {"c": "german"}, {"a": "germn"}, {"a": 3}, {"a": "xx"}, {3: "german"}],
    )


def test_looks_inside_take_one_composition_too(
    llama: PreTrainedModel, tokenizer: PreTrainedTokenizerFast
) -> None:
    road = RoadModel(llama, RoadIntervention(layer=1, subspaces={"german": "[0, d)"}))
    assert [each.composition for each in next_tokens(road, tokenizer, "hi", "german")] == ["german"]
    assert len(logit_lens(road, tokenizer, "hi", "german")) == 1
    for look in (next_tokens, logit_lens):
        refuse(
            lambda given, look=look: look(road, tokenizer, "hi", given),
            [[], (), 3, b"x", Subspace(((0, 2),))],
        )
    refuse(
        lambda count: next_tokens(road, tokenizer, "hi", ["german"], count=count),
        [None, 0, -1, 10**9, "3"],
    )


def test_folders_of_other_libraries(llama: PreTrainedModel, tmp_path: Path) -> None:
    road = roadint.add_linear_road(llama, name="math")
    refuse(lambda given: peft.export(road, given), [None, "", 3, "\0", str(tmp_path / ("x" * 300))])
    refuse(lambda given: peft.export(road, tmp_path, given), [[], bytearray(b"math"), "mat"])
    refuse(lambda given: peft.export(given, tmp_path), [None, llama])
    assert not list(tmp_path.iterdir())
    refuse(lambda given: peft.load(given, tmp_path), [None, llama])
    refuse(lambda given: pyvene.load(given, llama), [None, "", 3, "\0", "a\nb", "x" * 5000])
    refuse(lambda given: roadint.pyvene_config(given, RoadIntervention(layer=1)), [None, 3])
    refuse(lambda given: roadint.pyvene_config(llama, given), [None, 3, [], [None]])


def test_sources_of_rows() -> None:
    refuse(lambda given: Recipe.load(given), [None, "", 3, "a\nb", "\0"])
    refuse(lambda given: Recipe.load("composition", given), [3, "lr=1", np.array([1, 2])])
    refuse(lambda given: load_prompts(given), [None, "", 3, "\0"])
    refuse(lambda seed: load_rows("bundled:german", 2, seed), [1.5, "1", True, 1j])


def test_a_token_that_prompts_do_not_have_is_told_before_anything_is_written(
    llama: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    road = RoadModel(llama, RoadIntervention(layer=1, subspaces=HALVES, position="at(9)"))
    rows = {
        "a": [{"instruction": "a long prompt", "output": "ho"}],
        "b": [{"instruction": "hi", "output": "ho"}],
    }
    recipe = Recipe(
        subspaces=HALVES, layers=[1], epochs=1, batch_size=2, template="plain", max_length=32
    )
    with pytest.raises(RoadError, match=r"position at\(9\) is outside a prompt of 3 tokens"):
        roadint.train(road, tokenizer, rows, recipe, out=tmp_path / "run", quiet=True)
    assert not list(tmp_path.iterdir())
    roadint.train(road, tokenizer, {"a": rows["a"]}, recipe, out=tmp_path / "run", quiet=True)

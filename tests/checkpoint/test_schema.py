"""Checkpoints that anybody may have written: a changed field gives RoadError or finite values, quickly and in little memory."""

import copy
import json
import random
import resource
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from transformers import PreTrainedModel

from roadint import RoadError, RoadIntervention, RoadModel
from roadint.checkpoint.format import CONFIG, TENSORS
from roadint.checkpoint.reading import read
from roadint.checkpoint.schema import check_config
from roadint.interventions.direft import DireftIntervention
from roadint.interventions.interchange import RoadInterchange
from roadint.interventions.loreft import LoreftIntervention
from roadint.interventions.registry import kinds
from roadint.interventions.steering import SteeringIntervention
from tests.helpers import build, resign

EVERY_KIND = [
    RoadIntervention(
        layer=0, subspaces={"a": "[0, 8)", "b": "blocks[4::2]"}, basis="random", variant="road_2"
    ),
    RoadIntervention(
        layer=1,
        position="at(0, -1)",
        basis="pca",
        variant="road_4",
        pairing=4,
        form="interchange",
        subspace="[0, d/2)",
    ),
    RoadInterchange(
        layer=1,
        learn="mask",
        subspaces={"left": "[0, d/2)"},
        source_representation=torch.arange(32.0),
    ),
    RoadInterchange(
        layer=2,
        learn="boundary",
        stages=3,
        basis="hadamard",
        subspaces={"l": "[0, d/2)", "r": "[d/2, d)"},
    ),
    LoreftIntervention(layer=0, rank=4, subspaces={"lo": "[0, d/2)", "hi": "[d/2, d)"}),
    DireftIntervention(layer=2, rank=3, component="mlp_output", phase="both"),
    SteeringIntervention(layer=2, rank=2, position="first(2)"),
]
NASTY: list[Any] = [
    None, True, False, 0, -1, 1, 3, 2**31, 2**63, 10**400, 0.5, -1e300, 1e39, float("inf"), float("nan"), "", "x", "road", "\x00", "é" * 5000,
    "last(" + " " * 3000, "last(99999999999999999999)", "[0, " + "d/" * 400 + "2)", "[0, 0)", "[1, 3)", "blocks[::0]", "[0, d) | [0, d)", "\ud800",
    [], [[]], [0], [10**400], ["x"], ["x", "x"], {}, {"x": 1}, {"a": "[0, d)"}, {"none": "[0, d)"}, [{}] * 3, [None] * 100_000,
]  # fmt: skip


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    road = RoadModel(build("llama"), copy.deepcopy(EVERY_KIND))
    road.interventions[1].fit_basis(torch.randn(64, 32))  # type: ignore[attr-defined]
    road.add_adapter(
        "x", variant="road_4", targets=["q_proj"], subspace="[0, d/2)", lora_rank=2, heads="lm_head"
    )
    road.add_adapter("y", targets=["up_proj", "down_proj"], pairing=8)
    folder = tmp_path_factory.mktemp("saved")
    road.save_pretrained(folder)
    return folder


def copied(saved: Path, folder: Path) -> Path:
    folder.mkdir(exist_ok=True)
    for name in (CONFIG, TENSORS):
        (folder / name).write_bytes((saved / name).read_bytes())
    return folder


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The paths of all fields, the containers' too."""
    if path:
        yield path
    items = (
        value.items()
        if isinstance(value, dict)
        else enumerate(value[:7])
        if isinstance(value, list)
        else ()
    )
    for key, each in items:
        yield from places(each, (*path, key))


def put(whole: Any, path: tuple[Any, ...], value: Any) -> None:
    for key in path[:-1]:
        whole = whole[key]
    whole[path[-1]] = value


def load(folder: Path, model: PreTrainedModel) -> bool:
    """Whether it was taken, with finite values."""
    try:
        road = RoadModel.from_pretrained(model, folder)
    except RoadError:
        return False
    assert all(
        bool(value.isfinite().all())
        for each in [*road.interventions, *road.adapters.values()]
        for value in each.values().values()
    )
    return True


def test_every_kind_comes_back(saved: Path) -> None:
    assert {each.kind for each in EVERY_KIND} == set(kinds())
    again = RoadModel.from_pretrained(build("llama"), saved)
    config = json.loads((saved / CONFIG).read_text())
    assert [{"kind": each.kind, **each.spec()} for each in again.interventions] == config[
        "interventions"
    ]
    assert [each.spec() for each in again.adapters.values()] == config["adapters"]


def test_a_changed_field_is_refused_or_harmless(saved: Path, tmp_path: Path) -> None:
    model, draw = build("llama"), random.Random(0)
    config = json.loads((saved / CONFIG).read_text())
    fields = [path for path in places(config) if path != ("sha256",)]
    folder, taken = copied(saved, tmp_path / "changed"), 0
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for path in fields:
        for value in draw.sample(NASTY, 2):
            copied(saved, folder)
            resign(folder, lambda config, path=path, value=value: put(config, path, value))
            start = time.perf_counter()
            taken += load(folder, model)
            assert time.perf_counter() - start < 2, (path, value)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 500 << 10
    assert len(fields) > 150
    assert taken < len(fields)


@pytest.mark.parametrize(
    "key", ["format", "base_model", "template", "training", "interventions", "adapters"]
)
def test_a_missing_field_is_refused(saved: Path, tmp_path: Path, key: str) -> None:
    folder = copied(saved, tmp_path)
    resign(folder, lambda config: config.pop(key))
    with pytest.raises(RoadError):
        RoadModel.from_pretrained(build("llama"), folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda c: c["interventions"][0].update(layer=3),
            "intervention 0 is at layer 3: expected 0 to 2",
        ),
        (
            lambda c: c["interventions"][0].update(embed_dim=20_000),
            "is 20000 wide, its base model 32",
        ),
        (
            lambda c: c["interventions"][0].update(max_number_of_units=0),
            "unknown key 'max_number_of_units'",
        ),
        (lambda c: c["interventions"][0].update(rank=4), "unknown key 'rank'"),
        (
            lambda c: c["interventions"][0].update(variant="road_3"),
            "variant is 'road_3': expected one of 'road_1'",
        ),
        (lambda c: c["interventions"][4].update(rank=8), r"lacks|expected float32 \(8, 32\)"),
        (
            lambda c: c["adapters"][0].update(lora_rank=10**6),
            r"lora_a is F32 \(2, 96\): expected float32 \(1000000, 96\)",
        ),
        (lambda c: c["adapters"][0].update(widths=[32]), "3 paths, 1 widths and 3 inputs"),
        (lambda c: c["adapters"][0].update(heads=["model"]), "lm_head|embed_tokens|this model's"),
        (
            lambda c: c["adapters"][1].update(name="x"),
            "adapter 1 is called 'x', as something before it",
        ),
        (
            lambda c: c["adapters"][1].update(name="lo"),
            "adapter 1 is called 'lo', as something before it",
        ),
        (
            lambda c: c["adapters"][1]["paths"].__setitem__(0, c["adapters"][1]["paths"][1]),
            "names one of its paths twice",
        ),
        (lambda c: c.update(evil=1), "unknown key 'evil'"),
    ],
)
def test_what_is_wrong_is_named(saved: Path, tmp_path: Path, change: Any, message: str) -> None:
    folder = copied(saved, tmp_path)
    resign(folder, change)
    with pytest.raises(RoadError, match=message):
        RoadModel.from_pretrained(build("llama"), folder)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"0.theta": torch.full((16, 2), 1e300, dtype=torch.float64)},
            r"0.theta is F64 \(16, 2\): expected float32",
        ),
        ({"0.theta": torch.zeros(16, 2).to(torch.float8_e4m3fn)}, "F8_E4M3"),
        ({"0.theta": torch.zeros(16, 2, dtype=torch.bfloat16)}, "BF16"),
        ({"0.theta": torch.zeros(2, 16)}, r"\(2, 16\): expected float32 \(16, 2\)"),
        ({"0.theta": torch.full((16, 2), float("inf"))}, "finite: False"),
        ({"evil": torch.zeros(3)}, "holds 'evil', which the checkpoint says nothing of"),
        ({"adapter.0.heads.lm_head.evil": torch.zeros(3)}, "adapter x has no place"),
        ({"adapter.1.heads.lm_head.weight": torch.zeros(128, 32)}, "adapter y has no place"),
        (
            {"adapter.0.heads.lm_head.weight": torch.zeros(128, 16)},
            r"is \(128, 16\), this model's \(128, 32\)",
        ),
        (
            {"adapter.0.heads.lm_head.weight": torch.zeros(128, 32, dtype=torch.int64)},
            "torch.int64",
        ),
        ({"0.theta": None}, "lacks 0.theta"),
    ],
)
def test_other_tensors_are_refused(
    saved: Path, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    folder = copied(saved, tmp_path)
    tensors = {**safetensors.torch.load_file(saved / TENSORS), **changes}
    (folder / TENSORS).write_bytes(
        safetensors.torch.save(
            {name: value for name, value in tensors.items() if value is not None}
        )
    )
    resign(folder, lambda _: None)
    with pytest.raises(RoadError, match=message):
        RoadModel.from_pretrained(build("llama"), folder)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"[" * 100_000, "nested too deep"),
        (b'{"format": ' + b"[" * 90 + b"]" * 90 + b"}", "nested too deep"),
        (b'{"format": ' + b"1" * 5000 + b"}", "truncated or no JSON"),
        (b'{"format": 1, "format": 2}', "says 'format' twice"),
        (b'{"format": 1, "template": "\\ud800"}', "truncated or no JSON"),
        (b'{"format": "\xff"}', "truncated or no JSON"),
        (b" " * (17 << 20), "too large: expected at most 16 MB"),
        (b"[" + b"{}," * 1_500_000 + b"{}]", "too large"),
        (b"", "truncated or no JSON"),
        (b"null", "format None"),
    ],
)
def test_json_is_bounded(saved: Path, tmp_path: Path, content: bytes, message: str) -> None:
    folder = copied(saved, tmp_path)
    (folder / CONFIG).write_bytes(content)
    with pytest.raises(RoadError, match=message):
        read(folder)


@pytest.mark.parametrize(
    "header",
    [b"", b"\xff" * 8, (10).to_bytes(8, "little"), (2).to_bytes(8, "little") + b"{}", b'{"a": 1}'],
)
def test_what_is_no_safetensors_file_is_refused(saved: Path, tmp_path: Path, header: bytes) -> None:
    folder = copied(saved, tmp_path)
    (folder / TENSORS).write_bytes(header)
    resign(folder, lambda _: None)
    with pytest.raises(RoadError):
        read(folder)


def test_a_huge_file_of_tensors_is_not_read(saved: Path, tmp_path: Path) -> None:
    folder = copied(saved, tmp_path)
    with (folder / TENSORS).open("r+b") as file:
        file.truncate(8 << 30)  # sparse
    start = time.perf_counter()
    with pytest.raises(RoadError, match="truncated or was altered"):
        read(folder)
    assert time.perf_counter() - start < 1


def test_what_would_not_load_again_is_not_saved(llama: PreTrainedModel, tmp_path: Path) -> None:
    road = RoadModel(llama, RoadIntervention(layer=1, subspaces={"a": "[0, d)"}))
    road.add_adapter("b").name = "a"
    with pytest.raises(RoadError, match="adapter 0 is called 'a', as something before it"):
        road.save_pretrained(tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_checkpoint_that_ships_fits() -> None:
    from roadint.demo.service import SHIPPED

    config = read(SHIPPED).config
    assert check_config(config, "it")

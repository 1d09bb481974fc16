"""A folder that pyvene saved: nothing that it names is imported or called, and whatever is no such folder is a RoadError."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyreft
import pytest
import torch
from transformers import PreTrainedModel

from roadint import RoadError, RoadIntervention
from roadint.interop.pyreft import load as load_reft
from roadint.interop.pyvene import load
from roadint.interventions.pyvene.patches import pyvene as pv
from tests.helpers import WIDTH, build

KEY = "layer_1_comp_block_output_unit_pos_nunit_1#0"


class Mine(RoadIntervention):
    """A user's own kind."""


@pytest.fixture
def folder(tmp_path: Path, llama: PreTrainedModel) -> Path:
    intervenable = pv.IntervenableModel([RoadIntervention(layer=1)], llama)
    torch.nn.init.normal_(next(iter(intervenable.interventions.values())).theta)
    intervenable.save(str(tmp_path / "saved"))
    return tmp_path / "saved"


def change(folder: Path, **changed: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **changed}))


def with_field(name: str, value: Any) -> list[list[Any]]:
    fields = list(pv.RepresentationConfig(layer=1))
    fields[pv.RepresentationConfig._fields.index(name)] = value
    return [fields]


@pytest.mark.parametrize("reader", [load, load_reft])
@pytest.mark.parametrize(
    "name",
    [
        "helper_beside_it.Cls",
        "os.system",
        "builtins.exec",
        "roadint.files.atomic.write_whole",
        "roadint.RoadModel",
        "subprocess.Popen",
    ],
)
def test_nothing_that_the_folder_names_is_imported(
    name: str, reader: Any, folder: Path, llama: PreTrainedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "helper_beside_it.py").write_text(
        "import pathlib; pathlib.Path('RAN').write_text('x')\nCls = None\n"
    )
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(str(folder))
    change(folder, intervention_types=[f"<class '{name}'>"])
    with pytest.raises(RoadError, match="is not known and therefore not imported"):
        reader(folder, llama)
    assert not (folder / "RAN").exists()
    assert "helper_beside_it" not in sys.modules


def test_classes_of_ones_own_are_given(tmp_path: Path, llama: PreTrainedModel) -> None:
    intervenable = pv.IntervenableModel([Mine(layer=2)], llama)
    (own,) = intervenable.interventions.values()
    torch.nn.init.normal_(own.theta)
    intervenable.save(str(tmp_path / "saved"))
    with pytest.raises(RoadError, match=r"give a class of your own as classes=\[…\]"):
        load(tmp_path / "saved", llama)
    for reader in (load, load_reft):
        (again,) = reader(tmp_path / "saved", llama, classes=[Mine]).interventions.values()
        assert isinstance(again, Mine)
        assert torch.equal(again.theta, own.theta)


def test_pyvenes_own_interventions_come_back(tmp_path: Path, llama: PreTrainedModel) -> None:
    states = torch.randn(WIDTH)
    sites = [
        {"layer": 0, "intervention_type": pv.RotatedSpaceIntervention},
        {"layer": 1, "intervention_type": pv.VanillaIntervention, "source_representation": states},
        {"layer": 1, "intervention_type": pv.CollectIntervention},
        {
            "layer": 2,
            "intervention_type": pv.LowRankRotatedSpaceIntervention,
            "low_rank_dimension": 4,
        },
        {"layer": 2, "intervention_type": pv.ZeroIntervention},
    ]
    intervenable = pv.IntervenableModel(pv.IntervenableConfig(sites), llama)
    intervenable.save(str(tmp_path / "saved"))
    loaded = load(tmp_path / "saved", llama)
    assert [type(each) for each in loaded.interventions.values()] == [
        site["intervention_type"] for site in sites
    ]
    base, source = torch.randn(2, 1, WIDTH), torch.randn(2, 1, WIDTH)
    for ours, theirs in zip(
        loaded.interventions.values(), intervenable.interventions.values(), strict=True
    ):
        if not isinstance(theirs, pv.CollectIntervention):
            torch.testing.assert_close(
                ours(base.clone(), source), theirs(base.clone(), source), rtol=0, atol=1e-5
            )
        assert ours.is_source_constant == theirs.is_source_constant


def test_pyrefts_interventions_need_pyrefts_load(tmp_path: Path, llama: PreTrainedModel) -> None:
    site = {"layer": 1, "low_rank_dimension": 4, "intervention_type": pyreft.ConsreftIntervention}
    reft = pyreft.get_reft_model(llama, pyreft.ReftConfig(representations=[site]))
    reft.save(str(tmp_path / "saved"))
    with pytest.raises(RoadError, match="ConsreftIntervention"):
        load(tmp_path / "saved", llama)
    base = torch.randn(2, 1, WIDTH)
    (ours,), (theirs,) = (
        each.interventions.values() for each in (load_reft(tmp_path / "saved", llama), reft)
    )
    torch.testing.assert_close(ours(base), theirs(base), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    "changed",
    [
        {"intervention_types": None},
        {"intervention_types": []},
        {"intervention_types": [3]},
        {"intervention_types": ["<class 'roadint.interventions.road.RoadIntervention'>"] * 2},
        {"representations": None},
        {"representations": "layer"},
        {"representations": [{"layer": 1}]},
        {"representations": [[1] * 40]},
        {"representations": with_field("layer", 99)},
        {"representations": with_field("layer", -1)},
        {"representations": with_field("layer", "1")},
        {"representations": with_field("component", "__class__.__init__.output")},
        {"representations": with_field("component", "model.nothing.output")},
        {"representations": with_field("component", 4)},
        {"representations": with_field("unit", "nowhere")},
        {"representations": with_field("unit", ["pos"])},
        {"representations": with_field("max_number_of_units", 10**9)},
        {"representations": with_field("max_number_of_units", 0)},
        {"representations": with_field("low_rank_dimension", 10**12)},
        {"representations": with_field("subspace_partition", [[0, 10**12]])},
        {"representations": with_field("subspace_partition", [[0, 10**9]])},
        {"representations": with_field("subspace_partition", "[0, d)")},
        {"representations": with_field("intervention", "x")},
        {"representations": with_field("intervention_type", "os.system")},
        {"representations": with_field("source_representation", [1.0])},
        {"representations": with_field("group_key", {})},
        {"representations": with_field("intervention_link_key", [])},
        {
            "representations": with_field("max_number_of_units", 4096),
            "intervention_types": [
                "<class 'pyvene.models.interventions.RotatedSpaceIntervention'>"
            ],
        },
        {
            "representations": with_field("low_rank_dimension", 10**6),
            "intervention_types": [
                "<class 'pyvene.models.interventions.LowRankRotatedSpaceIntervention'>"
            ],
        },
        {"mode": "sideways"},
        {"mode": 7},
        {"intervention_types": ["<class 'pyvene.models.interventions.AutoencoderIntervention'>"]},
        {
            "intervention_types": [
                "<class 'pyvene.models.interventions.PCARotatedSpaceIntervention'>"
            ]
        },
        {"intervention_types": ["<class 'pyvene.models.interventions.RotatedSpaceIntervention'>"]},
        {
            "intervention_dimensions": 3,
            "intervention_types": ["<class 'pyvene.models.interventions.VanillaIntervention'>"],
        },
    ],
)
def test_configurations_that_are_none_are_refused(
    changed: dict[str, Any], folder: Path, llama: PreTrainedModel
) -> None:
    change(folder, **changed)
    with pytest.raises(RoadError) as error:
        load(folder, llama)
    assert "\n" not in str(error.value)


BROKEN: list[Callable[[Path], Any]] = [
    lambda path: path.write_text("{"),
    lambda path: path.write_text("[]"),
    lambda path: path.write_text("[" * 100_000),
    lambda path: path.write_bytes(b"\xff\xfe\x00"),
    lambda path: path.unlink(),
]


@pytest.mark.parametrize("break_it", BROKEN)
@pytest.mark.parametrize("name", ["config.json", f"intkey_{KEY}.bin"])
def test_broken_files_are_refused(
    name: str, break_it: Callable[[Path], Any], folder: Path, llama: PreTrainedModel
) -> None:
    break_it(folder / name)
    with pytest.raises(RoadError):
        load(folder, llama)


class Runs:
    """A pickle of it runs a command when it is read."""

    def __reduce__(self) -> Any:
        return print, ("ran",)


@pytest.mark.parametrize(
    "values", [Runs(), [1], {"theta": Runs()}, {"theta": 3}, {}, {"theta": torch.ones(3)}]
)
def test_values_that_are_none_are_refused(
    values: Any, folder: Path, llama: PreTrainedModel, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save(values, folder / f"intkey_{KEY}.bin")
    with pytest.raises(RoadError):
        load(folder, llama)
    assert "ran" not in capsys.readouterr().out


def test_pyvenes_load_of_a_constant_source_is_not_taken_for_whole(tmp_path: Path) -> None:
    """It brings the source and leaves out the values."""
    from roadint import RoadInterchange

    model = build()
    own = RoadInterchange(layer=1, source_representation=torch.randn(WIDTH))
    intervenable = pv.IntervenableModel(
        [{"intervention": own, "source_representation": own.source_representation}], model
    )
    torch.nn.init.normal_(own.theta)
    intervenable.save(str(tmp_path / "saved"))
    base = torch.randn(2, 1, WIDTH)
    (theirs,) = pv.IntervenableModel.load(str(tmp_path / "saved"), model).interventions.values()
    with pytest.raises(RoadError, match=r"expected roadint\.interop\.pyvene\.load"):
        theirs(base)
    (ours,) = load(tmp_path / "saved", model).interventions.values()
    assert torch.equal(ours(base), own(base))

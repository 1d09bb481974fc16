"""What a checkpoint makes without a base model, and what that imports."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel

from roadint import RoadError, RoadModel
from roadint.checkpoint.reading import read
from tests.helpers import encoder, randomised, trained, with_adapters


@pytest.mark.parametrize("label", [None, "runs"])
def test_adapters_come_back_without_a_model(
    tmp_path: Path, llama: PreTrainedModel, label: str | None
) -> None:
    road = RoadModel(llama)
    first = road.add_adapter(
        "a", targets=["q_proj", "up_proj"], variant="road_2", subspace="[0, d/2)", lora_rank=2
    )
    second = road.add_adapter("b", targets=["down_proj"], layers=[1], pairing="half")
    made = [randomised(first), randomised(second, 2)]
    road.save_pretrained(tmp_path)
    saved = read(tmp_path)
    for found in (saved.adapters_alone(label), saved.adapters(llama, label)):
        assert [adapter.name for adapter in found] == saved.names(label)
        for adapter, wanted in zip(found, made, strict=True):
            assert adapter.spec() == wanted.spec() | {"name": adapter.name}
            assert adapter.layout_and_groups == wanted.layout_and_groups
            values, expected = adapter.values(), wanted.values()
            assert values.keys() == expected.keys()
            assert all(torch.equal(values[name], expected[name]) for name in expected)


def test_adapters_with_heads_need_their_model(tmp_path: Path) -> None:
    road = RoadModel(encoder())
    road.add_adapter("glue", targets=["query"], heads="classifier")
    road.save_pretrained(tmp_path)
    saved = read(tmp_path)
    with pytest.raises(
        RoadError, match=r"adapter 'glue' has heads \('classifier'\).*adapters\(model\)"
    ):
        saved.adapters_alone()
    assert saved.adapters(road.model)[0].head_paths == ("classifier",)


_IMPORTS = """
import sys
from roadint.checkpoint.reading import read

def check(*names):
    assert not set(names) & set(sys.modules), set(names) & set(sys.modules)

assert read(sys.argv[1]).adapters_alone()
check("pyvene", "matplotlib", "datasets")
assert read(sys.argv[2]).interventions()
check("datasets", "typer", "roadint.engines", "roadint.model")
"""


def test_reading_and_building_import_little(tmp_path: Path, llama: PreTrainedModel) -> None:
    """A kind of intervention is pyvene's, and pyvene draws; adapters need neither."""
    with_adapters(llama, "a").save_pretrained(tmp_path / "adapters")
    trained(llama).save_pretrained(tmp_path / "interventions")
    folders = [str(tmp_path / "adapters"), str(tmp_path / "interventions")]
    subprocess.run([sys.executable, "-c", _IMPORTS, *folders], check=True)

"""RoadLinear and add_linear_road: the ways in that finetuning takes."""

from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from torch import nn
from transformers import Trainer, TrainingArguments
from transformers.pytorch_utils import Conv1D

import roadint
from roadint import RoadError, RoadLinear
from tests.helpers import VARIANTS, build, encoder, randomised


@pytest.mark.parametrize(
    "base",
    [nn.Linear(6, 8), nn.Linear(6, 8, bias=False), Conv1D(8, 6)],
    ids=["linear", "no bias", "conv1d"],
)
@pytest.mark.parametrize("variant", VARIANTS)
def test_one_layer(base: nn.Module, variant: Any) -> None:
    """Against the dense matrix; merged and back; in the layer's dtype; saved and loaded as any module."""
    layer = RoadLinear(base, variant=variant, pairing="half", lora_rank=2)
    x = torch.randn(3, 5, 6)
    torch.testing.assert_close(layer(x), base(x))
    randomised(layer.road)
    (a, b), dense = layer.road.lora()[0], layer.road.rotation()
    dense = roadint.Rotation(dense.u, dense.v, layer.road.groups[0]).dense()
    expected = base(x) @ dense.T + x @ a.T @ b.T
    torch.testing.assert_close(layer(x), expected, rtol=1e-5, atol=1e-5)
    before = base.weight.detach().clone()
    layer.merge(keep=True)
    torch.testing.assert_close(base(x), expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(layer(x), expected, rtol=1e-5, atol=1e-5)
    with pytest.raises(RoadError, match="merged already"):
        layer.merge()
    layer.unmerge()
    assert torch.equal(base.weight, before)
    again = RoadLinear(base, variant=variant, pairing="half", lora_rank=2)
    again.load_state_dict(layer.state_dict())
    assert torch.equal(again(x), layer(x))
    assert layer.bfloat16()(x.bfloat16()).dtype == torch.bfloat16
    assert layer.road.theta.dtype == torch.float32
    base.float()


def test_odd_widths_are_refused() -> None:
    with pytest.raises(RoadError, match="odd width 7"):
        RoadLinear(nn.Linear(4, 7))
    with pytest.raises(RoadError, match="pairing 6 does not fit width 8"):
        RoadLinear(nn.Linear(4, 8), pairing=6)


def test_only_the_adapter_asks_for_gradients() -> None:
    road = roadint.add_linear_road(build("llama"), targets=["q_proj"], variant="road_2")
    road = roadint.add_linear_road(road, name="second", layers=[1])
    assert list(road.adapters) == ["road", "second"]
    asking = [name for name, parameter in road.named_parameters() if parameter.requires_grad]
    assert asking == [
        "adapters.0.theta",
        "adapters.0.alpha",
        "adapters.1.theta",
        "adapters.1.alpha",
    ]


def test_transformers_own_trainer(tmp_path: Path) -> None:
    """An encoder with its classifier as a head: the loss falls, the model's own weights stay, the checkpoint comes back."""
    bert = encoder()
    torch.manual_seed(0)
    ids = torch.randint(3, 100, (64, 8))
    data = Dataset.from_dict({"input_ids": ids.tolist(), "labels": (ids[:, 1] % 2).tolist()})
    road = roadint.add_linear_road(bert, heads="classifier")
    before = {name: value.clone() for name, value in bert.state_dict().items()}
    arguments = TrainingArguments(
        str(tmp_path), num_train_epochs=12, learning_rate=5e-2, per_device_train_batch_size=16, report_to="none",
        logging_steps=4, remove_unused_columns=False, use_cpu=True, disable_tqdm=True, label_names=["labels"], save_strategy="no",
    )  # fmt: skip
    trainer = Trainer(model=road, args=arguments, train_dataset=data, eval_dataset=data)
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert losses[-1] < 0.7 * losses[0]
    assert trainer.evaluate()["eval_loss"] < 0.7 * losses[0]
    assert all(torch.equal(value, before[name]) for name, value in bert.state_dict().items())
    road.save_pretrained(tmp_path / "saved")
    again = roadint.RoadModel.from_pretrained(bert, tmp_path / "saved")
    assert torch.equal(again.eval()(input_ids=ids).logits, road.eval()(input_ids=ids).logits)


def test_an_embedding_takes_no_lora() -> None:
    with pytest.raises(RoadError, match="no LoRA is possible beside an embedding"):
        RoadLinear(nn.Embedding(10, 8), lora_rank=2)

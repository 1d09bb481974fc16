"""The device itself: CUDA's rules about what may be mixed, and what is counted as a wait."""

from typing import Any

import pytest
import torch
from torch import nn

from tests.device.helpers import same
from tests.other_device import OnDevice, on_cpu, waits


def test_values_are_the_cpus(device: torch.device) -> None:
    x = torch.randn(3, 4)
    here = x.to("cuda").requires_grad_()
    assert (here.device, here.is_cuda, type(here)) == (device, True, OnDevice)
    z = torch.view_as_complex(here.view(3, 2, 2))
    (z.conj() * (2 + 1j) * z[:, :1]).real.square().sum().backward()
    assert here.grad is not None
    plain = x.clone().requires_grad_()
    z = torch.view_as_complex(plain.view(3, 2, 2))
    (z.conj() * (2 + 1j) * z[:, :1]).real.square().sum().backward()
    same(on_cpu(here.grad), plain.grad)
    view = here.detach()[1]
    view.zero_()
    assert here.detach().cpu()[1].tolist() == [0, 0, 0, 0]
    assert here.to("cuda") is here


@pytest.mark.parametrize(
    "make",
    [
        lambda: torch.ones(2, device="cuda"),
        lambda: torch.tensor([1.0, 1.0], device="cuda:0"),
        lambda: torch.arange(1, 3, device=torch.device("cuda")),
        lambda: torch.full((2,), 1.0).cuda(),
        lambda: nn.Linear(2, 2).to("cuda").weight,
        lambda: nn.Parameter(torch.ones(2, device="cuda")),
        lambda: torch.zeros_like(torch.ones(2, device="cuda")),
        lambda: torch.ones(2, device="cuda").new_ones(2),
        lambda: torch.ones(2).to(torch.ones(3, device="cuda")),
    ],
)
def test_every_way_of_making_a_tensor(make: Any, device: torch.device) -> None:
    assert make().device == device


REFUSED = {
    "a sum": lambda here, there: here + there,
    "in place": lambda here, there: there.add_(here),
    "cat": lambda here, there: torch.cat([here, there]),
    "a product": lambda here, there: here @ there,
    "an index": lambda here, there: there[torch.zeros(1, dtype=torch.long, device="cuda")],
    "a look-up": lambda here, there: nn.functional.embedding(torch.tensor([0]), here),
    "values put in": lambda here, there: here.index_put((torch.tensor([0]),), there[0]),
    "where": lambda here, there: torch.where(there > 0, here, here),
    "a number of the CPU in a cat": lambda here, there: torch.stack([here[0, 0], there[0, 0]]),
    "a number of the CPU, in place": lambda here, there: there[0, 0].clone().add_(here[0, 0]),
    "a layer": lambda here, there: nn.Linear(3, 3)(here),
}


@pytest.mark.parametrize("what", REFUSED)
def test_refuses_to_mix(what: str, device: torch.device) -> None:
    with pytest.raises(RuntimeError, match=r"same device|indices should be"):
        REFUSED[what](torch.ones(3, 3, device=device), torch.ones(3, 3))


def test_mixes_what_cuda_mixes(device: torch.device) -> None:
    here = torch.ones(3, 3, device=device)
    here[torch.tensor([1])] = 2 * torch.ones(3, device=device)
    here[0] = torch.tensor(3.0)
    here = torch.where(here > 2, torch.tensor(0.0), here * torch.tensor(2.0))
    same(on_cpu(here), torch.tensor([[0.0] * 3, [4.0] * 3, [2.0] * 3]))
    there = torch.zeros(3, 3)
    there.copy_(here)
    same(there, on_cpu(here))


WAITING = {
    "item": lambda x: x[0, 0].item(),
    "bool": lambda x: bool((x > 0).all()),
    "float": lambda x: float(x.sum()),
    "tolist": lambda x: x.tolist(),
    "cpu": lambda x: x.cpu(),
    "to": lambda x: x.to("cpu"),
    "nonzero": lambda x: x.nonzero(),
    "where": lambda x: torch.where(x > 0),
    "a mask": lambda x: x[x > 0],
    "equal": lambda x: torch.equal(x, x),
    "unique": lambda x: x.unique(),
    "an index": lambda x: x[x[0, 0].long()],
    "bincount": lambda x: torch.bincount(x[0].long()),
    "lengths": lambda x: x.repeat_interleave(x[0].long(), dim=0),
    "to the device": lambda x: torch.ones(3).to(x.device),
    "tensor": lambda x: torch.tensor([1, 2], device=x.device),
    "synchronize": lambda x: torch.cuda.synchronize(),
}
FREE = {
    "a sum": lambda x: x + 1 + torch.tensor(2.0),
    "a slice": lambda x: x[1:, 0],
    "an index": lambda x: x[x.long()],
    "masked": lambda x: x.masked_fill(x > 0, 0.0),
    "where": lambda x: torch.where(x > 0, x, 0.0),
    "ones": lambda x: x.new_ones(3) + torch.arange(3, device=x.device),
    "ahead": lambda x: torch.ones(3).pin_memory().to(x.device, non_blocking=True),
    "lengths": lambda x: x.repeat_interleave(2, dim=0),
    "nothing": lambda x: x.to(x.device).to("cuda"),
}


@pytest.mark.parametrize("what", [*WAITING, *(f"no {name}" for name in FREE)])
def test_counts_waits(what: str, device: torch.device) -> None:
    x = torch.ones(3, 3, device=device)
    with waits() as counted:
        ({f"no {name}": act for name, act in FREE.items()} | WAITING)[what](x)
    assert len(counted) == (what in WAITING), counted
    assert all("test_other_device.py" in wait for wait in counted)


def test_pinning_what_is_there_already(device: torch.device) -> None:
    with pytest.raises(RuntimeError, match="cannot pin"):
        torch.ones(3, device=device).pin_memory()

"""`roadint bench align`: causal alignment on hierarchical equality, roadint's interchange beside pyvene's, in turns.

A network learns whether (w = x) = (y = z), for four random vectors. Each system then looks, in the same hidden layer, for the two
variables w = x and y = z: it swaps its part of a variable between inputs, and is right where the network answers as if the variable
alone had been swapped (interchange accuracy; the task of DAS, arXiv 2303.02536). Every system sees the same pairs at every step.
"""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from roadint.bench.measure import case, machine, ratio, wait_for
from roadint.errors import RoadError, check_known
from roadint.interventions.interchange import RoadInterchange
from roadint.interventions.pyvene.patches import pyvene
from roadint.progress import track

OBJECT = 4  # dims of each of the four vectors
SITE = 1  # the interchange is in the output of this many layers
VARIABLES = ("first pair", "second pair")


class EqualityNetwork(nn.Module):
    """Three layers of `width` units, ReLU, two classes."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(each, width) for each in (4 * OBJECT, width, width))
        self.head = nn.Linear(width, 2)

    def below(self, x: Tensor) -> Tensor:
        """[rows, 4 · OBJECT] → the hidden states at the site, [rows, width]."""
        for layer in self.layers[:SITE]:
            x = functional.relu(layer(x))
        return x

    def above(self, h: Tensor) -> Tensor:
        """Hidden states at the site → logits [rows, 2]."""
        for layer in self.layers[SITE:]:
            h = functional.relu(layer(h))
        return self.head(h)  # type: ignore[no-any-return]


@dataclass
class System:
    """A way to look for the variables. swap: (base, source, variable) → the edited hidden states."""

    name: str
    swap: Callable[[Tensor, Tensor, int], Tensor]
    modules: list[nn.Module]
    lr: float

    def __post_init__(self) -> None:
        self.optimizer = torch.optim.Adam(
            [each for module in self.modules for each in module.parameters()], self.lr
        )
        self.seconds: list[float] = []

    @property
    def trained(self) -> int:
        """How many numbers train."""
        return sum(
            each.numel()
            for module in self.modules
            for each in module.parameters()
            if each.requires_grad
        )


def bench_align(
    width: int = 2048,
    rivals: Sequence[str] | None = None,
    *,
    steps: int = 200,
    batch_size: int = 256,
    task_steps: int = 600,
    seed: int = 0,
    quiet: bool = False,
) -> dict[str, Any]:
    """Train the network, then roadint and its rivals (pyvene's classes, of RIVALS; all by default) for the same steps, in turns.

    All by Adam, with a rate that falls to 0 linearly.

    Returns {"machine", "job", "cases", "ratios"}: a case a system with its step times, how many numbers it trains and its
    interchange accuracy on 4,096 new pairs a variable. Raises RoadError for an unknown rival, or where the width has no halves of
    pairs.
    """
    for each in rivals or ():
        check_known("rival", each, RIVALS)
    if width < 4 or width % 4:
        raise RoadError(f"width {width}: expected a multiple of 4, for two halves of whole pairs")
    torch.manual_seed(seed)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    network = EqualityNetwork(width).to(device)
    right = _learn_task(network, task_steps, quiet)
    network.requires_grad_(False)
    systems = [*_ours(width, device), *(RIVALS[name](width, device) for name in rivals or RIVALS)]
    schedules = [
        torch.optim.lr_scheduler.LambdaLR(system.optimizer, lambda step: 1 - step / steps)
        for system in systems
    ]
    for step in track(range(steps), steps, "aligning", quiet=quiet):
        variable = step % 2
        base, source, label = _pairs(network, batch_size, variable)
        for system in systems:
            started = time.perf_counter()
            loss = functional.cross_entropy(
                network.above(system.swap(base, source, variable)), label
            )
            system.optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            system.optimizer.step()
            wait_for(device)
            system.seconds.append(time.perf_counter() - started)
        for schedule in schedules:
            schedule.step()
    tests = [_pairs(network, 4096, variable) for variable in range(2)]
    cases = []
    for system in systems:
        accuracy = [_accuracy(network, system, variable, *tests[variable]) for variable in range(2)]
        about = {"numbers": system.trained, "accuracy": sum(accuracy) / 2, "accuracies": accuracy}
        cases.append(case("step", system.name, system.seconds, None, **about))
    ours = cases[2]["median_s"]
    return {
        "machine": machine(device, torch.float32),
        "job": {
            "width": width,
            "steps": steps,
            "batch_size": batch_size,
            "seed": seed,
            "task_accuracy": right,
        },
        "cases": cases,
        "ratios": [
            ratio("step", each["system"], each["median_s"], ours)
            for each in cases
            if "pyvene" in each["system"]
        ],
    }


def _ours(width: int, device: torch.device) -> list[System]:
    """One rotation of neighbouring pairs; log2(width) rotations at growing strides, once and twice; a half for each variable."""
    halves = {"first": "[0, d/2)", "second": "[d/2, d)"}
    found = []
    once = max(2, int(math.log2(width & -width)))
    for stages in (1, once, 2 * once):
        made = RoadInterchange(embed_dim=width, subspaces=halves, stages=stages).to(device)

        def swap(
            base: Tensor, source: Tensor, variable: int, made: RoadInterchange = made
        ) -> Tensor:
            return made(base, source, subspaces=[list(halves)[variable]] * len(base))  # type: ignore[no-any-return]

        found.append(System(f"roadint, {stages} rotation{'s' * (stages > 1)}", swap, [made], 5e-2))
    return found


def _full(width: int, device: torch.device) -> System:
    """DAS: a full rotation, a half of it for each variable."""
    made = pyvene.RotatedSpaceIntervention(
        embed_dim=width, subspace_partition=[[0, width // 2], [width // 2, width]]
    ).to(device)
    return System("pyvene RotatedSpace", _partitioned(made), [made], 1e-3)


def _low_rank(width: int, device: torch.device) -> System:
    """Two subspaces of an eighth of the width."""
    rank = max(1, width // 8)
    partition = [[0, rank], [rank, 2 * rank]]
    made = pyvene.LowRankRotatedSpaceIntervention(
        embed_dim=width, low_rank_dimension=2 * rank, subspace_partition=partition
    )
    return System(
        f"pyvene LowRankRotatedSpace, 2 x {rank}", _partitioned(made.to(device)), [made], 1e-3
    )


def _boundless(width: int, device: torch.device) -> System:
    """Boundless DAS: a full rotation and a boundary for each variable."""
    made = [pyvene.BoundlessRotatedSpaceIntervention(embed_dim=width).to(device) for _ in VARIABLES]

    def swap(base: Tensor, source: Tensor, variable: int) -> Tensor:
        return made[variable](base, source)  # type: ignore[no-any-return]

    return System("pyvene BoundlessRotatedSpace, one a variable", swap, made, 1e-3)


def _partitioned(made: Any) -> Callable[[Tensor, Tensor, int], Tensor]:
    def swap(base: Tensor, source: Tensor, variable: int) -> Tensor:
        return made(base, source, subspaces=[[variable]] * len(base))  # type: ignore[no-any-return]

    return swap


RIVALS: dict[str, Callable[[int, torch.device], System]] = {
    "RotatedSpace": _full,
    "LowRankRotatedSpace": _low_rank,
    "BoundlessRotatedSpace": _boundless,
}


def _inputs(count: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """[rows, 4 · OBJECT], and [rows, 2] bool: whether each pair is equal, half of the time."""
    w, x, y, z = torch.randn(4, count, OBJECT)
    equal = torch.rand(count, 2) < 0.5
    x, z = torch.where(equal[:, :1], w, x), torch.where(equal[:, 1:], y, z)
    return torch.cat([w, x, y, z], dim=1).to(device), equal.to(device)


def _pairs(network: EqualityNetwork, count: int, variable: int) -> tuple[Tensor, Tensor, Tensor]:
    """Hidden states of bases and sources, and the labels after the variable was swapped."""
    device = next(network.parameters()).device
    with torch.no_grad():
        (base, equal), (source, theirs) = _inputs(count, device), _inputs(count, device)
        swapped = equal.clone()
        swapped[:, variable] = theirs[:, variable]
        return network.below(base), network.below(source), (swapped[:, 0] == swapped[:, 1]).long()


def _learn_task(network: EqualityNetwork, steps: int, quiet: bool) -> float:
    """Train the network; returns its share of right answers on new inputs."""
    device = next(network.parameters()).device
    optimizer = torch.optim.Adam(network.parameters(), 1e-3)
    for _ in track(range(steps), steps, "learning the task", quiet=quiet):
        x, equal = _inputs(512, device)
        loss = functional.cross_entropy(
            network.above(network.below(x)), (equal[:, 0] == equal[:, 1]).long()
        )
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    x, equal = _inputs(4096, device)
    with torch.no_grad():
        return float(
            (network.above(network.below(x)).argmax(1) == (equal[:, 0] == equal[:, 1]))
            .float()
            .mean()
        )


def _accuracy(
    network: EqualityNetwork,
    system: System,
    variable: int,
    base: Tensor,
    source: Tensor,
    label: Tensor,
) -> float:
    for module in system.modules:
        module.eval()
    with torch.no_grad():
        found = network.above(system.swap(base, source, variable)).argmax(1)
    return round(float((found == label).float().mean()), 4)

"""`roadint bench align`: causal alignment by roadint's interchange and by pyvene's, in turns.

A network learns hierarchical equality. Every system then looks for the network's two variables in
the same hidden layer: it swaps a variable between inputs, and is right where the network answers as
if only the variable had been swapped. The benchmark measures this interchange accuracy and the
wall-clock time of a training step. All systems see the same pairs at every step.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch.nn import functional

from roadint.bench.align_systems import RIVALS, AlignmentSystem, interchange_systems
from roadint.bench.equality import EqualityNetwork, Hidden, Labels, learn_task, swapped_pairs
from roadint.bench.machine import default_device, machine
from roadint.bench.report import case, ratio
from roadint.bench.timing import Stopwatch
from roadint.bench.turns import in_turns
from roadint.errors import RoadError, check_known
from roadint.progress import track


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
    """Train the network, then all systems for the same steps, by Adam with a falling rate.

    Args:
        width: The width of the network's hidden states, a multiple of 4.
        rivals: pyvene's classes, of RIVALS; all by default.
        steps: The training steps of every system.
        batch_size: The number of pairs in a step.
        task_steps: The training steps of the network.
        seed: The seed of network and data.
        quiet: Whether there is no progress bar.

    Returns:
        {"machine", "job", "cases", "ratios"}: a case has step times, how many numbers train, and
        the interchange accuracy on 4,096 new pairs a variable.

    Raises:
        RoadError: where a rival is unknown, or the width has no halves of whole pairs.
    """
    for name in rivals or ():
        check_known("rival", name, RIVALS)
    if width < 4 or width % 4:
        raise RoadError(f"width {width}: expected a multiple of 4, for two halves of whole pairs")
    torch.manual_seed(seed)
    device = default_device()
    network = EqualityNetwork(width).to(device)
    task_accuracy = learn_task(network, task_steps, quiet)
    network.requires_grad_(False)
    systems = interchange_systems(width, device)
    ours = systems[-1].name
    systems += [RIVALS[name](width, device) for name in rivals or RIVALS]
    _train(network, systems, steps, batch_size, quiet)
    tests = [swapped_pairs(network, 4096, variable) for variable in range(2)]
    cases = {}
    for system in systems:
        accuracies = [_accuracy(network, system, index, *test) for index, test in enumerate(tests)]
        about = {
            "numbers": system.trained,
            "accuracy": sum(accuracies) / 2,
            "accuracies": accuracies,
        }
        cases[system.name] = case("step", system.name, system.seconds, None, **about)
    job = {
        "width": width,
        "steps": steps,
        "batch_size": batch_size,
        "seed": seed,
        "task_accuracy": task_accuracy,
    }
    ratios = [
        ratio("step", name, timed["median_s"], cases[ours]["median_s"])
        for name, timed in cases.items()
        if "pyvene" in name
    ]
    return {
        "machine": machine(device, torch.float32),
        "job": job,
        "cases": list(cases.values()),
        "ratios": ratios,
    }


def _train(
    network: EqualityNetwork,
    systems: Sequence[AlignmentSystem],
    steps: int,
    batch_size: int,
    quiet: bool,
) -> None:
    """Train on the two variables alternately; the learning rate falls to 0 linearly."""
    device = next(network.parameters()).device
    schedules = [
        torch.optim.lr_scheduler.LambdaLR(system.optimizer, lambda step: 1 - step / steps)
        for system in systems
    ]
    for step in track(range(steps), steps, "aligning", quiet=quiet):
        variable = step % 2
        base, source, label = swapped_pairs(network, batch_size, variable)
        for system in in_turns(systems, step):
            with Stopwatch(device) as watch:
                logits = network.above(system.swap(base, source, variable))
                loss = functional.cross_entropy(logits, label)
                system.optimizer.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                system.optimizer.step()
            if step or steps == 1:  # the first one warms up
                system.seconds.append(watch.seconds)
        for schedule in schedules:
            schedule.step()


def _accuracy(
    network: EqualityNetwork,
    system: AlignmentSystem,
    variable: int,
    base: Hidden,
    source: Hidden,
    label: Labels,
) -> float:
    system.modules.eval()
    with torch.no_grad():
        answers = network.above(system.swap(base, source, variable)).argmax(1)
    return round(float((answers == label).float().mean()), 4)

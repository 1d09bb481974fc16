"""What stands for an adapter's values: the same as long as they are, and nothing else's."""

import copy
import gc
import pickle
import threading

import torch
from torch import nn

from roadint.adapters.adapter import RoadAdapter
from roadint.adapters.targets import layout_of
from roadint.engines.seen_values import SeenValues
from tests.helpers import randomised


def adapter(name: str = "a") -> RoadAdapter:
    net = nn.Sequential(nn.Linear(8, 8))
    return randomised(RoadAdapter(name, layout_of(net, ["0"]), subspace="[0, d/2)"))


def test_the_same_values_have_the_same_state() -> None:
    seen, a, b = SeenValues(), adapter("a"), adapter("b")
    first = seen.states_of([a])[0]
    assert seen.states_of([a])[0] is first
    assert seen.states_of([b])[0] is not first, "equal values of another adapter"
    for change in (
        lambda: a.theta.data.add_(1),
        lambda: a.alpha.data.mul_(2),
        lambda: a.held.zero_(),
    ):
        before = seen.states_of([a])[0]
        change()
        assert seen.states_of([a])[0] is not before
    a.theta.data.sub_(0)
    assert seen.states_of([a])[0] is seen.states_of([a])[0]


def test_a_copy_starts_empty() -> None:
    seen, a = SeenValues(), adapter()
    state = seen.states_of([a])[0]
    for twin in (copy.deepcopy(seen), pickle.loads(pickle.dumps(seen)), copy.copy(seen)):
        assert twin.states_of([a])[0] is not state
    both = copy.deepcopy((seen, a))
    assert both[0].states_of([both[1]])[0] is not state
    assert seen.states_of([a])[0] is state


def test_an_adapter_that_is_gone_is_forgotten() -> None:
    seen, a = SeenValues(), adapter()
    seen.states_of([a])[0]
    assert len(seen._seen) == 1
    del a
    gc.collect()
    assert not len(seen._seen)


def test_threads_see_one_state() -> None:
    seen, a = SeenValues(), adapter()
    states: list[object] = []
    for round_ in range(20):
        with torch.no_grad():
            a.theta.fill_(round_)
        states.clear()
        threads = [
            threading.Thread(target=lambda: states.append(seen.states_of([a])[0])) for _ in range(4)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(states) == 4
        assert len(set(map(id, states))) == 1

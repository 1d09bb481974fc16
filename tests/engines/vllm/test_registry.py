"""What requests ask for, resolved or refused, and checkpoints that come and go meanwhile."""

import json
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from roadint import RoadError, RoadIntervention, RoadModel
from roadint.engines.vllm import registry as registry_module
from roadint.engines.vllm.registry import Registry
from roadint.engines.vllm.served import open_served
from roadint.engines.vllm.settings import Settings
from tests.engines.vllm.helpers import BASE, adapter, plan_of, registry_of, road, serve, write
from tests.helpers import HALVES, build, trained

QUARTERS = {"a": "[0, d/4)", "b": "[d/4, d/2)"}


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    """Two checkpoints with the same names, one of them labelled, with adapters."""
    adapters = [adapter("x", {"q": 8}), adapter("y", {"q": 8}, 2, variant="road_4")]
    return registry_of(
        plain=serve(tmp_path / "one", road(), adapters=adapters),
        two=serve(tmp_path / "two", road(2, 5)),
    )


def acting(registry: Registry, compose: Any) -> list[Any]:
    plan = plan_of(registry, compose)
    return [(edit.intervention.layer, edit.terms) for edit in plan.edits] + [
        ("adapters", terms) for _, terms in plan.adapters
    ]


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        ("a", [(1, (("a", 1.0),))]),
        ({"compose": "a"}, [(1, (("a", 1.0),))]),
        ({"a": 0.5}, [(1, (("a", 0.5),))]),
        ({"compose": {"a": 0.5}}, [(1, (("a", 0.5),))]),
        ("a@two", [(2, (("a", 1.0),))]),
        ("b - 0.5*a", [(1, (("a", -0.5), ("b", 1.0)))]),
        ("b@two + 2*a", [(1, (("a", 2.0),)), (2, (("b", 1.0),))]),
        ("x + 3*a@two", [(2, (("a", 3.0),)), ("adapters", (("x", 1.0),))]),
        ("two", [(2, (("a", 1.0), ("b", 1.0)))]),
    ],
)
def test_what_is_asked_for(registry: Registry, asked: Any, expected: Any) -> None:
    assert acting(registry, asked) == expected
    assert acting(registry, asked) == expected  # now it is known


@pytest.mark.parametrize("asked", ["none", None, {"compose": None}, {}, "0*a", {"a": 0}, "a - a"])
def test_the_base_model(registry: Registry, asked: Any) -> None:
    assert registry.resolve(asked, 5) is None


def test_what_travels_is_plain(registry: Registry) -> None:
    """Between processes it is msgpack, over HTTP it is JSON, and every number comes as it was."""
    resolved = registry.resolve("0.1*a + 0.30000000000000004*b@two + x", 5)
    assert resolved == json.loads(json.dumps(resolved))
    assert registry.plan(json.loads(json.dumps(resolved))) is registry.plan(resolved)


def test_what_has_travelled_can_not_be_asked_for(registry: Registry) -> None:
    """Else a client could name what was unloaded."""
    with pytest.raises(RoadError):
        registry.resolve(registry.resolve("a", 5), 5)


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ("german", "unknown subspace 'german' in composition 'german': expected one of 'a', 'b'"),
        ("a@three", "unknown subspace 'a@three'"),
        ("a +", "is not understood"),
        ("", "is not understood"),
        ({"compose": "a", "position": "last"}, "'position' beside 'compose'"),
        ({"compose": {"compose": "a"}}, "unknown subspace 'compose'|is no finite number"),
        ({"a": "much"}, "strength 'much' of 'a' is no finite number"),
        ({"a": float("nan")}, "no finite number"),
        ({"a": float("inf")}, "no finite number"),
        ({"a": True}, "no finite number"),
        ("1e9*a", "too large"),
        (["a"], "is not understood"),
        (3, "is not understood"),
        (True, "is not understood"),
        (b"a", "is not understood"),
        ("x + y", "'x \\+ y' sums x and y, but road_1 and road_4 share blocks of q"),
        ("a" * 100_000, "has 100,000 characters|characters"),
    ],
)
def test_what_is_refused(registry: Registry, asked: Any, message: str) -> None:
    for _ in range(2):  # nothing of it is kept
        with pytest.raises(RoadError, match=message) as refused:
            registry.resolve(asked, 5)
        assert "\n" not in str(refused.value)
        assert len(str(refused.value)) < 2000


def test_sums_whose_order_would_matter(tmp_path: Path) -> None:
    registry = registry_of(
        one=serve(tmp_path / "one", road(subspaces=HALVES, variant="road_2")),
        two=serve(tmp_path / "two", road(subspaces=HALVES, variant="road_2")),
        three=serve(tmp_path / "three", road(subspaces=HALVES, basis="random")),
    )
    assert registry.resolve("a@one + b@two", 5)
    for asked, message in {
        "a@one + a@two": "road_2 and road_2 share 8 blocks and do not commute",
        "a@one + b@three": "different bases",
    }.items():
        with pytest.raises(RoadError, match=message):
            registry.resolve(asked, 5)


@pytest.mark.parametrize("length", [1, 4])
def test_prompts_that_lack_a_token(length: int, tmp_path: Path) -> None:
    parts = [
        road(0, subspaces={"a": "[0, d)"}),
        road(2, subspaces={"b": "[0, d)"}, position="at(4)"),
    ]
    registry = registry_of(plain=serve(tmp_path, *parts))
    assert registry.resolve("a", length)
    assert registry.resolve("a + b", 5)
    with pytest.raises(RoadError, match=r"layer 2: position at\(4\)"):
        registry.resolve("a + b", length)
    with pytest.raises(RoadError, match=r"layer 2: position at\(4\)"):  # now it is known
        registry.resolve("a + b", length)


# Checkpoints that come and go.


def test_labels_and_names_that_are_taken(registry: Registry, tmp_path: Path) -> None:
    other = serve(tmp_path / "three", road(subspaces={"c": "[0, d)"}))
    for label, message in {
        "": r"label '' is taken by .*one: expected another one, or unload",
        "two": r"label 'two' is taken by .*two: expected another one, or unload",
        "a b": "plain word",
        "all": "plain word",
        "a@b": "plain word",
    }.items():
        with pytest.raises(RoadError, match=message):
            registry.load(label, other)
    assert list(registry.served) == ["", "two"]
    registry.load("three", other)
    assert registry.names == ["a", "b", "x", "y", "a@two", "b@two", "c@three"]


def test_all_is_what_there_is(tmp_path: Path) -> None:
    registry = registry_of(one=serve(tmp_path / "one", road(0)))
    assert [layer for layer, _ in acting(registry, "all")] == [0]
    registry.load("two", serve(tmp_path / "two", road(1)))
    assert [layer for layer, _ in acting(registry, "all")] == [0, 1]
    registry.unload("one")
    assert [layer for layer, _ in acting(registry, "all")] == [1]


def test_a_label_that_is_a_name_of_another(tmp_path: Path) -> None:
    """`a` is the subspace and never the checkpoint, as in RoadModel."""
    registry = registry_of(
        plain=serve(tmp_path / "one", road()),
        a=serve(tmp_path / "two", road(2, subspaces=QUARTERS)),
    )
    assert acting(registry, "a") == [(1, (("a", 1.0),))]


def test_another_checkpoint_under_a_label_acts_from_then_on(
    registry: Registry, tmp_path: Path
) -> None:
    before = registry.resolve("a@two", 5)
    registry.unload("two")
    with pytest.raises(RoadError, match="unknown subspace 'a@two'"):
        registry.resolve("a@two", 5)
    with pytest.raises(RoadError, match="no checkpoint 'two' is served: expected one of ''"):
        registry.unload("two")
    registry.load("two", serve(tmp_path / "three", road(0, 9)))
    after = registry.resolve("a@two", 5)
    assert before is not None
    assert before != after
    assert acting(registry, "a@two") == [(0, (("a", 1.0),))]
    assert [edit.intervention.layer for edit in registry.plan(before).edits] == [2]  # it runs on


def test_what_was_unloaded_is_kept_as_long_as_it_is_needed(
    registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    resolved = registry.resolve("a@two", 5)
    assert resolved is not None
    fingerprint = resolved["of"][0][0]
    registry.unload("two")
    registry.forget([])
    assert registry.plan(resolved)  # it may be on its way
    late = time.monotonic() + 2 * registry_module._GRACE
    monkeypatch.setattr(time, "monotonic", lambda: late)
    registry.forget([fingerprint])
    assert registry.plan(resolved)  # it is in use
    registry.forget([])
    with pytest.raises(RoadError, match=f"checkpoint {fingerprint[:12]} of a request was unloaded"):
        registry.plan(resolved)
    assert registry.resolve("a", 5)


def test_the_same_checkpoint_under_two_labels(tmp_path: Path, monkeypatch: Any) -> None:
    served = serve(tmp_path, road())
    registry = registry_of(one=served, two=served)
    resolved = registry.resolve("a@two", 5)
    registry.unload("one")
    monkeypatch.setattr(registry_module, "_GRACE", -1.0)
    registry.forget([])
    assert registry.plan(resolved).edits
    assert registry.resolve("a@two", 5) == resolved


def test_names_that_have_labels_act(tmp_path: Path) -> None:
    """Of a checkpoint that was saved from several: its own names have labels."""
    llama = build("llama")
    for label in "ab":
        edit = RoadIntervention(layer="ab".index(label), subspaces={"german": "[0, d/2)"})
        trained(llama, edit).save_pretrained(tmp_path / label)
    several = RoadModel.from_pretrained(llama, {label: tmp_path / label for label in "ab"})
    several.save_pretrained(tmp_path / "both")
    registry = registry_of(plain=open_served(str(tmp_path / "both"), BASE))
    assert registry.names == ["german@a", "german@b"]
    for asked, count in (("german@a", 1), ("german@a + 0.5*german@b", 2), ("all", 2)):
        resolved = registry.resolve(asked, 5)
        assert resolved is not None
        assert len(registry.plan(resolved).edits) == count


def test_a_checkpoint_that_comes_back_is_kept(registry: Registry, monkeypatch: Any) -> None:
    served = registry.served["two"]
    resolved = registry.resolve("a@two", 5)
    registry.unload("two")
    registry.load("again", served)
    monkeypatch.setattr(registry_module, "_GRACE", -1.0)
    registry.forget([])
    assert registry.plan(resolved).edits
    assert registry.resolve("a@again", 5) == resolved


def test_memory_is_bounded(registry: Registry, monkeypatch: Any) -> None:
    monkeypatch.setattr(registry_module, "_PLANS", 8)
    for index in range(50):
        registry.resolve(f"{index + 1}*a", 5)
        registry.resolve({"b": index + 1}, 5)
    assert len(registry._plans) <= 8
    assert len(registry._resolved) <= 8
    assert acting(registry, "3*a") == [(1, (("a", 3.0),))]


def test_a_configuration(tmp_path: Path) -> None:
    paths = {"": write(tmp_path / "one", road()), "b": write(tmp_path / "two", road())}
    registry = Registry.of(Settings(paths, (0, 2)), BASE)
    assert registry.names == ["a", "b", "a@b", "b@b"]
    assert {label: part.path for label, part in registry.served.items()} == paths
    with pytest.raises(RoadError, match=r"layers=\[1, 3\]: the engine's model has 3 layers"):
        Registry.of(Settings({}, (1, 3)), BASE)


def test_threads(registry: Registry, tmp_path: Path) -> None:
    """Requests are read in several threads while checkpoints come and go in another."""
    other = serve(tmp_path / "three", road(0, 9))
    errors: list[BaseException] = []
    done = threading.Event()

    def ask(number: int) -> None:
        count = 0
        while not done.is_set():
            count += 1
            try:
                assert acting(registry, f"{(1 + (count + number) % 97) / 97}*b")[0][0] == 1
                resolved = registry.resolve("a@three", 5)
                assert [edit.intervention.layer for edit in registry.plan(resolved).edits] == [0]
            except RoadError as error:
                if "unknown subspace 'a@three'" not in str(error):
                    errors.append(error)
            except BaseException as error:
                errors.append(error)

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for _ in range(30):
        registry.load("three", other)
        registry.unload("three")
        registry.forget([])
    done.set()
    for thread in threads:
        thread.join()
    assert not errors

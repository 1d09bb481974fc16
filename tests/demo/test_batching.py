"""Many callers of one model: shared batches, turns, limits, and what is refused."""

import gc
import logging
import threading
import time
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from roadint import RoadError, RoadIntervention, RoadModel
from roadint.demo.batching import Batcher
from roadint.demo.failures import UNEXPECTED
from roadint.demo.requests import AnswerSettings, Update
from roadint.grammar.composition import Composition
from tests.helpers import build, trained


def last_of(
    batcher: Batcher, road: RoadModel, text: str, prompt: str = "say it", length: int = 4
) -> list[str]:
    *_, last = batcher.answers(
        prompt, [Composition.parse(text, road.names)], AnswerSettings(length)
    )
    return last.texts


def at_once(batcher: Batcher, road: RoadModel, texts: Sequence[str]) -> dict[str, Any]:
    """What every caller gets, or is told, when all of them wait for one batch."""
    results: dict[str, Any] = {}

    def ask(text: str) -> None:
        try:
            results[text] = last_of(batcher, road, text)
        except Exception as error:
            results[text] = error

    first = threading.Thread(target=last_of, args=(batcher, road, "none"))
    threads = [threading.Thread(target=ask, args=(text,)) for text in texts]
    with batcher.lock:  # as when the model is busy
        first.start()
        time.sleep(0.2)
        for thread in threads:
            thread.start()
        time.sleep(0.2)
    for thread in (first, *threads):
        thread.join()
    return results


def test_requests_of_one_moment_share_a_batch_and_keep_their_own(tokenizer: Any) -> None:
    """Twelve callers at once, other prompts, compositions and lengths: what each gets alone."""
    road = trained(build("llama")).eval()
    batcher = Batcher(road, tokenizer)
    asked = [(f"say {n}", [None, "a", "a + b"][: 1 + n % 3], 3 + n % 4) for n in range(12)]
    results: dict[int, Update] = {}

    def ask(number: int) -> None:
        prompt, compositions, length = asked[number]
        parsed = [Composition.parse(text, road.names) for text in compositions]
        *_, results[number] = batcher.answers(prompt, parsed, AnswerSettings(length))

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for number, (prompt, compositions, length) in enumerate(asked):
        expected = road.answer(tokenizer, prompt, compose=compositions, max_new_tokens=length)
        assert results[number].texts == expected
        assert results[number].done


def test_closing_frees_the_batcher(tokenizer: Any) -> None:
    batcher = Batcher(trained(build("llama")).eval(), tokenizer)
    long = batcher.answers("say", [Composition()], AnswerSettings(500))
    next(long)
    long.close()
    *_, last = batcher.answers("say", [Composition()], AnswerSettings(2))
    assert last.done


def test_what_the_model_refuses_is_told_to_who_asked_for_it(tokenizer: Any, tmp_path: Path) -> None:
    """Sums that don't commute, positions outside of a prompt, an inverse that does not exist: before a batch is shared."""
    model = build("llama")

    def saved(name: str, site: RoadIntervention, scale: float | None = None) -> Path:
        other = trained(model, site)
        with torch.no_grad():
            if scale is not None:
                site.alpha.fill_(scale)
        other.save_pretrained(tmp_path / name)
        return tmp_path / name

    road = trained(model).eval()
    road.add_checkpoint(
        saved("two", RoadIntervention(layer=1, subspaces={"q": "[0, d)"}, basis="random")), "two"
    )
    road.add_checkpoint(
        saved("far", RoadIntervention(layer=2, position="at(400)", subspaces={"f": "[0, d)"})),
        "far",
    )
    road.add_checkpoint(
        saved("zero", RoadIntervention(layer=2, subspaces={"z": "[0, d)"}), 0.0), "zero"
    )
    road.add_checkpoint(
        saved("three", RoadIntervention(layer=1, subspaces={"p": "[0, d)"})), "three"
    )
    batcher = Batcher(road, tokenizer)
    expected = last_of(batcher, road, "a")
    sent: list[int] = []
    generate = road.generate
    road.generate = lambda **arguments: (
        sent.append(len(arguments["compose"])) or generate(**arguments)
    )  # type: ignore[method-assign]
    results = at_once(batcher, road, ["a", "q@two + p@three", "f@far", "-z@zero"])
    assert results["a"] == expected
    for text, message in {
        "q@two + p@three": "different bases",
        "f@far": "outside a prompt",
        "-z@zero": "no inverse",
    }.items():
        assert isinstance(results[text], RoadError)
        assert message in str(results[text])
    assert sent == [1, 1]


def test_a_batch_that_fails_is_run_one_by_one(
    tokenizer: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """Whatever the reason: the others are answered as if alone, and who is told reads nothing of the machine's insides."""
    road = trained(build("llama")).eval()
    batcher = Batcher(road, tokenizer)
    expected = {text: last_of(batcher, road, text) for text in ("a", "a + b")}
    generate = road.generate

    def failing(**arguments: Any) -> Any:
        if any(str(text) == "b" for text in arguments["compose"]):
            raise RuntimeError("CUDA error at /home/somebody/secret.py")
        return generate(**arguments)

    road.generate = failing  # type: ignore[method-assign]
    with caplog.at_level(logging.ERROR, "roadint.demo"):
        results = at_once(batcher, road, ["a", "b", "a + b"])
    assert {text: results[text] for text in expected} == expected
    assert str(results["b"]) == UNEXPECTED
    assert "secret.py" in caplog.text
    assert last_of(batcher, road, "a") == expected["a"]


def test_waiting_requests_are_bounded_and_freed(tokenizer: Any) -> None:
    """For a visitor and for all; whoever goes leaves a place at once, also from a batch that has not begun."""
    batcher = Batcher(trained(build("llama")).eval(), tokenizer)

    def started(visitor: str | None) -> Any:
        updates = batcher.answers("say", [Composition()], AnswerSettings(1), visitor)
        next(updates)
        return updates

    with batcher.lock:
        first = threading.Thread(
            target=lambda: list(batcher.answers("say", [Composition()], AnswerSettings(1)))
        )
        first.start()
        time.sleep(0.2)  # it holds the batcher's thread
        blocker = threading.Thread(
            target=lambda: list(batcher.answers("say", [Composition()], AnswerSettings(1)))
        )
        blocker.start()
        time.sleep(0.2)
        mine = [started("me") for _ in range(8)]
        with pytest.raises(RoadError, match="8 requests of yours"):
            started("me")
        mine.pop().close()
        mine.append(started("me"))
        others = [started(f"other {number}") for number in range(64 - 8 - 2)]
        with pytest.raises(RoadError, match="64 requests of all visitors"):
            started("one more")
        others.pop().close()
        waits = started("one more")
        assert (
            next(waits).waiting > 0
        )  # an update comes although nothing runs, so that a page can stop it
        for updates in (waits, *mine, *others):
            updates.close()
    first.join()
    blocker.join()
    *_, last = batcher.answers("say", [Composition()], AnswerSettings(2), "me")
    assert last.done


def test_nobodys_second_request_comes_before_anothers_first(tokenizer: Any) -> None:
    """Sampled requests run by themselves: eight of one visitor, then one of another, which is the next."""
    road = trained(build("llama")).eval()
    batcher = Batcher(road, tokenizer)
    done: list[str] = []

    def ask(visitor: str, seed: int) -> None:
        list(batcher.answers("say", [Composition()], AnswerSettings(2, 1.0, seed), visitor))
        done.append(visitor)

    threads = [threading.Thread(target=ask, args=("many", seed)) for seed in range(8)]
    threads.append(threading.Thread(target=ask, args=("one", 0)))
    with batcher.lock:
        for thread in threads:
            thread.start()
            time.sleep(0.1)
    for thread in threads:
        thread.join()
    assert done.index("one") <= 1


def test_what_nobody_wants_any_more_stops(tokenizer: Any) -> None:
    batcher = Batcher(trained(build("llama")).eval(), tokenizer)
    asked: list[int] = []
    updates = list(
        batcher.answers(
            "say",
            [Composition()],
            AnswerSettings(500),
            wanted=lambda: len(asked) < 3 and not asked.append(1),
        )
    )
    assert len(updates) <= 4
    assert not updates[-1].done
    *_, last = batcher.answers("say", [Composition()], AnswerSettings(2))
    assert last.done


def test_what_failed_together_is_tried_apart_when_its_memory_is_free(
    tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The frames of an error hold what ran out of memory until it is forgotten."""
    batcher = Batcher(trained(build()).eval(), tokenizer)
    own, held = batcher._generate, []

    def generate(requests: Sequence[Any]) -> None:
        gc.collect()
        assert all(each() is None for each in held)
        if len(requests) > 1:
            cache = torch.zeros(8)
            held.append(weakref.ref(cache))
            raise torch.OutOfMemoryError("no room")
        own(requests)

    with batcher.lock:  # both wait for one batch
        growing = [
            batcher.answers(prompt, [Composition()], AnswerSettings(max_new_tokens=2))
            for prompt in ("one", "two")
        ]
        monkeypatch.setattr(batcher, "_generate", generate)
        last: list[Any] = [None, None]

        def follow(index: int) -> None:
            for update in growing[index]:
                last[index] = update

        threads = [threading.Thread(target=follow, args=(index,)) for index in range(2)]
        for thread in threads:
            thread.start()
        time.sleep(0.5)
    for thread in threads:
        thread.join(30)
    assert [update.done for update in last] == [True, True]
    assert held, "they were one batch"


def test_an_answer_ends_where_the_models_generations_do(tokenizer: Any) -> None:
    road = trained(build()).eval()
    batcher = Batcher(road, tokenizer)

    def tokens(count: int) -> Update:
        return list(batcher.answers("say", [Composition()], AnswerSettings(count)))[-1]

    whole = tokens(12)
    assert whole.tokens == 12
    ids = road.generate(
        **{name: value for name, value in tokenizer("say", return_tensors="pt").items() if name != "token_type_ids"},
        compose=None, max_new_tokens=12, do_sample=False, repetition_penalty=1.1, no_repeat_ngram_size=5,
    )[0, -12:].tolist()  # fmt: skip
    road.model.generation_config.eos_token_id = [2, ids[5]]
    assert tokens(12).tokens == ids.index(ids[5])


def test_answers_have_to_fit_the_models_positions(tokenizer: Any) -> None:
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=128, n_embd=32, n_layer=3, n_head=4, n_positions=24)
    batcher = Batcher(trained(GPT2LMHeadModel(config).eval()), tokenizer)
    with pytest.raises(RoadError, match="max_new_tokens=40 for a model of 24 positions"):
        next(batcher.answers("say", [Composition()], AnswerSettings(40)))
    with pytest.raises(RoadError, match="for a model of 24 positions"):
        batcher.check("say " * 10)
    assert list(batcher.answers("say", [Composition()], AnswerSettings(4)))[-1].done

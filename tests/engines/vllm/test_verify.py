"""What `verify` allows: in half precision, as much as the bare model is off itself."""

import sys
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from roadint.engines.vllm import verify
from roadint.engines.vllm.comparison import Answer


@pytest.mark.parametrize("compose", [[], ["german"], ["none", "german"]])
@pytest.mark.parametrize(("off", "code"), [(0.1, 0), (0.9, 1)])
def test_rounding_of_the_bare_model_is_allowed(
    compose: list[str], off: float, code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def engine(llm: Any, prompts: Any, texts: Any, count: int) -> list[Answer]:
        pairs = zip(prompts, texts, strict=True)
        return [Answer(text, tuple(prompt), (5,), (-1.0,)) for prompt, text in pairs]

    def road_model(road: Any, answers: list[Answer]) -> list[Answer]:
        return [
            replace(answer, expected=(-1.1 if answer.composition is None else -1 - off,), greedy=(True,))
            for answer in answers
        ]  # fmt: skip

    tokenizer = SimpleNamespace(encode=lambda text: [1, 2, 3])
    llm = SimpleNamespace(get_tokenizer=lambda: tokenizer)
    for name, value in {
        "_start": lambda *_: llm, "_stop": lambda _: None, "ask_engine": engine, "ask_road_model": road_model,
    }.items():  # fmt: skip
        monkeypatch.setattr(verify, name, value)
    monkeypatch.setattr(verify.control, "served", lambda _: {"": {"names": ["german"]}})
    monkeypatch.setattr(verify.roadint, "source_of", lambda name: name)
    monkeypatch.setattr(verify.roadint, "load", lambda *_, **__: (None, None))
    monkeypatch.setattr(
        verify.roadint, "RoadModel", SimpleNamespace(from_pretrained=lambda *_: None)
    )
    options = [f"--compose={text}" for text in compose]
    monkeypatch.setattr(
        sys, "argv", ["verify", "m", "c", "--prompt", "x", "--dtype", "bfloat16", *options]
    )
    with pytest.raises(SystemExit) as end:
        verify.main()
    assert end.value.code == code

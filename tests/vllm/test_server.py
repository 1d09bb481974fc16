"""`roadint serve`, whole: vLLM's server in processes of its own, asked with OpenAI's client."""

import asyncio
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import openai
import pytest

from roadint import RoadIntervention, RoadModel
from roadint.checkpoint.reading import read
from roadint.demo.requests import AnswerSettings
from roadint.demo.server_answers import ServerAnswers
from roadint.demo.server_client import ServerClient
from roadint.grammar.composition import Composition
from tests.vllm.checkpoints import save
from tests.vllm.conftest import MODELS, road_with
from tests.vllm.engine import ROOT, SETTINGS, Answered, Asked, environment
from tests.vllm.helpers import COMPOSITIONS, prompt_of
from tests.vllm.oracle import check

KEY = "secret"
NAME = MODELS[0]
QUESTION = "How can I learn English?"


class Running(NamedTuple):
    """A server, OpenAI's client of it, and the same checkpoints on transformers."""

    url: str
    client: openai.OpenAI
    road: RoadModel
    checkpoints: dict[str, str]
    process: "subprocess.Popen[str]"

    def ask(self, method: str, path: str, body: Any = None, key: str = KEY) -> httpx.Response:
        headers = {"Authorization": f"Bearer {key}"}
        url = f"{self.url.removesuffix('/v1')}{path}"
        return httpx.request(method, url, json=body, headers=headers, timeout=120)

    def complete(self, model: str = NAME, prompt: Any = QUESTION, **more: Any) -> str:
        settings = {"max_tokens": 8, "temperature": 0, **more}
        return str(self.client.completions.create(model=model, prompt=prompt, **settings).choices[0].text)  # fmt: skip


@pytest.fixture(scope="module")
def running(folders: Any, road_of: Any) -> Iterator[Running]:
    """It serves two checkpoints; a third one, with an adapter, lies in its folder."""
    _, made = folders(NAME)
    late = Path(made[""]).parent / "late"
    with_style = RoadModel(road_of(NAME).model)
    with_style.add_adapter("style")
    warm = RoadIntervention(layer=2, subspaces={"warm": "[0, d)"})
    save(with_style.model, late, [warm], with_style.adapters.values(), seed=4)
    made = {**made, "late": str(late)}
    arguments = [made[""], "--model", NAME, "--add", f"b={made['b']}", "--adapters"]
    arguments += ["--folder", str(Path(made[""]).parent), "--api-key", KEY, "--port", "8731"]
    for name, value in SETTINGS.items():
        option = f"--{name.replace('_', '-')}"
        further = [option] if value is True else [option, str(value)]
        arguments += further if "--" in arguments else ["--json", "--", *further]
    process = subprocess.Popen(
        [sys.executable, "-m", "roadint", "serve", *arguments],
        env=environment("v1") | {"VLLM_ENABLE_V1_MULTIPROCESSING": "1"},
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stderr is not None
    ready = process.stdout.readline()
    assert ready, process.stderr.read()
    about = json.loads(ready)
    assert about["model"] == NAME
    try:
        client = openai.OpenAI(base_url=about["url"], api_key=KEY, max_retries=0)
        yield Running(about["url"], client, road_of(NAME), made, process)
    finally:
        started = children(process.pid)
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 0, process.stderr.read()
        assert process.stdout.read() == ""
        assert len(started) > 2
        deadline = time.monotonic() + 10
        while left := [pid for pid in started if runs(pid)]:
            assert time.monotonic() < deadline, left
            time.sleep(0.1)


def children(process: int) -> list[int]:
    """The processes that a process has started, and those that they have."""
    listed: list[int] = []
    for task in Path(f"/proc/{process}/task").iterdir():
        for child in (task / "children").read_text().split():
            listed += [int(child), *children(int(child))]
    return listed


def runs(process: int) -> bool:
    """Whether a process has not ended; one that has may lie there until its new parent looks."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def refusal(running: Running, **asked: Any) -> tuple[int, str]:
    with pytest.raises(openai.APIStatusError) as error:
        running.complete(**asked)
    body: Any = error.value.body
    return error.value.status_code, body["message"]


def test_a_mixed_batch_is_what_roadmodel_does(running: Running) -> None:
    """Asked for at the same time, as an argument or in the model's name."""
    draw = random.Random(0)
    composed = [text for text in COMPOSITIONS if text is None or "@ad" not in text]
    asked = [Asked(prompt_of(draw, draw.choice((4, 33, 64))), text) for text in composed]

    async def answer(client: openai.AsyncOpenAI, index: int, request: Asked) -> Answered:
        named = index % 2 and request.compose is not None
        xargs = {} if named or request.compose is None else {"roadint": request.compose}
        answer: Any = await client.completions.create(
            model=f"{NAME}:{request.compose}" if named else NAME,
            prompt=list(request.prompt),
            max_tokens=request.new,
            temperature=0,
            logprobs=1,
            extra_body={
                "vllm_xargs": xargs,
                "ignore_eos": True,
                "return_tokens_as_token_ids": True,
            },
        )
        scores = answer.choices[0].logprobs
        tokens = tuple(int(token.removeprefix("token_id:")) for token in scores.tokens)
        return Answered(tokens, tuple(scores.token_logprobs), 0, 0)

    async def answers() -> list[Answered]:
        async with openai.AsyncOpenAI(base_url=running.url, api_key=KEY) as client:
            return await asyncio.gather(
                *(answer(client, index, request) for index, request in enumerate(asked))
            )

    check(running.road, asked, asyncio.run(answers()))


def test_every_route_that_answers_takes_the_models_name(running: Running) -> None:
    """As an argument and in the name, streamed or not: one answer, which is not the base model's."""
    model, settings = f"{NAME}:german + 0.5*tail", {"temperature": 0}
    messages: Any = [{"role": "user", "content": QUESTION}]
    chat: Any = running.client.chat.completions
    expected = chat.create(
        model=NAME,
        messages=messages,
        max_tokens=8,
        extra_body={"vllm_xargs": {"roadint": "german + 0.5*tail"}},
        **settings,
    ).choices[0]
    text = expected.message.content
    assert chat.create(model=model, messages=messages, max_tokens=8, **settings).choices[0].message.content == text  # fmt: skip
    stream = chat.create(model=model, messages=messages, max_tokens=8, stream=True, **settings)
    assert "".join(part.choices[0].delta.content or "" for part in stream if part.choices) == text
    response = running.client.responses.create(
        model=model, input=QUESTION, max_output_tokens=8, temperature=0
    )
    assert response.output_text == text
    body = {"model": model, "messages": messages, "max_tokens": 8, "temperature": 0}
    message = running.ask("POST", "/v1/messages", body).json()
    assert message["content"][0]["text"] == text
    batch = running.ask("POST", "/v1/chat/completions/batch", {**body, "messages": [messages]})
    assert batch.json()["choices"][0]["message"]["content"] == text
    counted = running.ask("POST", "/v1/messages/count_tokens", body)
    assert counted.json()["input_tokens"] > 0
    for composition in ("none", None):
        base = running.complete(f"{NAME}:{composition}" if composition else NAME)
        assert base != text


def test_chats_are_the_prompts_of_roadmodel(running: Running) -> None:
    saved = read(running.checkpoints[""]).config
    tokens = running.ask(
        "POST", "/tokenize", {"model": f"{NAME}:german", "messages": [{"role": "user", "content": QUESTION}]}
    ).json()["tokens"]  # fmt: skip
    from roadint import load
    from roadint.data.prompts import prompt_ids

    _, tokenizer = load(NAME)
    assert tokens == prompt_ids(tokenizer, saved["template"], QUESTION)


def test_what_can_t_act_is_refused_and_the_server_lives(running: Running) -> None:
    for asked, status, said in [
        ({"model": f"{NAME}:germn"}, 400, "did you mean 'german'?"),
        ({"model": f"{NAME}:"}, 400, "composition '' is not understood"),
        ({"model": f"{NAME}:german@c"}, 400, "unknown subspace 'german@c'"),
        ({"extra_body": {"vllm_xargs": {"roadint": "2*"}}}, 400, "is not understood"),
        ({"extra_body": {"vllm_xargs": {"roadint": 5}}}, 400, "composition 5"),
        ({"extra_body": {"vllm_xargs": {"roadint": {"compose": "german"}}}}, 400, "valid string"),
        ({"extra_body": {"vllm_xargs": {"roadint": "german"}, "use_beam_search": True}}, 400, "beam search"),
        ({"model": f"{NAME}:german", "extra_body": {"vllm_xargs": {"roadint": "tail"}}}, 400, "two compositions"),
        ({"model": "nobody:german"}, 404, "does not exist"),
        ({"model": f"{NAME}:picked", "prompt": [5]}, 400, "outside a prompt"),
    ]:  # fmt: skip
        assert refusal(running, **asked)[0] == status
        assert said in refusal(running, **asked)[1]
    assert running.complete(f"{NAME}:german")


def test_a_token_guards_every_route(running: Running) -> None:
    with pytest.raises(openai.AuthenticationError):
        openai.OpenAI(base_url=running.url, api_key="wrong").models.list()
    body = {"label": "c", "path": "other"}
    for method, path, sent in [
        ("GET", "/v1/roadint/checkpoints", None),
        ("POST", "/v1/roadint/checkpoints", body),
        ("DELETE", "/v1/roadint/checkpoints/b", None),
        ("GET", "/v1/models", None),
        ("POST", "/v1/completions", {"model": f"{NAME}:german", "prompt": "x"}),
    ]:
        assert running.ask(method, path, sent, key="wrong").status_code == 401
    assert running.complete(f"{NAME}:german@b")


def test_checkpoints_come_and_go_while_requests_run(running: Running) -> None:
    """A stream that has begun keeps its checkpoint to its end; the next request is refused."""
    url = "/v1/roadint/checkpoints"
    loaded = running.ask("POST", url, {"label": "c", "path": "late"})
    assert loaded.status_code == 200, loaded.text
    assert loaded.json()["names"] == ["warm@c", "style@c"]
    assert running.ask("POST", url, {"label": "c", "path": "other"}).status_code == 409
    refused = running.ask("POST", url, {"label": "ad", "path": "adapters"})
    assert (refused.status_code, "start it with adapters" in refused.text) == (400, True)
    assert running.ask("POST", url, {"label": "x", "path": "../other"}).status_code == 404
    listed = running.ask("GET", url).json()
    assert [told["label"] for told in listed["data"]] == ["", "b", "c"]
    fingerprint = read(running.checkpoints["late"]).config["sha256"]
    assert listed["data"][2]["fingerprint"] == fingerprint
    models = [model.id for model in running.client.models.list()]
    assert models == [NAME, *(f"{NAME}:{name}" for name in listed["names"])]
    settings: Any = {"max_tokens": 80, "temperature": 0, "extra_body": {"ignore_eos": True}}
    model = f"{NAME}:style@c + warm@c + german"
    whole = running.complete(model, **settings)
    stream: Any = running.client.completions.create(
        model=model, prompt=QUESTION, stream=True, **settings
    )
    parts = [next(stream).choices[0].text]
    assert running.ask("DELETE", f"{url}/c").status_code == 200
    assert "unknown subspace 'style@c'" in refusal(running, model=model)[1]
    parts += [part.choices[0].text for part in stream]
    assert "".join(parts) == whole
    assert running.ask("DELETE", f"{url}/c").status_code == 404
    assert running.ask("POST", url, {"label": "c", "path": "late"}).status_code == 200
    assert running.complete(model, **settings) == whole
    assert running.complete(f"{NAME}:german", **settings) != whole


def test_the_app_gets_the_answers_of_roadmodel(running: Running) -> None:
    from roadint import load

    model, tokenizer = load(NAME, dtype="float32")
    road = road_with(model, {"": running.checkpoints[""]})
    answers = ServerAnswers(ServerClient(running.url, KEY), read(running.checkpoints[""]))
    composed = ["none", "german + whole", "2*whole + head"]
    parsed = [Composition.parse(text, road.names) for text in composed]
    *_, last = answers.answers(QUESTION, parsed, AnswerSettings(12))
    expected = road.answer(
        tokenizer, QUESTION, compose=composed, max_new_tokens=12, no_repeat_ngram_size=0
    )
    assert last.texts == expected
    assert len(set(expected)) == 3
    answers.add_checkpoint(Path(running.checkpoints["b"]), "other", "b")  # it is there already
    growing = answers.answers(QUESTION, parsed, AnswerSettings(400))
    next(update for update in growing if update.tokens)
    growing.close()
    end = time.monotonic() + 30
    while b"num_requests_running{" in (told := running.ask("GET", "/metrics").content):
        running_now = [line for line in told.splitlines() if b"num_requests_running{" in line]
        if all(line.endswith(b" 0.0") for line in running_now):
            break
        assert time.monotonic() < end, "the server goes on for nobody"
        time.sleep(0.2)


def test_a_taken_port_and_a_checkpoint_of_another_model_are_one_line(running: Running) -> None:
    for arguments, said in [
        (["--model", NAME, "--port", "8731"], "port 8731 of 127.0.0.1 can't be had"),
        (["--model", MODELS[1]], "expected its own base model"),
    ]:
        failed = subprocess.run(
            [sys.executable, "-m", "roadint", "serve", running.checkpoints[""], *arguments],
            env={**os.environ, **environment("v1")},
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert (failed.returncode, failed.stdout) == (2, "")
        assert said in failed.stderr.splitlines()[-1]

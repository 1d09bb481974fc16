"""vLLM's own LoRA beside roadint's edits, in one batch: `R (W x + b) + B A x`."""

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import peft
import pytest
import torch

from roadint import RoadIntervention, RoadModel
from tests.vllm.architectures import GROUPED, make, save_adapters
from tests.vllm.checkpoints import save
from tests.vllm.engine import Answered, Asked, Engine
from tests.vllm.helpers import prompt_of
from tests.vllm.oracle import TOLERANCE, check, effect

RANK, SCALE = 8, 16
LORAS = {"first": ["q_proj", "v_proj", "o_proj", "up_proj", "down_proj"], "second": ["k_proj"]}
COMPOSITIONS = [None, "german@h", "0.5*spoken@h - german@h", "neighbours@ad", "0.7*halves@ad"]


class Served(NamedTuple):
    engine: Engine
    folders: dict[str, str]
    bare: RoadModel
    merged: dict[str, RoadModel]


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """An engine; RoadModel on the same model, and on the models that PEFT merged each LoRA into."""
    root = tmp_path_factory.mktemp("lora")
    folder = root / "model"
    model = make("llama", folder, **GROUPED)
    made = {"h": _edits(model, root / "h"), "ad": save_adapters(model, root / "ad")}
    folders = {name: str(root / name) for name in LORAS}
    merged = {}
    for seed, name in enumerate(LORAS):
        merged[name] = _road(_with_lora(folder, Path(folders[name]), LORAS[name], seed), made)
    engine = Engine(
        "v1",
        str(folder),
        made,
        skip_tokenizer_init=True,
        max_model_len=96,
        enable_lora=True,
        max_loras=2,
        max_lora_rank=RANK,
    )
    try:
        yield Served(engine, folders, _road(model, made), merged)
    finally:
        engine.close()


def _edits(model: Any, folder: Path) -> str:
    edits = [
        RoadIntervention(layer=1, position="last(3)", subspaces={"german": "[0, d/2)"}),
        RoadIntervention(layer=2, phase="generated", subspaces={"spoken": "[0, d)"}),
    ]
    return save(model, folder, edits, seed=1)


def _with_lora(model: Path, folder: Path, targets: list[str], seed: int) -> Any:
    """Write a random LoRA; the model with it merged into the weights."""
    from transformers import LlamaForCausalLM

    base = LlamaForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
    config = peft.LoraConfig(r=RANK, lora_alpha=SCALE, target_modules=targets)
    tuned = peft.get_peft_model(base, config)
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in tuned.named_parameters():
            if "lora_" in name:
                parameter.normal_(0, 0.05, generator=draw)
    tuned.save_pretrained(folder)
    return tuned.merge_and_unload()


def _road(model: Any, made: dict[str, str]) -> RoadModel:
    road = RoadModel(model)
    for label, path in made.items():
        road.add_checkpoint(path, label)
    return road


def _asked(served: Served, draw: random.Random, composed: list[str | None]) -> list[Asked]:
    """Every composition, alone and beside either LoRA."""
    return [
        Asked(_prompt(draw), compose, 5, lora)
        for compose in composed
        for lora in (None, *served.folders.values())
    ]


def _generate(served: Served, asked: list[Asked]) -> list[Answered]:
    """Answers, to the requests with a LoRA in one batch and to the others in one.

    On a CPU vLLM 0.32 gives a request without a LoRA that of another one in its batch.
    """
    answered: dict[int, Answered] = {}
    for with_lora in (False, True):
        numbers = [n for n, one in enumerate(asked) if (one.lora is not None) == with_lora]
        answers = served.engine.generate([asked[number] for number in numbers])
        answered.update(zip(numbers, answers, strict=True))
    return [answered[number] for number in range(len(asked))]


def _prompt(draw: random.Random) -> tuple[int, ...]:
    return tuple(token % 512 for token in prompt_of(draw, draw.randint(6, 40)))


def test_hidden_states_and_loras(served: Served) -> None:
    """Each is RoadModel's on the model that PEFT merged the LoRA into."""
    draw = random.Random(0)
    asked = _asked(served, draw, [None, "german@h", "0.5*spoken@h - german@h"])
    draw.shuffle(asked)
    _check_merged(served, asked, _generate(served, asked))


def test_adapters_and_loras(served: Served) -> None:
    """Rotations turn what the base weights give, and not what LoRA adds."""
    asked = _asked(served, random.Random(1), ["neighbours@ad", "0.7*neighbours@ad"])
    answered = _generate(served, asked)
    beside = _road_with_loras(served)
    names = {folder: name for name, folder in served.folders.items()} | {None: None}
    composed = [Asked(one.prompt, _sum(one.compose, names[one.lora]), one.new) for one in asked]
    check(beside, composed, answered)
    for one, answer in zip(composed, answered, strict=True):
        assert effect(beside, one, answer) > 100 * TOLERANCE
    wrong = [one for one in asked if one.lora is not None]
    with pytest.raises(AssertionError):  # merged into W, LoRA is turned too
        _check_merged(served, wrong, [answered[asked.index(one)] for one in wrong])


def test_the_prefix_cache(served: Served) -> None:
    """A prompt's blocks are those of its LoRA and its composition."""
    prompt = tuple(token % 512 for token in prompt_of(random.Random(2), 70))
    asked = [
        Asked(prompt, compose, 3, lora)
        for compose in (None, "german@h", "neighbours@ad")
        for lora in (None, *served.folders.values())
    ]
    cold, warm = _generate(served, asked), _generate(served, asked)
    assert all(answer.cached >= 64 for answer in warm)
    for first, second in zip(cold, warm, strict=True):
        assert first.tokens == second.tokens
        pairs = zip(first.logprobs, second.logprobs, strict=True)
        assert max(abs(a - b) for a, b in pairs) < TOLERANCE
    hidden = [one.compose != "neighbours@ad" for one in asked]
    kept = [index for index, is_hidden in enumerate(hidden) if is_hidden]
    _check_merged(served, [asked[index] for index in kept], [warm[index] for index in kept])


def _check_merged(served: Served, asked: list[Asked], answered: list[Answered]) -> None:
    names = {folder: name for name, folder in served.folders.items()}
    for lora in {one.lora for one in asked}:
        road = served.bare if lora is None else served.merged[names[lora]]
        pairs = [pair for pair in zip(asked, answered, strict=True) if pair[0].lora == lora]
        check(road, [one for one, _ in pairs], [answer for _, answer in pairs])


def _road_with_loras(served: Served) -> RoadModel:
    """RoadModel with adapters that turn nothing and hold the LoRAs."""
    from safetensors.torch import load_file

    for name, targets in LORAS.items():
        if name in served.bare.adapters:
            continue
        adapter = served.bare.add_adapter(name, targets=targets, lora_rank=RANK, lora_alpha=SCALE)
        tensors = load_file(f"{served.folders[name]}/adapter_model.safetensors")
        of = "base_model.model.{}.lora_{}.weight"
        paths = adapter.layout.paths
        with torch.no_grad():
            adapter.lora_a.copy_(torch.cat([tensors[of.format(p, "A")] for p in paths], dim=1))
            adapter.lora_b.copy_(torch.cat([tensors[of.format(p, "B")] for p in paths]))
    return served.bare


def _sum(compose: str | None, lora: str | None) -> str | None:
    return compose if lora is None else f"{compose} + {lora}"

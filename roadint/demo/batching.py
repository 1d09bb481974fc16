"""The thread that runs the model for all visitors, with waiting requests in batches.

The rows of a batch are independent: they have their own prompts, compositions and lengths. Texts
are delivered as they grow; the rows of a closed request stop at the next token.
"""

import threading
from collections.abc import Callable, Generator, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase, StoppingCriteriaList

from roadint.adapters.products import check_products
from roadint.architecture.properties import positions_of
from roadint.data.prompts import batch_prompts, generation_inputs, pad_id
from roadint.demo.failures import message_for_visitors
from roadint.demo.requests import (
    MAX_PROMPT_TOKENS,
    NOTHING_ASKED,
    AnswerRequest,
    AnswerSettings,
    Update,
    check_question,
)
from roadint.demo.streaming import AnswerStreamer, FinishedRows
from roadint.demo.waiting import RequestQueue
from roadint.engines.transformers.generation import check_room
from roadint.errors import RoadError, quoted
from roadint.grammar.composition import Composition
from roadint.interventions.sums import check_sums
from roadint.model.road_model import PAPER_DECODING, RoadModel


class Batcher:
    """Answers of one RoadModel, for many callers at once.

    Args:
        road: The model; nothing else should run it.
        tokenizer: The model's tokenizer.

    Attributes:
        lock: Held while a batch runs, and by everything else that changes or runs the RoadModel.
        requests: The requests that wait or run.
    """

    def __init__(self, road: RoadModel, tokenizer: PreTrainedTokenizerBase) -> None:
        self.road, self.tokenizer = road, tokenizer
        self.requests, self.lock = RequestQueue(), threading.Lock()
        threading.Thread(target=self._serve, daemon=True, name="roadint-demo").start()

    def answers(
        self,
        prompt: str,
        compositions: Sequence[Composition],
        settings: AnswerSettings,
        visitor: str | None = None,
        wanted: Callable[[], bool] = lambda: True,
    ) -> Generator[Update, None, None]:
        """As `Answering.answers`."""
        self.check(prompt, compositions, settings.max_new_tokens)
        if not compositions:
            raise RoadError(NOTHING_ASKED)
        request = AnswerRequest(prompt, list(compositions), settings, visitor)
        ahead = self.requests.join(request)
        try:
            yield from self.requests.follow(request, ahead, wanted)
        finally:
            self.requests.leave(request)

    @property
    def model_name(self) -> str:
        """The name of the base model, without folders of this machine."""
        name = str(self.road.model.name_or_path)
        return Path(name).name if Path(name).is_absolute() or name.startswith((".", "~")) else name

    @property
    def about(self) -> str:
        """One line for people."""
        model = self.road.model
        millions = sum(parameter.numel() for parameter in model.parameters()) / 1e6
        dtype = str(model.dtype).removeprefix("torch.")
        return f"{self.model_name}, {millions:,.0f} million parameters, {dtype}"

    def add_checkpoint(self, path: Path, name: str, label: str) -> list[str]:
        """Put a checkpoint on the model; `lock` is held.

        Args:
            path: The folder of its files.
            name: What the app calls it.
            label: Compositions use its names as "name@label".

        Returns:
            The names.

        Raises:
            RoadError: where it does not fit; nothing has changed.
        """
        self.road.add_checkpoint(path, label)
        return [name for name in self.road.names if name.partition("@")[2] == label]

    def remove_checkpoint(self, label: str) -> None:
        """Take a checkpoint from the model; `lock` is held."""
        self.road.remove_checkpoint(label)

    def warm_up(self) -> None:
        """Generate one token, so that the first answer is as quick as the others."""
        for _ in self.answers("Hello", [Composition()], AnswerSettings(max_new_tokens=1)):
            pass

    def check(
        self, prompt: str, compositions: Sequence[Composition] = (), max_new_tokens: int = 1
    ) -> None:
        """Check a request before it waits.

        Args:
            prompt: The instruction.
            compositions: One an answer.
            max_new_tokens: The length of an answer.

        Raises:
            RoadError: where the prompt is empty or too long, also for the model's positions with
                the answer, or a composition cannot run on it.
        """
        check_question(prompt, compositions)
        length = len(batch_prompts(self.tokenizer, self.road.template, [prompt])["input_ids"][0])
        if length > MAX_PROMPT_TOKENS:
            raise RoadError(
                f"the prompt has {length} tokens, the template's included: "
                f"expected at most {MAX_PROMPT_TOKENS}; shorten it"
            )
        asked = {"max_new_tokens": max_new_tokens}
        check_room(asked, asked, length, positions_of(self.road.model))
        try:
            self._check_compositions(compositions, length)
        except Exception as error:  # whatever an intervention's own arithmetic raises
            raise RoadError(message_for_visitors(error)) from None

    def check_composition(self, composition: Composition) -> None:
        """Refuse a composition that could run on no prompt, as far as it is on the model.

        Raises:
            RoadError: where parts don't commute, or a strength is out of range.
        """
        if not {name for name, _ in composition.terms} <= set(self.road.names):
            return  # of a checkpoint that made room for another
        try:
            self._check_compositions([composition])
        except Exception as error:  # whatever an intervention's own arithmetic raises
            raise RoadError(message_for_visitors(error)) from None

    def _check_compositions(
        self, compositions: Sequence[Composition], length: int | None = None
    ) -> None:
        """Refuse what the model would refuse, before the request shares a batch with others."""
        known = set(self.road.names)
        for name in (name for composition in compositions for name, _ in composition.terms):
            if name not in known:
                raise RoadError(
                    f"{quoted(name)} is not on the model: "
                    "open its checkpoint, or write another composition"
                )
        interventions = list(self.road.interventions)
        check_sums(interventions, compositions)
        check_products(self.road.adapters, compositions)
        for intervention in interventions:
            acting = [
                composition
                for composition in compositions
                if any(name in intervention.partition for name, _ in composition.terms)
            ]
            if acting:
                intervention.strengths(acting)
                if length is not None:
                    intervention.position.check(torch.tensor([length]))

    def _serve(self) -> None:
        while True:
            self._answer(self.requests.next_batch())
            self.requests.finish_batch()

    def _answer(self, requests: Sequence[AnswerRequest]) -> None:
        """Run a batch; if it fails, one request at a time, so that only the failing ones fail."""
        requests = [request for request in requests if not request.closed.is_set()]
        if not requests:
            return
        try:
            with self.lock:
                self._generate(requests)
        except Exception as error:  # whatever the model raises: the thread goes on for the others
            if len(requests) == 1:
                requests[0].updates.put(RoadError(message_for_visitors(error)))
                return
        else:
            return
        # Only now is the memory free that the error's frames held: it may have been a want of it.
        for request in requests:
            self._answer([request])

    def _generate(self, requests: Sequence[AnswerRequest]) -> None:
        settings = requests[0].settings
        sampling: dict[str, Any] = {"do_sample": bool(settings.temperature)}
        if settings.temperature:
            torch.manual_seed(settings.seed)
            sampling["temperature"] = settings.temperature
        prompts = [request.prompt for request in requests for _ in request.compositions]
        batch = generation_inputs(self.tokenizer, self.road.template, prompts)
        streamer = AnswerStreamer(self.tokenizer, requests, self._end_ids())
        inputs: dict[str, Any] = {name: value.to(self.road.device) for name, value in batch.items()}
        inputs |= {
            **PAPER_DECODING,
            **sampling,
            "max_new_tokens": max(request.settings.max_new_tokens for request in requests),
        }
        compositions = [text for request in requests for text in request.compositions]
        self.road.generate(
            compose=compositions,
            **inputs,
            pad_token_id=pad_id(self.tokenizer),
            streamer=streamer,
            stopping_criteria=StoppingCriteriaList([FinishedRows(streamer)]),
        )
        streamer.end()

    def _end_ids(self) -> set[int]:
        """The tokens that end an answer: the tokenizer's, and those of the model's generations."""
        config = getattr(self.road.model, "generation_config", None)
        ends: Any = getattr(config, "eos_token_id", None)
        listed = ends if isinstance(ends, (list, tuple)) else [ends]
        return {end for end in (self.tokenizer.eos_token_id, *listed) if end is not None}

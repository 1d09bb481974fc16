"""Streaming: the texts of a batch's requests after every token of transformers' `generate`."""

import time
from collections.abc import Collection, Sequence
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor
from transformers import PreTrainedTokenizerBase, StoppingCriteria
from transformers.generation.streamers import BaseStreamer

from roadint.demo.requests import AnswerRequest, Update

_INTERVAL = 0.1  # seconds between two updates of a request


class AnswerStreamer(BaseStreamer):
    """Gives every request of a batch the texts of its rows, after every step.

    Args:
        tokenizer: The model's.
        requests: The requests of the batch, with a row for every composition, in order.
        end_ids: The tokens that end an answer.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        requests: Sequence[AnswerRequest],
        end_ids: Collection[int],
    ) -> None:
        self._end_ids = end_ids
        self._answers = [_GrowingAnswers(request, tokenizer) for request in requests]
        self._prompts_came = False

    def put(self, value: Int[Tensor, "..."]) -> None:
        """Take a token a row; the first call brings the prompts, which are left out."""
        if not self._prompts_came:
            self._prompts_came = True
            return
        tokens = value.tolist()
        for answers in self._answers:
            count = len(answers.ended)
            answers.add(tokens[:count], self._end_ids)
            tokens = tokens[count:]

    def end(self) -> None:
        """Generation is over: every answer is whole."""
        for answers in self._answers:
            answers.finish()

    def finished(self) -> list[bool]:
        """Which rows of the batch need no further token."""
        return [
            ended or answers.request.closed.is_set()
            for answers in self._answers
            for ended in answers.ended
        ]


class FinishedRows(StoppingCriteria):
    """Ends rows that are complete, or whose visitor is gone."""

    def __init__(self, streamer: AnswerStreamer) -> None:
        self._streamer = streamer

    def __call__(
        self, input_ids: Int[Tensor, "rows columns"], scores: Any, **kwargs: Any
    ) -> Bool[Tensor, " rows"]:
        """Which rows have ended; transformers gives them padding from then on."""
        return torch.tensor(self._streamer.finished(), device=input_ids.device)


class _GrowingAnswers:
    """The rows of one request."""

    def __init__(self, request: AnswerRequest, tokenizer: PreTrainedTokenizerBase) -> None:
        self.request, self._tokenizer = request, tokenizer
        self._ids: list[list[int]] = [[] for _ in request.compositions]
        self.ended = [False] * len(self._ids)
        self._started, self._told_all = time.perf_counter(), False
        self._told, self._whole = 0.0, dict[int, str]()  # when last; the texts of rows that ended

    def add(self, tokens: Sequence[int], end_ids: Collection[int]) -> None:
        for row, token in enumerate(tokens):
            if self.ended[row]:
                continue
            if token not in end_ids:
                self._ids[row].append(token)
            length = len(self._ids[row])
            self.ended[row] = token in end_ids or length >= self.request.settings.max_new_tokens
        self._tell()

    def finish(self) -> None:
        self.ended = [True] * len(self.ended)
        self._tell()

    def _tell(self) -> None:
        now, is_last = time.perf_counter(), all(self.ended)
        if self._told_all or (not is_last and now - self._told < _INTERVAL):
            return
        texts = [self._text(row) for row in range(len(self._ids))]
        self._told_all, self._told = is_last, now
        tokens, seconds = sum(map(len, self._ids)), now - self._started
        self.request.updates.put(Update(texts, tokens, seconds, self._told_all))

    def _text(self, row: int) -> str:
        """The text of a row; it is decoded once after its end, since decoding takes its time."""
        if row in self._whole:
            return self._whole[row]
        text = str(self._tokenizer.decode(self._ids[row], skip_special_tokens=True)).strip()
        if self.ended[row]:
            self._whole[row] = text
        return text

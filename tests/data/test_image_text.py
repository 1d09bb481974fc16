"""Rows with images: read, tokenised and batched, against what the processor makes of a whole conversation."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlavaProcessor

from roadint.data.collate import Collator, completion_nll, tokenize
from roadint.data.image_text.collate import ImageTextCollator, tokenize_conversations
from roadint.data.image_text.conversations import checked_conversation, load_conversations
from roadint.data.prompts import render
from roadint.errors import RoadError
from tests.helpers import with_adapters
from tests.vision import PATCHES, image, llava, processor, rows_with_images


@pytest.fixture(scope="module")
def reader() -> LlavaProcessor:
    return processor()


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    path = tmp_path / "rows.json"
    path.write_text(json.dumps(rows_with_images(tmp_path)))
    return path


def said(conversation: Any) -> str:
    """By hand, as the template of the tests writes it."""
    text = "<image>\n" * len(conversation.images)
    turns = [f"{question} ASSISTANT: {answer}" for question, answer in conversation.turns]
    return "USER: " + text + " USER: ".join(turns)


def test_a_batch_scores_the_answers_as_the_models_own_loss_does(
    rows: Path, reader: LlavaProcessor
) -> None:
    conversations = load_conversations(rows)
    examples = tokenize_conversations(conversations, reader, "x", template="chat", max_length=99)
    road = with_adapters(llava(), "x")
    batch = ImageTextCollator(reader)(examples)
    assert batch["pixel_values"].shape[0] == sum(len(each.images) for each in conversations) == 8
    nll, of_rows = completion_nll(road, batch)
    tokenizer = reader.tokenizer
    for row, conversation in enumerate(conversations):
        from PIL import Image

        pictures = [Image.open(path).convert("RGB") for path in conversation.images] or None
        whole = reader(text=said(conversation), images=pictures, return_tensors="pt")
        ids = whole["input_ids"][0].tolist()
        labels = torch.full((1, len(ids)), -100)
        letters = [*map(tokenizer.decode, ids)]
        place = 0
        for _, answer in conversation.turns:
            while "".join(letters[place : place + 11]) != " ASSISTANT:":
                place += 1
            start, place = place + 11, place + 12 + len(answer)
            labels[0, start:place] = torch.tensor(ids[start:place])
            assert "".join(letters[start:place]) == f" {answer}"
        expected = road(**whole, labels=labels, compose="x").loss
        torch.testing.assert_close(nll[of_rows == row].mean(), expected, rtol=1e-4, atol=1e-4)


def test_the_prompt_is_what_the_processor_makes_at_inference(
    rows: Path, reader: LlavaProcessor
) -> None:
    (first, *_) = load_conversations(rows, 1)
    (example,) = tokenize_conversations([first], reader, None, template="chat", max_length=99)
    content = [{"type": "image", "image": image(0, 9, 14)}, {"type": "text", "text": "what 0?"}]
    asked = reader.apply_chat_template(
        [{"role": "user", "content": content}],
        tokenize=True,
        add_generation_prompt=True,
        return_dict=True,
        return_tensors="pt",
    )
    assert example.prompt == asked["input_ids"][0].tolist()
    seen = ImageTextCollator(reader)([example])["pixel_values"]
    assert torch.equal(seen, asked["pixel_values"])


@pytest.mark.parametrize("template", ["plain", "alpaca"])
def test_rows_of_text_are_those_of_the_text_loader(template: Any, reader: LlavaProcessor) -> None:
    row = {"instruction": "why?", "output": "so"}
    (example,) = tokenize_conversations(
        [checked_conversation(row)], reader, "x", template=template, max_length=400, eos=True
    )
    (expected,) = tokenize(
        [row], reader.tokenizer, "x", template=template, max_length=400, eos=True
    )
    assert (example.prompt, example.completion) == (expected.prompt, expected.completion)
    batch, plain = ImageTextCollator(reader)([example]), Collator(reader.tokenizer)([expected])
    assert list(batch) == list(plain)
    assert all(torch.equal(batch[name], plain[name]) for name in plain if name != "compose")


def test_images_come_before_the_text_of_every_template(reader: LlavaProcessor) -> None:
    row = {"image": [image(1), image(2)], "instruction": "why?", "output": "so"}
    for template in ("plain", "alpaca", "chat"):
        (example,) = tokenize_conversations(
            [checked_conversation(row)],
            reader,
            "x",
            template=template,  # type: ignore[arg-type]
            max_length=400,
        )
        text = reader.tokenizer.decode(example.prompt)
        assert text.count("<image>") == 2 * PATCHES
        assert text.rindex("<image>") < text.index("why?")


def test_long_rows_lose_their_end_and_eos_is_of_each_answer(reader: LlavaProcessor) -> None:
    turns = [("a", "bcd"), ("e", "fgh")]
    talk = [
        {"from": side, "value": text}
        for turn in turns
        for side, text in zip(("human", "gpt"), turn, strict=True)
    ]
    conversation = checked_conversation({"conversations": talk})

    def scored(**settings: Any) -> list[str]:
        (example,) = tokenize_conversations(
            [conversation], reader, "x", template="chat", **{"max_length": 99, **settings}
        )
        ids = [*example.prompt, *example.completion]
        assert example.answers[-1][1] == len(ids)  # nothing after the last answer
        assert len(ids) <= settings.get("max_length", 99)
        return [reader.tokenizer.decode(ids[start:stop]) for start, stop in example.answers]

    prompt = len("B") + len("USER: a ASSISTANT:")
    assert scored() == [" bcd", " fgh"]
    assert scored(eos=True) == [" bcd<eos>", " fgh<eos>"]
    assert scored(max_length=prompt + 3) == [" bc"]
    assert scored(max_length=prompt + 10) == [" bcd"]  # cut in the second question
    assert scored(max_completion=2) == [" b"]
    with pytest.raises(RoadError, match=f"has {prompt} tokens.*fewer than max_length={prompt}"):
        scored(max_length=prompt)


HUMAN, GPT = {"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("text", "row 0 .* is str: expected fields 'image'"),
        ({"image": "no.png", "instruction": "a", "output": "b"}, "'no.png': there is no file"),
        ({"image": 5, "instruction": "a", "output": "b"}, "the image 5: expected a path or an"),
        ({"conversations": "a"}, "conversations 'a': expected a list"),
        ({"conversations": [HUMAN]}, "conversation of 'human': expected 'human' and 'gpt' in turn"),
        ({"conversations": [GPT, HUMAN]}, "conversation of 'gpt', 'human'"),
        (
            {"conversations": [HUMAN, GPT, {"from": "human", "value": "<image>"}, GPT]},
            "images in the first question alone",
        ),
        ({"conversations": [HUMAN, {"from": "gpt", "value": ""}]}, "all 1 are skipped"),
        ({"conversations": []}, "all 1 are skipped"),
        ({"image": "a.png"}, "has no field 'instruction'"),
    ],
)
def test_what_is_no_row_is_told(row: Any, message: str, tmp_path: Path) -> None:
    image(1).save(tmp_path / "a.png")
    (tmp_path / "rows.json").write_text(json.dumps([row]))
    with pytest.raises(RoadError, match=message):
        load_conversations(tmp_path / "rows.json")


def test_columns_of_tables_are_read(tmp_path: Path) -> None:
    import pandas

    image(1).save(tmp_path / "a.png")
    row = {"image": "a.png", "instruction": "a", "output": "b"}
    pandas.DataFrame([row]).to_parquet(tmp_path / "rows.parquet")
    (found,) = load_conversations(tmp_path / "rows.parquet")
    assert (found.images, found.turns) == ((tmp_path / "a.png",), (("a", "b"),))


def test_what_can_not_be_tokenised_is_told(reader: LlavaProcessor, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_text("no image")
    broken = checked_conversation({"image": str(tmp_path / "a.png"), "conversations": [HUMAN, GPT]})
    with pytest.raises(RoadError, match=r"a\.png.* can't be read \(cannot identify image"):
        tokenize_conversations([broken], reader, "x", template="chat", max_length=99)
    twice = checked_conversation({"conversations": [HUMAN, GPT] * 2})
    with pytest.raises(RoadError, match="template 'plain' is of one question, .* has 2.*'chat'"):
        tokenize_conversations([twice], reader, "x", template="plain", max_length=99)
    other = processor()
    other.chat_template = "{{ messages[-1]['content'][0]['text'] }}"
    with pytest.raises(RoadError, match="can't be told apart: try 'plain'"):
        tokenize_conversations([twice], other, "x", template="chat", max_length=99)
    other.chat_template = "{{ nothing.at.all }}"
    with pytest.raises(RoadError, match="chat template fails .*try 'plain'"):
        tokenize_conversations([twice], other, "x", template="chat", max_length=99)
    other.chat_template = None
    with pytest.raises(RoadError, match="needs a tokenizer with a chat template"):
        tokenize_conversations([twice], other, "x", template="chat", max_length=99)


def test_rows_whose_images_differ_in_shape_share_no_batch(reader: LlavaProcessor) -> None:
    class Uncut:
        """As processors whose images keep their sizes."""

        tokenizer, image_processor, image_token = reader.tokenizer, None, "<image>"

        def __call__(self, text: str, images: list[Any] | None, **settings: Any) -> Any:
            found = dict(self.tokenizer(text, return_tensors="pt"))
            if images:
                found["pixel_values"] = torch.zeros(1, 3, *images[0].size)
            return found

    uncut: Any = Uncut()
    rows = [{"image": image(1, side), "instruction": "a", "output": "b"} for side in (8, 9)]
    examples = tokenize_conversations(
        [checked_conversation(row) for row in rows], uncut, "x", template="plain", max_length=99
    )
    with pytest.raises(RoadError, match="pixel_values .* different shapes .*batch_size=1"):
        ImageTextCollator(uncut)(examples)
    assert len(ImageTextCollator(uncut)(examples[1:])["pixel_values"]) == 1


def test_a_template_of_parts_does_not_lose_a_bare_text(reader: LlavaProcessor) -> None:
    tokenizer = reader.tokenizer
    before, tokenizer.chat_template = tokenizer.chat_template, reader.chat_template
    try:
        assert render("chat", "why?", tokenizer) == "USER: why? ASSISTANT:"
        row = {"instruction": "why?", "output": "so"}
        (example,) = tokenize_conversations(
            [checked_conversation(row)], reader, "x", template="chat", max_length=99
        )
        bare = tokenizer(render("chat", "why?", tokenizer))["input_ids"]
        assert example.prompt == bare
        tokenizer.chat_template = "{{ messages[0]['content'].upper() }}"  # no text is left out
        assert render("chat", "why?", tokenizer) == "WHY?"
    finally:
        tokenizer.chat_template = before

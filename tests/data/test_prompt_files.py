"""Prompts from files: lines of text, or rows with an instruction and maybe an input."""

import json
from pathlib import Path
from typing import Any

import pytest

from roadint.data.collate import tokenize
from roadint.data.prompt_files import read_prompts
from roadint.data.prompts import batch_prompts, prompt_text
from roadint.data.sources import load_prompts
from roadint.errors import RoadError

ROWS: list[dict[str, Any]] = [
    {"instruction": "Sum.", "input": "1, 2", "output": "3", "dataset": "sums"},
    {"instruction": "Say\nthis.", "input": "", "output": None},
]
READ = [{"instruction": "Sum.", "input": "1, 2", "dataset": "sums"}, {"instruction": "Say\nthis."}]


@pytest.mark.parametrize("suffix", [".json", ".jsonl", ".csv", ".parquet"])
def test_rows_of_every_format(suffix: str, tmp_path: Path) -> None:
    import pandas

    path, table = tmp_path / f"prompts{suffix}", pandas.DataFrame(ROWS)
    if suffix == ".csv":
        table.to_csv(path, index=False)
    elif suffix == ".parquet":
        table.to_parquet(path)
    else:
        lines = [json.dumps(row) for row in ROWS]
        path.write_text("\n".join(lines) if suffix == ".jsonl" else json.dumps(ROWS))
    assert read_prompts(path) == READ
    assert read_prompts(str(path), 1) == READ[:1]


def test_text_files_and_bundled_prompts_are_lines(tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_text("One?\n\nTwo?\n")
    assert read_prompts(tmp_path / "prompts.txt") == ["One?", "Two?"]
    assert read_prompts("bundled:prompts_paper") == load_prompts("bundled:prompts_paper")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([], "hold no row"),
        (["One?"], "row 0 of prompts .* is str"),
        ([*READ, {"instructon": "a"}], "row 2 .* has no field 'instruction'.*mean"),
        ([{"instruction": 5}], "row 0 .*prompt 5 is int: expected text"),
        ([{"instruction": ""}], "row 0 .*has no 'instruction'"),
        ([{"instruction": "a", "input": ["b"]}], "row 0 .* is list: expected text"),
    ],
)
def test_what_is_no_prompt_is_told(content: Any, message: str, tmp_path: Path) -> None:
    (tmp_path / "prompts.json").write_text(json.dumps(content))
    with pytest.raises(RoadError, match=message):
        read_prompts(tmp_path / "prompts.json")


def test_missing_files_are_told(tmp_path: Path) -> None:
    (tmp_path / "prompts.json").touch()
    with pytest.raises(RoadError, match="does not exist; did you mean 'prompts.json'"):
        read_prompts(tmp_path / "promts.json")
    with pytest.raises(RoadError, match="max_prompts=0 selects nothing"):
        read_prompts(tmp_path / "prompts.json", 0)


@pytest.mark.parametrize("template", ["plain", "alpaca"])
def test_a_prompt_with_an_input_is_the_prompt_of_its_training_row(
    tokenizer: Any, template: Any
) -> None:
    rows: list[dict[str, str]] = [{**READ[0], "output": "3"}, {**READ[1], "output": "this"}]
    trained = tokenize(rows, tokenizer, "a", template=template, max_length=512)
    asked = batch_prompts(tokenizer, template, READ)
    for example, ids, mask in zip(
        trained, asked["input_ids"], asked["attention_mask"], strict=True
    ):
        assert example.prompt == ids[mask.bool()].tolist()
    assert [prompt_text(prompt) for prompt in READ] == ["Sum.\n1, 2", "Say\nthis."]

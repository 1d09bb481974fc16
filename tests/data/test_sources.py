"""Sources of rows: files of every kind, the bundled samples, the hub's forms; bad ones are named."""

import json
import re
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest

from roadint.data.hub import from_hellaswag_de, from_ultrafeedback
from roadint.data.sources import load_prompts, load_rows
from roadint.errors import RoadError
from roadint.evaluation.forms import ASKED, property_of
from roadint.evaluation.language import language_of, shares_of
from roadint.evaluation.topic import on_topic

ROWS = [
    {"instruction": "Wie geht's?", "output": "Gut."},
    {"instruction": "Why?", "output": "Line one\nline two, with a comma"},
]


@pytest.mark.parametrize("suffix", ["jsonl", "json", "csv", "parquet"])
def test_every_kind_of_file(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"rows.{suffix}"
    data = datasets.Dataset.from_list([{**row, "extra": 1} for row in ROWS])
    if suffix == "parquet":
        data.to_parquet(path)
    elif suffix == "csv":
        data.to_csv(path)
    else:
        path.write_text(
            "".join(json.dumps(row) + "\n" for row in ROWS)
            if suffix == "jsonl"
            else json.dumps(ROWS)
        )
    assert load_rows(path) == ROWS
    assert load_rows(str(path), limit=1) == ROWS[:1]


def test_an_edited_file_is_read_anew(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    for output in ("first", "other"):
        path.write_text(json.dumps({"instruction": "a", "output": output}))
        assert load_rows(path)[0]["output"] == output


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            '{"instruction": "a", "outptu": "b"}',
            "row 0 of .* has no field 'output'.*did you mean 'outptu'. Then rename it to 'output'",
        ),
        ('{"instruction": "a", "output": " "}', "empty or non-text 'output'"),
        ('{"instruction": "a", "output": 3}', "empty or non-text 'output': 3"),
        ('{"instruction": "a", "output": "b"}\n{oops', "can't be read as json"),
        ("", "can't be read as json|holds no rows"),
    ],
)
def test_bad_files_are_named(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(content)
    with pytest.raises(RoadError, match=message):
        load_rows(path)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("missing/rows.jsonl", "does not exist"),
        ("rows.txt", "not understood"),
        ("bundled:germn", "no bundled samples 'germn'.*did you mean 'german'"),
        ([], "holds no rows"),
        (["text"], "row 0 of the given rows is str"),
    ],
)
def test_bad_sources_are_named(source: Any, message: str) -> None:
    with pytest.raises(RoadError, match=message):
        load_rows(source)
    with pytest.raises(RoadError, match="rows=0"):
        load_rows("bundled:german", limit=0)


def test_the_hubs_forms(monkeypatch: pytest.MonkeyPatch) -> None:
    hellaswag = {
        "ctx": "A man sits.",
        "endings_de": ["Er geht.", "Er singt.", "Er isst.", "Er malt."],
        "label": "1",
    }
    feedback = {
        "instruction": "Why?",
        "completions": [
            {"response": "bad", "overall_score": 2.0},
            {"response": "good", "overall_score": 8.5},
        ],
    }
    assert from_hellaswag_de(hellaswag) == {"instruction": "A man sits.", "output": "Er singt."}
    assert from_ultrafeedback(feedback) == {"instruction": "Why?", "output": "good"}
    monkeypatch.setattr(
        datasets, "load_dataset", lambda name, split: [{"LeoLM/HellaSwag_de": hellaswag}[name]]
    )
    assert load_rows("hub:LeoLM/HellaSwag_de") == [
        {"instruction": "A man sits.", "output": "Er singt."}
    ]
    with pytest.raises(RoadError, match="can't be loaded from the hub"):
        load_rows("hub:nobody/nothing")


HELLASWAG = [
    {"ctx": "A man sits.", "endings_de": ["Er geht.", "Er singt."], "label": "1"},
    {"ctx": "A man sits.", "endings_de": ["Er geht."], "label": "1"},
    {"ctx": "A man sits.", "endings_de": ["Er geht."], "label": ""},
    {"ctx": "A man sits.", "endings_de": None, "label": "0"},
    {"ctx": "A man sits.", "endings_de": ["Er geht."], "label": "-1"},
    {"ctx": "A man sits.", "endings_de": [""], "label": "0"},
    {"ctx": "A man sits.", "endings_de": ["Er geht."], "label": 0},
]
FEEDBACK = [
    {"instruction": "Why?", "completions": []},
    {"instruction": "Why?", "completions": None},
    {
        "instruction": "Why?",
        "completions": [
            {"response": "bad", "overall_score": 2},
            {"response": "", "overall_score": 8.5},
        ],
    },
    {"instruction": "Why?", "completions": [{"response": float("nan"), "overall_score": 8.5}]},
    {
        "instruction": "Why?",
        "completions": [
            {"response": "a", "overall_score": "N/A"},
            {"response": "b", "overall_score": None},
        ],
    },
    {
        "instruction": "Why?",
        "completions": [
            {"response": "c", "overall_score": "N/A"},
            {"response": "d", "overall_score": 3},
        ],
    },
    {
        "instruction": "Why?",
        "completions": [
            {"response": "e", "overall_score": float("nan")},
            {"response": "f", "overall_score": 1},
        ],
    },
]


def test_hub_rows_as_they_are(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    sets = {"LeoLM/HellaSwag_de": HELLASWAG, "openbmb/UltraFeedback": FEEDBACK}
    monkeypatch.setattr(datasets, "load_dataset", lambda name, split: sets[name])
    assert [row["output"] for row in load_rows("hub:LeoLM/HellaSwag_de")] == [
        "Er singt.",
        "Er geht.",
    ]
    assert [row["output"] for row in load_rows("hub:openbmb/UltraFeedback")] == ["d", "f"]
    assert [record.getMessage() for record in caplog.records] == [
        "skipped 5 of 7 rows of 'hub:LeoLM/HellaSwag_de': 4 with a label that names no ending, 1 with an empty or non-text 'output'",
        "skipped 5 of 7 rows of 'hub:openbmb/UltraFeedback': 3 with no rated completion, 2 with an empty or non-text 'output'",
    ]
    sets["openbmb/UltraFeedback"] = FEEDBACK[:5]
    with pytest.raises(RoadError, match="no row that can be used: all 5 are skipped"):
        load_rows("hub:openbmb/UltraFeedback")
    sets["openbmb/UltraFeedback"] = [{"prompt": "Why?"}]
    with pytest.raises(
        RoadError,
        match="row 0 of 'hub:openbmb/UltraFeedback' has no field 'instruction': it has 'prompt'",
    ):
        load_rows("hub:openbmb/UltraFeedback")


def test_hub_rows_beyond_a_limit_are_not_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets, "load_dataset", lambda name, split: [*HELLASWAG, {"broken": 1}])
    assert len(load_rows("hub:LeoLM/HellaSwag_de", 2)) == 2


def test_empty_rows_are_skipped_and_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "rows.csv"
    path.write_text("instruction,output\n" + "a,\n" * 2 + " ,b\n" + "a,b\n" * 5)
    assert (
        load_rows(path, 3) == [{"instruction": "a", "output": "b"}] * 3
    )  # the limit counts what is kept
    (record,) = caplog.records
    assert record.getMessage().endswith(
        "2 with an empty or non-text 'output', 1 with an empty or non-text 'instruction'"
    )
    assert "skipped 3 of 6 rows" in record.getMessage()
    rows = [{"instruction": "a", "output": each} for each in (None, float("nan"), "b")]
    assert load_rows(rows) == rows[2:]
    for bad in (4, True, ["b"], {}, b"b"):
        with pytest.raises(
            RoadError, match="row 1 of the given rows has an empty or non-text 'output'"
        ):
            load_rows([rows[2], {"instruction": "a", "output": bad}])


def test_a_sample_is_the_same_every_time_and_every_row_as_likely() -> None:
    rows = [{"instruction": "a", "output": str(number)} for number in range(20)]
    drawn = [{int(row["output"]) for row in load_rows(rows, 5, seed)} for seed in range(400)]
    assert drawn[7] == {int(row["output"]) for row in load_rows(iter(rows), 5, 7)}
    counts = [sum(number in each for each in drawn) for number in range(20)]
    assert all(60 < count < 140 for count in counts)  # 100 each, with a standard deviation of 8.7
    assert load_rows(rows, None, 1) == rows


def test_an_input_comes_with_its_instruction(tmp_path: Path) -> None:
    rows = [
        {"instruction": "Sum.", "input": "1, 2", "output": "3"},
        {"instruction": "Why?", "input": "", "output": "So."},
    ]
    path = tmp_path / "alpaca.json"
    path.write_text(json.dumps(rows))
    assert load_rows(path) == [rows[0], {"instruction": "Why?", "output": "So."}]
    assert load_rows([{"instruction": "", "input": "1, 2", "output": "3"}]) == [
        {"instruction": "1, 2", "output": "3"}
    ]
    with pytest.raises(RoadError, match="non-text 'input': 5"):
        load_rows([{"instruction": "Sum.", "input": 5, "output": "3"}])


@pytest.mark.parametrize(
    ("name", "count", "language"),
    [
        ("german", 240, "de"),
        ("german_scenes", 240, "de"),
        ("english", 240, "en"),
        ("french", 240, "fr"),
        ("german_dev", 48, "de"),
        ("english_dev", 48, "en"),
        ("french_dev", 48, "fr"),
        ("cross_dev", 48, "de"),
        ("cross_french_dev", 48, "fr"),
        ("list", 240, "en"),
        ("list_dev", 48, "en"),
        ("json", 240, "en"),
        ("json_dev", 48, "en"),
        ("upper", 240, "en"),
        ("upper_dev", 48, "en"),
        ("sentence", 240, "en"),
        ("sentence_dev", 48, "en"),
        ("unrelated", 30, "en"),
    ],
)
def test_bundled_samples_are_many_distinct_and_in_their_language(
    name: str, count: int, language: str
) -> None:
    rows = load_rows(f"bundled:{name}")
    assert len(rows) >= count
    assert not any("\ufffd" in row["output"] for row in rows)
    assert (
        len({row["instruction"] for row in rows})
        == len({row["output"] for row in rows})
        == len(rows)
    )
    assert shares_of([language_of(row["output"]) for row in rows])[language] >= 0.98
    assert shares_of([language_of(row["instruction"]) for row in rows])["en"] >= 0.9
    openings = [" ".join(re.findall(r"\w+", row["output"])[:3]) for row in rows]
    assert len(set(openings)) > 0.95 * len(rows)  # no templates


@pytest.mark.parametrize(
    "name", [*(name for name in ASKED if name != "short"), "cross", "cross_french"]
)
def test_bundled_samples_have_the_property_that_they_teach(name: str) -> None:
    taught = {"cross": "german", "cross_french": "french", **ASKED}[name]
    for each in [name, f"{name}_dev"] if name in ASKED else [f"{name}_dev"]:
        outputs = [row["output"] for row in load_rows(f"bundled:{each}")]
        holds = [property_of(taught)(output) for output in outputs]
        language = taught in ("german", "french")
        assert sum(holds) >= (0.98 if language else 1) * len(outputs)


def test_objects_of_json_have_the_same_keys_and_texts() -> None:
    for row in [*load_rows("bundled:json"), *load_rows("bundled:json_dev")]:
        value = json.loads(row["output"])
        assert list(value) == ["answer", "detail"]
        assert all(isinstance(text, str) and text for text in value.values())


def test_answers_in_french_are_about_the_questions_of_those_in_german() -> None:
    german, french = load_rows("bundled:cross_dev"), load_rows("bundled:cross_french_dev")
    prompts = [row["instruction"] for row in german]
    assert prompts == [row["instruction"] for row in french]
    some = slice(0, 48, 4)  # embedding takes time
    assert np.mean(on_topic(prompts[some], [row["output"] for row in french[some]])) > 0.9


def test_forms_are_taught_and_measured_by_other_questions() -> None:
    """They share those of "english", training with training."""
    for form in ("json", "upper", "sentence"):
        for split in ("", "_dev"):
            questions, english = (
                {row["instruction"] for row in load_rows(f"bundled:{name}{split}")}
                for name in (form, "english")
            )
            assert questions == english


def test_samples_and_prompts_do_not_overlap() -> None:
    names = [
        "german",
        "english",
        "french",
        "german_dev",
        "english_dev",
        "french_dev",
        "cross_dev",
        "list",
        "list_dev",
        "unrelated",
        "german_scenes",
    ]
    instructions = [row["instruction"] for name in names for row in load_rows(f"bundled:{name}")]
    prompts = [
        each
        for name in ("", "_paper", "_dev", "_test", "_tasks_dev", "_tasks_test")
        for each in load_prompts(f"bundled:prompts{name}")
    ]
    assert len(prompts) == 40 + 9 + 128 + 128 + 40 + 40
    assert len(set(instructions) | set(prompts)) == len(instructions) + len(prompts)


def test_prompts_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "prompts.txt"
    path.write_text("One?\n\n  Two?  \n")
    assert load_prompts(path) == ["One?", "Two?"]
    path.write_text("\n")
    with pytest.raises(RoadError, match="holds no prompt"):
        load_prompts(path)
    with pytest.raises(RoadError, match="can't be read"):
        load_prompts(tmp_path / "none.txt")


def test_languages() -> None:
    assert language_of("Der Hund schläft unter dem alten Tisch.") == "de"
    assert language_of("The dog is sleeping under the old table.") == "en"
    assert language_of("123 …") == "none"

"""Records as people write them are read, and every odd value is named in one line."""

import json
import logging

import pytest
from record_files import json_lines, picture, problem

from mmcot.training.common import MissingFileError, UserError
from mmcot.training.data.problems import load_problems


def loaded(tmp_path, record, **kwargs) -> dict:
    [one] = load_problems(json_lines(tmp_path / "mine.jsonl", record), **kwargs)
    return one


def refusal(tmp_path, record, error=UserError, **kwargs) -> str:
    with pytest.raises(error) as raised:
        load_problems(json_lines(tmp_path / "mine.jsonl", record), **kwargs)
    message = str(raised.value)
    assert "\n" not in message and len(message) < 500 and "mine.jsonl: line 1: " in message
    return message


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ({"hint": "Look."}, {"context": "Look."}),
        ({"hint": "no", "context": "Look."}, {"context": "Look."}),
        ({"options": ["a", "b", "c"], "choices": None}, {"choices": ["a", "b", "c"]}),
        ({"rationale": "So."}, {"solution": "So."}),
        ({"rationales": ["So.", "Thus."]}, {"solution": "So."}),
        ({"rationales": []}, {"solution": ""}),
        ({"explanation": "So."}, {"solution": "So."}),
        ({"question_id": "q7"}, {"id": "q7"}),
        ({"id": 7.0}, {"id": "7"}),
        ({"answer": None, "correct_choice_idx": 0}, {"answer": 0}),
        ({"answer": None, "correct_choice": "this"}, {"answer": 0}),
        ({"answer": None, "correct_choice": "B"}, {"answer": 1}),
        ({"domain": "science"}, {"subject": "science"}),
        ({"choices": None, "choice_a": "x", "choice_b": "y", "answer": "B"}, {"choices": ["x", "y"], "answer": 1}),
        ({"choices": None, "A": "x", "B": "y", "C": "z", "D": None}, {"choices": ["x", "y", "z"]}),
        ({"choices": None, "choice_a": "x", "choice_b": "y", "choice_c": ""}, {"choices": ["x", "y"]}),
        ({"choices": None, "option1": "x", "option2": "y"}, {"choices": ["x", "y"]}),
        ({"split": "validation"}, {"split": "val"}),
        ({"split": "Test"}, {"split": "test"}),
    ],
)
def test_other_names_are_read(tmp_path, theirs, ours):
    record = loaded(tmp_path, problem(**theirs))
    assert {name: record[name] for name in ours} == ours


@pytest.mark.parametrize("key", ["image", "images", "file_name", "image_path", "image_file", "img"])
def test_images_are_found_under_every_name(tmp_path, key):
    picture(tmp_path / "a.png")
    record = loaded(tmp_path, problem(**{key: "a.png"}))
    assert record["images"] == [{"path": str(tmp_path / "a.png"), "bytes": None}] and record["has_image"]


@pytest.mark.parametrize("value", [1, 1.0, "1", "B", "b", "(B)", "B.", "that", " that "])
def test_an_answer_is_an_index_a_letter_or_a_text(tmp_path, value):
    assert loaded(tmp_path, problem(answer=value))["answer"] == 1


@pytest.mark.parametrize(
    ("choices", "answer"), [(["B", "A"], "B"), (["1", "2"], "1"), (["same", "same"], "same"), (["C", "x", "y"], "C")]
)
def test_an_answer_that_may_be_two_choices_is_refused(tmp_path, choices, answer):
    message = refusal(tmp_path, problem(choices=choices, answer=answer))
    assert "'answer' is" in message and "write the index (0 for A, 1 for B" in message


def test_an_index_is_told_from_texts_by_its_key(tmp_path):
    record = {"question": "Which?", "choices": ["1", "2"], "correct_choice_idx": "1"}
    assert loaded(tmp_path, record)["answer"] == 1


def test_two_answers_that_differ_are_refused(tmp_path):
    assert loaded(tmp_path, problem(answer="that", correct_choice_idx=1))["answer"] == 1
    assert "'correct_choice_idx' is 0" in refusal(tmp_path, problem(answer="that", correct_choice_idx=0))


@pytest.mark.parametrize("value", [-1, "-1", None, "", float("nan")])
def test_a_withheld_answer_is_no_answer_where_none_is_needed(tmp_path, value):
    assert loaded(tmp_path, problem(answer=value), require_answer=False)["answer"] is None
    assert "'answer'" in refusal(tmp_path, problem(answer=value))


def test_nan_is_absent(tmp_path):
    names = ("context", "hint", "lecture", "solution", "caption", "subject", "grade", "topic", "image", "id", "split")
    record = loaded(tmp_path, problem(**dict.fromkeys(names, float("nan"))))
    assert record["context"] == record["lecture"] == record["solution"] == "" and record["images"] == []
    assert record["caption"] is record["subject"] is record["grade"] is record["split"] is None
    assert record["id"] == "mine-000000"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"choices": "['red', 'blue']"}, "'choices' must be a list .*a str"),
        ({"choices": {"A": "red", "B": "blue"}}, "'choices' must be a list .*a dict"),
        ({"choices": ["a", None]}, "'choices' must be a list of texts, but entry 1 is None"),
        ({"choices": ["a", 2]}, "'choices' must be a list of texts, but entry 1 is 2"),
        ({"choices": ["only"], "answer": 0}, "'choices' must be a list of at least two"),
        ({"choices": None, "choice_a": "x", "choice_b": None, "choice_c": "z"}, "'choices' .*entry 1 is None"),
        ({"context": 5}, "'context' must be a text, but is 5"),
        ({"question": None}, "'question' must be a text"),
        ({"answer": 5}, "'answer' is 5, but there are 2 choices"),
        ({"answer": 10**400}, "'answer' is 1000.*but there are 2 choices"),
        ({"answer": [1]}, "'answer' must be a choice's index"),
        ({"split": ["train"]}, "'split' must be a text"),
        ({"split": {"a": 1}}, "'split' must be a text"),
        ({"image": True}, "'image' is True"),
        ({"image": {"path": 3}}, "'image' is {'path': 3}"),
        ({"image": "x" * 5000}, "its image can't be a path .5000 characters"),
        ({"image": "x" * 300}, "its image .* is missing"),
        ({"image": "a\0b"}, "its image can't be a path"),
        ({"image": "\ud800"}, "its image can't be a path"),
        ({"question": "half \ud800"}, "'question' holds half of a character"),
        ({"choices": ["\udfff", "b"]}, "'choices' holds half of a character"),
        ({"solution": "\ud800"}, "'solution' holds half of a character"),
        ({"rationales": ["\ud800", "b"]}, "'solution' holds half of a character"),
        ({"id": "\ud800"}, "'id' holds half of a character"),
        ({"split": "\ud800"}, "'split' holds half of a character"),
        ({"id": True}, "'id' must be a text or a whole number"),
        ({"id": {"a": 1}}, "'id' must be a text or a whole number"),
        ({"has_image": "perhaps"}, "'has_image' must be true or false"),
    ],
)
def test_an_odd_value_is_named_in_one_line(tmp_path, changes, message):
    import re

    assert re.search(message, refusal(tmp_path, problem(**changes), (UserError, MissingFileError)))


def test_brackets_that_nest_too_deep(tmp_path):
    line = '{"question": ' + "[" * 100_000 + "]" * 100_000 + "}"
    assert "nest too deep" in refusal(tmp_path, line)
    (tmp_path / "deep.json").write_text("[" * 100_000 + "]" * 100_000)
    with pytest.raises(UserError, match="deep.json: not valid JSON .brackets nest too deep"):
        load_problems(tmp_path / "deep.json")


def test_all_bad_records_are_named_at_once(tmp_path):
    bad = [problem(id=f"b{number}", answer=7 if number % 2 else "Z") for number in range(24)]
    path = json_lines(tmp_path / "mine.jsonl", problem(), *bad)
    with pytest.raises(UserError) as raised:
        load_problems(path)
    message = str(raised.value)
    assert message.startswith("24 bad records: ") and message.endswith("; and 4 more") and "\n" not in message
    assert all(f"line {number}" in message for number in range(2, 22)) and "line 22" not in message
    assert message.count("'answer' is 7") == 1, "what is wrong with several is said once"


def test_missing_images_are_all_named(tmp_path):
    picture(tmp_path / "there.png")
    names = ("gone.png", "there.png", "away.png")
    with pytest.raises(MissingFileError, match="2 bad records: .*gone.png is missing; .*line 3: .*away.png is"):
        load_problems(json_lines(tmp_path / "mine.jsonl", *(problem(image=name) for name in names)))


def test_many_missing_images_are_one_sentence(tmp_path):
    path = json_lines(tmp_path / "mine.jsonl", *(problem(image=f"images/{i}.png") for i in range(60)))
    with pytest.raises(MissingFileError) as raised:
        load_problems(path)
    message = str(raised.value)
    assert f"mine.jsonl: 60 pictures are missing under {tmp_path / 'images'} (line 1: its image " in message
    assert message.endswith("is the file of questions beside its pictures?") and "line 2" not in message


# -- keys -------------------------------------------------------------------------------------------------------------


def test_unknown_keys_are_said_once_with_the_nearest(tmp_path, caplog):
    record = problem(solutoin="So.", own=3, direct_answers=["x"], task="closed choice")
    path = json_lines(tmp_path / "mine.jsonl", *[record] * 3)
    for _ in range(2):
        with caplog.at_level(logging.WARNING, "mmcot"):
            load_problems(path)
    [line] = [entry.getMessage() for entry in caplog.records]
    assert "mine.jsonl: keys that are not read: 'solutoin' (3 records, did you mean 'solution'?), 'own' (3" in line
    assert "direct_answers" not in line and "task" not in line


def test_the_warning_comes_also_when_the_table_was_built_before(tmp_path, caplog, monkeypatch):
    path = json_lines(tmp_path / "mine.jsonl", problem(foo=3))
    load_problems(path)
    monkeypatch.setattr("mmcot.training.data.problems._said", set())  # another process
    caplog.clear()
    with caplog.at_level(logging.WARNING, "mmcot"):
        load_problems(path)
    assert "'foo'" in caplog.text


def test_a_guessed_key_is_read_and_said(tmp_path, caplog):
    picture(tmp_path / "a.png")
    with caplog.at_level(logging.WARNING, "mmcot"):
        record = loaded(tmp_path, problem(img="a.png"))
    assert record["has_image"] and "reads 'img' as 'image'" in caplog.text and "columns.image=img" in caplog.text


def test_columns_map_any_other_name(tmp_path):
    picture(tmp_path / "a.png")
    record = {"frage": "Was?", "rot": "x", "blau": "y", "loesung": "y", "bild": "a.png", "teil": "train"}
    columns = {"question": "frage", "choices": ["rot", "blau"], "answer": "loesung", "image": "bild", "split": "teil"}
    one = loaded(tmp_path, record, columns=columns)
    assert (one["question"], one["choices"], one["answer"], one["split"]) == ("Was?", ["x", "y"], 1, "train")
    assert one["has_image"]
    # it wins over the field itself
    assert loaded(tmp_path, problem(hint="h", other="o"), columns={"context": "other"})["context"] == "o"


def test_columns_are_checked(tmp_path):
    path = json_lines(tmp_path / "mine.jsonl", problem(bild="a.png"))
    with pytest.raises(UserError, match="columns: there is no field 'imag' .did you mean 'image'"):
        load_problems(path, columns={"imag": "bild"})
    with pytest.raises(UserError, match="mine.jsonl: no record has the key 'bilder'.*'bild'"):
        load_problems(path, columns={"image": "bilder"})
    with pytest.raises(UserError, match="columns.image must be the name of a key"):
        load_problems(path, columns={"image": 3})
    with pytest.raises(UserError, match="columns must be a mapping"):
        load_problems(path, columns="image=bild")


def test_a_missing_field_comes_with_the_keys_that_may_be_it(tmp_path):
    record = {"frage": "Was?", "choices": ["a", "b"], "answer": 0}
    assert "'frage' (columns.question=frage reads one)" in refusal(tmp_path, record)


def test_every_rationale_counts_on_request(tmp_path):
    path = json_lines(
        tmp_path / "mine.jsonl", problem(id="x", rationales=["r1", "r2", None, "r3"]), problem(id="y", solution="s")
    )
    assert load_problems(path)["solution"][:] == ["r1", "s"]
    every = load_problems(path, rationales="all")
    assert every["id"][:] == ["x", "x#2", "x#3", "y"] and every["solution"][:] == ["r1", "r2", "r3", "s"]


def test_arguments_are_checked(tmp_path):
    path = json_lines(tmp_path / "mine.jsonl", problem())
    for kwargs in ({"split": 3}, {"split": ["train"]}, {"rationales": "none"}, {"image_rule": "first"}):
        with pytest.raises(UserError, match=next(iter(kwargs))):
            load_problems(path, **kwargs)
    for source in ("", None, 3, b"x"):
        with pytest.raises(UserError, match="a data source is a path"):
            load_problems(source)
    for source in ("x" * 5000, "a\0b", "~nobody-of-this-name/x"):
        with pytest.raises(MissingFileError, match="no such file or folder"):
            load_problems(source)


def test_the_original_layouts_files_are_checked(tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "problems.json").write_text(json.dumps({"4": problem(), "5": [1], "6": problem(split=3)}))
    with pytest.raises(UserError, match="2 bad records: .*problem 5: expected a JSON object.*problem 6: 'split'"):
        load_problems(folder)
    (folder / "problems.json").write_text(json.dumps({"4": problem()}))
    (folder / "captions.json").write_text('{"captions": null}')
    with pytest.raises(UserError, match="captions.json: 'captions' must be an object of texts by id, but is None"):
        load_problems(folder)
    (folder / "captions.json").write_text('{"4": 3}')
    with pytest.raises(UserError, match="problem 4: 'caption' must be a text, but is 3"):
        load_problems(folder)
    (folder / "captions.json").unlink()
    for lists in ({"train": {"4": 1}}, {"train": "4"}, {"train": None}, {"train": [["4"]]}):
        (folder / "pid_splits.json").write_text(json.dumps(lists))
        with pytest.raises(UserError, match="pid_splits.json: 'train' must be a list of ids"):
            load_problems(folder)
    (folder / "pid_splits.json").unlink()
    (folder / "problems.json").write_text('{"4": {}, "4": {}}')
    with pytest.raises(UserError, match="problems.json: key '4' occurs twice"):
        load_problems(folder)


ODD = [
    *(
        None,
        True,
        False,
        0,
        1,
        -1,
        5,
        1.0,
        1e300,
        float("nan"),
        float("inf"),
        10**30,
        -(10**30),
        "",
        " ",
        "a",
        "B",
        "(B)",
    ),
    *(
        "\ud800",
        "x" * 3000,
        "a\nb",
        "\0",
        "../x",
        "~/x",
        "http://x",
        "/etc/passwd",
        ".",
        "..",
        "file:///x",
        "train",
        "nan",
    ),
    *(
        "data:image/png;base64,AAA",
        "data:image/png;base64,##",
        "[",
        '["a","b"]',
        "a|b",
        [],
        ["a"],
        ["a", "b"],
        ["a", None],
    ),
    *(
        [["a"]],
        [1, 2],
        {},
        {"a": 1},
        {"path": None, "bytes": None},
        {"path": "x", "bytes": "y"},
        {"bytes": [1]},
        [None],
    ),
    *([{}], ["\ud800", "b"], [True]),
]


def test_whatever_a_record_holds_it_is_read_or_named(tmp_path):
    """Every odd value under every key: good records make a table, the others one error; nothing else is raised."""
    from mmcot.training.data.keys import GUESSES, KNOWN
    from mmcot.training.data.reading import Reading, open_source

    keys = [*sorted(KNOWN | set(GUESSES)), "choice_a", "choice_b", "A", "B", "own", "", "\ud800"]
    rows = [problem(**{key: value}) for key in keys for value in ODD]
    path = json_lines(tmp_path / "odd.jsonl", *rows)
    with pytest.raises(UserError) as raised:
        load_problems(path, require_answer=False)
    assert "\n" not in str(raised.value) and len(str(raised.value)) < 8000
    reading = Reading(open_source(str(path), None, None, "all", {}, urls=False, outside=False), {}, "all", False)
    number = sum(1 for _ in reading.records(None))
    assert number + reading.faults.count == len(rows) and 200 < number < len(rows)
    bad = set()
    reading.faults.add = lambda row, error: bad.add(int(row.place.split()[-1]) - 1)
    reading.ids.clear()
    list(reading.records(None))
    good = json_lines(tmp_path / "good.jsonl", *(row for place, row in enumerate(rows) if place not in bad))
    assert len(load_problems(good, require_answer=False)) == number


@pytest.mark.parametrize("first", [0, 1])
def test_choices_in_columns_stand_in_the_order_of_their_numbers(tmp_path, first):
    columns = {f"option{number}": f"choice {number}" for number in range(first, first + 12)}
    record = loaded(tmp_path, {"question": "Which?", "answer": 9, **columns})
    assert record["choices"] == list(columns.values()) and record["choices"][record["answer"]] == f"choice {first + 9}"

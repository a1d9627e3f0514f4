"""Problems as people keep them are scored as they are trained on: one reading of records for every route."""

import json

import pytest

from mmcot.training.data.problems import load_problems
from mmcot.training.evaluation.reading import read_problems

ROWS = [
    {"id": f"q{row}", "question": f"What is {row}?", "options": ["red", "blue"], "answer": "B" if row % 3 else "red"}
    for row in range(40)
]


@pytest.fixture(params=["jsonl", "json list", "json by id", "csv"])
def source(request, tmp_path):
    if request.param == "jsonl":
        path = tmp_path / "mine.jsonl"
        path.write_text("".join(json.dumps(row | {"image": "gone.png"}) + "\n" for row in ROWS))
    elif request.param == "csv":
        path = tmp_path / "mine.csv"
        lines = [f"{row['id']},{row['question']},red | blue,{row['answer']}\n" for row in ROWS]
        path.write_text("id,question,options,answer\n" + "".join(lines))
    else:
        path = tmp_path / "mine.json"
        path.write_text(json.dumps(ROWS if "list" in request.param else {row["id"]: row for row in ROWS}))
    return path


def test_letters_and_other_names_are_read(source):
    problems, splits = read_problems(source)
    assert {id_: problem["answer"] for id_, problem in problems.items()} == {
        row["id"]: int(row["answer"] == "B") for row in ROWS
    }
    assert all(problem["choices"] == ["red", "blue"] for problem in problems.values()) and splits == {}


def test_made_splits_are_the_ones_that_training_took(source):
    problems, splits = read_problems(source, "test")
    assert set(problems) == set(splits["test"])
    assert set(problems) == set(load_problems(source, "test", image_rule="none")["id"]) and len(problems) < 20

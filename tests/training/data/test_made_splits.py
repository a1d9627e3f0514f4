"""A source that says nothing of splits gets them: by content, whatever the order, said in one line."""

import json
import random

import pytest
from record_files import json_lines, picture, problem

from mmcot.training.common import UserError
from mmcot.training.data.problems import load_problems
from mmcot.training.data.splits import made_splits


def records(number: int) -> list[dict]:
    return [problem(question=f"What is {row}?", id=f"q{row}") for row in range(number)]


def parts(path, **kwargs) -> dict[str, set[str]]:
    return {split: set(load_problems(path, split, **kwargs)["id"]) for split in ("train", "val", "test")}


def test_three_splits_that_share_nothing_and_lose_nothing(tmp_path, caplog):
    path = json_lines(tmp_path / "mine.jsonl", *records(400))
    made = parts(path)
    assert sum(map(len, made.values())) == len(set().union(*made.values())) == 400
    assert 290 <= len(made["train"]) <= 350 and len(made["val"]) >= 20 and len(made["test"]) >= 20
    lines = [entry.getMessage() for entry in caplog.records]
    assert len(lines) == 1 and "mine.jsonl: no splits in it: made train/val/test of 80/10/10 % by content" in lines[0]
    assert set(load_problems(path, "trainval")["id"]) == made["train"] | made["val"]
    assert load_problems(path, "val")["split"][0] == "val"
    assert load_problems(path)["split"][:] == [None] * 400  # nobody asked for them


def test_neither_order_nor_ids_nor_answers_decide(tmp_path):
    rows = records(200)
    made = parts(json_lines(tmp_path / "one.jsonl", *rows))
    random.Random(0).shuffle(rows)
    assert parts(json_lines(tmp_path / "two.jsonl", *rows)) == made
    changes = {"answer": 0, "solution": "Another.", "choices": ["that", "this"]}
    twins = [row | changes | {"id": row["id"] + "twin"} for row in rows]
    both = parts(json_lines(tmp_path / "three.jsonl", *rows, *twins))
    assert both == {split: ids | {id_ + "twin" for id_ in ids} for split, ids in made.items()}
    # and records that are added later move none
    more = parts(json_lines(tmp_path / "four.jsonl", *rows, *(r | {"id": f"n{r['id']}", "hint": "n"} for r in rows)))
    assert all(made[split] <= more[split] for split in made)


def test_images_tell_questions_of_equal_text_apart(tmp_path):
    for row in range(40):
        picture(tmp_path / f"{row}.png")
    rows = [problem(question="Which colour?", image=f"{row}.png", id=f"q{row}") for row in range(40)]
    path = json_lines(tmp_path / "mine.jsonl", *rows)
    made = parts(path)
    assert all(made.values()) and parts(path, image_rule="none") == made


def test_few_records_leave_no_split_empty(tmp_path):
    for number in (3, 5, 12):
        made = parts(json_lines(tmp_path / f"{number}.jsonl", *records(number)))
        assert all(made.values()) and len(made["train"]) >= len(made["val"]) == len(made["test"])
    with pytest.raises(UserError, match="2.jsonl: no record says its split, and there are too few .* .2."):
        load_problems(json_lines(tmp_path / "2.jsonl", *records(2)), "train")
    with pytest.raises(UserError, match="too few"):
        made_splits([b"a" * 16] * 50)


def test_every_form_of_file_gets_them(tmp_path):
    rows = records(30)
    (tmp_path / "list.json").write_text(json.dumps(rows))
    (tmp_path / "by_id.json").write_text(json.dumps({row["id"]: row for row in rows}))
    (tmp_path / "table.csv").write_text(
        "id,question,choices,answer\n" + "".join(f"{row['id']},{row['question']},this | that,1\n" for row in rows)
    )
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "problems.json").write_text(json.dumps({row["id"]: row for row in rows}))
    made = parts(json_lines(tmp_path / "lines.jsonl", *rows))
    for source in ("list.json", "by_id.json", "table.csv", "folder"):
        assert parts(tmp_path / source) == made, source


def test_images_of_other_splits_are_not_looked_for(tmp_path):
    for row in records(30):
        picture(tmp_path / f"{row['id']}.png")
    path = json_lines(tmp_path / "mine.jsonl", *(row | {"image": f"{row['id']}.png"} for row in records(30)))
    made = parts(path)
    for id_ in made["test"]:
        (tmp_path / f"{id_}.png").unlink()
    path.write_text(path.read_text() + "\n")  # another file: the tables are built anew
    assert set(load_problems(path, "train")["id"]) == made["train"]
    with pytest.raises(FileNotFoundError, match="is missing"):
        load_problems(path, "test")


def test_a_source_that_names_splits_gets_none_made(tmp_path, caplog):
    path = json_lines(tmp_path / "mine.jsonl", problem(split="train"), problem(), problem(question="Who?"))
    assert len(load_problems(path, "train")) == 1
    assert "mine.jsonl: 2 records name no split, though others do" in caplog.text
    with pytest.raises(UserError, match="has no split 'val'; its splits: train"):
        load_problems(path, "val")
    json_lines(tmp_path / "folder" / "train.jsonl", problem())
    with pytest.raises(UserError, match="has no split 'test'; its splits: train"):
        load_problems(tmp_path / "folder", "test")


def test_a_mistyped_split_comes_with_those_that_are_made(tmp_path):
    path = json_lines(tmp_path / "mine.jsonl", *records(30))
    with pytest.raises(
        UserError, match=r"no split 'tset': .* train, val and test are made .* \(did you mean test\?\)"
    ):
        load_problems(path, "tset")
    with pytest.raises(UserError, match="are made of them; give one of these$"):
        load_problems(path, "mini")


def test_bad_records_are_named_before_splits_are_made(tmp_path):
    path = json_lines(tmp_path / "mine.jsonl", *records(10), problem(answer=9))
    with pytest.raises(UserError, match="mine.jsonl: line 11: 'answer' is 9"):
        load_problems(path, "train")

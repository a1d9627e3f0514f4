"""A source that says nothing of splits gets them: by content, whatever the order, said in one line."""

import json
import random
from base64 import b64encode

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
        picture(tmp_path / f"{row}.png", f"rgb({row}, 0, 0)")
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


def test_equal_pictures_under_other_paths_are_one_content(tmp_path):
    """The same question with its picture under another name, or held as bytes: no test question is trained on."""
    for row in range(40):
        picture(tmp_path / "a" / f"{row}.png", f"rgb({row}, 0, 0)")
        picture(tmp_path / "b" / f"copy-of-{row}.png", f"rgb({row}, 0, 0)")
    rows = [problem(id=f"{row}", image=f"a/{row}.png") for row in range(40)]
    made = parts(json_lines(tmp_path / "one.jsonl", *rows))
    assert all(made.values())
    copies = [problem(id=f"{row}copy", image=f"b/copy-of-{row}.png") for row in range(40)]
    encoded = [
        problem(
            id=f"{row}bytes", image=f"data:image/png;base64,{b64encode(picture(color=f'rgb({row}, 0, 0)')).decode()}"
        )
        for row in range(40)
    ]
    both = parts(json_lines(tmp_path / "two.jsonl", *copies, *rows, *encoded))
    for split, ids in made.items():
        assert both[split] == {f"{id_}{kind}" for id_ in ids for kind in ("", "copy", "bytes")}
    folder = tmp_path / "scienceqa"  # the original's layout, without pid_splits.json
    for row in range(40):
        picture(folder / "images" / f"{row}" / "image.png", f"rgb({row}, 0, 0)")
    (folder / "problems.json").write_text(json.dumps({row["id"]: row | {"image": "image.png"} for row in rows}))
    assert parts(folder) == made == parts(folder, image_rule="none")


def test_a_picture_that_is_gone_counts_by_its_path(tmp_path):
    rows = [problem(id=f"q{row}", image=f"{row}.png") for row in range(40)]
    made = parts(json_lines(tmp_path / "gone.jsonl", *rows), image_rule="none")
    assert all(made.values()) and sum(map(len, made.values())) == 40
    with pytest.raises(FileNotFoundError, match="is missing"):
        load_problems(tmp_path / "gone.jsonl", "test")


def test_splits_that_are_named_need_no_pictures_of_the_others(tmp_path):
    picture(tmp_path / "there.png")
    rows = [problem(split="train", image="there.png"), problem(split="test", image="gone.png")]
    path = json_lines(tmp_path / "mine.jsonl", *rows)
    assert len(load_problems(path, "train")) == 1
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


def test_bad_records_are_named_before_splits_are_made(tmp_path):
    path = json_lines(tmp_path / "mine.jsonl", *records(10), problem(answer=9))
    with pytest.raises(UserError, match="mine.jsonl: line 11: 'answer' is 9"):
        load_problems(path, "train")

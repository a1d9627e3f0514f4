"""A-OKVQA, M3CoT and AI2D, in the layouts that they are published in."""

import json

import datasets
import pytest
from record_files import json_lines, picture, problem

from mmcot.training.data.problems import load_problems

AOKVQA = {
    "split": "train",
    "image_id": 299207,
    "question_id": "22MexNkBPpdZGX6sxbxVBH",
    "question": "What is the man by the bags awaiting?",
    "choices": ["skateboarder", "train", "delivery", "cab"],
    "correct_choice_idx": 3,
    "direct_answers": ["ride", "ride", "bus"],
    "difficult_direct_answer": False,
    "rationales": ["A train would not be on the street.", "He waits for a ride.", "He has bags."],
}


@pytest.mark.parametrize("coco", ["", "coco/", "images/"])
def test_aokvqa_with_cocos_folders(tmp_path, caplog, coco):
    withheld = {key: AOKVQA[key] for key in ("image_id", "question", "choices")}
    withheld |= {"split": "test", "question_id": "t", "image_id": 7}
    (tmp_path / "aokvqa_v1p0_train.json").write_text(json.dumps([AOKVQA]))
    (tmp_path / "aokvqa_v1p0_test.json").write_text(json.dumps([withheld | {"difficult_direct_answer": True}]))
    picture(tmp_path / f"{coco}train2017" / "000000299207.jpg")
    picture(tmp_path / f"{coco}test2017" / "000000000007.jpg")
    [record] = load_problems(tmp_path, "train")
    assert (record["id"], record["answer"], record["solution"]) == (
        AOKVQA["question_id"],
        3,
        AOKVQA["rationales"][0],
    )
    assert record["has_image"] and record["images"][0]["path"].endswith("train2017/000000299207.jpg")
    assert load_problems(tmp_path, "train", rationales="all")["solution"][:] == AOKVQA["rationales"]
    [record] = load_problems(tmp_path, "test", require_answer=False)
    assert record["answer"] is None and record["has_image"]
    with pytest.raises(ValueError, match="aokvqa_v1p0_test.json: record 0: 'answer' must be"):
        load_problems(tmp_path, "test")
    assert not caplog.records


def test_aokvqa_without_its_images_says_where_they_belong(tmp_path):
    path = tmp_path / "aokvqa_v1p0_train.json"
    path.write_text(json.dumps([AOKVQA]))
    with pytest.raises(FileNotFoundError, match="its image .*coco/train2017/000000299207.jpg is missing"):
        load_problems(path)
    assert len(load_problems(path, image_rule="none")) == 1


def test_aokvqa_of_the_hub(tmp_path):
    text = datasets.Value("string")
    features = datasets.Features(
        {"image": datasets.Image(), "question_id": text, "question": text, "choices": datasets.List(text)}
        | {"correct_choice_idx": datasets.Value("int8"), "direct_answers": text}
        | {"difficult_direct_answer": datasets.Value("bool"), "rationales": datasets.List(text)}
    )
    row = {key: AOKVQA[key] for key in features if key in AOKVQA}
    row |= {"image": {"bytes": picture(), "path": None}, "direct_answers": "['ride']"}
    for split, changes in (("validation", {}), ("test", {"correct_choice_idx": None, "rationales": []})):
        table = datasets.Dataset.from_list([row | changes], features=features)
        table.to_parquet(str(tmp_path / "data" / f"{split}-00000-of-00001-d306bf3ad53b6618.parquet"))
    [record] = load_problems(tmp_path, "val")
    assert record["answer"] == 3 and record["has_image"] and record["id"] == AOKVQA["question_id"]
    [record] = load_problems(tmp_path, "test", require_answer=False)
    assert record["answer"] is None and record["solution"] == ""


M3COT = {
    "id": "physical-commonsense-1",
    "category": "None",
    "image_id": "physical-commonsense-1",
    "question": "What can be inferred?",
    "choices": ["It rains.", "It snows.", "It is hot."],
    "context": "",
    "answer": "B",
    "rationale": "The ground is white.\nSo there is snow.\nTherefore, the answer is (B).",
    "domain": "commonsense",
    "topic": "physical-commonsense",
}


def test_m3cot_of_the_hub(tmp_path):
    text = datasets.Value("string")
    features = datasets.Features(
        dict.fromkeys(M3COT, text) | {"choices": datasets.List(text), "split": text, "image": datasets.Image()}
    )
    for split in ("train", "validation", "test"):
        own = "dev" if split == "validation" else split
        row = M3COT | {"split": own, "image": {"bytes": picture(), "path": f"{own}.png"}, "id": own}
        table = datasets.Dataset.from_list([row], features=features)
        table.to_parquet(str(tmp_path / "data" / f"{split}-00000-of-00001.parquet"))
    [record] = load_problems(tmp_path, "val")
    assert (record["id"], record["answer"], record["subject"]) == ("dev", 1, "commonsense")
    assert record["topic"] == "physical-commonsense" and record["solution"].count("\n") == 2 and record["has_image"]


@pytest.mark.parametrize("given", [{"image": "data/images/{}.png", "image_path": "data/images/{}.png"}, {}])
def test_m3cots_own_files(tmp_path, given):
    for split in ("train", "dev", "test"):
        row = M3COT | {"id": f"{split}-1", "split": split}
        row |= {key: value.format(f"{split}-1") for key, value in given.items()}
        picture(tmp_path / "data" / "images" / f"{split}-1.png")
        json_lines(tmp_path / "data" / f"{split}.jsonl", row)
    [record] = load_problems(tmp_path / "data", "val")
    assert record["answer"] == 1 and record["images"][0]["path"] == str(tmp_path / "data" / "images" / "dev-1.png")


def test_m3cots_export_in_scienceqas_layout(tmp_path):
    record = {key: value for key, value in M3COT.items() if key not in ("rationale", "context")}
    record |= {
        "answer": 1,
        "solution": "So.",
        "hint": "",
        "image": "image.png",
        "task": "closed choice",
        "split": "dev",
    }
    (tmp_path / "problems.json").write_text(json.dumps({record["id"]: record}))
    (tmp_path / "pid_splits.json").write_text(json.dumps({"dev": [record["id"]]}))
    picture(tmp_path / "images" / record["id"] / "image.png")
    [loaded] = load_problems(tmp_path, "val")
    assert loaded["has_image"] and loaded["split"] == "val" and loaded["subject"] == "commonsense"


@pytest.fixture
def ai2d(tmp_path):
    def asked(number, **changes):
        return {"abcLabel": False, "answerTexts": ["a", "b", "c", "d"], "correctAnswer": 2} | {
            "questionId": f"{number}",
            **changes,
        }

    (tmp_path / "questions").mkdir()
    contents = {
        "0.png": {"What is A?": asked("0.png-0", abcLabel=True), "What is shown?": asked("0.png-1")},
        "10.png": {"How many?": asked("10.png-0", correctAnswer=0)},
    }
    for image, questions in contents.items():
        content = {"imageName": image, "questions": questions}
        (tmp_path / "questions" / f"{image}.json").write_text(json.dumps(content))
        picture(tmp_path / "images" / image)
    (tmp_path / "categories.json").write_text(json.dumps({"0.png": "partsOfA", "10.png": "foodChainsWebs"}))
    return tmp_path


def test_ai2d(ai2d):
    problems = load_problems(ai2d)
    assert problems["id"][:] == ["0.png-0", "0.png-1", "10.png-0"] and problems["answer"][:] == [2, 2, 0]
    assert problems["question"][0] == "What is A?" and problems["category"][:] == ["partsOfA"] * 2 + ["foodChainsWebs"]
    assert all(problems["has_image"])
    picture(ai2d / "abc_images" / "0.png", "blue")
    (ai2d / "ai2d_test_ids.csv").write_text("10\n")
    problems = load_problems(ai2d, "train")
    assert [image["path"].split("/")[-2] for [image] in problems["images"]] == ["abc_images", "images"]
    assert load_problems(ai2d, "test")["id"][:] == ["10.png-0"]


def test_ai2d_names_its_bad_files(ai2d):
    (ai2d / "questions" / "10.png.json").write_text('{"imageName": "../x.png", "questions": {}}')
    with pytest.raises(ValueError, match="10.png.json: expected an object with 'imageName' and 'questions'"):
        load_problems(ai2d)
    content = {"imageName": "10.png", "questions": {"Q?": 3, "R?": {"answerTexts": ["a"], "correctAnswer": 0}}}
    (ai2d / "questions" / "10.png.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match="2 bad records: .*question 0: expected a JSON object.*question 1: 'choices'"):
        load_problems(ai2d)


def test_ai2d_of_the_hub(tmp_path):
    text = datasets.Value("string")
    features = datasets.Features(
        {"question": text, "options": datasets.List(text), "answer": text, "image": datasets.Image()}
    )
    row = {
        "question": "Which?",
        "options": ["a", "b", "c"],
        "answer": "2",
        "image": {"bytes": picture(), "path": None},
    }
    numbers = row | {"options": ["4", "3", "5"], "answer": "1"}
    table = datasets.Dataset.from_list([row, numbers], features=features)
    table.to_parquet(str(tmp_path / "data" / "test-00000-of-00002.parquet"))
    assert load_problems(tmp_path, "test")["answer"][:] == [2, 1]


def test_a_numbered_image_alone_is_no_cocos(tmp_path):
    path = json_lines(tmp_path / "mine.jsonl", problem(image_id=5), problem(image_id="x", id="y"))
    assert load_problems(path)["has_image"][:] == [False, False]

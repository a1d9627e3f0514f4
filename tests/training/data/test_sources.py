"""Every source gives the same checked records, and loses none."""

import json
import subprocess
import sys
from pathlib import Path

import datasets
import pytest
from record_files import json_lines, picture, problem

from mmcot.training.data.problems import load_problems

COLUMNS = ["id", "question", "choices", "answer", "context", "caption", "images", "has_image", "lecture", "solution"]
COLUMNS += ["subject", "grade", "topic", "category", "skill", "split"]


def original_folder(folder: Path, **changes) -> Path:
    """Problem 7 has two pictures and pictured choices, 12 has pictures of choices only, 3 has none."""
    problems = {
        "3": problem(image=None, hint="", split="val"),
        "7": problem(image="image.png", hint="Look.", split="train"),
        "12": problem(image=None, split="train"),
    }
    problems["7"] |= changes
    for name in ("image.png", "image_2.png", "image_10.png", "choice_0.png", "choice_1.png"):
        picture(folder / "images/train/7" / name)
    for name in ("choice_1.png", "choice_0.png"):
        picture(folder / "images/train/12" / name)
    (folder / "problems.json").write_text(json.dumps(problems))
    splits = {"train": ["12", "7"], "val": ["3"], "test": [], "trainval": ["12", "7", "3"], "minival": ["3"]}
    (folder / "pid_splits.json").write_text(json.dumps(splits))
    return folder


def names(problems) -> dict[str, list[str]]:
    return {record["id"]: [Path(image["path"]).name for image in record["images"]] for record in problems}


def test_real_problems_are_all_there(shared_dir):
    folder = shared_dir / "data" / "scienceqa"
    original = json.loads((folder / "problems.json").read_text())
    captions = json.loads((folder / "captions.json").read_text())["captions"]
    for split, size in {"train": 510, "val": 341, "test": 323}.items():
        problems = load_problems(folder, split)
        assert problems.column_names == COLUMNS and len(problems) == size
        for record in problems:
            source = original.pop(record["id"])
            kept = (
                "question",
                "choices",
                "answer",
                "lecture",
                "solution",
                "subject",
                "grade",
                "topic",
                "skill",
                "split",
            )
            assert {name: record[name] for name in kept} == {name: source[name] for name in kept}
            assert record["context"] == source["hint"] and record["caption"] == captions.get(record["id"])
            assert record["has_image"] == (source["image"] is not None)
            on_disk = list((folder / "images" / split / record["id"]).glob("*.png"))
            assert {image["path"] for image in record["images"]} == {str(path) for path in on_disk}
    assert not original  # 1,174 of 1,174
    assert len(load_problems(folder)) == 1174 and len(load_problems(folder, "trainval")) == 851
    assert sum(map(len, load_problems(folder, image_rule="original")["images"])) == 421  # 415 pictured, 6 by choices


def test_original_folder_orders_pictures_and_problems(tmp_path):
    folder = original_folder(tmp_path / "data")
    every = ["image.png", "image_2.png", "image_10.png", "choice_0.png", "choice_1.png"]
    assert names(load_problems(folder, "trainval")) == {"12": ["choice_0.png", "choice_1.png"], "7": every, "3": []}
    assert names(load_problems(folder, image_rule="original")) == {"3": [], "7": ["image.png"], "12": ["choice_0.png"]}
    assert load_problems(folder, "validation")["id"][:] == load_problems(folder, "minival")["id"][:] == ["3"]
    assert load_problems(folder / "problems.json")["has_image"][:] == [False, True, False]


@pytest.mark.parametrize("wrapped", [True, False])
def test_captions_with_and_without_wrapper(tmp_path, wrapped):
    folder = original_folder(tmp_path / "data")
    assert load_problems(folder)["caption"][:] == [None, None, None]
    captions = {"7": "A red field."}
    content = {"model": "captioner", "captions": captions} if wrapped else captions
    (folder / "captions.json").write_text(json.dumps(content))
    assert load_problems(folder)["caption"][:] == [None, "A red field.", None]  # and not the table of before


def test_original_folder_names_what_is_wrong(tmp_path):
    folder = original_folder(tmp_path / "data", image="image_5.png")
    with pytest.raises(FileNotFoundError, match="problem 7: its image .*train/7/image_5.png is missing"):
        load_problems(folder)
    with pytest.raises(ValueError, match="problem 7: 'answer' is 2, but there are 2 choices"):
        load_problems(original_folder(folder, answer=2))
    with pytest.raises(ValueError, match="no split 'mini'; its splits: train, val, test, trainval, minival"):
        load_problems(folder, "mini")
    with pytest.raises(ValueError, match="no problems of split 'test'"):
        load_problems(folder, "test")
    (folder / "pid_splits.json").write_text(json.dumps({"test": ["99"]}))
    with pytest.raises(ValueError, match="problem 99: is in pid_splits.json under 'test', but not in problems.json"):
        load_problems(folder, "test")


def test_json_lines(tmp_path):
    picture(tmp_path / "pictures/a.png")
    path = json_lines(
        tmp_path / "mine.jsonl",
        problem(id=5, hint="h", context="c", image="pictures/a.png", split="train", own="column"),
        problem(hint="h", images=["pictures/a.png", str(tmp_path / "pictures/a.png")], split="validation"),
        problem(grade="grade2", has_image=False),
    )
    first, second, third = load_problems(path)
    assert list(first) == COLUMNS
    assert (first["id"], second["id"], third["id"]) == ("5", "val-000000", "mine-000000")
    assert (first["context"], second["context"], third["context"]) == ("c", "h", "")
    picture_path = str(tmp_path / "pictures/a.png")
    assert first["images"] == [{"bytes": None, "path": picture_path}]
    assert [image["path"] for image in second["images"]] == [picture_path, picture_path]
    assert (
        third["subject"] is None and third["grade"] == "grade2" and third["solution"] == "" and third["images"] == []
    )
    assert load_problems(path, "val")["id"][:] == ["val-000000"]
    assert list(map(len, load_problems(path, image_rule="original")["images"])) == [1, 1, 0]
    with pytest.raises(ValueError, match="no split 'test'; its splits: train, val"):
        load_problems(path, "test")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"question": ', "not valid JSON"),
        ("[1]", "expected a JSON object, found a list"),
        (json.dumps(problem(question=" ")), "'question' must be a text"),
        (json.dumps(problem(choices="this or that")), "'choices' must be a list"),
        (json.dumps(problem(choices=[])), "'choices' must be a list of at least two"),
        (json.dumps(problem(choices=["a"] * 27, answer=0)), "'choices' has 27 entries"),
        (json.dumps(problem(choices=["this"], answer=0)), "'choices' must be a list of at least two"),
        (
            json.dumps(problem(answer="D")),
            "'answer' must be a choice's index, letter or text.*write .*0 for A, 1 for B",
        ),
        (json.dumps(problem(answer=True)), "'answer' must be a choice's index"),
        (json.dumps(problem(answer=-1)), "'answer' is -1"),
        (json.dumps(problem(answer=None)), "'answer' must be"),
        (json.dumps(problem(context=3)), "'context' must be a text"),
        (json.dumps(problem(image=3)), "an image must be a path"),
        (json.dumps(problem(image="away.png")), "its image .*away.png is missing"),
        (json.dumps(problem(id="first")), "id 'first' occurs twice"),
    ],
)
def test_a_bad_line_is_named(tmp_path, line, message):
    path = json_lines(tmp_path / "mine.jsonl", problem(id="first"))
    path.write_text(path.read_text() + "\n" + line + "\n")
    with pytest.raises((ValueError, FileNotFoundError), match=rf"mine.jsonl: line 3: .*{message}") as raised:
        load_problems(path)
    assert "\n" not in str(raised.value)


def test_answers_may_be_unknown_on_request(tmp_path):
    path = json_lines(tmp_path / "mine.jsonl", {"question": "Which?", "choices": ["this", "that"]})
    assert load_problems(path, require_answer=False)["answer"][:] == [None]


def test_files_name_their_split(tmp_path):
    for name in ("train", "my_dev", "test-00000-of-00002", "test-00001-of-00002"):
        json_lines(tmp_path / f"data/{name}.jsonl", problem(), problem())
    assert load_problems(tmp_path / "data", "val")["id"][:] == ["val-000000", "val-000001"]
    assert load_problems(tmp_path / "data", "test")["id"][:] == [f"test-{number:06d}" for number in range(4)]
    assert len(load_problems(tmp_path / "data", "trainval")) == 4 and len(load_problems(tmp_path / "data")) == 8


@pytest.fixture
def hub_folder(tmp_path) -> Path:
    """A few rows of derek-thomas/ScienceQA's schema, as its parquet files hold them."""
    features = datasets.Features(
        {"image": datasets.Image(), "question": datasets.Value("string")}
        | {"choices": datasets.List(datasets.Value("string")), "answer": datasets.Value("int8")}
        | {name: datasets.Value("string") for name in ("hint", "task", "grade", "subject", "topic", "category")}
        | {name: datasets.Value("string") for name in ("skill", "lecture", "solution")}
    )
    for split, size in {"train": 3, "validation": 2, "test": 4}.items():
        rows = [
            {name: f"{name} {row}" for name in features}
            | {"image": {"bytes": picture(color="blue"), "path": "image.png"} if row % 2 else None}
            | {"choices": ["a", "b", "c"], "answer": row % 3}
            for row in range(size)
        ]
        table = datasets.Dataset.from_list(rows, features=features)
        table.to_parquet(str(tmp_path / "hub" / "data" / f"{split}-00000-of-00001-0123456789abcdef.parquet"))
    return tmp_path / "hub"


def test_hub_schema(hub_folder):
    problems = load_problems(hub_folder, "test")
    assert problems.column_names == COLUMNS
    assert problems["id"][:] == ["test-000000", "test-000001", "test-000002", "test-000003"]
    assert problems["answer"][:] == [0, 1, 2, 0] and problems["context"][2] == "hint 2"
    assert problems["has_image"][:] == [False, True, False, True]
    [image] = problems[1]["images"]
    assert image["bytes"] == picture(color="blue") and image["path"].endswith(".parquet/row 1")  # encoded still
    assert set(load_problems(hub_folder)["split"]) == {"train", "val", "test"}
    assert len(load_problems(next(hub_folder.rglob("validation*")))) == 2


def test_hub_id_is_downloaded_once_and_read_as_a_folder(hub_folder, monkeypatch):
    calls = []
    monkeypatch.setattr(
        "huggingface_hub.snapshot_download", lambda *args, **kwargs: calls.append(args) or str(hub_folder)
    )
    assert len(load_problems("someone/some-questions@main", "val")) == 2
    assert calls == [("someone/some-questions",)]


def test_no_such_source(tmp_path, monkeypatch):
    with pytest.raises(FileNotFoundError, match="no such file or folder"):
        load_problems(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="expected a .jsonl, .json, .csv, .tsv, .parquet or .tar file"):
        load_problems(__file__)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(FileNotFoundError, match="someone/nothing: .*not to be had from the Hub") as raised:
        load_problems("someone/nothing")
    assert "\n" not in str(raised.value)
    with pytest.raises(ValueError, match="image_rule is 'first'"):
        load_problems(tmp_path, image_rule="first")


def test_embedded():
    problems = load_problems("embedded:n=30,seed=1,val=5", "train")
    assert problems.column_names == COLUMNS and len(problems) == 30
    encoded = [image for images in problems["images"] for image in images]
    assert encoded and all(image["bytes"].startswith(b"\x89PNG") for image in encoded)
    every = load_problems("embedded:n=30,seed=1,val=5")
    assert len(every) == len(set(every["id"])) == 65 and len(load_problems("embedded:n=30,seed=1,val=5", "val")) == 5
    assert all(len(images) <= 1 for images in load_problems("embedded:n=30,seed=1", image_rule="original")["images"])


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("embedded:m=3", "'m=3' isn't an option"),
        ("embedded:n=many", "n must be a whole number"),
        ("embedded:skills=x", "x"),
    ],
)
def test_embedded_options_are_checked(source, message):
    with pytest.raises(ValueError, match=message):
        load_problems(source, "train")
    with pytest.raises(ValueError, match="no split 'mini'"):
        load_problems("embedded", "mini")


def test_importing_the_module_is_cheap():
    code = "import sys, mmcot.training.data.problems; assert not {'torch', 'datasets', 'pyarrow'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_without_pictures_their_files_are_not_asked_for(tmp_path):
    problem = {"question": "Which?", "choices": ["a", "b"], "answer": 0, "image": "image.png", "split": "test"}
    (tmp_path / "problems.json").write_text(json.dumps({"4": problem}))
    with pytest.raises(FileNotFoundError, match="problem 4: its image .* is missing"):
        load_problems(tmp_path)
    [record] = load_problems(tmp_path, image_rule="none")
    assert record["images"] == [] and record["has_image"]
    with_pictures = load_problems("embedded:n=30,seed=1")["has_image"]
    assert load_problems("embedded:n=30,seed=1", image_rule="none")["has_image"] == with_pictures

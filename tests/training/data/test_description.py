"""Only the whole of ScienceQA is called ScienceQA."""

import json

import pytest
from record_files import json_lines, picture, problem

from mmcot.training.data import description
from mmcot.training.data.description import describe_source, ids_hash, lecture_hash
from mmcot.training.data.embedded.generate import write_scienceqa
from mmcot.training.data.problems import load_problems

LECTURE = "A lecture of the benchmark."


@pytest.fixture
def small_benchmark(monkeypatch):
    """A benchmark of three train and two test questions, in place of the real one."""
    parts = {
        "train": description._Split(3, 1, ids_hash(["1", "2", "3"])),
        "test": description._Split(2, 0, ids_hash(["4", "5"])),
    }
    monkeypatch.setattr(description, "SCIENCEQA", parts)
    monkeypatch.setattr(description, "_LECTURES", lecture_hash(LECTURE))


def folder(path, ids, lecture=LECTURE, split="train"):
    path.mkdir()
    problems = {id_: problem(lecture=lecture, split=split) for id_ in ids}
    (path / "problems.json").write_text(json.dumps(problems))
    return path


def described(path, split=None, **kwargs) -> dict:
    return describe_source(path, load_problems(path, split), **kwargs)


def test_the_whole_set_of_ids_is_the_benchmark(tmp_path, small_benchmark):
    found = described(folder(tmp_path / "data", ["3", "1", "2"]))
    assert found["benchmark"] and found["complete"] and found["name"] == "ScienceQA" and found["kind"] == "scienceqa"
    assert found["license"] == "cc-by-nc-sa-4.0" and found["sizes"] == {"train": 3}
    assert found["id"] == "derek-thomas/ScienceQA"


@pytest.mark.parametrize("ids", [["1", "2"], ["1", "2", "4"], ["1", "2", "03"]])
def test_a_part_or_other_ids_are_a_subset(tmp_path, small_benchmark, ids):
    found = described(folder(tmp_path / "data", ids))
    assert not found["benchmark"] and not found["complete"] and found["license"] == "cc-by-nc-sa-4.0"
    assert found["name"].startswith("a subset of ScienceQA (")


def test_a_run_with_one_split_limited_is_a_subset(tmp_path, small_benchmark):
    train, test = folder(tmp_path / "train", ["1", "2", "3"]), folder(tmp_path / "test", ["4", "5"], split="test")
    parts = {"train": load_problems(train), "test": load_problems(test)}
    assert describe_source(train, parts)["benchmark"]
    parts["train"] = parts["train"].select(range(2))
    assert describe_source(train, parts)["name"] == "a subset of ScienceQA (4 of 5 questions)"


def test_the_same_ids_with_other_questions_are_own_data(tmp_path, small_benchmark):
    found = described(folder(tmp_path / "my-data", ["1", "2", "3"], lecture="My own."))
    assert found["kind"] == "own" and found["name"] == "my-data" and found["license"] is None
    assert not found["benchmark"] and found["complete"] and found["id"] is None


def test_the_hubs_copies_have_no_ids(tmp_path, small_benchmark):
    picture(tmp_path / "a.png")
    rows = [problem(lecture=LECTURE), problem(lecture=LECTURE, image="a.png"), problem(lecture=LECTURE)]
    assert described(json_lines(tmp_path / "train.jsonl", *rows))["benchmark"]
    rows[1].pop("image")
    assert not described(json_lines(tmp_path / "train.jsonl", *rows))["benchmark"], "another number has an image"


def test_the_real_subset(shared_dir):
    source = shared_dir / "data" / "scienceqa"
    found = described(source)
    assert found["name"] == "a subset of ScienceQA (1,174 of 21,208 questions)" and not found["benchmark"]
    assert described(source, "test")["name"] == "a subset of ScienceQA (323 of 4,241 questions)"


def test_generated_questions_are_not_the_benchmark(tmp_path):
    found = described("embedded:n=12", "train")
    assert found["kind"] == "embedded" and "ScienceQA" not in found["name"] and found["license"] == "apache-2.0"
    source = write_scienceqa(tmp_path / "generated", 40)  # in ScienceQA's layout
    found = described(source)
    assert (found["kind"], found["name"], found["license"]) == ("own", "generated", None)


def test_the_users_words_win(tmp_path, small_benchmark):
    found = described(folder(tmp_path / "data", ["1", "2", "3"]), license="mit", name="Mine")
    assert found["license"] == "mit" and found["name"] == "Mine" and found["benchmark"]


def test_a_readme_states_the_licence(tmp_path):
    path = json_lines(tmp_path / "mine" / "train.jsonl", problem())
    (tmp_path / "mine" / "README.md").write_text("---\nlicense: cc-by-4.0\n---\nQuestions.\n")
    for source in (path, path.parent):
        assert described(source)["license"] == "cc-by-4.0"
    (tmp_path / "mine" / "README.md").write_text("---\nlicense: [\n---\n")
    assert described(path)["license"] is None


def test_no_path_is_given_out(tmp_path):
    path = json_lines(tmp_path / "secret" / "mine.jsonl", problem())
    assert str(tmp_path) not in json.dumps(described(path)) and described(path)["name"] == "mine.jsonl"

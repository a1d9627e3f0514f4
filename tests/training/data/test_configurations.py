"""A data set with several configurations gives each question once: one is named."""

import datasets
import pytest
from record_files import json_lines, picture, problem

from mmcot.training.common import UserError
from mmcot.training.data.problems import load_problems

README = """---
license: cc-by-nc-sa-4.0
configs:
- config_name: ScienceQA-FULL
  data_files:
  - split: train
    path: ScienceQA-FULL/train-*
  - split: validation
    path: ScienceQA-FULL/validation-*
- config_name: ScienceQA-IMG
  data_files:
  - split: train
    path: ScienceQA-IMG/train-*
  - split: validation
    path: ScienceQA-IMG/validation-*
---
"""


@pytest.fixture
def two_configurations(tmp_path):
    """lmms-lab/ScienceQA's schema: all questions, and those with an image once more."""
    names = ("hint", "task", "grade", "subject", "topic", "category", "skill", "lecture", "solution")
    features = datasets.Features(
        {"image": datasets.Image(), "question": datasets.Value("string")}
        | {"choices": datasets.Sequence(datasets.Value("string")), "answer": datasets.Value("int8")}
        | {name: datasets.Value("string") for name in names}
    )
    for split in ("train", "validation"):
        rows = [
            dict.fromkeys(names, "")
            | {"question": f"{split} {row}?", "choices": ["a", "b"], "answer": row % 2}
            | {"image": {"bytes": picture(), "path": None} if row % 2 else None}
            for row in range(10)
        ]
        for config, kept in (("ScienceQA-FULL", rows), ("ScienceQA-IMG", rows[1::2])):
            table = datasets.Dataset.from_list(kept, features=features)
            table.to_parquet(str(tmp_path / "repo" / config / f"{split}-00000-of-00001.parquet"))
    return tmp_path / "repo"


@pytest.mark.parametrize("readme", [README, None, "No head.\n"])
def test_one_is_named(two_configurations, readme):
    if readme:
        (two_configurations / "README.md").write_text(readme)
    with pytest.raises(UserError, match="has 2 configurations, ScienceQA-FULL, ScienceQA-IMG: name one, as in") as err:
        load_problems(two_configurations, "train")
    assert "\n" not in str(err.value)
    full = load_problems(f"{two_configurations}:ScienceQA-FULL", "train")
    assert len(full) == 10 and sum(full["has_image"]) == 5
    assert full["id"][:] == [f"train-{row:06d}" for row in range(10)]
    assert len(load_problems(f"{two_configurations}:ScienceQA-IMG", "val")) == 5
    assert len(load_problems(two_configurations / "ScienceQA-IMG")) == 10
    with pytest.raises(UserError, match="no configuration 'FULL'; there are: ScienceQA-FULL, ScienceQA-IMG"):
        load_problems(f"{two_configurations}:FULL")


def test_on_the_hub(two_configurations, monkeypatch):
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *args, **kwargs: str(two_configurations))
    (two_configurations / "README.md").write_text(README)
    assert len(load_problems("lmms-lab/ScienceQA:ScienceQA-FULL", "val")) == 10
    assert len(load_problems("lmms-lab/ScienceQA@main:ScienceQA-IMG", "val")) == 5
    with pytest.raises(UserError, match="has 2 configurations"):
        load_problems("lmms-lab/ScienceQA", "val")


def test_a_default_is_taken(two_configurations):
    for mark in ("  default: true\n  data_files", "  data_files"):
        readme = README.replace("  data_files", mark, 1)
        readme = readme if "default" in mark else README.replace("ScienceQA-FULL\n", "default\n", 1)
        (two_configurations / "README.md").write_text(readme)
        assert len(load_problems(two_configurations, "train")) == 10


def test_splits_of_a_readme_win_over_file_names(tmp_path):
    json_lines(tmp_path / "a.jsonl", problem())
    json_lines(tmp_path / "b.jsonl", problem(), problem())
    head = "configs:\n- config_name: default\n  data_files:\n  - {split: train, path: [b.jsonl]}\n"
    (tmp_path / "README.md").write_text(f"---\n{head}  - split: test\n    path: a*\n---\n")
    assert len(load_problems(tmp_path, "train")) == 2 and len(load_problems(tmp_path, "test")) == 1
    (tmp_path / "README.md").write_text("---\nconfigs:\n- config_name: x\n  data_files: ../*.jsonl\n---\n")
    with pytest.raises(UserError, match="leads out of the folder"):
        load_problems(tmp_path)


def test_folders_that_share_no_questions_are_parts_of_one(tmp_path):
    json_lines(tmp_path / "biology" / "train.jsonl", problem(question="a?"), problem(question="b?"), problem())
    json_lines(tmp_path / "physics" / "train.jsonl", problem(question="c?"), problem(question="d?"), problem())
    problems = load_problems(tmp_path, "train")
    assert len(problems) == 6 and len(set(problems["id"])) == 6

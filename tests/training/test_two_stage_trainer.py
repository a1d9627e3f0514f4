"""`TwoStageTrainer`: the same run as the command's, from `datasets.Dataset`s."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from datasets import Dataset, DatasetDict, Image
from own_data import box_questions, environment, make_hub_cache, write_jsonl

from mmcot.training import TwoStageTrainer, load_problems, two_stage_trainer
from mmcot.training.common import UserError

SETTINGS = {
    "recipe": "embedded",
    "model": {"d_model": 16, "d_kv": 8, "d_ff": 16, "num_layers": 1, "num_heads": 2},
    "vision": {
        "model_type": "vit",
        "hidden_size": 8,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 8,
        "image_size": 32,
        "patch_size": 16,
    },
    "max_new_tokens": 4,
    "max_steps": 2,
    "use_cpu": True,
}


def questions(folder, count, picture=True):
    rows = [row | {"image": str(folder / row["image"])} for row in box_questions(folder, count)]
    data = Dataset.from_list(rows)
    return data.cast_column("image", Image()) if picture else data.remove_columns("image")


def test_run_from_datasets_is_the_commands_run(tmp_path):
    train, test = questions(tmp_path, 12), questions(tmp_path, 6)
    trainer = TwoStageTrainer(
        train_dataset=train, test_dataset=test, output_dir=tmp_path / "run", answer={"max_steps": 1}, **SETTINGS
    )
    results = trainer.train()
    for path in tmp_path.glob("boxes/*.png"):
        path.unlink()  # the run holds the pictures itself
    assert results["test"]["n"] == {"IMG": 6, "Avg": 6} and "val" not in results
    assert json.loads((tmp_path / "run/results_test.json").read_text()) == results["test"]
    assert json.loads((tmp_path / "run/answer/manifest.json").read_text())["steps"] == 1
    assert "Data: run." in (trainer.hub / "README.md").read_text()  # not "data", the folder of its parquet files
    answer = trainer.pipeline()({"question": "Which colour is it?", "choices": ["red", "blue"], "image": None})
    assert answer["answer"] in ("A", "B")

    # the same again does nothing anew; the command on the same folder finds everything done, too
    weights = (tmp_path / "run/answer/model.safetensors").stat().st_mtime_ns
    again = TwoStageTrainer(
        train_dataset=train, test_dataset=test, output_dir=tmp_path / "run", answer={"max_steps": 1}, **SETTINGS
    )
    from mmcot.training import run_recipe

    assert run_recipe(again.recipe) == results
    assert (tmp_path / "run/answer/model.safetensors").stat().st_mtime_ns == weights


def test_readme_block_as_it_stands(tmp_path, tiny_tokenizer):
    readme = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
    block = readme.split("<!-- trainer:begin -->")[1].split("<!-- trainer:end -->")[0]
    code = re.search(r"```python\n(.*?)```", block, re.S)[1]
    write_jsonl(tmp_path / "my-questions.jsonl", box_questions(tmp_path, 20))
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env=environment(make_hub_cache(tmp_path / "home", tiny_tokenizer)),
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    accuracy, answer = done.stdout.strip().splitlines()
    assert "'Avg'" in accuracy and "'rationale'" in answer
    assert "Stage 2 of 2" in done.stderr, "a run from Python shows what the command shows"
    assert (tmp_path / "runs/from-python/hub/README.md").is_file()


@pytest.mark.parametrize(
    "settings, text",
    [
        ({"num_train_epoch": 3}, "num_train_epoch"),
        ({"data": "file.jsonl"}, "data: the data sets say it"),
        ({"train_dataset": None}, "train_dataset: is needed"),
    ],
)
def test_what_is_refused(tmp_path, settings, text):
    with pytest.raises(UserError, match=text):
        TwoStageTrainer(**{"train_dataset": questions(tmp_path, 2, picture=False), "output_dir": tmp_path} | settings)


def test_a_column_split_does_not_go_before_what_was_passed(tmp_path):
    """As of a set that was loaded whole and filtered: who passes it as the test questions has said what it is."""
    data = questions(tmp_path, 4).add_column("split", ["train"] * 4)
    two_stage_trainer._write(data, tmp_path / "data" / "test.parquet")
    assert load_problems(tmp_path / "data", "test")["split"][:] == ["test"] * 4


def test_data_sets_of_another_kind_are_refused_by_name(tmp_path):
    data = questions(tmp_path, 2, picture=False)
    for given, told in (
        (DatasetDict(train=data, dev=data), r"test_dataset: is of type DatasetDict: .*'train', 'dev'"),
        (data.to_iterable_dataset(), "test_dataset: is of type IterableDataset: only files are streamed"),
        (data.to_list(), r"test_dataset: is of type list: .*Dataset\.from_list"),
        (data.to_pandas(), r"test_dataset: is of type DataFrame: .*from_pandas"),
    ):
        with pytest.raises(UserError, match=told):
            TwoStageTrainer(train_dataset=data, test_dataset=given, output_dir=tmp_path / "run")
    trainer = TwoStageTrainer(train_dataset=data, output_dir=tmp_path / "run")
    for use in (trainer.pipeline, lambda: trainer.push_to_hub("user/name")):
        with pytest.raises(UserError, match=r"no model yet: call train\(\) first"):
            use()


def test_a_picture_that_is_not_there_is_named(tmp_path):
    data = questions(tmp_path, 4)
    (tmp_path / "boxes" / "2.png").unlink()
    with pytest.raises(UserError, match=r"train questions: there is no picture .*2\.png"):
        TwoStageTrainer(train_dataset=data, output_dir=tmp_path / "run", **SETTINGS).train()


def test_a_refused_run_leaves_the_data_of_the_run_before(tmp_path, monkeypatch):
    """Or its folder would show answers beside questions that were never asked."""
    import mmcot.training.train

    def refuse(recipe):
        raise UserError("holds a run with other settings")

    def accept(recipe):
        return {}

    for first, second in ((4, 6), (6, 4)):
        run = tmp_path / f"run-{first}"
        for count, outcome in ((first, accept), (second, refuse), (second, accept)):
            monkeypatch.setattr(mmcot.training.train, "run_recipe", outcome)
            trainer = TwoStageTrainer(train_dataset=questions(tmp_path, count), output_dir=run, **SETTINGS)
            if outcome is refuse:
                with pytest.raises(UserError):
                    trainer.train()
                count = first
            else:
                trainer.train()
            assert len(load_problems(run / "data", "train")) == count
            assert [path.name for path in run.rglob("*") if path.is_file()] == ["train.parquet"]

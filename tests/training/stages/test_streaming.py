"""Training on a stream: the samples of the table, resumed as if uninterrupted, and refused where it can't be."""

import json
import shutil

import pytest
import torch
from own_data import box_questions, write_jsonl
from safetensors.torch import load_file
from test_steps import TINY, interrupted

from mmcot.training.common import UserError
from mmcot.training.stages.recipe import load_recipe
from mmcot.training.stages.run import Run
from mmcot.training.stages.streaming import streamed_samples
from mmcot.training.train import run_recipe


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("stream") / "boxes"
    rows = box_questions(folder, 40)
    write_jsonl(folder / "train.jsonl", rows[:32])
    write_jsonl(folder / "val.jsonl", rows[32:36])
    write_jsonl(folder / "test.jsonl", rows[36:])
    return folder


def recipe(data, folder, *overrides):
    common = [*TINY, f"data={data}", f"output_dir={folder}", "streaming=true", "shuffle_buffer_size=8"]
    return load_recipe("embedded", [*common, *overrides])


def test_streamed_samples_are_the_tables(data, tmp_path):
    run = Run(recipe(data, tmp_path, "max_train_samples=20"))
    table = Run(recipe(data, tmp_path, "streaming=false", "max_train_samples=20")).samples("train", "answer")
    ordered = list(streamed_samples(run.stream, run.processor, "answer", max_target_length=512, buffer_size=1))
    assert ordered == list(table)
    mixed = streamed_samples(run.stream, run.processor, "answer", max_target_length=512, buffer_size=8)
    passes = []
    for epoch in range(2):
        mixed.set_epoch(epoch)
        passes.append([row["id"] for row in mixed])
    assert passes[0] != passes[1] and sorted(passes[0]) == sorted(passes[1]) == sorted(table["id"])


def test_a_problem_that_does_not_fit_stops_its_pass_by_name(data, tmp_path):
    run = Run(recipe(data, tmp_path))
    run.processor.max_source_length = 8
    with pytest.raises(UserError, match=r"rationale stage: problem train-0000\d\d: .*raise max_source_length"):
        list(streamed_samples(run.stream, run.processor, "rationale", max_target_length=512))


def test_a_run_on_a_stream_trains_tests_and_publishes(data, tmp_path):
    results = run_recipe(recipe(data, tmp_path / "run"))
    assert results["test"]["n"]["Avg"] == 4
    assert "`train` a stream, `val` 4" in (tmp_path / "run" / "hub" / "README.md").read_text()


def test_a_resumed_stream_ends_as_the_whole_one(data, tmp_path, monkeypatch):
    """Within the second pass: 32 samples, batches of 8, six steps."""
    steps = ("max_steps=6", "answer.max_steps=1", "stages=rationale", "max_test_samples=1")
    run_recipe(recipe(data, tmp_path / "whole", *steps))
    interrupted(monkeypatch, tmp_path / "cut", 5, *steps, make=lambda *args: recipe(data, *args))
    run_recipe(recipe(data, tmp_path / "cut", *steps))
    whole, resumed = (load_file(tmp_path / name / "rationale" / "model.safetensors") for name in ("whole", "cut"))
    assert all(torch.equal(weight, resumed[name]) for name, weight in whole.items())


def test_other_files_are_another_run(data, tmp_path):
    copy = shutil.copytree(data, tmp_path / "boxes")
    only = ("stages=rationale", "max_test_samples=1")
    run_recipe(recipe(copy, tmp_path / "run", *only))
    with (copy / "train.jsonl").open("a") as file:
        file.write(json.dumps({"question": "Which?", "choices": ["a", "b"], "answer": 0, "solution": "So."}) + "\n")
    with pytest.raises(UserError, match="data"):
        run_recipe(recipe(copy, tmp_path / "run", *only))


def test_a_bad_record_far_off_stops_the_run_by_name(data, tmp_path, monkeypatch):
    monkeypatch.setattr("mmcot.training.stages.streaming.LOOKED_OVER", 8)
    copy = shutil.copytree(data, tmp_path / "boxes")
    lines = (copy / "train.jsonl").read_text().splitlines(keepends=True)
    (copy / "train.jsonl").write_text("".join([*lines[:24], '{"question": "Which?"}\n', *lines[24:]]))
    with pytest.raises(UserError, match=r"train\.jsonl.*line 25"):
        run_recipe(recipe(copy, tmp_path / "run"))


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("max_steps=-1", "max_steps: streaming needs it"),
        ("share_stages=true", "share_stages: doesn't go with streaming"),
        ("cross_fit=2", "cross_fit: doesn't go with streaming"),
        ("rationales=file.jsonl", "rationales: doesn't go with streaming"),
        ("keep_images=true", "keep_images: doesn't go with streaming"),
        ("answer.tokens_per_batch=512", "tokens_per_batch: doesn't go with streaming"),
        ("shuffle_buffer_size=0", "shuffle_buffer_size: 0 is too small"),
        ("train_sampling_strategy=sequential", "a stream has its own order"),
    ],
)
def test_what_needs_a_table_is_refused_by_name(data, tmp_path, override, said):
    with pytest.raises(UserError, match=said):
        run_recipe(recipe(data, tmp_path, override))

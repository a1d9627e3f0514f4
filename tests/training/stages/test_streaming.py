"""Training on a stream: the samples of the table, resumed as if uninterrupted, and refused where it can't be."""

import itertools
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


@pytest.mark.parametrize("step", [3, 7])
def test_a_resumed_stream_ends_as_the_whole_one(data, tmp_path, monkeypatch, step):
    """A pass is four batches: within the first pass, and within the second."""
    steps = ("max_steps=8", "answer.max_steps=1", "stages=rationale", "max_test_samples=1")
    run_recipe(recipe(data, tmp_path / "whole", *steps))
    interrupted(monkeypatch, tmp_path / "cut", step, *steps, make=lambda *args: recipe(data, *args))
    assert (tmp_path / "cut" / "rationale" / f"checkpoint-{step - 1}").is_dir()
    run_recipe(recipe(data, tmp_path / "cut", *steps))
    whole, resumed = (load_file(tmp_path / name / "rationale" / "model.safetensors") for name in ("whole", "cut"))
    assert all(torch.equal(weight, resumed[name]) for name, weight in whole.items())


def test_passes_have_each_sample_once_in_another_order(data, tmp_path):
    run = Run(recipe(data, tmp_path))
    ids = [row["id"] for row in itertools.islice(run.training_samples("rationale"), 64)]
    one, two = ids[:32], ids[32:]
    assert len(set(one)) == 32 and sorted(one) == sorted(two) and one != two


def test_checkpoints_are_written_while_a_pass_lasts(data, tmp_path):
    made = [value for value in TINY if not value.startswith(("save_", "eval_strategy"))]
    common = [
        *made,
        f"data={data}",
        f"output_dir={tmp_path}",
        "streaming=true",
        "stages=rationale",
        "save_total_limit=9",
    ]
    run_recipe(load_recipe("own-data", ["tokenizer=train", *common, "max_steps=3", "max_test_samples=1"]))
    assert {path.name for path in (tmp_path / "rationale").glob("checkpoint-*")} == {
        f"checkpoint-{n}" for n in (1, 2, 3)
    }


def test_a_finished_run_is_known_by_its_training_files_alone(data, tmp_path):
    copy, only = shutil.copytree(data, tmp_path / "boxes"), ("stages=rationale", "max_test_samples=1")
    run_recipe(recipe(copy, tmp_path / "run", *only))
    (copy / "README.md").write_text("mine")
    (copy / "train.jsonl").touch()
    moved = copy.rename(tmp_path / "moved")
    before = (tmp_path / "run" / "rationale" / "model.safetensors").stat().st_mtime_ns
    run_recipe(recipe(moved, tmp_path / "run", *only))
    assert (tmp_path / "run" / "rationale" / "model.safetensors").stat().st_mtime_ns == before


def test_other_files_are_another_run(data, tmp_path):
    copy = shutil.copytree(data, tmp_path / "boxes")
    only = ("stages=rationale", "max_test_samples=1")
    run_recipe(recipe(copy, tmp_path / "run", *only))
    with (copy / "train.jsonl").open("a") as file:
        file.write(json.dumps({"question": "Which?", "choices": ["a", "b"], "answer": 0, "solution": "So."}) + "\n")
    with pytest.raises(UserError, match="data"):
        run_recipe(recipe(copy, tmp_path / "run", *only))


@pytest.mark.parametrize("workers", [0, 1])
def test_a_bad_record_far_off_stops_the_run_by_name_and_mended_it_goes_on(data, tmp_path, monkeypatch, workers):
    monkeypatch.setattr("mmcot.training.stages.streaming.LOOKED_OVER", 8)
    copy = shutil.copytree(data, tmp_path / "boxes")
    lines = (copy / "train.jsonl").read_text().splitlines(keepends=True)
    (copy / "train.jsonl").write_text("".join([*lines[:28], '{"question": "Which?"}\n', *lines[28:]]))
    options = ("shuffle_buffer_size=1", f"dataloader_num_workers={workers}", "stages=rationale", "max_test_samples=1")
    with pytest.raises(UserError, match=r"^[^\n]*train\.jsonl[^\n]*line 29[^\n]*$"):
        run_recipe(recipe(copy, tmp_path / "run", *options))
    if workers == 0:  # a worker reads ahead, and may find it sooner
        assert (tmp_path / "run" / "rationale" / "checkpoint-2").is_dir()
    (copy / "train.jsonl").write_text("".join(lines))
    assert run_recipe(recipe(copy, tmp_path / "run", *options)) is not None
    assert (tmp_path / "run" / "rationale" / "model.safetensors").is_file()


def test_an_accelerator_configuration_may_be_a_file(data, tmp_path):
    from mmcot.training.stages.arguments import training_arguments

    (tmp_path / "accelerator.json").write_text('{"split_batches": true}')
    given = recipe(data, tmp_path, f"accelerator_config={tmp_path / 'accelerator.json'}").for_stage("rationale")
    config = training_arguments(given, tmp_path / "rationale", has_eval=False).accelerator_config
    assert config.split_batches is True and config.dispatch_batches is False


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
        ("save_strategy=epoch", "save_strategy: a stream has no epochs"),
        ("dataloader_num_workers=2", "dataloader_num_workers: a stream has one reader"),
    ],
)
def test_what_needs_a_table_is_refused_by_name(data, tmp_path, override, said):
    with pytest.raises(UserError, match=said):
        run_recipe(recipe(data, tmp_path, override))

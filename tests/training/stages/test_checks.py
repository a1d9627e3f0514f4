"""What is said before the first training step, all of it at once."""

import json

import datasets
import pytest
import torch
from PIL import Image

from mmcot.training.cli import main
from mmcot.training.common import UserError
from mmcot.training.stages.recipe import load_recipe
from mmcot.training.train import run_recipe

VIT = "{model_type: vit, hidden_size: 16, num_hidden_layers: 1, num_attention_heads: 2, intermediate_size: 16,"
VIT += " image_size: 32, patch_size: 16}"
TINY = ["model={d_model: 16, d_kv: 8, d_ff: 16, num_layers: 1, num_heads: 2}", f"vision={VIT}", "max_steps=1"]
TINY += ["eval_strategy=no", "save_strategy=no", "use_cpu=true", "disable_tqdm=true", "test_split=null"]
TINY += ["max_new_tokens=4", "eval_split=null"]


def write(tmp_path, **changes):
    """Twelve problems with pictures, captions and solutions; `changes` are of every record."""
    for number in range(12):
        Image.new("RGB", (32, 32), (number, 0, 0)).save(tmp_path / f"{number}.png")
    records = [
        {"id": f"q{number}", "question": "Which colour?", "choices": ["red", "blue"], "answer": 0, "split": "train"}
        | {"solution": "It is red.", "caption": "Red.", "image": f"{number}.png", **changes}
        for number in range(12)
    ]
    file = tmp_path / "my.jsonl"
    file.write_text("".join(json.dumps(record) + "\n" for record in records))
    return file


def error_of(tmp_path, data, *overrides):
    recipe = load_recipe("embedded", [*TINY, f"data={data}", f"output_dir={tmp_path / 'run'}", *overrides])
    with pytest.raises(UserError) as error:
        run_recipe(recipe)
    assert "\n" not in str(error.value) and not list((tmp_path / "run").rglob("*.safetensors"))
    return str(error.value)


def test_a_sound_run_is_let_pass(tmp_path):
    recipe = load_recipe("embedded", [*TINY, f"data={write(tmp_path)}", f"output_dir={tmp_path / 'run'}"])
    assert run_recipe(recipe) == {}
    assert (tmp_path / "run" / "answer" / "model.safetensors").is_file()


def test_no_column_is_read_row_by_row(tmp_path, monkeypatch):
    """`datasets` takes 7 µs a value there, which is 7 s a column of a million questions."""
    read, column = [], datasets.arrow_dataset.Column
    rows = column.__iter__
    monkeypatch.setattr(column, "__iter__", lambda self: read.append(self.column_name) or rows(self))
    recipe = load_recipe("embedded", [*TINY, f"data={write(tmp_path)}", f"output_dir={tmp_path / 'run'}"])
    run_recipe(recipe)
    assert read == []


def test_no_solution_offers_one_stage_which_then_trains(tmp_path):
    data = write(tmp_path, solution="")
    assert "rationale_format=null answer_format=QCM-A" in error_of(tmp_path, data)
    overrides = ["rationale_format=null", "answer_format=QCM-A"]
    run_recipe(load_recipe("embedded", [*TINY, f"data={data}", f"output_dir={tmp_path / 'one'}", *overrides]))


def test_vision_without_a_picture_and_captions_without_a_caption(tmp_path):
    data = write(tmp_path, image=None, caption=None)
    message = error_of(tmp_path, data, "use_caption=true")
    assert "no picture in any of the 12 training problems" in message
    assert "use_caption: none of the 12 training problems has a caption" in message


def test_everything_is_named_at_once(tmp_path):
    data = write(tmp_path, question="Which colour? " * 50)
    for number in (3, 7):
        (tmp_path / f"{number}.png").write_bytes((tmp_path / f"{number}.png").read_bytes()[:40])
    message = error_of(tmp_path, data, "max_source_length=60")
    assert "q3" in message and "q7" in message  # broken pictures
    assert "rationale stage: problem q0" in message and "answer stage: problem q0" in message
    assert all(f"q{number}" in message for number in range(12))


def test_a_question_too_long_for_the_answer_stage_alone_is_found_before_the_first(tmp_path):
    data = write(tmp_path, question="Which colour? " * 9)
    lengths = [length for length in (60, 56, 52, 48, 44, 40, 36, 32)]
    found = [error for error in (_error(tmp_path, data, length) for length in lengths) if error]
    assert any("answer stage" in error and "rationale stage" not in error for error in found)


def _error(tmp_path, data, length):
    folder = tmp_path / f"run{length}"
    try:
        run_recipe(
            load_recipe("embedded", [*TINY, f"data={data}", f"output_dir={folder}", f"max_source_length={length}"])
        )
    except UserError as error:
        assert not list(folder.rglob("*.safetensors"))
        return str(error)
    return ""


@pytest.mark.parametrize(
    "override, named",
    [
        ("vision=no/such-backbone/here", "no/such-backbone/here"),
        ("model={d_modell: 8}", "model.d_modell: there is no such size .did you mean d_model"),
        ("vision={model_type: vitt}", "vision: model_type 'vitt'"),
        ("model=no/such/folder", "model: no/such/folder: there is no such folder"),
        ("tokenizer=no/such.json", "no/such.json"),
        ("batch_eval_metrics=true", "batch_eval_metrics: True has no use here"),
        ("rationales=no/such.jsonl", "no/such.jsonl"),
    ],
)
def test_what_is_not_there_is_named(tmp_path, override, named):
    import re

    assert re.search(named, error_of(tmp_path, write(tmp_path), override))


def test_features_that_are_not_there(tmp_path):
    assert "no/such/cache" in error_of(tmp_path, write(tmp_path), "features=no/such/cache", "vision=null")
    assert "fresh" in error_of(tmp_path, write(tmp_path), "features=no/such/cache")  # sizes have no features


def test_an_output_folder_that_is_a_file(tmp_path):
    (tmp_path / "run").write_text("")
    assert "is a file" in error_of(tmp_path, write(tmp_path))


def test_several_gpus_without_a_launcher(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *device: (9, 0))
    assert "accelerate launch" in error_of(tmp_path, write(tmp_path), "use_cpu=false")


def test_a_loss_that_is_not_finite_ends_the_run_with_step_and_ids(tmp_path, monkeypatch):
    import functools

    from mmcot import MMCoTForConditionalGeneration

    whole = MMCoTForConditionalGeneration.forward

    @functools.wraps(whole)
    def forward(self, *args, **kwargs):
        output = whole(self, *args, **kwargs)
        output.loss = None if output.loss is None else output.loss * float("nan")
        return output

    monkeypatch.setattr(MMCoTForConditionalGeneration, "forward", forward)
    message = error_of(tmp_path, write(tmp_path), "per_device_train_batch_size=32")
    assert "isn't finite (nan) at step 1" in message and "q0" in message and "q11" in message


def test_the_command_takes_a_data_file_in_a_recipes_place(tmp_path):
    arguments = [*TINY, "tokenizer=train", f"output_dir={tmp_path / 'run'}", "max_source_length=128"]
    assert main(["train", str(write(tmp_path)), *arguments]) == 0
    assert (tmp_path / "run" / "answer" / "model.safetensors").is_file()


@pytest.mark.parametrize("protocol", ["generated", "teacher_forced"])
def test_label_smoothing_trains_and_the_answers_protocol_is_told(tmp_path, protocol):
    overrides = [
        "label_smoothing_factor=0.1",
        "eval_split=train",
        f"answer.protocol={protocol}",
        "loss_on_padding=true",
    ]
    overrides += ["max_target_length=32"]
    recipe = load_recipe("embedded", [*TINY, f"data={write(tmp_path)}", f"output_dir={tmp_path / 'run'}", *overrides])
    assert run_recipe(recipe)["val"]["protocol"] == protocol

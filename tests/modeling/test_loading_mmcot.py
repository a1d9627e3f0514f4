"""What a repository must hold to be loaded: every weight, whole files, no NaN. One line names what is wrong."""

import os
import shutil
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_models import tiny_model, vision_config
from transformers import CLIPVisionConfig, T5Config, T5ForConditionalGeneration
from transformers.utils import logging

from mmcot import MMCoTForConditionalGeneration, MMCoTModel
from mmcot.errors_mmcot import ModelError

CLIP = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}


@pytest.fixture(scope="module")
def stage_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("stage")
    tiny_model(vision_config=vision_config()).save_pretrained(folder)
    return folder


@pytest.fixture
def stage(stage_folder, tmp_path):
    return shutil.copytree(stage_folder, tmp_path / "stage")


def refused(cls, folder, *parts, **kwargs):
    with pytest.raises(ModelError) as caught:
        cls.from_pretrained(folder, **kwargs)
    message = str(caught.value)
    assert caught.value.user_error and "\n" not in message
    for part in (str(folder), *parts):
        assert part in message
    return message


def change_weights(folder, change):
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors", {"format": "pt"})


CHANGES = {
    "a tensor is missing": (
        lambda w: w.pop("decoder.final_layer_norm.weight"),
        "lacks decoder.final_layer_norm.weight",
    ),
    "the gate is missing": (lambda w: w.pop("encoder.fusion.gate_proj.bias"), "lacks encoder.fusion.gate_proj.bias"),
    "the backbone is missing": (
        lambda w: [w.pop(name) for name in list(w) if ".vision." in name],
        "lacks encoder.vision.",
    ),
    "a tensor too many": (lambda w: w.update(extra=torch.zeros(1)), "extra"),
    "another shape": (lambda w: w.update({"shared.weight": torch.zeros(9, 32)}), "shared.weight (9, 32)"),
    "a NaN": (lambda w: w["encoder.fusion.q_proj.weight"][0].fill_(float("nan")), "encoder.fusion.q_proj.weight"),
    "infinite": (lambda w: w["shared.weight"][3, 3].fill_(float("inf")), "shared.weight"),
}


@pytest.mark.parametrize("what", CHANGES)
def test_weights_that_are_not_all_there_or_not_numbers_are_named(stage, what):
    change, named = CHANGES[what]
    change_weights(stage, change)
    refused(MMCoTForConditionalGeneration, stage, named)


@pytest.mark.parametrize("part", ["rationale.", "answer.", "vision.", "answer.encoder.fusion.", "answer.lm_head"])
def test_a_two_stage_repository_without_a_part_is_refused(two_stage_repository, tmp_path, part):
    folder = shutil.copytree(two_stage_repository, tmp_path / "repository")
    weights = load_file(folder / "model.safetensors")
    gone = [name for name in weights if name.startswith(part)] or pytest.skip("tied: not in the file")
    change_weights(folder, lambda w: [w.pop(name) for name in gone])
    refused(MMCoTModel, folder, "lacks", part)


def test_large_half_precision_weights_are_finite(tmp_path):
    """Their sum isn't: it must not be mistaken for a NaN."""
    model = tiny_model()
    with torch.no_grad():
        model.shared.weight.fill_(60000.0)
    model.half().save_pretrained(tmp_path)
    MMCoTForConditionalGeneration.from_pretrained(tmp_path, dtype=torch.float16)


def truncated(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


DAMAGE = {
    "truncated": (truncated, "damaged or incomplete: download it again"),
    "empty": (lambda path: path.write_bytes(b""), "download it again"),
    "a Git LFS pointer": (
        lambda path: path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0a\nsize 3171848\n"),
        "git lfs pull",
    ),
    "a web page": (lambda path: path.write_text("<!DOCTYPE html><html><body>404</body></html>"), "web page"),
    "noise": (lambda path: path.write_bytes(bytes(range(256)) * 9), "download it again"),
}


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
@pytest.mark.parametrize("what", DAMAGE)
def test_a_damaged_file_is_named_with_its_remedy(stage, what, name):
    damage, remedy = DAMAGE[what]
    if name == "pytorch_model.bin":
        torch.save(load_file(stage / "model.safetensors"), stage / name)
        (stage / "model.safetensors").unlink()
        remedy = remedy if what in ("a Git LFS pointer", "a web page") else "safetensors"
    damage(stage / name)
    refused(MMCoTForConditionalGeneration, stage, name, remedy)


@pytest.mark.parametrize(
    "index", ["", "[]", "{}", '{"weight_map": 3}', '{"weight_map": {"shared.weight": "gone.safetensors"}}']
)
def test_a_damaged_index_or_a_missing_shard_is_named(stage, index):
    (stage / "model.safetensors").unlink()
    (stage / "model.safetensors.index.json").write_text(index)
    refused(MMCoTForConditionalGeneration, stage, "gone.safetensors" if "gone" in index else "index.json")


def test_shards_are_checked_one_by_one(tmp_path):
    tiny_model().save_pretrained(tmp_path, max_shard_size="20KB")
    shards = sorted(tmp_path.glob("model-*.safetensors"))
    assert len(shards) > 2
    MMCoTForConditionalGeneration.from_pretrained(tmp_path)
    truncated(shards[1])
    refused(MMCoTForConditionalGeneration, tmp_path, shards[1].name)


FIELDS = ['{"model_type": "mmcot", "d_model": "many"}', '{"model_type": "mmcot", "stage": "third"}']


@pytest.mark.parametrize("content", ["", "{", "[]", "[1]", "3", "null", *FIELDS])
def test_a_broken_configuration_is_one_line(stage, content):
    (stage / "config.json").write_text(content)
    refused(MMCoTForConditionalGeneration, stage)


@pytest.mark.parametrize("what", ["model.safetensors", "config.json", "the folder"])
def test_what_is_not_there_is_named(stage, what):
    if what == "the folder":
        shutil.rmtree(stage)
    else:
        (stage / what).unlink()
    refused(MMCoTForConditionalGeneration, stage)


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"<!doctype html>"])
@pytest.mark.parametrize("name", ["processor_config.json", "tokenizer_config.json"])
def test_broken_settings_beside_the_model_are_named(two_stage_repository, tmp_path, name, content):
    folder = shutil.copytree(two_stage_repository, tmp_path / "repository")
    (folder / name).write_bytes(content)
    refused(MMCoTModel, folder, name, "download it again")


def test_nothing_but_the_error_is_said(stage, capfd):
    """transformers would print a table of what is missing."""
    change_weights(stage, CHANGES["the backbone is missing"][0])
    capfd.readouterr()
    verbosity = logging.get_verbosity()
    refused(MMCoTForConditionalGeneration, stage)
    assert "LOAD REPORT" not in capfd.readouterr().err
    assert logging.get_verbosity() == verbosity


def test_a_part_that_only_one_side_has_is_the_caller_s_wish(stage, tmp_path):
    T5ForConditionalGeneration(
        T5Config(vocab_size=64, d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4)
    ).save_pretrained(tmp_path / "t5")
    MMCoTForConditionalGeneration.from_pretrained(tmp_path / "t5").save_pretrained(tmp_path / "text")
    fused = MMCoTForConditionalGeneration.from_pretrained(tmp_path / "text", vision_config=vision_config())
    assert fused.encoder.fusion is not None and fused.encoder.vision is not None
    without = MMCoTForConditionalGeneration.from_pretrained(stage, vision_config=None, image_feature_size=16)
    assert without.encoder.vision is None and without.encoder.fusion.image_size == 16


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        (
            {"vision_config": vision_config().to_dict() | {"hidden_size": 24}},
            "through vit, width 16, and is asked to through vit, width 24",
        ),
        (
            {"vision_config": CLIPVisionConfig(**CLIP, image_size=8, patch_size=4)},
            "through vit, width 16, and is asked to through clip_vision_model, width 16",
        ),
        ({"vision_config": None, "image_feature_size": 24}, "asked to through cached features, width 24"),
        ({"fusion_gate": "tanh"}, "asked to through vit, width 16, a tanh gate"),
    ],
)
def test_another_backbone_than_the_checkpoints_says_what_to_do(stage, asked, said):
    message = refused(
        MMCoTForConditionalGeneration, stage, said, "vision=… of its recipe", "google/flan-t5-base", **asked
    )
    assert "shapes" not in message and "another copy" not in message


def test_other_shapes_may_be_asked_for(stage):
    change_weights(stage, lambda w: w.update({"shared.weight": torch.zeros(9, 32)}))
    MMCoTForConditionalGeneration.from_pretrained(stage, ignore_mismatched_sizes=True)


def test_the_two_kinds_of_repository_are_told_apart(two_stage_repository, stage):
    refused(MMCoTModel, stage, "is a mmcot model")
    refused(MMCoTForConditionalGeneration, two_stage_repository, "holds two stages: give one of them")


def test_transformers_4_is_refused_in_one_line():
    code = "import transformers; transformers.__version__ = '4.57.1'; from mmcot import MMCoTModel"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=dict(os.environ))
    assert done.stderr.splitlines()[-1].endswith(
        "mmcot needs transformers >= 5.15, this is 4.57.1: pip install -U transformers"
    )

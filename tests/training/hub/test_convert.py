"""The original's checkpoints as repositories of ours."""

import json
import shutil
import string

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from mmcot import MMCoTForConditionalGeneration, MMCoTModel, MMCoTProcessor
from mmcot.training.cli import main


@pytest.fixture(scope="module")
def golden(golden_dir):
    return {
        "rationale": golden_dir / "golden_t5relu_detr",
        "answer": golden_dir / "golden_old_flangated_detr",
    }


@pytest.fixture
def small_tokenizer():
    """Characters as tokens, within the 128 embeddings of the golden checkpoints."""
    pieces = ["<pad>", "</s>", "<unk>", "▁", *(character for character in string.printable if not character.isspace())]
    tokenizer = Tokenizer(models.Unigram([(piece, -1.0) for piece in pieces], unk_id=2))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(split=True)
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    special = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)


def assert_golden(model, folder, **kwargs):
    inputs, outputs = np.load(folder / "inputs.npz"), np.load(folder / "outputs.npz")
    with torch.no_grad():
        result = model(
            input_ids=torch.from_numpy(inputs["input_ids"]),
            attention_mask=torch.from_numpy(inputs["attention_mask"]),
            image_features=torch.from_numpy(inputs["image_ids"]).float(),
            labels=torch.from_numpy(inputs["labels_neg100"]),
            **kwargs,
        )
    assert np.abs(result.logits.numpy() - outputs["logits_neg100"]).max() < 1e-4
    assert abs(result.loss.item() - float(outputs["loss_neg100"])) < 1e-5


def test_two_checkpoints_become_one_repository(golden, tmp_path, small_tokenizer):
    """Both key layouts, a tied and an untied head; also after saving again."""
    tokenizer = tmp_path / "tokenizer"
    small_tokenizer.save_pretrained(tokenizer)
    arguments = [str(golden["rationale"]), str(tmp_path / "out"), "--answer", str(golden["answer"])]
    assert main(["convert", *arguments, "--tokenizer", str(tokenizer)]) == 0
    MMCoTModel.from_pretrained(tmp_path / "out").save_pretrained(tmp_path / "again")
    for folder in ("out", "again"):
        model = MMCoTModel.from_pretrained(tmp_path / folder)
        for stage, checkpoint in golden.items():
            assert_golden(model, checkpoint, stage=stage)
    assert "cc-by-nc-sa-4.0" in (tmp_path / "out" / "README.md").read_text()
    assert (tmp_path / "out" / "processor_config.json").is_file()


def test_one_checkpoint_becomes_one_stage(golden, tmp_path, tiny_tokenizer):
    tokenizer = tmp_path / "tokenizer"
    tiny_tokenizer.save_pretrained(tokenizer)
    arguments = [str(golden["answer"]), str(tmp_path / "out"), "--stage", "answer", "--tokenizer", str(tokenizer)]
    assert main(["convert", *arguments]) == 0
    model = MMCoTForConditionalGeneration.from_pretrained(tmp_path / "out")
    assert (model.config.stage, model.config.prompt_format) == ("answer", "QCMG-A")
    assert_golden(model, golden["answer"])


@pytest.mark.parametrize("stage", ["rationale", "answer"])
def test_networks_convert_without_a_tokenizer(golden, tmp_path, stage, capsys):
    assert main(["convert", str(golden[stage]), str(tmp_path / "out")]) == 0
    assert "no tokenizer" in capsys.readouterr().out
    assert_golden(MMCoTForConditionalGeneration.from_pretrained(tmp_path / "out"), golden[stage])


def test_what_cannot_be_converted_is_said_in_one_line(golden, tmp_path, capsys):
    plain = shutil.copytree(golden["rationale"], tmp_path / "plain")
    from safetensors.torch import load_file, save_file

    weights = load_file(plain / "model.safetensors")
    kept = {k: v for k, v in weights.items() if not any(n in k for n in ("image_dense", "mha_layer", "gate_dense"))}
    save_file(kept, plain / "model.safetensors", {"format": "pt"})
    config = json.loads((plain / "config.json").read_text())
    (plain / "config.json").write_text(json.dumps({**config, "architectures": ["T5ForConditionalGeneration"]}))
    out = str(tmp_path / "out")
    assert main(["convert", str(plain), out, "--stage", "rationale"]) == 2
    assert main(["convert", str(golden["rationale"]), out, "--tokenizer", str(plain)]) == 2
    assert main(["convert", str(tmp_path / "nowhere"), out]) == 2
    assert main(["convert", str(golden["rationale"])]) == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("mmcot convert: error:")]
    for message, error in zip(("without a fusion", "no tokenizer", "no config.json", "give OUT"), errors, strict=True):
        assert message in error
    assert not (tmp_path / "out").exists()


def test_what_captions_and_formats_the_weights_want_is_kept(golden, tmp_path, small_tokenizer):
    small_tokenizer.save_pretrained(tmp_path / "tokenizer")
    arguments = [str(golden["rationale"]), str(tmp_path / "out"), "--answer", str(golden["answer"]), "--use-caption"]
    arguments += ["--rationale-format", "QCM-LE", "--tokenizer", str(tmp_path / "tokenizer")]
    assert main(["convert", *arguments]) == 0
    config = MMCoTModel.from_pretrained(tmp_path / "out").config
    stages = (config.rationale_config, config.answer_config)
    assert [(own.stage, own.prompt_format, own.use_caption) for own in stages] == [
        ("rationale", "QCM-LE", True),
        ("answer", "QCMG-A", True),
    ]
    processor = MMCoTProcessor.from_pretrained(tmp_path / "out")
    assert processor.use_caption and processor.rationale_format == "QCM-LE"
    assert "Captions in the context | yes" in (tmp_path / "out" / "README.md").read_text()

"""`mmcot caption` with tiny models of each kind: the original's layout, nothing captioned twice."""

import copy
import json

import pytest
import torch
from test_local_model import SIZES, save_model

from mmcot.training.cli import main
from mmcot.training.common import UserError
from mmcot.training.data.embedded.generate import write_scienceqa
from mmcot.training.data.problems import load_problems
from mmcot.training.features.image_keys import image_key
from mmcot.training.reasoning import captions
from mmcot.training.reasoning.captions import picture_keys, write_captions


def save_captioner(kind, folder, tokenizer):
    from transformers import (
        BlipConfig,
        BlipForConditionalGeneration,
        BlipImageProcessor,
        BlipProcessor,
        GPT2Config,
        GPT2LMHeadModel,
        VisionEncoderDecoderModel,
        ViTConfig,
        ViTImageProcessor,
        ViTModel,
    )

    torch.manual_seed(0)
    size = {"height": 32, "width": 32}
    words = {"vocab_size": len(tokenizer), "bos_token_id": 2, "eos_token_id": 1, "pad_token_id": 0}
    if kind == "blip":
        text = {**SIZES, **words, "encoder_hidden_size": 32, "sep_token_id": 1, "max_position_embeddings": 64}
        config = BlipConfig(text_config=text, vision_config={**SIZES, "image_size": 32, "patch_size": 16})
        BlipForConditionalGeneration(config).save_pretrained(folder)
        BlipProcessor(BlipImageProcessor(size=size), tokenizer).save_pretrained(folder)
    else:
        vision = ViTModel(ViTConfig(**SIZES, image_size=32, patch_size=16), add_pooling_layer=False)
        config = GPT2Config(**words, n_embd=32, n_layer=1, n_head=2, is_decoder=True, add_cross_attention=True)
        model = VisionEncoderDecoderModel(encoder=vision, decoder=GPT2LMHeadModel(config))
        model.config.decoder_start_token_id = model.generation_config.decoder_start_token_id = 2
        model.config.pad_token_id = model.generation_config.pad_token_id = 0
        model.save_pretrained(folder)
        ViTImageProcessor(size=size).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def blip(tiny_tokenizer, tmp_path_factory):
    return save_captioner("blip", tmp_path_factory.mktemp("blip") / "model", copy.deepcopy(tiny_tokenizer))


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """An original folder without captions: pictures of questions, of choices, and none."""
    folder = write_scienceqa(tmp_path_factory.mktemp("data") / "set", {"train": 4, "val": 2, "test": 6}, seed=1,
                             skills=["flower", "cloth", "tense"])  # fmt: skip
    (folder / "captions.json").unlink()
    return folder


def test_captions_are_read_with_the_folder(blip, source, capsys):
    file = source / "captions.json"
    command = ["caption", str(source), "--model", str(blip), "--output", str(file), "--max-new-tokens", "5"]
    assert main([*command, "--device", "cpu", "--batch-size", "3", "--quiet"]) == 0
    content = json.loads(file.read_text())
    problems = load_problems(source)
    seeing = [id_ for id_, own in zip(problems["id"], problems["has_image"], strict=True) if own]
    assert list(content["captions"]) == seeing and 0 < len(seeing) < len(problems)
    assert {key: content[key] for key in content if key != "captions"} == {
        "model": str(blip),
        "prompt": None,
        "max_length": 5,
        "num_beams": 1,
    }
    assert dict(zip(problems["id"], problems["caption"], strict=True)) == {
        id_: content["captions"].get(id_) for id_ in problems["id"]
    }
    assert not list(source.glob("*.partial*"))
    assert main(command) == 2 and "captions.json is there already" in capsys.readouterr().err
    file.unlink()


def test_a_caption_depends_on_its_picture_alone(blip, source, tmp_path):
    problems = load_problems(source)
    options = {"max_new_tokens": 6, "device": "cpu"}
    one = write_captions(problems, blip, tmp_path / "1.json", batch_size=1, **options)["captions"]
    assert write_captions(problems, blip, tmp_path / "8.json", batch_size=8, **options)["captions"] == one


@pytest.mark.parametrize("kind", ["encoder-decoder", "chat"])
def test_other_kinds_of_models(kind, source, tiny_tokenizer, tmp_path):
    tokenizer = copy.deepcopy(tiny_tokenizer)
    if kind == "chat":
        model = save_model("image", tmp_path / "model", tokenizer, chat=True)
    else:
        model = save_captioner(kind, tmp_path / "model", tokenizer)
    problems = load_problems(source, "test")
    content = write_captions(problems, model, tmp_path / "c.json", max_new_tokens=4, device="cpu")
    assert len(content["captions"]) == 2 and all(isinstance(text, str) for text in content["captions"].values())
    assert content["prompt"] == (captions.PROMPT if kind == "chat" else None)
    assert not any(captions.PROMPT in text for text in content["captions"].values())
    wrong = {"num_beams": 2} if kind == "chat" else {"prompt": "a picture of"}
    with pytest.raises(UserError, match="leave --"):
        write_captions(problems, model, tmp_path / "d.json", device="cpu", **wrong)


def test_equal_pictures_are_captioned_once_and_nothing_twice(source, tmp_path, monkeypatch):
    """Killed in the middle, the same call asks for what is missing."""
    from datasets import concatenate_datasets

    problems = load_problems(source, "test")
    twice = problems.map(lambda record: {"id": record["id"] + "-again"})
    problems = concatenate_datasets([problems, twice])
    asked, budget = [], [1]

    def scripted(name, prompt, *options):
        def caption(images):
            if len(asked) >= budget[0]:
                raise KeyboardInterrupt
            asked.extend(images)
            return [f"caption {len(asked)}"] * len(images)

        caption.prompt = prompt
        return caption

    monkeypatch.setattr(captions, "load_captioner", scripted)
    with pytest.raises(KeyboardInterrupt):
        write_captions(problems, "scripted", tmp_path / "c.json", batch_size=1)
    assert not (tmp_path / "c.json").exists()
    budget[0] = 99
    with pytest.raises(UserError, match="begun with another prompt"):
        write_captions(problems, "scripted", tmp_path / "c.json", batch_size=1, prompt="a")
    content = write_captions(problems, "scripted", tmp_path / "c.json", batch_size=1)
    assert len(asked) == 2 and sorted(set(content["captions"].values())) == ["caption 1", "caption 2"]
    for id_ in twice["id"]:
        assert content["captions"].get(id_) == content["captions"].get(id_.removesuffix("-again"))


def test_what_the_user_has_to_mend(source, two_stage_repository, tmp_path, capsys):
    command = ["caption", str(source), "--output", str(tmp_path / "c.json"), "--model"]
    assert main([*command, str(tmp_path)]) == 2
    assert "can't load a model from here" in capsys.readouterr().err
    assert main([*command, "x", "--num-beams", "0"]) == 2
    assert "num_beams is a whole number of at least 1" in capsys.readouterr().err
    assert main(["caption", "embedded:n=3,skills=tense", *command[2:], "x"]) == 2
    assert "no question has a picture" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_the_questions_first_picture_is_captioned():
    first, second = b"first", b"second"
    problems = {"id": ["a", "b", "c"], "images": [[first, second], [second], []], "has_image": [True, False, True]}
    assert picture_keys(problems) == {"a": (0, image_key(first))}  # b's is of its choices alone

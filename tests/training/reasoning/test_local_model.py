"""Models of transformers' own, of each kind: a completion doesn't depend on its neighbours, pictures go in."""

import pytest
import torch
from PIL import Image
from transformers import (
    BertConfig,
    BertModel,
    CLIPImageProcessor,
    CLIPVisionConfig,
    LlamaConfig,
    LlamaForCausalLM,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    T5Config,
    T5ForConditionalGeneration,
)

from mmcot.training.cli import main
from mmcot.training.common import UserError
from mmcot.training.reasoning import METHODS
from mmcot.training.reasoning.calls import Request
from mmcot.training.reasoning.local_model import load_model

SIZES = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
CHAT = (
    "{% for message in messages %}<user> {% if message.content is string %}{{ message.content }}{% else %}"
    "{% for part in message.content %}{% if part.type == 'image' %}<image> {% else %}{{ part.text }}{% endif %}"
    "{% endfor %}{% endif %}{% endfor %}{% if add_generation_prompt %} <assistant>{% endif %}"
)


def save_model(kind, folder, tokenizer, chat=False):
    torch.manual_seed(0)
    if chat:
        tokenizer.chat_template = CHAT
    text = LlamaConfig(vocab_size=len(tokenizer) + 8, num_key_value_heads=2, eos_token_id=1, pad_token_id=0, **SIZES)
    if kind == "causal":
        LlamaForCausalLM(text).save_pretrained(folder)
    elif kind == "seq2seq":
        config = T5Config(vocab_size=len(tokenizer) + 8, d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4)
        config.decoder_start_token_id = 0
        T5ForConditionalGeneration(config).save_pretrained(folder)
    else:
        tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"]})
        vision = CLIPVisionConfig(image_size=32, patch_size=16, projection_dim=32, **SIZES)
        image_id = tokenizer.convert_tokens_to_ids("<image>")
        config = LlavaConfig(vision_config=vision, text_config=text, image_token_index=image_id)
        LlavaForConditionalGeneration(config).save_pretrained(folder)
        pictures = CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
        LlavaProcessor(
            pictures, tokenizer, patch_size=16, vision_feature_select_strategy="default", num_additional_image_tokens=1
        ).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def tokenizer(tiny_tokenizer):
    import copy

    own = copy.deepcopy(tiny_tokenizer)
    own._set_processor_class(None)  # another test may have saved it with a processor
    return own


PROMPTS = ["Which is red? Answer:", "In the picture, the petals are green. So?", "Why?", "Which is red? " * 20]


@pytest.mark.parametrize("chat", [False, True])
@pytest.mark.parametrize("kind", ["causal", "seq2seq"])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_batch_is_one_by_one(tmp_path, tokenizer, kind, chat, temperature):
    model = load_model(save_model(kind, tmp_path, tokenizer, chat), device="cpu")
    requests = [Request(prompt, max_new_tokens=6, temperature=temperature, seed=i) for i, prompt in enumerate(PROMPTS)]
    together = dict(model.complete(requests))
    alone = [dict(model.complete([request]))[0] for request in requests]
    assert [together[i].text for i in range(4)] == [completion.text for completion in alone]
    assert [together[i].prompt_tokens for i in range(4)] == [completion.prompt_tokens for completion in alone]
    assert all(0 <= completion.completion_tokens <= 6 for completion in alone)


@pytest.mark.parametrize("kind", ["causal", "seq2seq"])
def test_letters_are_compared(tmp_path, tokenizer, kind):
    model = load_model(save_model(kind, tmp_path, tokenizer), device="cpu")
    requests = [Request(f"{prompt} The answer is (", letters=("A", "B", "C")) for prompt in PROMPTS]
    together = dict(model.complete(requests))
    for position, request in enumerate(requests):
        alone = dict(model.complete([request]))[0].log_probs
        assert set(alone) == {"A", "B", "C"} and len(set(alone.values())) == 3
        assert together[position].log_probs == pytest.approx(alone, abs=1e-4)


@pytest.mark.parametrize("chat", [False, True])
def test_pictures_are_seen_all_of_them(tmp_path, tokenizer, chat):
    model = load_model(save_model("image", tmp_path, tokenizer, chat), device="cpu")
    assert model.takes_images
    red, blue = (Image.new("RGB", (40, 32), colour) for colour in ("red", "blue"))

    def log_probs(*images):
        return dict(model.complete([Request("Which? (", images=images, letters=("A", "B"))]))[0].log_probs

    assert log_probs(red) != log_probs(blue)
    assert log_probs(red, blue) != log_probs(red, red)
    assert log_probs(red) == log_probs(red)
    mixed = dict(
        model.complete([Request("Which?", images=(red,)), Request("What?"), Request("Which?", images=(blue,))])
    )
    assert len(mixed) == 3


def test_what_is_no_language_model_is_said(tmp_path, two_stage_repository):
    with pytest.raises(UserError, match="mmcot predict"):
        load_model(two_stage_repository)
    with pytest.raises(UserError, match="can't load a model"):
        load_model(tmp_path / "nothing")
    CLIPVisionConfig(**SIZES).save_pretrained(tmp_path)
    with pytest.raises(UserError, match="clip_vision_model"):
        load_model(tmp_path)


def save_embedder(folder, tokenizer):
    """A sentence-transformers model of random weights."""
    sentence_transformers = pytest.importorskip("sentence_transformers")
    from sentence_transformers import models

    torch.manual_seed(0)
    sizes = {**SIZES, "num_hidden_layers": 1}
    BertModel(BertConfig(vocab_size=len(tokenizer) + 8, **sizes)).save_pretrained(folder / "bert")
    tokenizer.save_pretrained(folder / "bert")
    network = models.Transformer(str(folder / "bert"))
    pooling = models.Pooling(SIZES["hidden_size"])
    sentence_transformers.SentenceTransformer(modules=[network, pooling]).save(str(folder / "embedder"))
    return folder / "embedder"


@pytest.mark.parametrize("method", METHODS)
def test_from_the_command_line(tmp_path, tokenizer, method, capsys, monkeypatch):
    folder = save_model("causal", tmp_path / "model", tokenizer)
    output = tmp_path / "p.jsonl"
    source = "embedded:n=24,val=4,test=4"
    arguments = [source, "--model", str(folder), "--output", str(output), "--max-new-tokens", "4"]
    if method in ("auto-cot", "promptpg"):
        assert main(["reason", method, *arguments, "--device", "cpu", "--text-only"]) == 2
        assert "--embedding-model" in capsys.readouterr().err
        arguments[3:3] = ["--embedding-model", str(save_embedder(tmp_path, tokenizer))]
        # random words name no option
        monkeypatch.setattr("mmcot.training.reasoning.zero_shot_cot.read_answer", lambda *args, **options: 0)
    assert main(["reason", method, *arguments, "--device", "cpu", "--text-only"]) == 0
    assert "4 predictions" in capsys.readouterr().out
    scored = ["--predictions", str(output), "--problems", source, "--split", "test"]
    assert main(["evaluate", *scored]) == 0
    assert "protocol: generated" in capsys.readouterr().out
    assert main(["reason", method, *arguments[:-2], "--samples", "0"]) == 2
    assert "--samples 0" in capsys.readouterr().err


def test_a_sample_does_not_depend_on_the_questions_beside_it(tmp_path, tokenizer):
    """The samples of all questions with one number have one seed."""
    model = load_model(save_model("causal", tmp_path, tokenizer), device="cpu")
    requests = [Request(prompt, max_new_tokens=6, temperature=1.0, seed=3) for prompt in PROMPTS]
    together = dict(model.complete(requests))
    assert [together[i].text for i in range(4)] == [dict(model.complete([one]))[0].text for one in requests]

"""One stage's network: what a user of T5 relies on holds with images too."""

import copy
import math

import pytest
import torch
from packaging import version
from tiny_models import (
    IMAGE,
    T5,
    VOCAB,
    WIDTH,
    image_inputs,
    labels,
    text_inputs,
    tiny_config,
    tiny_model,
    vision_config,
)
from torch.nn import functional as F
from transformers import AutoModelForSeq2SeqLM, T5Config, T5ForConditionalGeneration

from mmcot import MMCoTForConditionalGeneration

INPUTS = text_inputs() | image_inputs()


def row(inputs: dict, i: int) -> dict:
    """One row alone, without its padding."""
    text, image = int(inputs["attention_mask"][i].sum()), int(inputs["image_attention_mask"][i].sum())
    alone = {name: inputs[name][i : i + 1, :text] for name in ("input_ids", "attention_mask")}
    if image:
        alone["image_features"] = inputs["image_features"][i : i + 1, :image]
    return alone


@pytest.fixture
def model():
    return tiny_model()


@torch.no_grad()
def logits(model, **inputs) -> torch.Tensor:
    decoder_input_ids = torch.full((inputs["input_ids"].shape[0], 4), 7)
    return model(decoder_input_ids=decoder_input_ids, **inputs).logits


# --- images ----------------------------------------------------------------------------------------------------------


def test_images_change_the_output(model):
    other = INPUTS | {"image_features": -INPUTS["image_features"]}
    before, after = logits(model, **INPUTS), logits(model, **other)
    assert not torch.allclose(before[:2], after[:2], atol=1e-3)
    torch.testing.assert_close(before[2], after[2])  # this row's patches are masked out


def test_pixels_equal_their_features():
    model = tiny_model(vision_config=vision_config())
    text = text_inputs()
    pixels = torch.randn(3, 2, 3, IMAGE, IMAGE)
    present = torch.tensor([[True, True], [False, True], [False, False]])
    images = model.get_image_features(pixels, image_attention_mask=present)
    features, mask = images.pooler_output, images.image_attention_mask
    from_pixels = logits(model, **text, pixel_values=pixels, image_attention_mask=present)
    torch.testing.assert_close(from_pixels, logits(model, **text, image_features=features, image_attention_mask=mask))
    alone = {name: value[1:2] for name, value in text.items()}
    torch.testing.assert_close(from_pixels[1:2], logits(model, **alone, pixel_values=pixels[1:2, 1]))


def test_no_image_is_zeros(model):
    text = text_inputs()
    torch.testing.assert_close(logits(model, **text), logits(model, **text, image_features=torch.zeros(3, 9, WIDTH)))


def test_batch_equals_one_by_one(model):
    together = logits(model, **INPUTS)
    for i in range(3):
        torch.testing.assert_close(together[i : i + 1], logits(model, **row(INPUTS, i)), atol=1e-5, rtol=1e-4)


def test_left_and_right_padding_agree(model):
    shifts = (INPUTS["attention_mask"] == 0).sum(1)
    left = copy.copy(INPUTS)
    for name in ("input_ids", "attention_mask"):
        left[name] = torch.stack([ids.roll(int(n)) for ids, n in zip(INPUTS[name], shifts, strict=True)])
    assert left["attention_mask"][2, 0] == 0
    torch.testing.assert_close(logits(model, **left), logits(model, **INPUTS), atol=1e-5, rtol=1e-4)


def test_attention_and_gate_are_given_on_request(model):
    output = model(**INPUTS, labels=labels(), output_image_attention=True)
    assert output.image_attentions.shape == (3, 1, 7, 5)
    assert output.image_gate.shape == (3, 7, 32)
    assert output.image_hidden_states is INPUTS["image_features"]
    assert ((output.image_gate > 0) & (output.image_gate < 1)).all()
    torch.testing.assert_close(output.image_attentions.sum(-1), torch.ones(3, 1, 7))
    assert not output.image_attentions[1, ..., 2:].any()
    plain = model(**INPUTS, labels=labels())
    assert plain.image_attentions is None and plain.image_gate is None
    torch.testing.assert_close(plain.loss, output.loss)


def test_text_only_network_is_t5():
    torch.manual_seed(0)
    t5 = T5ForConditionalGeneration(T5Config(**T5, decoder_start_token_id=0)).eval()
    model = tiny_model(image_feature_size=None)
    model.load_state_dict(t5.state_dict())
    torch.testing.assert_close(logits(model, **text_inputs()), logits(t5, **text_inputs()))
    with pytest.raises(ValueError, match="takes no images"):
        logits(model, **INPUTS)


# --- loss and training -----------------------------------------------------------------------------------------------


def test_loss_on_padding_counts_the_padding():
    model = tiny_model(loss_on_padding=True)
    target = labels()
    output = model(**INPUTS, labels=target)
    padded = target.masked_fill(target == -100, 0)
    torch.testing.assert_close(output.loss, F.cross_entropy(output.logits.flatten(0, 1), padded.flatten()))
    assert (target == -100).any() and not model.accepts_loss_kwargs
    model.config.loss_on_padding = False
    output = model(**INPUTS, labels=target)
    torch.testing.assert_close(output.loss, F.cross_entropy(output.logits.flatten(0, 1), target.flatten()))


def test_accumulated_gradients_weigh_every_token_alike(model):
    target = labels()
    count = (target != -100).sum()
    whole = model(**INPUTS, labels=target).loss
    parts = sum(
        model(**{k: v[i : i + 1] for k, v in INPUTS.items()}, labels=target[i : i + 1], num_items_in_batch=count).loss
        for i in range(3)
    )
    torch.testing.assert_close(parts, whole)


def gradients(model) -> dict[str, torch.Tensor]:
    model.zero_grad()
    model(**INPUTS, labels=labels()).loss.backward()
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters()}


def test_every_parameter_learns(model):
    for name, gradient in gradients(model.train()).items():
        assert gradient.abs().sum() > 0, name


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_gradient_checkpointing_changes_no_gradient(use_reentrant):
    model = tiny_model(dropout_rate=0.0).train()
    expected = gradients(model)
    model.gradient_checkpointing_enable({"use_reentrant": use_reentrant})
    for name, gradient in gradients(model).items():
        torch.testing.assert_close(gradient, expected[name], msg=name)


def test_lora_on_t5_projections(model):
    peft = pytest.importorskip("peft")
    before = logits(model, **INPUTS)
    adapted = peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules=["q", "v"], task_type="SEQ_2_SEQ_LM"))
    torch.testing.assert_close(logits(adapted, **INPUTS), before)
    trainable = [name for name, parameter in adapted.named_parameters() if parameter.requires_grad]
    assert trainable and all("lora" in name and (".q." in name or ".v." in name) for name in trainable)
    optimizer = torch.optim.SGD([p for p in adapted.parameters() if p.requires_grad], lr=1.0)
    for _ in range(2):  # lora_A learns only once lora_B isn't zero
        adapted(**INPUTS, labels=labels()).loss.backward()
        optimizer.step()
    tuned = logits(adapted, **INPUTS)
    assert not torch.allclose(tuned, before)
    assert adapted.generate(**INPUTS, max_new_tokens=3).shape[0] == 3
    torch.testing.assert_close(logits(adapted.merge_and_unload(), **INPUTS), tuned, atol=1e-5, rtol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_a_compiled_forward_has_no_graph_break(backend):
    model = tiny_model(num_layers=1, vision_config=vision_config() if backend == "eager" else None)
    inputs = text_inputs() | {"labels": labels()}
    if backend == "eager":  # several images, some absent
        inputs["pixel_values"] = torch.randn(3, 2, 3, IMAGE, IMAGE)
        inputs["image_attention_mask"] = torch.tensor([[True, True], [False, True], [False, False]])
    else:
        inputs |= image_inputs()
    torch._dynamo.reset()
    # the decoder of transformers copies its configuration in forward, which PyTorch 2.8 can't trace and 2.15 can
    whole = version.parse(torch.__version__) >= version.parse("2.15")
    compiled = torch.compile(model, fullgraph=whole, backend=backend)
    torch.testing.assert_close(compiled(**inputs).logits, model(**inputs).logits)


def test_bf16_stays_near(model):
    exact = logits(model, **INPUTS).softmax(-1)
    rough = logits(copy.deepcopy(model).bfloat16(), **INPUTS).float().softmax(-1)
    torch.testing.assert_close(rough, exact, atol=0.02, rtol=0.1)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = logits(model, **INPUTS).float().softmax(-1)
    torch.testing.assert_close(mixed, exact, atol=0.02, rtol=0.1)


# --- generation ------------------------------------------------------------------------------------------------------

GENERATION = {
    "greedy": {"do_sample": False},
    "without a cache": {"use_cache": False},
    "beams": {"num_beams": 3},
    "several a question": {"num_beams": 3, "num_return_sequences": 2},
    "sampling": {"do_sample": True, "num_return_sequences": 2},
    "static cache": {"cache_implementation": "static", "disable_compile": True},
    "prompt lookup": {"prompt_lookup_num_tokens": 2},
}


def generate(model, seed=0, **kwargs) -> torch.Tensor:
    torch.manual_seed(seed)
    return model.generate(**kwargs, max_new_tokens=6, min_new_tokens=6)


@pytest.mark.parametrize("how", GENERATION)
def test_images_reach_every_way_of_generating(how):
    model = tiny_model(initializer_factor=3.0)  # decided enough for its words to depend on the image
    inputs = {name: value[:1] for name, value in INPUTS.items()} if how == "prompt lookup" else INPUTS
    options = GENERATION[how]
    ids = generate(model, **inputs, **options)
    other = generate(model, **inputs | {"image_features": 10 * inputs["image_features"].flip(-1)}, **options)
    repeats = options.get("num_return_sequences", 1)
    assert ids.shape == (len(inputs["input_ids"]) * repeats, 7)
    assert not torch.equal(ids[:repeats], other[:repeats])
    if how != "prompt lookup":
        assert torch.equal(ids[2 * repeats :], other[2 * repeats :])  # its patches are masked out


@pytest.mark.parametrize("how", ["without a cache", "static cache", "prompt lookup"])
def test_greedy_is_the_same_however_it_is_computed(model, how):
    inputs = {name: value[:1] for name, value in INPUTS.items()}
    assert torch.equal(generate(model, **inputs, **GENERATION[how]), generate(model, **inputs))


def test_a_twin_as_assistant_changes_nothing(model):
    inputs = {name: value[:1] for name, value in INPUTS.items()}
    assert torch.equal(generate(model, **inputs, assistant_model=copy.deepcopy(model)), generate(model, **inputs))


@pytest.mark.parametrize("num_beams", [1, 3])
def test_generation_in_a_batch_equals_one_by_one(model, num_beams):
    together = generate(model, **INPUTS, num_beams=num_beams)
    for i in range(3):
        assert torch.equal(together[i : i + 1], generate(model, **row(INPUTS, i), num_beams=num_beams))


@pytest.mark.parametrize("num_beams", [1, 3])
def test_encoder_outputs_may_be_given(model, num_beams):
    with torch.no_grad():
        encoded = model.get_encoder()(**INPUTS)
    mask = INPUTS["attention_mask"]
    target = labels()
    by_hand = model(encoder_outputs=encoded, attention_mask=mask, labels=target)
    torch.testing.assert_close(by_hand.loss, model(**INPUTS, labels=target).loss)
    as_tuple = model(encoder_outputs=(encoded.last_hidden_state,), attention_mask=mask, labels=target)
    torch.testing.assert_close(as_tuple.loss, by_hand.loss)
    expected = generate(model, **INPUTS, num_beams=num_beams)
    assert torch.equal(generate(model, encoder_outputs=encoded, attention_mask=mask, num_beams=num_beams), expected)


def test_pixels_generate_what_their_features_do():
    model = tiny_model(vision_config=vision_config())
    pixels = torch.randn(3, 3, IMAGE, IMAGE)
    features = model.get_image_features(pixels).pooler_output
    ids = generate(model, **text_inputs(), pixel_values=pixels, num_beams=2)
    assert torch.equal(ids, generate(model, **text_inputs(), image_features=features, num_beams=2))


# --- weights ---------------------------------------------------------------------------------------------------------


def expected_std(name: str) -> float | None:
    """T5's initialisation (Raffel et al.; mesh TensorFlow's), and PyTorch's for the fusion. None: constant."""
    d, d_kv, d_ff, heads = T5["d_model"], T5["d_kv"], T5["d_ff"], T5["num_heads"]
    module, kind = name.split(".")[-2:]
    if "fusion" in name:
        fan_in = {"image_proj": WIDTH, "gate_proj": 2 * d}.get(module, d)
        if module in ("q_proj", "k_proj", "v_proj"):
            return None if kind == "bias" else math.sqrt(6 / (4 * d)) / math.sqrt(3)
        return None if name.endswith("out_proj.bias") else fan_in**-0.5 / math.sqrt(3)
    if "layer_norm" in module:
        return None
    stds = {"q": (d * d_kv) ** -0.5, "k": d**-0.5, "v": d**-0.5, "o": (heads * d_kv) ** -0.5}
    stds |= {"wi": d**-0.5, "wo": d_ff**-0.5, "relative_attention_bias": d**-0.5}
    return stds.get(module, 1.0)


def check_fresh(name: str, weight: torch.Tensor):
    std = expected_std(name)
    if std is None:
        assert weight.unique().numel() == 1, name
    else:  # the standard error of an estimated std is std / sqrt(2 n)
        assert abs(weight.std().item() / std - 1) < 6 / math.sqrt(2 * weight.numel()), name


def test_fresh_weights_have_t5_s_spread():
    model = tiny_model()
    for name, parameter in model.named_parameters():
        check_fresh(name, parameter)


def test_weights_missing_from_a_checkpoint_have_t5_s_spread():
    torch.manual_seed(0)
    model = MMCoTForConditionalGeneration.from_pretrained(None, config=tiny_config(), state_dict={})
    for name, parameter in model.named_parameters():
        check_fresh(name, parameter)


@pytest.mark.parametrize("fields", [{}, {"tie_word_embeddings": False, "feed_forward_proj": "gated-gelu"}])
def test_saved_and_loaded_it_is_the_same(tmp_path, fields):
    model = tiny_model(vision_config=vision_config(), **fields)
    inputs = text_inputs() | {"pixel_values": torch.randn(3, 3, IMAGE, IMAGE)}
    for folder in (tmp_path / "once", tmp_path / "twice"):
        model.save_pretrained(folder)
        again = AutoModelForSeq2SeqLM.from_pretrained(folder)
        assert type(again) is MMCoTForConditionalGeneration
        assert again.state_dict().keys() == model.state_dict().keys()
        torch.testing.assert_close(logits(again, **inputs), logits(model, **inputs), rtol=0, atol=0)
        assert not any(parameter.requires_grad for parameter in again.encoder.vision.parameters())
        model = again


def test_an_untied_head_stays_its_own():
    model = tiny_model(tie_word_embeddings=False)
    model.tie_weights()
    assert model.lm_head.weight is not model.shared.weight
    assert model.encoder.embed_tokens.weight is model.decoder.embed_tokens.weight is model.shared.weight
    model.resize_token_embeddings(VOCAB + 3)
    assert model.lm_head.weight is not model.shared.weight
    assert len(model.lm_head.weight) == len(model.encoder.embed_tokens.weight) == VOCAB + 3


@pytest.mark.parametrize("device_map", ["auto", {"": "cpu"}])
def test_device_map(tmp_path, model, device_map):
    model.save_pretrained(tmp_path)
    mapped = MMCoTForConditionalGeneration.from_pretrained(tmp_path, device_map=device_map)
    assert {parameter.device.type for parameter in mapped.parameters()} == {"cpu"}
    torch.testing.assert_close(logits(mapped, **INPUTS), logits(model, **INPUTS))


def test_a_model_without_memory_has_every_weight_and_buffer():
    with torch.device("meta"):
        model = MMCoTForConditionalGeneration(tiny_config())
    assert {parameter.device.type for parameter in model.parameters()} == {"meta"}
    assert model.state_dict().keys() == tiny_model().state_dict().keys()


def test_the_device_map_keeps_blocks_whole(model):
    from accelerate import infer_auto_device_map

    device_map = infer_auto_device_map(model, {0: 60_000, "cpu": "1GB"}, no_split_module_classes=["T5Block"])
    assert any(device == 0 for device in device_map.values()) and "cpu" in device_map.values()
    assert not any(".block." in name and ".layer" in name for name in device_map)

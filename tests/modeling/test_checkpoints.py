"""Checkpoints that other code wrote: the right weights or a clear error."""

import json
import pickle

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from tiny_models import T5, WIDTH, image_inputs, text_inputs, tiny_model, vision_config
from transformers import (
    MT5Config,
    MT5ForConditionalGeneration,
    T5Config,
    T5ForConditionalGeneration,
    TimmWrapperConfig,
)

from mmcot import MMCoTConfig, MMCoTForConditionalGeneration
from mmcot.checkpoints import convert_original_state_dict, is_original_key

LAYOUTS = {"in the encoder": "encoder.", "at the top": ""}
INPUTS = text_inputs() | image_inputs()
FLAN = {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}


@torch.no_grad()
def logits(model, **inputs) -> torch.Tensor:
    return model(decoder_input_ids=torch.full((3, 4), 7), **(inputs or INPUTS)).logits


def original_weights(model: MMCoTForConditionalGeneration, layout: str) -> dict[str, torch.Tensor]:
    """The model's weights as the original project's classes name them."""
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items() if "fusion" not in name}
    fusion, prefix = model.encoder.fusion, LAYOUTS[layout]
    for theirs, ours in (
        ("image_dense", "image_proj"),
        ("gate_dense", "gate_proj"),
        ("mha_layer.out_proj", "out_proj"),
    ):
        for kind in ("weight", "bias"):
            weights[f"{prefix}{theirs}.{kind}"] = getattr(getattr(fusion, ours), kind).detach().clone()
    for kind in ("weight", "bias"):
        stacked = torch.cat([getattr(getattr(fusion, f"{name}_proj"), kind).detach() for name in "qkv"])
        weights[f"{prefix}mha_layer.in_proj_{kind}"] = stacked
    return weights


def write_folder(folder, weights: dict, files: str, **fields):
    config = T5Config(**(T5 | fields), decoder_start_token_id=0).to_dict()
    config |= {
        "architectures": ["T5ForMultimodalGeneration"],
        "tie_word_embeddings": fields.get("tie_word_embeddings", True),
    }
    del config["scale_decoder_outputs"]  # unknown to the version that wrote these
    (folder / "config.json").write_text(json.dumps(config))
    names = {"weights.bin": "pytorch_model.bin", "safetensors": "model.safetensors"}
    if files == "shards":
        parts = [dict(list(weights.items())[i::2]) for i in range(2)]
        index = {}
        for i, part in enumerate(parts):
            torch.save(part, folder / f"pytorch_model-{i}.bin")
            index |= dict.fromkeys(part, f"pytorch_model-{i}.bin")
        (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))
    elif files == "safetensors":
        save_file(weights, folder / names[files], metadata={"format": "pt"})
    else:
        torch.save(weights, folder / names["weights.bin"], _use_new_zipfile_serialization=files != "old bin")
    return folder


@pytest.mark.parametrize("fields", [{}, FLAN], ids=["tied", "untied"])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("files", ["bin", "old bin", "safetensors", "shards"])
def test_an_original_folder_loads_and_is_saved_in_our_layout(tmp_path, fields, layout, files):
    model = tiny_model(**fields)
    write_folder(tmp_path, original_weights(model, layout), files, **fields)
    loaded = MMCoTForConditionalGeneration.from_pretrained(tmp_path)
    assert loaded.config.image_feature_size == WIDTH
    torch.testing.assert_close(logits(loaded), logits(model), rtol=0, atol=0)
    loaded.save_pretrained(tmp_path / "ours")
    again = MMCoTForConditionalGeneration.from_pretrained(tmp_path / "ours")
    assert not any(is_original_key(name) for name in again.state_dict())
    torch.testing.assert_close(logits(again), logits(model), rtol=0, atol=0)


def test_options_pass_through_to_an_original_folder(tmp_path):
    write_folder(tmp_path, original_weights(tiny_model(), "at the top"), "bin")
    model, info = MMCoTForConditionalGeneration.from_pretrained(
        tmp_path, dtype=torch.bfloat16, device_map={"": "cpu"}, stage="rationale", output_loading_info=True
    )
    assert model.dtype == torch.bfloat16 and model.config.stage == "rationale" and not info["missing_keys"]
    assert model.encoder.fusion.q_proj.weight.dtype == torch.bfloat16


def test_our_configuration_beside_original_weights_is_no_fresh_fusion(tmp_path):
    model = tiny_model()
    write_folder(tmp_path, original_weights(model, "at the top"), "safetensors")
    model.config.save_pretrained(tmp_path)
    loaded = MMCoTForConditionalGeneration.from_pretrained(tmp_path)
    torch.testing.assert_close(logits(loaded), logits(model), rtol=0, atol=0)


def test_generation_settings_beside_an_original_folder_are_read(tmp_path):
    write_folder(tmp_path, original_weights(tiny_model(), "at the top"), "bin")
    (tmp_path / "generation_config.json").write_text(json.dumps({"num_beams": 3, "decoder_start_token_id": 0}))
    assert MMCoTForConditionalGeneration.from_pretrained(tmp_path).generation_config.num_beams == 3


def without(*parts):
    return lambda weights: {
        name: tensor for name, tensor in weights.items() if not any(part in name for part in parts)
    }


BROKEN = {
    "no fusion at all": (without("dense", "mha"), "holds no fusion"),
    "no gate": (without("gate_dense"), "gate_proj"),
    "no attention bias": (without("in_proj_bias"), "k_proj.bias"),
    "no head of its own": (without("lm_head"), "lm_head.weight"),
    "no decoder": (without("decoder.block.1"), "decoder.block.1.*and 9 more"),
    "both layouts": (lambda w: w | {f"encoder.{n}": t for n, t in w.items() if "dense" in n}, "both"),
    "unknown part": (lambda w: w | {"mha_layer.bias_k": torch.zeros(1)}, "mha_layer.bias_k"),
    "unknown weight": (lambda w: w | {"vision_tower.weight": torch.zeros(1)}, "vision_tower.weight"),
    "a prefix": (lambda w: {f"module.{n}": t for n, t in w.items()}, "holds no fusion"),
    "not tensors": (lambda w: {"model": w}, "not a dictionary of weights"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_original_is_refused(tmp_path, name):
    change, message = BROKEN[name]
    write_folder(tmp_path, change(original_weights(tiny_model(**FLAN), "at the top")), "bin", **FLAN)
    with pytest.raises(ValueError, match=message):
        MMCoTForConditionalGeneration.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"image_feature_size": WIDTH + 1}, f"width {WIDTH}"),
        ({"vision_config": vision_config(), "image_feature_size": 16}, f"width {WIDTH}"),
        ({"fusion_num_heads": 2}, "one head"),
        ({"fusion_gate": "none"}, "sigmoid"),
    ],
)
def test_an_original_can_t_be_bent_into_another_network(tmp_path, fields, message):
    write_folder(tmp_path, original_weights(tiny_model(), "at the top"), "bin")
    with pytest.raises(ValueError, match=message):
        MMCoTForConditionalGeneration.from_pretrained(tmp_path, **fields)
    config = MMCoTConfig.from_pretrained(tmp_path, **fields)
    with pytest.raises(ValueError, match=message):
        MMCoTForConditionalGeneration.from_pretrained(tmp_path, config=config)


class _Payload:
    def __reduce__(self):
        return (print, ("code ran",))


@pytest.mark.parametrize("weights_only", [None, False])
def test_pickles_run_no_code(tmp_path, capsys, weights_only):
    write_folder(tmp_path, original_weights(tiny_model(), "at the top"), "bin")
    with open(tmp_path / "pytorch_model.bin", "wb") as file:
        pickle.dump({"shared.weight": _Payload()}, file)
    kwargs = {} if weights_only is None else {"weights_only": weights_only}
    with pytest.raises(ValueError, match="more than weights"):
        MMCoTForConditionalGeneration.from_pretrained(tmp_path, **kwargs)
    assert "code ran" not in capsys.readouterr().out


# --- plain T5 --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fields", [{}, FLAN], ids=["t5", "flan"])
@pytest.mark.parametrize("files", ["bin", "safetensors"])
def test_t5_checkpoints_start_a_fresh_fusion(tmp_path, fields, files):
    model = tiny_model(image_feature_size=None, **fields)
    write_folder(tmp_path, model.state_dict() | {k: v.clone() for k, v in model.state_dict().items()}, files, **fields)
    config = json.loads((tmp_path / "config.json").read_text()) | {"architectures": ["T5ForConditionalGeneration"]}
    (tmp_path / "config.json").write_text(json.dumps(config))
    t5 = T5ForConditionalGeneration.from_pretrained(tmp_path)

    text_only = MMCoTForConditionalGeneration.from_pretrained(tmp_path)
    torch.testing.assert_close(logits(text_only, **text_inputs()), logits(t5, **text_inputs()), rtol=0, atol=0)
    torch.manual_seed(0)
    fused = MMCoTForConditionalGeneration.from_pretrained(tmp_path, image_feature_size=WIDTH, stage="answer")
    assert (fused.config.image_feature_size, fused.config.stage) == (WIDTH, "answer")
    for name, tensor in t5.state_dict().items():
        torch.testing.assert_close(fused.state_dict()[name], tensor, rtol=0, atol=0)
    assert abs(fused.encoder.fusion.out_proj.weight.std() / ((3 * 32) ** -0.5) - 1) < 0.1
    fused.save_pretrained(tmp_path / "ours")
    again = MMCoTForConditionalGeneration.from_pretrained(tmp_path / "ours")
    assert again.config.tie_word_embeddings is (not fields)
    again.tie_weights()
    torch.testing.assert_close(logits(again), logits(fused), rtol=0, atol=0)


def test_mt5_is_the_same_network_with_another_vocabulary(tmp_path):
    config = MT5Config(**T5, tie_word_embeddings=False)
    torch.manual_seed(0)
    mt5 = MT5ForConditionalGeneration(config).eval()
    mt5.save_pretrained(tmp_path)
    loaded = MMCoTForConditionalGeneration.from_pretrained(tmp_path, image_feature_size=WIDTH)
    text_only = MMCoTForConditionalGeneration.from_pretrained(tmp_path)
    assert loaded.config.model_type == "mmcot" and loaded.config.is_gated_act
    torch.testing.assert_close(logits(text_only, **text_inputs()), logits(mt5, **text_inputs()), rtol=0, atol=0)
    loaded.save_pretrained(tmp_path / "ours")
    again = MMCoTForConditionalGeneration.from_pretrained(tmp_path / "ours")
    torch.testing.assert_close(logits(again), logits(loaded), rtol=0, atol=0)


def test_flan_saved_by_transformers_5_keeps_its_head(tmp_path):
    """Its configuration then says that the head is tied, which it isn't."""
    model = tiny_model(image_feature_size=None, **FLAN)
    write_folder(tmp_path, {k: v.clone() for k, v in model.state_dict().items()}, "safetensors", **FLAN)
    config = json.loads((tmp_path / "config.json").read_text()) | {"architectures": ["T5ForConditionalGeneration"]}
    (tmp_path / "config.json").write_text(json.dumps(config))
    T5ForConditionalGeneration.from_pretrained(tmp_path).save_pretrained(tmp_path / "five")
    assert json.loads((tmp_path / "five" / "config.json").read_text())["tie_word_embeddings"] is True
    loaded = MMCoTForConditionalGeneration.from_pretrained(tmp_path / "five")
    assert loaded.config.tie_word_embeddings is False
    loaded.tie_weights()
    torch.testing.assert_close(logits(loaded, **text_inputs()), logits(model, **text_inputs()), rtol=0, atol=0)


def test_a_t5_with_a_new_backbone_has_sound_weights(tmp_path):
    T5ForConditionalGeneration(T5Config(**T5)).save_pretrained(tmp_path)
    sizes = {"embed_dim": 16, "depth": 1, "num_heads": 2, "img_size": 32}
    backbone = TimmWrapperConfig(architecture="vit_tiny_patch16_224", model_args=sizes)
    model = MMCoTForConditionalGeneration.from_pretrained(tmp_path, vision_config=backbone)
    assert model.config.image_feature_size == 16
    # timm draws this one where it builds the network, which loading does without memory
    assert 0.01 < model.encoder.vision.timm_model.pos_embed.std() < 0.04
    for name, parameter in model.encoder.vision.named_parameters():
        assert parameter.isfinite().all() and parameter.abs().max() < 2 and not parameter.requires_grad, name


def test_other_models_are_refused(tmp_path):
    vision_config().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="is a vit model"):
        MMCoTForConditionalGeneration.from_pretrained(tmp_path)


def test_conversion_copies_nothing():
    weights = original_weights(tiny_model(), "at the top")
    converted = convert_original_state_dict(weights)
    assert converted["encoder.fusion.image_proj.weight"] is weights["image_dense.weight"]
    stacked = weights["mha_layer.in_proj_weight"]
    assert (
        converted["encoder.fusion.v_proj.weight"].untyped_storage().data_ptr() == stacked.untyped_storage().data_ptr()
    )


# --- the original's outputs ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=["golden_t5relu_detr", "golden_old_flangated_detr"])
def golden(request, golden_dir):
    """A checkpoint of the original with what it computed, by transformers 4.30."""
    folder = golden_dir / request.param
    given, expected = np.load(folder / "inputs.npz"), np.load(folder / "outputs.npz")
    given = {name: torch.from_numpy(given[name]) for name in given}
    inputs = {name: given[name] for name in ("input_ids", "attention_mask")}
    inputs["image_features"] = given["image_ids"].float()
    expected = {name: torch.from_numpy(expected[name]) for name in expected}
    return MMCoTForConditionalGeneration.from_pretrained(folder), inputs, given, expected


@pytest.mark.parametrize("padding", ["pad0", "neg100"])
def test_logits_and_losses_are_the_original_s(golden, padding):
    model, inputs, given, expected = golden
    with torch.no_grad():
        output = model(**inputs, labels=given[f"labels_{padding}"])
    name = "logits" if padding == "pad0" else "logits_neg100"
    torch.testing.assert_close(output.logits, expected[name], atol=2e-5, rtol=0)
    torch.testing.assert_close(output.loss, expected[f"loss_{padding}"], atol=1e-5, rtol=0)


def test_loss_on_padding_is_the_original_s(golden):
    model, inputs, given, expected = golden
    model.config.loss_on_padding = True
    with torch.no_grad():
        output = model(**inputs, labels=given["labels_neg100"])
    model.config.loss_on_padding = False
    torch.testing.assert_close(output.loss, expected["loss_pad0"], atol=1e-5, rtol=0)


def test_without_an_attention_mask_it_is_the_original_s_too(golden):
    model, inputs, given, expected = golden
    unmasked = {name: value for name, value in inputs.items() if name != "attention_mask"}
    with torch.no_grad():
        output = model(**unmasked, labels=given["labels_pad0"])
    torch.testing.assert_close(output.logits, expected["logits_nomask"], atol=2e-5, rtol=0)


def test_fusion_and_gate_are_the_original_s(golden):
    model, inputs, _, expected = golden
    with torch.no_grad():
        output = model.encoder(**inputs, output_image_attention=True)
    torch.testing.assert_close(output.last_hidden_state, expected["fused"], atol=1e-4, rtol=0)
    torch.testing.assert_close(output.image_gate, expected["gate"], atol=1e-5, rtol=0)
    fusion = model.encoder.fusion
    values = fusion.v_proj(fusion.image_proj(inputs["image_features"]))
    found = fusion.out_proj(output.image_attentions[:, 0] @ values)
    torch.testing.assert_close(found, expected["image_att"], atol=1e-4, rtol=0)


def test_generated_ids_are_the_original_s(golden):
    model, inputs, _, expected = golden
    ids = model.generate(**inputs, max_new_tokens=20, num_beams=1, do_sample=False)
    assert torch.equal(ids, expected["greedy_ids"][:, : ids.shape[1]])
    fixed = {"max_new_tokens": 20, "min_new_tokens": 20}
    for name, beams in (("greedy_fixed20_ids", 1), ("beam4_fixed20_ids", 4)):
        if name in expected:  # the old layout's class couldn't generate
            assert torch.equal(model.generate(**inputs, **fixed, num_beams=beams), expected[name])

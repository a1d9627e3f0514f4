"""Weights that aren't plain numbers on one device: quantised, offloaded, in half precision. The fusion goes along."""

import copy
import logging

import pytest
import torch
from tiny_models import image_inputs, text_inputs, tiny_model, vision_config
from torch import nn

from mmcot import MMCoTForConditionalGeneration
from mmcot.fusion_mmcot import GatedFusion

WIDE = {"d_model": 64, "d_kv": 16, "d_ff": 64}  # bitsandbytes quantises blocks of 64
FEATURES = torch.randn(3, 5, 64, generator=torch.Generator().manual_seed(4))
INPUTS = text_inputs() | image_inputs() | {"image_features": FEATURES}


@torch.no_grad()
def logits(model, **inputs):
    return model(**INPUTS | inputs, decoder_input_ids=torch.full((3, 4), 7)).logits.float()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("stage")
    tiny_model(**WIDE, image_feature_size=64).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def exact(folder):
    return logits(MMCoTForConditionalGeneration.from_pretrained(folder))


class Quantised(nn.Module):
    """Stands for any library's: eight bits, no `weight` of a linear layer's shape or type, computes in bfloat16."""

    def __init__(self, linear: nn.Linear):
        super().__init__()
        self.register_buffer("scale", linear.weight.abs().amax(1) / 127)
        self.register_buffer("packed", (linear.weight / self.scale[:, None]).round().to(torch.int8).flatten())
        self.bias = linear.bias

    def forward(self, states):
        weight = (self.packed.view(len(self.scale), -1) * self.scale[:, None]).bfloat16()
        bias = None if self.bias is None else self.bias.bfloat16()
        return nn.functional.linear(states.bfloat16(), weight, bias).to(states.dtype)


@pytest.mark.parametrize("features", [FEATURES, FEATURES.double(), FEATURES.half(), None])
def test_a_stand_in_for_quantised_layers(folder, features):
    model = MMCoTForConditionalGeneration.from_pretrained(folder)
    mask = INPUTS["image_attention_mask"] if features is not None else None
    inputs = {"image_features": features, "image_attention_mask": mask}
    expected = logits(model, **inputs)
    fusion = model.encoder.fusion
    for name, child in list(fusion.named_children()):
        setattr(fusion, name, Quantised(child))
    torch.testing.assert_close(logits(model, **inputs), expected, atol=0.1, rtol=0.05)
    assert model.generate(**INPUTS | inputs, max_new_tokens=3).shape[0] == 3


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_features_of_any_type_meet_weights_of_any_type(dtype):
    fusion = GatedFusion(8, 12).to(dtype)
    hidden_states = torch.randn(2, 3, 8, dtype=dtype)
    fused, _, _ = fusion(hidden_states, torch.randn(2, 5, 12))
    assert fused.dtype == dtype and fused.isfinite().all()


def bits(number: int, dtype):
    def config():
        pytest.importorskip("bitsandbytes")
        from transformers import BitsAndBytesConfig

        if number == 8:
            return BitsAndBytesConfig(load_in_8bit=True)
        return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_compute_dtype=dtype)

    return config


def torchao():
    quantization = pytest.importorskip("torchao.quantization")
    from transformers import TorchAoConfig

    return TorchAoConfig(quantization.Int8WeightOnlyConfig())


QUANTISED = {
    "bitsandbytes, 8 bits": (bits(8, None), torch.float32, 0.1),
    "bitsandbytes, 4 bits": (bits(4, torch.float32), torch.float32, 0.8),
    "bitsandbytes, 4 bits, bfloat16": (bits(4, torch.bfloat16), torch.bfloat16, 0.8),
    "torchao, 8 bits": (torchao, torch.float32, 0.1),
    "torchao, 8 bits, bfloat16": (torchao, torch.bfloat16, 0.2),
}


@pytest.mark.parametrize("how", QUANTISED)
def test_quantised_loading(folder, exact, how, caplog):
    config, dtype, tolerance = QUANTISED[how]
    config = config()
    caplog.set_level(logging.ERROR)
    model = MMCoTForConditionalGeneration.from_pretrained(folder, quantization_config=config, dtype=dtype)
    quantised = model.encoder.fusion.q_proj
    assert type(quantised) is not nn.Linear or type(quantised.weight.data) is not torch.Tensor, "nothing is quantised"
    found = logits(model)
    assert 0 < (found - exact).abs().mean() < tolerance
    assert not torch.equal(found, logits(model, image_features=-FEATURES)), "images count"
    assert model.generate(**INPUTS, max_new_tokens=3).shape[0] == 3


def test_a_quantised_backbone_reads_pixels(tmp_path):
    tiny_model(vision_config=vision_config()).save_pretrained(tmp_path)
    model = MMCoTForConditionalGeneration.from_pretrained(
        tmp_path, quantization_config=torchao(), dtype=torch.bfloat16
    )
    inputs = text_inputs() | {"pixel_values": torch.randn(3, 3, 8, 8)}
    ids = torch.full((3, 4), 7)
    with torch.no_grad():
        given, other = model(**inputs, decoder_input_ids=ids), model(**text_inputs(), decoder_input_ids=ids)
    assert given.logits.isfinite().all() and not torch.equal(given.logits, other.logits)


def test_quantised_weights_are_saved_and_loaded(folder, tmp_path):
    config, dtype, _ = QUANTISED["bitsandbytes, 4 bits"]
    model = MMCoTForConditionalGeneration.from_pretrained(folder, quantization_config=config(), dtype=dtype)
    model.save_pretrained(tmp_path)
    again = MMCoTForConditionalGeneration.from_pretrained(tmp_path)
    torch.testing.assert_close(logits(again), logits(model))


# --- offloading ------------------------------------------------------------------------------------------------------


def test_weights_may_wait_in_memory(folder, exact):
    accelerate = pytest.importorskip("accelerate")
    model = MMCoTForConditionalGeneration.from_pretrained(folder)
    model = accelerate.cpu_offload(model, torch.device("cpu"))
    assert model.encoder.fusion.gate_proj.weight.is_meta
    torch.testing.assert_close(logits(model), exact)
    without = {"image_features": None, "image_attention_mask": None}
    kept = MMCoTForConditionalGeneration.from_pretrained(folder)
    torch.testing.assert_close(logits(model, **without), logits(kept, **without))
    assert torch.equal(
        model.generate(**INPUTS, max_new_tokens=4, num_beams=2), kept.generate(**INPUTS, max_new_tokens=4, num_beams=2)
    )


def test_weights_may_wait_on_disk(folder, exact, tmp_path):
    parts = ("embed_tokens", "block", "final_layer_norm", "dropout")
    devices = {f"{stack}.{part}": "cpu" for stack in ("encoder", "decoder") for part in parts}
    devices |= {"shared": "cpu", "lm_head": "cpu", "encoder.fusion": "disk", "decoder.block": "disk"}
    model = MMCoTForConditionalGeneration.from_pretrained(folder, device_map=devices, offload_folder=tmp_path)
    assert model.encoder.fusion.q_proj.weight.is_meta
    torch.testing.assert_close(logits(model), exact)


def test_a_device_map_keeps_the_fusion_together():
    """Its layers are called on one another's outputs without a move in between."""
    from accelerate import infer_auto_device_map

    model = tiny_model(vision_config=vision_config())
    assert {"GatedFusion", "T5Block"} <= set(model._no_split_modules)
    for share in range(5, 96, 5):
        total = sum(parameter.nbytes for parameter in model.parameters())
        memory = {0: total * share // 100, "cpu": 10 * total}
        places = infer_auto_device_map(model, memory, no_split_module_classes=list(model._no_split_modules))
        assert not any("fusion." in name for name in places)


def test_half_precision_copies_agree(folder, exact):
    model = MMCoTForConditionalGeneration.from_pretrained(folder)
    rough = logits(copy.deepcopy(model).bfloat16())
    torch.testing.assert_close(rough.softmax(-1), exact.softmax(-1), atol=0.05, rtol=0.2)

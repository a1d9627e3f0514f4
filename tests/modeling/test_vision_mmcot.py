"""Backbones with random weights: what reaches the fusion, and the paper's four as presets."""

import pytest
import torch
from tiny_models import IMAGE, tiny_model, vision_config
from torch import nn
from transformers import (
    CLIPConfig,
    CLIPModel,
    DetrConfig,
    Siglip2Config,
    SiglipConfig,
    SiglipModel,
    T5Config,
    TimmWrapperConfig,
)

from mmcot import MMCoTConfig, MMCoTForConditionalGeneration, MMCoTTwoStageConfig
from mmcot.errors_mmcot import ModelError
from mmcot.vision_mmcot import build_vision, get_image_features, vision_feature_size


def features_of(*args, **kwargs) -> torch.Tensor:
    return get_image_features(*args, **kwargs).pooler_output


def tiny_detr() -> DetrConfig:
    sizes = dict.fromkeys(
        ("encoder_layers", "decoder_layers", "encoder_attention_heads", "decoder_attention_heads"), 1
    )
    backbone = {"model_type": "timm_backbone", "backbone": "resnet18", "features_only": True, "out_indices": [4]}
    widths = {"d_model": 16, "encoder_ffn_dim": 16, "decoder_ffn_dim": 16}
    return DetrConfig(**sizes, **widths, num_queries=6, backbone_config=backbone)


def timm_config(architecture: str, **model_args) -> TimmWrapperConfig:
    return TimmWrapperConfig(architecture=architecture, model_args=model_args or None)


BACKBONES = {
    "detr": (tiny_detr, "last_hidden_state", 32, (6, 16)),
    "vit": (
        lambda: timm_config("vit_tiny_patch16_224", embed_dim=16, depth=1, num_heads=2, img_size=32),
        "last_hidden_state",
        32,
        (5, 16),
    ),
    "clip": (
        lambda: timm_config("resnet50_clip", width_factor=1 / 16, img_size=64),
        "last_hidden_state",
        64,
        (4, 128),
    ),
    "resnet": (lambda: timm_config("resnet18", layers=(1, 1, 1, 1)), "pooler_output", 32, (1, 512)),
}


@pytest.fixture(params=BACKBONES)
def backbone(request):
    make_config, vision_feature, size, shape = BACKBONES[request.param]
    torch.manual_seed(0)
    vision = build_vision(make_config()).eval()
    return vision, vision_feature, torch.randn(3, 3, size, size), shape


def test_each_kind_of_backbone_gives_patches(backbone):
    vision, vision_feature, pixels, shape = backbone
    assert vision_feature_size(vision, vision_feature) == shape[1]
    with torch.no_grad():
        features = features_of(vision, pixels, vision_feature=vision_feature, feature_size=shape[1])
    assert features.shape == (3, *shape)


def test_features_are_the_plain_model_s(backbone):
    vision, vision_feature, pixels, shape = backbone
    with torch.no_grad():
        features = features_of(vision, pixels, vision_feature=vision_feature)
        timm_model = getattr(vision, "timm_model", None)
        if timm_model is None:
            expected = vision(pixels).last_hidden_state
        elif vision_feature == "pooler_output":
            expected = timm_model(pixels)[:, None]
        else:
            expected = timm_model.forward_features(pixels)
            if expected.dim() == 4:  # one row a grid cell, line by line
                expected = torch.stack([expected[:, :, i, j] for i in range(2) for j in range(2)], 1)
    torch.testing.assert_close(features, expected)


def test_asking_for_attentions_doesn_t_reach_the_backbone(backbone):
    """timm's networks refuse, and a configuration hands the wish down."""
    vision, vision_feature, pixels, _ = backbone
    expected = features_of(vision, pixels, vision_feature=vision_feature)
    vision.set_attn_implementation("eager")
    vision.config.output_attentions = True
    torch.testing.assert_close(features_of(vision, pixels, vision_feature=vision_feature), expected)


def test_images_that_are_not_there_change_nothing(backbone):
    vision, vision_feature, pixels, shape = backbone
    options = {"vision_feature": vision_feature, "feature_size": shape[1]}
    with torch.no_grad():
        alone = features_of(vision, pixels, **options)
        several = pixels.new_full((2, 2, *pixels.shape[1:]), torch.nan)
        several[0, 0], several[0, 1], several[1, 1] = pixels
        present = torch.tensor([[True, True], [False, True]])
        output = get_image_features(vision, several, None, present, **options)
        features, mask = output.pooler_output, output.image_attention_mask
    patches = shape[0]
    assert features.shape == (2, 2 * patches, shape[1])
    assert mask.tolist() == present.repeat_interleave(patches, dim=1).tolist()
    torch.testing.assert_close(features[mask], alone.flatten(0, 1), rtol=1e-4, atol=1e-5)


def test_no_image_at_all_is_one_zero_patch(backbone):
    vision, vision_feature, pixels, shape = backbone
    nothing = torch.zeros(3, 1, dtype=torch.bool)
    output = get_image_features(vision, pixels, None, nothing, vision_feature, shape[1])
    features, mask = output.pooler_output, output.image_attention_mask
    assert mask is None and features.shape == (3, 1, shape[1]) and not features.any()


def test_pixel_mask_reaches_a_backbone_that_takes_one():
    torch.manual_seed(0)
    vision = build_vision(tiny_detr()).eval()
    pixels = torch.randn(1, 3, 32, 32)
    padded = torch.zeros(1, 3, 64, 64)
    padded[:, :, :32, :32] = pixels
    mask = torch.zeros(1, 64, 64, dtype=torch.long)
    mask[:, :32, :32] = 1
    with torch.no_grad():
        masked = get_image_features(vision, padded, mask).pooler_output
        unmasked = get_image_features(vision, padded).pooler_output
    assert not torch.allclose(masked, unmasked)


class _Maps(nn.Module):
    """Gives a feature map with channels last, as some of timm's networks do."""

    def __init__(self):
        super().__init__()
        self.weight, self.dtype = nn.Parameter(torch.zeros(1)), torch.float32

    def forward(self, pixel_values, return_dict=True):
        from transformers.modeling_outputs import BaseModelOutput

        return BaseModelOutput(last_hidden_state=torch.arange(2 * 3 * 3 * 5.0).reshape(2, 3, 3, 5))


def test_channels_last_maps_are_told_by_their_width():
    features = features_of(_Maps(), torch.zeros(2, 3, 4, 4), feature_size=5)
    torch.testing.assert_close(features, torch.arange(2 * 9 * 5.0).reshape(2, 9, 5))
    with pytest.raises(ValueError, match="width 3, the fusion takes 7"):
        features_of(_Maps(), torch.zeros(2, 3, 4, 4), feature_size=7)
    with pytest.raises(ValueError, match="no pooler_output"):
        features_of(_Maps(), torch.zeros(2, 3, 4, 4), vision_feature="pooler_output")


def test_the_model_learns_its_width_from_the_backbone():
    model = tiny_model(vision_config=vision_config())
    assert model.config.image_feature_size == model.encoder.fusion.image_size == 16
    assert model.get_image_features(torch.zeros(2, 3, IMAGE, IMAGE)).pooler_output.shape == (2, 5, 16)


@pytest.mark.parametrize("training", [True, False])
def test_a_frozen_backbone_is_in_no_gradient_and_no_training_mode(training):
    model = tiny_model(vision_config=vision_config()).train(training)
    assert model.encoder.fusion.training is training
    assert not any(module.training for module in model.encoder.vision.modules())
    assert not any(parameter.requires_grad for parameter in model.encoder.vision.parameters())


def test_an_unfrozen_backbone_trains():
    model = tiny_model(vision_config=vision_config(), freeze_vision=False).train()
    assert model.encoder.vision.training
    ids = torch.tensor([[5, 6, 1]])
    model(input_ids=ids, pixel_values=torch.randn(1, 3, IMAGE, IMAGE), labels=ids).loss.backward()
    patches = model.encoder.vision.embeddings.patch_embeddings.projection.weight
    assert patches.grad.abs().sum() > 0


def test_pixels_without_a_backbone_are_refused():
    with pytest.raises(ValueError, match="vision_config"):
        tiny_model()(input_ids=torch.tensor([[1]]), pixel_values=torch.zeros(1, 3, 8, 8), labels=torch.tensor([[1]]))


# --- models of image and text ----------------------------------------------------------------------------------------

SMALL = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
IMAGE_AND_TEXT = {
    "clip": (CLIPConfig, CLIPModel, 5),
    "siglip": (SiglipConfig, SiglipModel, 4),
}


def image_and_text(kind, **vision):
    sizes = {"image_size": IMAGE, "patch_size": 4} | vision
    return kind(text_config=SMALL | {"vocab_size": 50}, vision_config=SMALL | sizes)


@pytest.mark.parametrize("as_dict", [False, True])
@pytest.mark.parametrize("name", IMAGE_AND_TEXT)
def test_a_model_of_image_and_text_gives_its_vision_tower(tmp_path, name, as_dict):
    kind, _, patches = IMAGE_AND_TEXT[name]
    config = image_and_text(kind)
    model = tiny_model(vision_config=config.to_dict() if as_dict else config)
    assert model.config.vision_config.model_type == f"{name}_vision_model"
    pixels = torch.randn(2, 3, IMAGE, IMAGE)
    features = model.get_image_features(pixels).pooler_output
    assert features.shape == (2, patches, 16)
    model.save_pretrained(tmp_path)
    again = MMCoTForConditionalGeneration.from_pretrained(tmp_path)
    torch.testing.assert_close(again.get_image_features(pixels).pooler_output, features)
    both = MMCoTTwoStageConfig(vision_config=config)
    assert both.vision_config.model_type == f"{name}_vision_model"


@pytest.mark.parametrize("name", IMAGE_AND_TEXT)
def test_a_tower_s_features_are_those_of_the_whole_model(name):
    kind, network, _ = IMAGE_AND_TEXT[name]
    torch.manual_seed(0)
    whole = network(image_and_text(kind)).eval()
    vision = build_vision(whole.config).eval()
    tower = {key.removeprefix("vision_model."): value for key, value in whole.vision_model.state_dict().items()}
    vision.load_state_dict({key: tower[key.removeprefix("vision_model.")] for key in vision.state_dict()})
    pixels = torch.randn(2, 3, IMAGE, IMAGE)
    expected = whole.vision_model(pixel_values=pixels).last_hidden_state
    torch.testing.assert_close(features_of(vision, pixels), expected)


@pytest.mark.parametrize(
    ("config", "why"),
    [
        (
            lambda: Siglip2Config(text_config=SMALL, vision_config=SMALL | {"num_patches": 4}),
            "needs pixel_attention_mask",
        ),
        (lambda: T5Config(vocab_size=50, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2), "reads input_ids"),
        (lambda: {"model_type": "no such network"}, "no such network"),
        (lambda: {"hidden_size": 16}, "vision_config"),
    ],
)
def test_what_can_t_be_a_backbone_is_refused_in_one_line(config, why):
    with pytest.raises(ModelError, match=why) as caught:
        MMCoTForConditionalGeneration(MMCoTConfig(vocab_size=50, d_model=16, num_layers=1, vision_config=config()))
    assert "\n" not in str(caught.value)


def test_a_convolutional_backbone_tells_its_width():
    """Its configuration has a width a stage; features come from the last one."""
    from transformers import ResNetConfig

    config = ResNetConfig(embedding_size=8, hidden_sizes=[8, 24], depths=[1, 1], layer_type="basic")
    vision = build_vision(config).eval()
    for feature, patches in (("last_hidden_state", 4), ("pooler_output", 1)):
        assert vision_feature_size(vision, feature) == 24
        found = get_image_features(vision, torch.zeros(1, 3, 16, 16), vision_feature=feature, feature_size=24)
        assert found.pooler_output.shape == (1, patches, 24)

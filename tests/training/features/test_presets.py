"""The presets say what their backbones give."""

import pytest
import torch

from mmcot.training.features.presets import VISION_PRESETS
from mmcot.vision_mmcot import build_vision, get_image_features, vision_feature_size


@pytest.mark.parametrize("name", VISION_PRESETS)
def test_presets_describe_the_real_backbones(name):
    preset = VISION_PRESETS[name]
    with torch.device("meta"):
        vision = build_vision(preset.config())
    assert vision_feature_size(vision, preset.vision_feature) == preset.image_feature_size
    if name == "detr":
        assert vision.config.num_queries == preset.num_patches
        assert vision.config.backbone_config.output_stride == 16  # DC5: the last stage isn't strided


@pytest.mark.slow
@pytest.mark.parametrize("name", VISION_PRESETS)
def test_presets_give_the_paper_s_shapes(name):
    preset = VISION_PRESETS[name]
    size = 384 if name == "vit" else 224
    vision = build_vision(preset.config()).eval()
    with torch.no_grad():
        features = get_image_features(
            vision, torch.zeros(1, 3, size, size), vision_feature=preset.vision_feature
        ).pooler_output
    assert features.shape == (1, preset.num_patches, preset.image_feature_size)

"""The paper's four vision backbones by name. Another one needs no preset: a folder or a Hub id does."""

from collections.abc import Callable
from dataclasses import dataclass

from transformers import DetrConfig, PreTrainedConfig, TimmWrapperConfig


@dataclass(frozen=True)
class VisionPreset:
    """One of the paper's image features.

    Attributes:
        identifier: the pretrained weights on the Hub.
        config: makes the backbone's configuration, without a network.
        vision_feature: the output that is used.
        num_patches, image_feature_size: its shape, one image.
    """

    identifier: str
    config: Callable[[], PreTrainedConfig]
    vision_feature: str
    num_patches: int
    image_feature_size: int


def _detr() -> PreTrainedConfig:
    backbone = {
        "model_type": "timm_backbone",
        "backbone": "resnet101",
        "features_only": True,
        "out_indices": [1, 2, 3, 4],
        "output_stride": 16,
    }
    return DetrConfig(backbone_config=backbone, dilation=True)


def _timm(architecture: str) -> Callable[[], PreTrainedConfig]:
    return lambda: TimmWrapperConfig(architecture=architecture)


VISION_PRESETS = {
    "detr": VisionPreset("facebook/detr-resnet-101-dc5", _detr, "last_hidden_state", 100, 256),
    "vit": VisionPreset(
        "timm/vit_large_patch32_384.orig_in21k_ft_in1k", _timm("vit_large_patch32_384"), "last_hidden_state", 145, 1024
    ),
    "clip": VisionPreset("timm/resnet101_clip.openai", _timm("resnet101_clip"), "last_hidden_state", 49, 2048),
    "resnet": VisionPreset("timm/resnet50.a1_in1k", _timm("resnet50"), "pooler_output", 1, 2048),
}

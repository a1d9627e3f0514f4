"""Vision backbones: anything that `AutoModel` builds, and the four of the paper as presets."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass

import torch
from transformers import AutoModel, DetrConfig, PreTrainedConfig, PreTrainedModel, TimmWrapperConfig

from .errors_mmcot import ModelError


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


def build_vision(config: PreTrainedConfig) -> PreTrainedModel:
    """The backbone with fresh weights. Never downloads."""
    return AutoModel.from_config(config)


def vision_feature_size(vision: PreTrainedModel, vision_feature: str) -> int:
    """Width of the backbone's feature.

    Raises:
        ModelError: the backbone doesn't say; `image_feature_size` has to.
    """
    timm_model = getattr(vision, "timm_model", None)
    if timm_model is not None:
        pooled = vision_feature == "pooler_output"
        return timm_model.head_hidden_size if pooled else timm_model.num_features
    for name in ("hidden_size", "d_model"):
        if isinstance(getattr(vision.config, name, None), int):
            return getattr(vision.config, name)
    raise ModelError(f"{type(vision).__name__} doesn't say how wide its features are: set image_feature_size")


def extract_features(
    vision: PreTrainedModel,
    pixel_values: torch.Tensor,
    pixel_mask: torch.Tensor | None = None,
    vision_feature: str = "last_hidden_state",
    feature_size: int | None = None,
) -> torch.Tensor:
    """Run the backbone.

    Args:
        vision: any image model.
        pixel_values: (images, channels, height, width).
        pixel_mask: (images, height, width), for backbones that take one (DETR).
        vision_feature: the output to use.
        feature_size: expected width, which tells (n, C, h, w) maps from (n, h, w, C) ones.

    Returns:
        (images, patches, width). A feature map becomes its grid's cells, row by row; a pooled vector one patch.
    """
    inputs = {"pixel_values": pixel_values.to(next(vision.parameters()).dtype), "return_dict": True}
    # Its own attentions are never used, and timm's networks refuse even a configuration that asks for them.
    optional = {"pixel_mask": pixel_mask, "output_attentions": False, "output_hidden_states": False}
    accepted = inspect.signature(vision.forward).parameters
    inputs |= {name: value for name, value in optional.items() if value is not None and name in accepted}
    output = vision(**inputs)
    features = getattr(output, vision_feature, None)
    if features is None:
        raise ModelError(f"{type(vision).__name__} gives no {vision_feature}; choose the other vision_feature")
    if features.dim() == 4:
        if feature_size is not None and features.shape[1] != feature_size and features.shape[-1] == feature_size:
            features = features.flatten(1, 2)  # (n, h, w, C) -> (n, h * w, C)
        else:
            features = features.flatten(2).transpose(1, 2)  # (n, C, h, w) -> (n, h * w, C)
        if vision_feature == "pooler_output":  # pooled maps keep their 1 x 1 grid in some backbones
            features = features.flatten(1)
    if features.dim() == 2:
        features = features[:, None]  # (n, C) -> (n, 1, C)
    if feature_size is not None and features.shape[-1] != feature_size:
        raise ModelError(
            f"{type(vision).__name__} gives features of width {features.shape[-1]}, the fusion takes {feature_size}"
        )
    return features


def encode_images(
    vision: PreTrainedModel,
    pixel_values: torch.Tensor,
    pixel_mask: torch.Tensor | None = None,
    image_attention_mask: torch.Tensor | None = None,
    vision_feature: str = "last_hidden_state",
    feature_size: int | None = None,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Image features of a batch of questions, each with no, one or several images.

    Args:
        pixel_values: (batch, 3, H, W), or (batch, images, 3, H, W) for several images a row.
        pixel_mask: (batch, H, W) or (batch, images, H, W), for backbones that take one.
        image_attention_mask: (batch, images), False where there is no image; what stands there isn't looked at.
        vision, vision_feature, feature_size: as in `extract_features`.

    Returns:
        image_features (batch, images * patches, width) and their mask (batch, images * patches), None without an
        image mask.
    """
    batch, images = pixel_values.shape[0], pixel_values.shape[1] if pixel_values.dim() == 5 else 1
    pixel_values = pixel_values.flatten(0, -4)  # (B * I, 3, H, W)
    pixel_mask = None if pixel_mask is None else pixel_mask.flatten(0, -3)
    options = {"vision_feature": vision_feature, "feature_size": feature_size}
    if image_attention_mask is None:
        features = extract_features(vision, pixel_values, pixel_mask, **options)
        return features.unflatten(0, (batch, images)).flatten(1, 2), None
    if image_attention_mask.shape != (batch, images):
        raise ModelError(
            f"image_attention_mask is {tuple(image_attention_mask.shape)}, pixel_values hold {(batch, images)} images"
        )
    present = image_attention_mask.to(device=pixel_values.device, dtype=torch.bool)
    if torch.compiler.is_compiling():  # a number of images that only the data tells would break the graph
        features = extract_features(vision, pixel_values, pixel_mask, **options)
    else:
        rows = present.flatten().nonzero().squeeze(1)
        if len(rows) == 0:
            width = feature_size or vision_feature_size(vision, vision_feature)
            return pixel_values.new_zeros(batch, 1, width), None
        found = extract_features(
            vision, pixel_values[rows], None if pixel_mask is None else pixel_mask[rows], **options
        )
        features = found.new_zeros(batch * images, *found.shape[1:]).index_copy(0, rows, found)
    mask = present[..., None].expand(-1, -1, features.shape[1]).flatten(1)  # (B, I * P)
    return features.unflatten(0, (batch, images)).flatten(1, 2), mask


__all__ = [
    "VISION_PRESETS",
    "VisionPreset",
    "build_vision",
    "encode_images",
    "extract_features",
    "vision_feature_size",
]

"""Vision backbones: anything that `AutoModel` builds and that reads pixels."""

import inspect
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModel, PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPooling

from .configuration_mmcot import MMCoTBackbonesConfig, as_vision_config
from .errors_mmcot import ModelError


def build_vision(config: dict | PreTrainedConfig) -> PreTrainedModel:
    """The backbone with fresh weights. Never downloads."""
    config = as_vision_config(config)
    if config.model_type == MMCoTBackbonesConfig.model_type:
        from .backbones_mmcot import MMCoTBackbones  # which needs this file

        return MMCoTBackbones(config)
    return check_vision(AutoModel.from_config(config))


def check_vision(vision: PreTrainedModel) -> PreTrainedModel:
    """Returns the network if it can be a backbone.

    Raises:
        ModelError: it doesn't read pixels, or not pixels alone (SigLIP 2 of any resolution, a language model).
    """
    parameters = inspect.signature(vision.forward).parameters.values()
    needed = {parameter.name for parameter in parameters if parameter.default is parameter.empty}
    needed -= {"pixel_values", "args", "kwargs"}
    if needed or vision.main_input_name != "pixel_values":
        why = f"also needs {', '.join(sorted(needed))}" if needed else f"reads {vision.main_input_name}"
        raise ModelError(f"{type(vision).__name__} {why}: choose a vision tower that reads pixel_values alone")
    return vision


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
    stages = getattr(vision.config, "hidden_sizes", None)
    if isinstance(stages, (list, tuple)) and stages:  # convolutional networks: one width a stage
        return stages[-1]
    raise ModelError(f"{type(vision).__name__} doesn't say how wide its features are: set image_feature_size")


@dataclass
class MMCoTImageFeatures(BaseModelOutputWithPooling):
    """Image features of a batch of questions.

    Attributes:
        pooler_output: (batch, images * patches, width), what the networks take as `image_features`.
        image_attention_mask: (batch, images * patches), False where there is no image; None if nothing is missing.
        last_hidden_state, hidden_states, attentions: the backbone's own, of the images that are there.
    """

    image_attention_mask: Tensor | None = None


def get_image_features(
    vision: PreTrainedModel,
    pixel_values: Tensor,
    pixel_mask: Tensor | None = None,
    image_attention_mask: Tensor | None = None,
    vision_feature: str = "last_hidden_state",
    feature_size: int | None = None,
    **kwargs: Any,
) -> MMCoTImageFeatures:
    """Run the backbone on a batch of questions, each with no, one or several images.

    Args:
        vision: any image model.
        pixel_values: (batch, 3, H, W), or (batch, images, 3, H, W) for several images a row.
        pixel_mask: (batch, H, W) or (batch, images, H, W), for backbones that take one (DETR).
        image_attention_mask: (batch, images), False where there is no image; what stands there isn't looked at.
        vision_feature: the output to use. A feature map becomes its cells, row by row; a pooled vector one patch.
        feature_size: expected width, which tells (n, C, h, w) maps from (n, h, w, C) ones.
        kwargs: for the backbone (`output_attentions`, `output_hidden_states`).

    Raises:
        ModelError: the backbone has no such output or one of another width; the mask doesn't fit the images.
    """
    batch, images = pixel_values.shape[0], pixel_values.shape[1] if pixel_values.dim() == 5 else 1
    pixel_values = pixel_values.flatten(0, -4).to(vision.dtype)  # (B * I, 3, H, W)
    pixel_mask = None if pixel_mask is None else pixel_mask.flatten(0, -3)
    present = rows = None
    if image_attention_mask is not None:
        if image_attention_mask.shape != (batch, images):
            shape = tuple(image_attention_mask.shape)
            raise ModelError(f"image_attention_mask is {shape}, but pixel_values hold {(batch, images)} images")
        present = image_attention_mask.to(device=pixel_values.device, dtype=torch.bool)
        if not torch.compiler.is_compiling():  # a number of images that only the data tells would break the graph
            rows = present.flatten().nonzero().squeeze(1)
            if len(rows) == 0:
                width = feature_size or vision_feature_size(vision, vision_feature)
                return MMCoTImageFeatures(pooler_output=pixel_values.new_zeros(batch, 1, width))
            pixel_values = pixel_values[rows]
            pixel_mask = None if pixel_mask is None else pixel_mask[rows]
    # Its own attentions are never used, and timm's networks refuse even a configuration that asks for them.
    optional = {"pixel_mask": pixel_mask, "output_attentions": False, "output_hidden_states": False}
    accepted = inspect.signature(vision.forward).parameters
    inputs = {name: value for name, value in optional.items() if value is not None and name in accepted} | kwargs
    output = vision(pixel_values=pixel_values, return_dict=True, **inputs)
    features = _as_patches(output, vision_feature, feature_size)
    if rows is not None:
        features = features.new_zeros(batch * images, *features.shape[1:]).index_copy(0, rows, features)
    return MMCoTImageFeatures(
        last_hidden_state=output.last_hidden_state,
        pooler_output=features.unflatten(0, (batch, images)).flatten(1, 2),
        hidden_states=getattr(output, "hidden_states", None),
        attentions=getattr(output, "attentions", None),
        image_attention_mask=None if present is None else present.repeat_interleave(features.shape[1], dim=1),
    )


def _as_patches(output, vision_feature: str, feature_size: int | None) -> Tensor:
    """An output of the backbone as (images, patches, width)."""
    features = getattr(output, vision_feature, None)
    if features is None:
        raise ModelError(f"the backbone gives no {vision_feature}; choose the other vision_feature")
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
        raise ModelError(f"the backbone gives features of width {features.shape[-1]}, the fusion takes {feature_size}")
    return features


__all__ = ["MMCoTImageFeatures", "build_vision", "check_vision", "get_image_features", "vision_feature_size"]

"""Several frozen backbones as one, over the pixels of the first one's image processor."""

import hashlib
import json

import torch
from torch import nn
from transformers.utils import logging

from mmcot.backbones_mmcot import MMCoTBackbones
from mmcot.configuration_mmcot import MMCoTBackbonesConfig
from mmcot.training.common import UserError

logger = logging.get_logger("mmcot")

KNOWN_BY = ("vision_features", "pixel_scales", "pixel_shifts", "image_sizes")


def join_vision(visions: list, names: list[str], image_processors: list, vision_features: list[str]) -> MMCoTBackbones:
    """Backbones as one that reads what the first one's image processor gives.

    The others see pictures framed as the first does, with their own mean, deviation and size.

    Args:
        visions: the networks, two or more.
        names: of them, for messages.
        image_processors: what each was trained with.
        vision_features: the output of each that is used.

    Raises:
        UserError: one's pixels can't be made of the first one's.
    """
    settings: dict = {"vision_features": vision_features, "pixel_scales": [], "pixel_shifts": [], "image_sizes": []}
    first = image_processors[0]
    factor, mean, std = _levels(first, names[0])
    for name, processor in zip(names, image_processors, strict=True):
        own_factor, own_mean, own_std = _levels(processor, name)
        ratio = own_factor / factor
        channels = list(zip(mean, std, own_mean, own_std, strict=True))
        settings["pixel_scales"].append([ratio * s / own_s for _, s, _, own_s in channels])
        settings["pixel_shifts"].append([(ratio * m - own_m) / own_s for m, _, own_m, own_s in channels])
        size = fixed_size(processor)
        settings["image_sizes"].append(size)
        if size is not None and fixed_size(first) is None:
            raise UserError(
                f"{names[0]} takes pictures of any size and {name} takes {size[0]} × {size[1]} pixels, so they can't "
                f"share them: name {name} first"
            )
        if _framing(processor) != _framing(first):
            logger.warning(
                f"{name} gets the pictures as {names[0]} frames them: cut and resized by that one's processor"
            )
    return from_backbones(visions, **settings)


def from_backbones(backbones: list, **settings) -> MMCoTBackbones:
    """Joins networks as they are; `settings` are those of `MMCoTBackbonesConfig`."""
    config = MMCoTBackbonesConfig(backbones=[backbone.config for backbone in backbones], **settings)
    with torch.device("meta"):  # only the frame: the networks move in as they are
        model = MMCoTBackbones(config)
    model.backbones = nn.ModuleList(backbones)
    return model.eval()


def joined_fingerprint(vision, fingerprints: list[str]) -> str:
    """A hash of joined backbones: of each one's weights, and of how it gets its pixels."""
    known = {name: getattr(vision.config, name) for name in KNOWN_BY}
    return hashlib.blake2b(json.dumps([fingerprints, known]).encode(), digest_size=16).hexdigest()


def fixed_size(image_processor) -> list[int] | None:
    """[height, width] of all pixel values, or None where they vary with the picture."""
    size = None
    if getattr(image_processor, "do_center_crop", False):
        size = image_processor.crop_size
    elif getattr(image_processor, "do_resize", False):
        size = image_processor.size
    size = {} if size is None else dict(size)
    return [size["height"], size["width"]] if size.get("height") and size.get("width") else None


def _levels(processor, name: str) -> tuple[float, list[float], list[float]]:
    """Factor, mean and deviation by which pixel values come from levels of 0-255."""
    factor = processor.rescale_factor if getattr(processor, "do_rescale", False) else 1.0
    if not getattr(processor, "do_normalize", False):
        mean, std = 0.0, 1.0
    else:
        mean, std = getattr(processor, "image_mean", None), getattr(processor, "image_std", None)
    if mean is None or std is None:
        raise UserError(
            f"{name}: its {type(processor).__name__} has no image_mean and image_std, so its pixels can't be made of "
            "others; save a processor that has them beside the model"
        )
    return factor, *([value] * 3 if isinstance(value, int | float) else list(value) for value in (mean, std))


def _framing(processor) -> str:
    """What decides which part of a picture is seen, and how large."""
    names = ("do_resize", "size", "do_center_crop", "crop_size", "do_pad")
    return str([getattr(processor, name, None) or None for name in names])

"""Image processors of the paper's backbones, to make models with; a saved model has its own and needs no preset."""

from typing import Any

from transformers.image_utils import (
    IMAGENET_DEFAULT_MEAN,
    IMAGENET_DEFAULT_STD,
    OPENAI_CLIP_MEAN,
    OPENAI_CLIP_STD,
    PILImageResampling,
)

from .image_processing_mmcot import MMCoTImageProcessor
from .prompts_mmcot import ProblemError

_IMAGENET = {"image_mean": IMAGENET_DEFAULT_MEAN, "image_std": IMAGENET_DEFAULT_STD}

# Preprocessing of the paper's four backbones. DETR: the original's own `Resize(224)`, ImageNet statistics, no crop.
# The others: timm's evaluation transform of vit_large_patch32_384, resnet101_clip.openai and resnet50; the short side
# is the input's size divided by timm's crop_pct (1.0, 0.9, 0.95).
PRESETS: dict[str, dict[str, Any]] = {
    "detr": {"size": {"shortest_edge": 224}, "resample": PILImageResampling.BILINEAR, "do_pad": True, **_IMAGENET},
    "vit": {"size": {"shortest_edge": 384}, "crop_size": {"height": 384, "width": 384}, "do_center_crop": True},
    "clip": {
        "size": {"shortest_edge": 248},
        "crop_size": {"height": 224, "width": 224},
        "do_center_crop": True,
        "image_mean": OPENAI_CLIP_MEAN,
        "image_std": OPENAI_CLIP_STD,
    },
    "resnet": {
        "size": {"shortest_edge": 235},
        "crop_size": {"height": 224, "width": 224},
        "do_center_crop": True,
        **_IMAGENET,
    },
}


def image_processor_for(preset: str | int | tuple[int, int]) -> MMCoTImageProcessor:
    """The image processor of a backbone, made without network.

    Args:
        preset: "detr", "vit", "clip" or "resnet" (the paper's backbones, exactly as the original preprocessed for
            them); or, for a backbone of one's own, the side or (height, width) in pixels that images are squeezed to,
            scaled to [-1, 1].
    """
    if isinstance(preset, str):
        if preset not in PRESETS:
            raise ProblemError(f"no image preset {preset!r}; there are {', '.join(PRESETS)}, or give a size in pixels")
        return MMCoTImageProcessor(**PRESETS[preset])
    height, width = (preset, preset) if isinstance(preset, int) else preset
    return MMCoTImageProcessor(size={"height": height, "width": width})

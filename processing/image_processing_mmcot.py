"""Images of a problem: reading them, and turning them into pixel values exactly as the original did.

`MMCoTImageProcessor` exists because transformers' own processors come close but not all the way: their default
backend resizes with torchvision instead of PIL (some values differ by grey levels), and both of their backends crop
one pixel beside timm wherever an odd number of rows is left over.
"""

import base64
import io
import os
import shutil
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps
from transformers.image_processing_backends import PilBackend
from transformers.image_processing_utils import BatchFeature
from transformers.image_utils import (
    IMAGENET_DEFAULT_MEAN,
    IMAGENET_DEFAULT_STD,
    OPENAI_CLIP_MEAN,
    OPENAI_CLIP_STD,
    PILImageResampling,
)

# The files that a saved processor needs beside it; see `copy_code`.
CODE_FILES = ("image_processing_mmcot.py", "processing_mmcot.py", "prompts_mmcot.py")

_URL_TIMEOUT = 20  # seconds

_IMAGENET = {"image_mean": IMAGENET_DEFAULT_MEAN, "image_std": IMAGENET_DEFAULT_STD}

# Preprocessing of the paper's four backbones. DETR: the original's own `Resize(224)`, ImageNet statistics, no crop.
# The others: timm's evaluation transform of vit_large_patch32_384, resnet101_clip.openai and resnet50; the short side
# is the input's size divided by timm's crop_pct (1.0, 0.9, 0.95).
PRESETS = {
    "detr": {
        "size": {"shortest_edge": 224},
        "resample": PILImageResampling.BILINEAR,
        "do_pad": True,
        **_IMAGENET,
    },
    "vit": {
        "size": {"shortest_edge": 384},
        "crop_size": {"height": 384, "width": 384},
        "do_center_crop": True,
    },
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


class MMCoTImageProcessor(PilBackend):
    """Resize (PIL), centre crop (timm's rounding), rescale, normalise; pad a batch of different sizes.

    Gives `pixel_values` (batch, 3, height, width) and, with `do_pad`, `pixel_mask` (batch, height, width), 1 where the
    image is and 0 where padding is. Padding never enters where all images of a batch have one size; DETR's features of
    a padded image differ a little from those of the same image alone.
    """

    resample = PILImageResampling.BICUBIC
    image_mean = [0.5, 0.5, 0.5]
    image_std = [0.5, 0.5, 0.5]
    size = {"height": 224, "width": 224}
    do_convert_rgb = True
    do_resize = True
    do_rescale = True
    do_normalize = True

    @property
    def model_input_names(self) -> list[str]:
        return ["pixel_values", "pixel_mask"] if self.do_pad else ["pixel_values"]

    def center_crop(self, image: np.ndarray, size, **kwargs) -> np.ndarray:
        """(channels, height, width) -> its middle; Python's round(), as torchvision and timm do it."""
        height, width = image.shape[-2:]
        if size.height > height or size.width > width:
            return super().center_crop(image, size, **kwargs)
        top, left = round((height - size.height) / 2), round((width - size.width) / 2)
        return image[:, top : top + size.height, left : left + size.width]

    def _preprocess(self, images, *args, do_pad=None, pad_size=None, return_tensors=None, **kwargs) -> BatchFeature:
        data = super()._preprocess(images, *args, do_pad=False, pad_size=None, return_tensors=None, **kwargs)
        if do_pad:
            padded, masks = self.pad(data["pixel_values"], pad_size=pad_size, return_mask=True)
            data = {"pixel_values": padded, "pixel_mask": masks}
        return BatchFeature(dict(data), tensor_type=return_tensors)

    def to_dict(self) -> dict[str, Any]:
        return {**super().to_dict(), "auto_map": {"AutoImageProcessor": "image_processing_mmcot.MMCoTImageProcessor"}}

    def save_pretrained(self, save_directory, push_to_hub: bool = False, **kwargs):
        saved = super().save_pretrained(save_directory)
        copy_code(save_directory)
        if push_to_hub:  # only now, or the code files would stay behind
            self.push_to_hub(kwargs.pop("repo_id", Path(save_directory).name), **kwargs)
        return saved


def image_processor_for(preset: str | int | tuple[int, int]) -> MMCoTImageProcessor:
    """The image processor of a backbone, made without network.

    Args:
        preset: "detr", "vit", "clip" or "resnet" (the paper's backbones, exactly as the original preprocessed for
            them); or, for a backbone of one's own, the side or (height, width) in pixels that images are squeezed to,
            scaled to [-1, 1].
    """
    if isinstance(preset, str):
        if preset not in PRESETS:
            raise ValueError(f"no image preset {preset!r}; there are {', '.join(PRESETS)}, or give a size in pixels")
        return MMCoTImageProcessor(**PRESETS[preset])
    height, width = (preset, preset) if isinstance(preset, int) else preset
    return MMCoTImageProcessor(size={"height": height, "width": width})


def load_images(problem: Mapping[str, Any]) -> list[Image.Image]:
    """All images of a problem, as RGB; an empty list if it has none.

    They are read from `images` (a list) or `image` (one, a list, or None). An image is whatever `load_image` reads.

    Raises:
        ValueError: an image can't be read; the message names the problem's id and the image.
    """
    loaded = []
    for reference in image_references(problem):
        try:
            loaded.append(load_image(reference))
        except Exception as error:
            name = "problem" if problem.get("id") is None else f"problem {problem['id']}"
            raise ValueError(f"{name}: cannot read image {_describe(reference)}: {_shorten(str(error))}") from error
    return loaded


def image_references(problem: Mapping[str, Any]) -> list[Any]:
    """The problem's images as they are given, unread and without the empty ones."""
    given = problem.get("images")
    if given is None:
        given = problem.get("image")
    if not isinstance(given, list | tuple):
        given = [given]
    return [reference for reference in given if reference is not None and not _is_empty(reference)]


def image_rows(images: Any, num_texts: int | None) -> list[list]:
    """Images in any layout as one list for each text."""
    if getattr(images, "ndim", 0) == 4:  # a stack
        images = list(images)
    if not isinstance(images, list | tuple):
        images = [images]
    if any(image is None or isinstance(image, list | tuple) for image in images):
        rows = [image if isinstance(image, list | tuple) else [] if image is None else [image] for image in images]
    elif num_texts == 1:
        rows = [images]
    else:
        rows = [[image] for image in images]
    if num_texts is not None and len(rows) != num_texts:
        raise ValueError(f"images for {len(rows)} texts, but there are {num_texts} texts")
    # Arrays are left to the image processor, which knows their channels' order.
    return [[image if hasattr(image, "ndim") else load_image(image) for image in row] for row in rows]


def load_image(reference: Any) -> Image.Image:
    """One image as RGB, from a PIL image, an array (height, width[, channels]), a path, bytes, an http(s) or data URL,
    or `datasets`' undecoded {"path": …, "bytes": …}. Errors are those of whatever reads it."""
    if isinstance(reference, Mapping):
        content = reference.get("bytes")
        reference = content if content is not None else reference.get("path")
    if isinstance(reference, Image.Image):
        return _to_rgb(reference)
    if isinstance(reference, bytes | bytearray | memoryview):
        return _decode(bytes(reference))
    if isinstance(reference, str) and reference.startswith(("http://", "https://")):
        request = urllib.request.Request(reference, headers={"User-Agent": "mmcot"})
        with urllib.request.urlopen(request, timeout=_URL_TIMEOUT) as response:
            return _decode(response.read())
    if isinstance(reference, str) and reference.startswith("data:image/"):
        return _decode(base64.b64decode(reference.partition(",")[2]))
    if isinstance(reference, str | os.PathLike):
        return _decode(Path(reference).expanduser().read_bytes())
    if hasattr(reference, "__array__"):
        return _to_rgb(Image.fromarray(np.asarray(reference)))
    raise TypeError(f"an image is a PIL image, array, path, bytes, URL or dict, not {type(reference).__name__}")


def copy_code(save_directory: str | os.PathLike) -> None:
    """Copy this processor's code files flat into a saved folder, so that it loads where this package isn't installed.

    The source is this file's own folder: the package, or, loaded from the Hub, the folder of remote code, which holds
    the files that the loaded class needs.
    """
    here, there = Path(__file__).resolve().parent, Path(save_directory).resolve()
    for name in CODE_FILES:
        if here != there and (here / name).is_file():
            shutil.copyfile(here / name, there / name)


def _decode(content: bytes) -> Image.Image:
    image = Image.open(io.BytesIO(content))
    image.load()  # a truncated file is found here and not later
    return _to_rgb(ImageOps.exif_transpose(image))


def _to_rgb(image: Image.Image) -> Image.Image:
    """As the original's `convert("RGB")`, except that 16-bit greys are scaled and not clipped to white."""
    if image.mode.startswith("I"):
        values = np.asarray(image)
        image = Image.fromarray((values // 256 if values.max(initial=0) > 255 else values).astype(np.uint8))
    elif image.mode == "P":
        image = image.convert("RGBA")  # same colours, without PIL's warning about transparency
    return image.convert("RGB")


def _is_empty(reference: Any) -> bool:
    """An empty text, or `datasets`' struct of an absent image."""
    if isinstance(reference, Mapping):
        return reference.get("bytes") is None and not reference.get("path")
    return isinstance(reference, str) and not reference


def _describe(reference: Any) -> str:
    """An image reference in a few words, never its content."""
    if isinstance(reference, Mapping):
        reference = reference.get("path") or reference.get("bytes")
    if isinstance(reference, bytes | bytearray | memoryview):
        return f"({len(reference)} bytes)"
    if isinstance(reference, str | os.PathLike):
        return repr(_shorten(os.fspath(reference)))
    return f"({type(reference).__name__})"


def _shorten(text: str, limit: int = 200) -> str:
    return text if len(text) <= limit else text[:limit] + " …"

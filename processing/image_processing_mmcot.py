"""Images become pixel values, exactly as the original's.

`MMCoTImageProcessor` exists because transformers' own processors come close but not all the way: their default
backend resizes with torchvision instead of PIL (some values differ by grey levels), and both of their backends crop
one pixel beside timm wherever an odd number of rows is left over.
"""

import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers.image_processing_backends import PilBackend
from transformers.image_processing_utils import BatchFeature
from transformers.image_utils import PILImageResampling

from .image_reading_mmcot import load_image, to_levels
from .prompts_mmcot import ProblemError

# The files that a saved processor needs beside it; see `copy_code`.
CODE_FILES = [f"{name}_mmcot.py" for name in ("image_processing", "image_reading", "processing", "prompts", "tokens")]

# The long side of an image may be so many times its short side, where that is resized to a fixed length: a line of
# 20000 x 1 pixels would become 4480000 x 224. ScienceQA's widest picture has 522 x 53.
MAX_ASPECT = 20


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

    def fetch_images(self, image_url_or_urls):
        """As inherited, for paths and URLs that direct calls name; read within the bounds of `read_image_bytes`."""
        reference = image_url_or_urls
        return load_image(reference) if isinstance(reference, str) else super().fetch_images(reference)

    def process_image(self, image, do_convert_rgb: bool | None = None, **kwargs) -> np.ndarray:
        """As inherited; a PIL image becomes RGB as `load_image` does it."""
        if do_convert_rgb and isinstance(image, Image.Image):
            image = load_image(image)
        pixels = super().process_image(image, do_convert_rgb=do_convert_rgb, **kwargs)
        if not pixels.size:
            raise ProblemError(f"an image of shape {pixels.shape} has no pixels")
        return pixels

    def resize(self, image: np.ndarray, size, **kwargs) -> np.ndarray:
        """As inherited; an image so narrow that its long side would take gigabytes is a ProblemError."""
        check_aspect(image.shape[-1], image.shape[-2], size)
        return super().resize(image, size, **kwargs)

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
        if kwargs.get("do_rescale"):  # which takes levels of 0-255: floats within 0-1 would come out black
            images = [to_levels(image) for image in images]
        data = super()._preprocess(images, *args, do_pad=False, pad_size=None, return_tensors=None, **kwargs)
        if do_pad:
            padded, masks = self.pad(data["pixel_values"], pad_size=pad_size, return_mask=True)
            data = BatchFeature({"pixel_values": padded, "pixel_mask": masks})
        return BatchFeature(dict(data), tensor_type=return_tensors)

    def to_dict(self) -> dict[str, Any]:
        return {**super().to_dict(), "auto_map": {"AutoImageProcessor": "image_processing_mmcot.MMCoTImageProcessor"}}

    def save_pretrained(self, save_directory, push_to_hub: bool = False, **kwargs):
        saved = super().save_pretrained(save_directory)
        copy_code(save_directory)
        if push_to_hub:  # only now, or the code files would stay behind
            self.push_to_hub(kwargs.pop("repo_id", Path(save_directory).name), **kwargs)
        return saved


def check_aspect(width: int, height: int, size) -> None:
    """Raise a ProblemError where resizing to `size` (an image processor's) would make an enormous image."""
    narrow = max(width, height) > MAX_ASPECT * min(width, height)
    if narrow and size.get("shortest_edge") and not size.get("longest_edge"):
        raise ProblemError(
            f"an image of {width} × {height} pixels: one side is more than {MAX_ASPECT} times the other, and its "
            f"short side is resized to {size['shortest_edge']}; crop it"
        )


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
        raise ProblemError(f"images for {len(rows)} texts, but there are {num_texts} texts")
    # Arrays are left to the image processor, which knows their channels' order.
    return [[image if hasattr(image, "ndim") else load_image(image) for image in row] for row in rows]


def stack_images(image_processor, rows: list[list], **images_kwargs) -> dict[str, torch.Tensor]:
    """`pixel_values` (rows, images, 3, height, width), zeros where a row has fewer images, without the second axis if
    none has more than one; `image_attention_mask` (rows, images); and `pixel_mask`, if the processor gives one."""
    flat = [image for row in rows for image in row]
    # Where a batch has no image at all, a blank one tells the shape that zeros have to have.
    encoded = image_processor(flat or [Image.new("RGB", (32, 32))], **{**images_kwargs, "return_tensors": "pt"})
    count = max(1, *map(len, rows))
    present = torch.tensor([[column < len(row) for column in range(count)] for row in rows])  # (batch, images)
    data = {"image_attention_mask": present}
    for name, absent in (("pixel_values", 0), ("pixel_mask", 1)):  # a mask of zeros only would give NaN
        if name in encoded:
            values = encoded[name]
            placed = values.new_full((*present.shape, *values.shape[1:]), absent)
            placed[present] = values[: len(flat)]
            data[name] = placed if count > 1 else placed[:, 0]
    return data


def copy_code(save_directory: str | os.PathLike) -> None:
    """Copy this processor's code files flat into a saved folder, so that it loads where this package isn't installed.

    The source is this file's own folder: the package, or, loaded from the Hub, the folder of remote code, which holds
    the files that the loaded class needs.
    """
    here, there = Path(__file__).resolve().parent, Path(save_directory).resolve()
    for name in CODE_FILES:
        if here != there and (here / name).is_file():
            shutil.copyfile(here / name, there / name)

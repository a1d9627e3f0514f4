"""Pictures and files of them, and what is said of one that cannot be read."""

import io

import numpy as np
import pytest
from PIL import Image

from mmcot.processing import ProblemError, load_image


def picture(width=40, height=30, mode="RGB", seed=0):
    """A smooth coloured picture: noise would hide a shift by a pixel, flat colour would not show one."""
    noise = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC).convert(mode)


def encoded(image, kind="PNG", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def png(image) -> bytes:
    return encoded(image)


def message(reference, **options) -> str:
    """What is said of an image that can't be read: one short line."""
    with pytest.raises(ProblemError) as error:
        load_image(reference, **options)
    text = str(error.value)
    assert text.startswith("cannot read image") and "\n" not in text and len(text) < 450 and text.isprintable(), text
    return text

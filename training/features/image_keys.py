"""Keys of pictures in a feature cache: a hash of what the picture shows, wherever it lies."""

import hashlib
import os

from PIL import Image

from mmcot.training.common import UserError


def image_key(reference) -> str:
    """Content hash of a picture, 32 hexadecimal digits: its key in a `FeatureCache`.

    Paths, URLs, bytes and {"path", "bytes"} are hashed by the encoded file, wherever it lies and whatever its name. A
    PIL image or an array is hashed by its RGB pixels, since its file is gone; that key is not the file's.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not an image reference, or it can't be read (see `read_image_bytes` for the bounds).
    """
    return read_picture(reference)[0]


def read_picture(reference) -> tuple[str, bytes | Image.Image]:
    """A picture's key and content (encoded, or RGB pixels where it came as such), for `load_image` to take.

    Both come from one reading of the file.
    """
    if isinstance(reference, dict):
        reference = reference["path"] if reference.get("bytes") is None else reference["bytes"]
    if isinstance(reference, Image.Image) or hasattr(reference, "__array__"):
        # here, since it imports much that reading a cache doesn't need
        from mmcot.processing import load_image

        image = load_image(reference)
        return content_key(b"RGB %d %d " % image.size + image.tobytes()), image
    data = _encoded(reference)
    return content_key(data), data


def content_key(data: bytes) -> str:
    return hashlib.blake2b(data, digest_size=16).hexdigest()


def _encoded(reference) -> bytes:
    from mmcot.processing.image_reading_mmcot import read_image_bytes

    if not isinstance(reference, str | os.PathLike | bytes | bytearray | memoryview):
        raise UserError(f"not an image reference: {reference!r:.80}")
    return read_image_bytes(reference)

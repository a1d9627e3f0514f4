"""Pixels of any mode, depth and orientation come out as the RGB that a viewer shows."""

import numpy as np
import pytest
import torch
from image_helpers import encoded, message, picture, png
from PIL import Image

from mmcot.processing import load_image


@pytest.mark.parametrize("mode", ["L", "P", "1", "CMYK", "HSV", "YCbCr"])
def test_every_mode_becomes_rgb(mode):
    image = picture(mode=mode)
    expected = image.convert("RGB")
    assert load_image(image).tobytes() == expected.tobytes()
    if mode not in ("CMYK", "HSV", "YCbCr"):
        assert load_image(png(image)).tobytes() == expected.tobytes()
    if mode == "CMYK":
        assert load_image(encoded(image, "TIFF")).tobytes() == expected.tobytes()


GREY = np.arange(256, dtype=np.uint8).reshape(16, 16)  # every level


@pytest.mark.parametrize(
    "values",
    [
        GREY.astype(np.uint16) * 256,
        GREY.astype(np.uint16) * 257,
        GREY.astype(np.int32) * 256,
        GREY.astype(np.int32),  # 0-255 are levels already
        GREY.astype(np.int64),
        GREY.astype(np.int32) * 2**22 - 2**29,  # from the lowest to the highest
        (GREY / 255).astype(np.float32),
        GREY / 255,
        GREY.astype(np.float32),
        GREY / 255 * 7 - 3.5,
        (GREY / 255)[..., None],
        np.stack([GREY / 255] * 3, -1),
        np.stack([GREY / 255] * 3).astype(np.float32),
        torch.tensor(GREY / 255).expand(3, 16, 16),
        torch.tensor(GREY)[None],
    ],
    ids=lambda values: f"{str(values.dtype)}-{values.ndim}d-{float(values.max()):g}",
)
def test_levels_of_any_depth_come_out_right(values):
    expected = Image.fromarray(GREY).convert("RGB").tobytes()
    assert load_image(values).tobytes() == expected
    if values.ndim == 2 and str(values.dtype) in ("uint16", "int32", "float32"):  # as files and PIL images too
        image = Image.fromarray(values)
        assert image.mode in ("I;16", "I", "F")
        assert load_image(image).tobytes() == load_image(encoded(image, "TIFF")).tobytes() == expected
        if image.mode == "I;16":
            assert load_image(png(image)).tobytes() == expected


def test_black_white_and_flat_images():
    for value, level in ((0, 0), (255, 255), (7, 7), (1.0, 255), (0.5, 128), (True, 255), (-3.0, 0)):
        assert load_image(np.full((4, 4), value)).getpixel((0, 0)) == (level,) * 3, value
    assert load_image(np.full((4, 4, 4), 1.0)).getpixel((0, 0)) == (255, 255, 255)


@pytest.mark.parametrize(
    "shape", [(), (5,), (0, 0), (0, 0, 3), (5, 4, 5), (2, 3, 4, 3), (7, 5, 9), (0, 4)], ids=lambda shape: str(shape)
)
def test_arrays_that_are_no_image_are_refused(shape):
    assert "shape (height, width[, channels])" in message(np.zeros(shape, dtype=np.uint8))


def test_numbers_that_are_no_levels_are_refused():
    assert "not finite" in message(np.array([[0.5, np.nan]]))
    assert "not finite" in message(np.array([[0.5, np.inf]], dtype=np.float32))
    assert "holds numbers" in message(np.array([["a", "b"]]))
    for size in ((0, 0), (0, 5)):
        assert "no pixels" in message(Image.new("RGB", size))


def test_transparent_pixels_are_white_and_opaque_ones_unchanged():
    rgb = picture(64, 64)
    for level in range(256):  # of every level
        rgb.putpixel((level % 64, level // 64), (level, 255 - level, level))
    alpha = Image.new("L", rgb.size, 255)
    alpha.paste(0, (32, 0, 64, 64))
    image = rgb.copy()
    image.putalpha(alpha)
    expected = rgb.copy()
    expected.paste((255, 255, 255), (32, 0, 64, 64))
    for given in (image, png(image), encoded(image, "WEBP", lossless=True), np.asarray(image), image.convert("RGBa")):
        assert load_image(given).tobytes() == expected.tobytes()
    grey = image.convert("LA")
    for given in (grey, png(grey), np.asarray(grey)):
        loaded = load_image(given)
        assert loaded.crop((32, 0, 64, 64)).getextrema() == ((255, 255),) * 3
        assert loaded.crop((0, 0, 32, 64)).tobytes() == grey.convert("L").convert("RGB").crop((0, 0, 32, 64)).tobytes()
    half = Image.new("RGBA", (1, 1), (0, 0, 0, 51))
    assert load_image(half).getpixel((0, 0)) == (204, 204, 204)


def test_a_transparent_colour_is_white():
    """Palettes and PNGs name one (tRNS)."""
    palette = Image.new("P", (2, 1))
    palette.putpalette([10, 20, 30, 40, 50, 60])
    palette.putpixel((1, 0), 1)
    for given in (png_with(palette, transparency=0), encoded(palette, "GIF", transparency=0)):
        assert [load_image(given).getpixel((x, 0)) for x in (0, 1)] == [(255, 255, 255), (40, 50, 60)]
    assert load_image(palette).getpixel((0, 0)) == (10, 20, 30)
    coloured = Image.new("RGB", (2, 1), (9, 9, 9))
    coloured.putpixel((1, 0), (8, 8, 8))
    given = png_with(coloured, transparency=(9, 9, 9))
    assert [load_image(given).getpixel((x, 0)) for x in (0, 1)] == [(255, 255, 255), (8, 8, 8)]


def png_with(image, **options) -> bytes:
    return encoded(image, "PNG", **options)


def test_exif_rotation_is_applied_however_the_image_comes(tmp_path):
    image = picture()
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by 90 degrees
    (tmp_path / "turned.png").write_bytes(encoded(image, "PNG", exif=exif))
    expected = image.transpose(Image.Transpose.ROTATE_270)
    with Image.open(tmp_path / "turned.png") as opened:
        for given in (tmp_path / "turned.png", (tmp_path / "turned.png").read_bytes(), opened):
            assert load_image(given).size == (30, 40) and load_image(given).tobytes() == expected.tobytes()


def test_an_animation_is_its_first_frame():
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    for kind in ("GIF", "PNG", "TIFF"):
        given = encoded(frames[0], kind, save_all=True, append_images=frames[1:])
        assert load_image(given).getpixel((0, 0)) == (255, 0, 0)


def test_real_images_are_read_as_the_original_does(shared_dir):
    paths = sorted((shared_dir / "data/scienceqa/images").rglob("*.png"))[::10]
    for path in paths:
        assert load_image(path).tobytes() == Image.open(path).convert("RGB").tobytes()
    assert len(paths) > 20

"""Pixel values are those of timm's and the original's own transforms."""

import numpy as np
import pytest
import timm
import torch
import torchvision.transforms as T
from image_helpers import picture
from PIL import Image
from transformers import DetrImageProcessorPil

from mmcot.processing import MMCoTImageProcessor, ProblemError, image_processor_for

TIMM_NAMES = {"vit": "vit_large_patch32_384", "clip": "resnet101_clip.openai", "resnet": "resnet50"}


@pytest.mark.parametrize("name", list(TIMM_NAMES))
@pytest.mark.parametrize("size", [(640, 481), (301, 500), (100, 77), (384, 384)])
def test_pixel_values_are_timms(name, size):
    config = timm.data.resolve_data_config(timm.get_pretrained_cfg(TIMM_NAMES[name]).to_dict())
    image = picture(*size)
    expected = timm.data.create_transform(**config)(image)
    got = image_processor_for(name)(image, return_tensors="pt")["pixel_values"][0]
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("size", [(640, 481), (301, 500), (100, 77), (224, 224), (2000, 230)])
def test_pixel_values_are_the_originals_for_detr(size):
    image = picture(*size)
    original = T.Compose([T.Resize(224), T.ToTensor(), T.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])])
    got = image_processor_for("detr")(image, return_tensors="pt")
    torch.testing.assert_close(got["pixel_values"][0], original(image), rtol=0, atol=1e-6)
    detr = DetrImageProcessorPil(size={"shortest_edge": 224, "longest_edge": 10**6})(image, return_tensors="pt")
    torch.testing.assert_close(got["pixel_values"], detr["pixel_values"], rtol=0, atol=1e-6)
    assert torch.equal(got["pixel_mask"], detr["pixel_mask"])


def test_detr_pads_a_batch_and_says_where():
    images = [picture(448, 300), picture(300, 448)]
    detr = DetrImageProcessorPil(size={"shortest_edge": 224, "longest_edge": 10**6})(images, return_tensors="pt")
    got = image_processor_for("detr")(images, return_tensors="pt")
    assert torch.equal(got["pixel_mask"], detr["pixel_mask"]) and not got["pixel_mask"].all()
    torch.testing.assert_close(got["pixel_values"], detr["pixel_values"], rtol=0, atol=1e-6)


def test_own_size_squeezes_to_it():
    values = image_processor_for(64)(picture(90, 20), return_tensors="pt")["pixel_values"]
    assert values.shape == (1, 3, 64, 64) and -1 <= values.min() < values.max() <= 1
    assert image_processor_for((8, 16))(picture(), return_tensors="pt")["pixel_values"].shape == (1, 3, 8, 16)
    with pytest.raises(ValueError, match="no image preset 'vgg'"):
        image_processor_for("vgg")


@pytest.mark.parametrize("preset", ["detr", "clip", 32])
def test_image_processor_survives_saving(tmp_path, preset):
    first = image_processor_for(preset)
    first.save_pretrained(tmp_path)
    second = MMCoTImageProcessor.from_pretrained(tmp_path)
    assert second.to_dict() == first.to_dict()
    image = picture(61, 47)
    for name, values in first(image, return_tensors="pt").items():
        assert torch.equal(second(image, return_tensors="pt")[name], values)


# ---- shapes and levels that would be wrong ----


def test_a_bound_on_narrow_images_leaves_the_widest_of_scienceqa_alone():
    assert image_processor_for("detr")(Image.new("RGB", (522, 53)), return_tensors="pt")["pixel_values"].shape == (
        *(1, 3, 224, 2206),
    )
    values = image_processor_for("detr")(Image.new("RGB", (20, 400)), return_tensors="pt")["pixel_values"]
    assert values.shape == (1, 3, 4480, 224)
    for preset in ("detr", "vit", "clip", "resnet"):
        for width, height in ((1, 3000), (20000, 1), (4000, 20), (401, 20)):
            with pytest.raises(ProblemError, match=f"{width} × {height} pixels"):
                image_processor_for(preset)(Image.new("RGB", (width, height)), return_tensors="pt")
    # a size of both sides squeezes, and never makes an enormous image
    assert image_processor_for(16)(Image.new("RGB", (3000, 1)), return_tensors="pt")["pixel_values"].shape[-1] == 16


def test_direct_calls_read_as_load_image_does(tmp_path):
    """Transparency, depth and EXIF of a PIL image, floats within 0-1, and a path."""
    processor = image_processor_for(16)
    clear = Image.new("RGBA", (16, 16), (255, 0, 0, 0))
    assert (processor(clear, return_tensors="pt")["pixel_values"] == 1).all()
    grey = np.arange(256, dtype=np.uint8).reshape(16, 16)
    expected = processor(Image.fromarray(grey), return_tensors="pt")["pixel_values"]
    deep = Image.fromarray(grey.astype(np.uint16) * 256)
    deep.save(tmp_path / "deep.png")
    colours = np.stack([grey / 255] * 3, -1)
    for image in (deep, str(tmp_path / "deep.png"), colours, torch.tensor(colours).permute(2, 0, 1).float()):
        assert torch.equal(processor(image, return_tensors="pt")["pixel_values"], expected)
    # who has scaled already says so
    raw = processor(colours, do_rescale=False, do_normalize=False, do_resize=False, return_tensors="pt")
    torch.testing.assert_close(raw["pixel_values"][0, 0].double(), torch.tensor(grey / 255))


def test_images_without_pixels_are_refused():
    for image in (Image.new("RGB", (0, 0)), np.zeros((0, 0, 3), np.uint8), np.zeros((3, 0, 5), np.uint8)):
        with pytest.raises(ProblemError, match="no pixels"):
            image_processor_for(16)(image, return_tensors="pt")

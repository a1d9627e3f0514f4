"""Images of every kind are read; pixel values are those of timm's and the original's own transforms."""

import base64
import http.server
import io
import threading

import numpy as np
import pytest
import timm
import torch
import torchvision.transforms as T
from PIL import Image
from transformers import DetrImageProcessorPil

from mmcot.processing import MMCoTImageProcessor, image_processor_for, load_image, load_images

TIMM_NAMES = {"vit": "vit_large_patch32_384", "clip": "resnet101_clip.openai", "resnet": "resnet50"}


def picture(width=40, height=30, mode="RGB", seed=0):
    """A smooth coloured picture: noise would hide a shift by a pixel, flat colour would not show one."""
    noise = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC).convert(mode)


def png(image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


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


def test_every_kind_of_reference_gives_the_same_image(tmp_path):
    image = picture()
    path = tmp_path / "image.png"
    path.write_bytes(png(image))
    data_url = "data:image/png;base64," + base64.b64encode(png(image)).decode()
    references = [image, np.asarray(image), path, str(path), png(image), data_url]
    references += [{"path": str(path), "bytes": None}, {"path": "gone.png", "bytes": png(image)}]
    for reference in references:
        loaded = load_image(reference)
        assert loaded.mode == "RGB" and loaded.tobytes() == image.tobytes()
    assert len(load_images({"images": references})) == len(references)


def test_url(tmp_path):
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            found = self.path == "/image.png"
            self.send_response(200 if found else 404)
            self.end_headers()
            self.wfile.write(png(picture()) if found else b"")

        def log_message(self, *args):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        root = f"http://127.0.0.1:{server.server_port}"
        assert load_image(f"{root}/image.png").tobytes() == picture().tobytes()
        with pytest.raises(ValueError, match=f"problem 3: cannot read image '{root}/gone.png'.*404"):
            load_images({"id": 3, "image": f"{root}/gone.png"})
        server.shutdown()


@pytest.mark.parametrize("mode", ["L", "LA", "P", "RGBA", "1", "CMYK", "I;16"])
def test_every_mode_becomes_rgb(mode):
    if mode == "I;16":
        image = Image.fromarray(np.asarray(picture(mode="L"), dtype=np.uint16) * 256)
        expected = picture(mode="L").convert("RGB")
    else:
        image = picture(mode=mode)
        expected = image.convert("RGB")
    assert load_image(image).tobytes() == expected.tobytes()
    if mode != "CMYK":
        assert load_image(png(image)).tobytes() == expected.tobytes()


def test_no_image():
    for problem in ({}, {"image": None}, {"images": []}, {"images": None}, {"image": ""}, {"images": [None]}):
        assert load_images(problem) == []
    assert load_images({"image": {"path": None, "bytes": None}}) == []


def test_unreadable_image_is_named_in_few_words(tmp_path):
    truncated = png(picture(200, 200))[:600]
    for reference, words in [
        (tmp_path / "gone.png", "gone.png"),
        (truncated, "(600 bytes)"),
        ({"bytes": b"x" * 5000, "path": None}, "(5000 bytes)"),
        ("data:image/png;base64," + "A" * 9000, "data:image"),
        (object(), "object"),
    ]:
        with pytest.raises(ValueError) as error:
            load_images({"id": "q9", "image": reference})
        assert "problem q9: cannot read image" in str(error.value)
        assert words in str(error.value) and len(str(error.value)) < 600


def test_real_images_are_read_as_the_original_does(shared_dir):
    paths = sorted((shared_dir / "data/scienceqa/images").rglob("*.png"))[::10]
    for path in paths:
        assert load_image(path).tobytes() == Image.open(path).convert("RGB").tobytes()
    assert len(paths) > 20

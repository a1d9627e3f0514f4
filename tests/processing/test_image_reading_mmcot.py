"""References of every kind are read, within bounds; what can't be read is named in one short line."""

import base64
import os
import socket
import time
import zlib

import numpy as np
import pytest
from image_helpers import message, picture, png

from mmcot.processing import ProblemError, image_reading_mmcot, load_image, load_images, read_image_bytes

# ---- references ----


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


def test_the_forms_of_data_urls():
    content = png(picture())
    plain = base64.b64encode(content).decode()
    for url in (f"data:image/png;base64,{plain}", f"DATA:;base64,{plain}", f"data:image/png;x=y;base64,{plain}"):
        assert load_image(url).tobytes() == picture().tobytes()
    quoted = "".join(f"%{byte:02x}" for byte in content)
    assert load_image(f"data:image/png,{quoted}").tobytes() == picture().tobytes()
    assert "no image" in message("data:image/png,abc")


def test_no_image():
    for problem in ({}, {"image": None}, {"images": []}, {"images": None}, {"image": ""}, {"images": [None]}):
        assert load_images(problem) == []
    assert load_images({"image": {"path": None, "bytes": None}}) == []

    for nothing in (float("nan"), np.float32("nan"), np.float64("nan")):
        assert load_images({"image": nothing}) == load_images({"images": [nothing, None]}) == []
        assert load_images({"image": {"path": nothing, "bytes": None}}) == []
        assert len(load_images({"images": nothing, "image": picture()})) == 1


def test_rows_of_pandas_and_pyarrow():
    pandas, pyarrow = pytest.importorskip("pandas"), pytest.importorskip("pyarrow")
    assert load_images({"image": pandas.NA}) == load_images({"images": [pandas.NaT]}) == []
    cell = {"bytes": png(picture()), "path": None}
    table = pyarrow.table({"images": [[cell, cell], []]}).to_pandas()
    assert [len(load_images(row)) for row in table.to_dict("records")] == [2, 0]


def test_unreadable_image_is_named_in_few_words(tmp_path):
    truncated = png(picture(200, 200))[:600]
    for reference, words in [
        (tmp_path / "gone.png", "gone.png"),
        (truncated, "(600 bytes)"),
        ({"bytes": b"x" * 5000, "path": None}, "(5000 bytes)"),
        ("data:image/png;base64," + "A" * 9000, "data:image"),
        (object(), "object"),
        ("x" * 5000 + ".png", "File name too long"),
        ("nul\0.png", "nul"),
        ({"path": "line\nbreak.png"}, "o such file"),
    ]:
        with pytest.raises(ValueError) as error:
            load_images({"id": "q9", "image": reference})
        assert "problem q9: cannot read image" in str(error.value)
        assert words in str(error.value) and len(str(error.value)) < 450
        assert str(error.value).isprintable() and error.value.user_error

    with pytest.raises(FileNotFoundError, match="cannot read image 'gone.png': No such file"):
        load_image("gone.png")


# ---- files ----


def test_only_regular_files_are_read(tmp_path, monkeypatch):
    """A device or a pipe never ends, or never begins."""
    os.mkfifo(tmp_path / "pipe")
    with socket.socket(socket.AF_UNIX) as server:
        monkeypatch.chdir(tmp_path)  # a socket's path must be short
        server.bind("socket")
        for path in (tmp_path / "pipe", tmp_path, "/dev/zero", "/dev/stdin", "socket"):
            assert "not a regular file" in message(path)
            with pytest.raises(ProblemError, match="not a regular file"):
                read_image_bytes(path)


def test_bytes_are_bounded(tmp_path, monkeypatch):
    (tmp_path / "a.png").write_bytes(png(picture()))
    size = len(png(picture()))
    monkeypatch.setattr(image_reading_mmcot, "MAX_BYTES", size)
    assert load_image(tmp_path / "a.png").size == (40, 30)
    monkeypatch.setattr(image_reading_mmcot, "MAX_BYTES", size - 1)
    url = "data:image/png;base64," + base64.b64encode(png(picture())).decode()
    for reference in (tmp_path / "a.png", png(picture()), url):
        assert "more than" in message(reference)
    (tmp_path / "b.png").write_bytes(b"x" * size * 9)
    opened = []
    real = open
    monkeypatch.setattr("builtins.open", lambda *a, **k: opened.append(real(*a, **k)) or opened[-1])
    message(tmp_path / "b.png")
    assert opened[0].closed


def test_a_decompression_bomb_is_refused_before_it_unfolds():
    def chunk(kind, content):
        return len(content).to_bytes(4, "big") + kind + content + zlib.crc32(kind + content).to_bytes(4, "big")

    for side in (10_000, 60_000):  # PIL itself warns of the first, and refuses the second
        header = side.to_bytes(4, "big") * 2 + b"\x08\x02\0\0\0"
        bomb = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(10**6)))
        start = time.monotonic()
        assert "pixels" in message(bomb + chunk(b"IEND", b""))
        assert time.monotonic() - start < 2

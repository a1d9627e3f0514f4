"""Images of every kind are read, within bounds; what can't be read is named in one short line."""

import base64
import contextlib
import http.server
import io
import os
import socket
import threading
import time
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

from mmcot.processing import ProblemError, image_reading_mmcot, load_image, load_images, read_image_bytes


def picture(width=40, height=30, mode="RGB", seed=0):
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


# ---- addresses ----


class Server(http.server.ThreadingHTTPServer):
    """Answers each path with a function (handler -> None); `asked` holds the paths."""

    def __init__(self, **pages):
        outer = self
        self.asked, self.pages = [], pages

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                outer.asked.append(self.path)
                outer.pages[self.path.strip("/").partition("?")[0]](self)

            def log_message(self, *args):
                pass

        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"

    def __enter__(self):
        threading.Thread(target=self.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *args):
        self.shutdown()
        super().__exit__(*args)

    def handle_error(self, *args):  # a client that hung up
        pass


def answer(content=b"", status=200, **headers):
    def send(handler):
        handler.send_response(status)
        for name, value in headers.items():
            handler.send_header(name, value)
        handler.end_headers()
        handler.wfile.write(content)

    return send


def drip(pause=0.05, headers=True):
    """Sends a byte now and then, for ever."""

    def send(handler):
        if headers:
            answer()(handler)
        with contextlib.suppress(OSError):
            while True:
                handler.wfile.write(b"x")
                time.sleep(pause)

    return send


@pytest.fixture
def local(monkeypatch):
    monkeypatch.setenv("MMCOT_ALLOW_PRIVATE_URLS", "1")


def test_a_url_is_read_once(local):
    with Server(image=answer(png(picture()))) as server:
        assert load_image(f"{server.url}/image?a=b c&d=ü").tobytes() == picture().tobytes()
        assert server.asked == ["/image?a=b%20c&d=%C3%BC"]
        assert read_image_bytes(f"HTTP{server.url[4:]}/image") == png(picture())
        with pytest.raises(ProblemError, match=f"problem 3: cannot read image '{server.url}/gone': .*404 Not Found"):
            server.pages["gone"] = answer(status=404)
            load_images({"id": 3, "image": f"{server.url}/gone"})


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "0.0.0.0", "[::1]", "[::ffff:127.0.0.1]", "10.0.0.7"])
@pytest.mark.parametrize("scheme", ["http", "https"])
def test_addresses_of_this_network_only_when_asked_for(host, scheme, monkeypatch):
    def never(*args):
        raise AssertionError("connected")

    monkeypatch.setattr(socket.socket, "connect", never)
    monkeypatch.delenv("MMCOT_ALLOW_PRIVATE_URLS", raising=False)
    url = f"{scheme}://{host}:9/x.png"
    for said in (message(url), message(url, allow_private=False)):
        assert "MMCOT_ALLOW_PRIVATE_URLS=1" in said
    monkeypatch.setenv("MMCOT_ALLOW_PRIVATE_URLS", "0")
    assert "MMCOT_ALLOW_PRIVATE_URLS=1" in message(url)
    assert "connected" in message(url, allow_private=True)


@pytest.mark.parametrize(
    "address", ["169.254.169.254", "192.168.1.1", "172.16.0.1", "100.64.0.1", "fd00::1", "224.0.0.1"]
)
def test_what_a_name_stands_for_is_looked_at(address, monkeypatch):
    """And it is what is connected to: another look-up could tell another address."""
    looked, connected = [], []

    def look_up(host, port, **kwargs):
        looked.append(host)
        family = socket.AF_INET6 if ":" in address_now else socket.AF_INET
        return [(family, socket.SOCK_STREAM, 6, "", (address_now, port))]

    def connect(self, address):
        connected.append(address)
        raise ConnectionRefusedError(111, "refused")

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    monkeypatch.setattr(socket.socket, "connect", connect)
    address_now = address
    assert "pictures.example is an address of this machine" in message("http://pictures.example/x.png")
    assert not connected
    address_now = "93.184.215.14"
    assert "refused" in message("https://pictures.example:444/x.png")
    assert connected == [("93.184.215.14", 444)] and looked == ["pictures.example"] * 2


def test_redirects_are_looked_at_again(local, monkeypatch):
    with Server(image=answer(png(picture()))) as server:
        for status in (301, 302, 303, 307, 308):
            server.pages["moved"] = answer(status=status, Location="/image")
            assert load_image(f"{server.url}/moved").size == (40, 30)
        for place, said in (
            ("file:///etc/hostname", "not file"),
            ("ftp://example.org/x", "not ftp"),
            ("data:image/png;base64,eA==", "not data"),
            ("/moved", "more than 5 redirects"),
        ):
            server.pages["moved"] = answer(status=302, Location=place)
            assert said in message(f"{server.url}/moved")
        server.pages["moved"] = answer(status=302)
        assert "302" in message(f"{server.url}/moved")
        # from an address that is allowed to one that isn't
        server.pages["moved"] = answer(status=302, Location=f"http://localhost:{server.server_port}/image")
        real = image_reading_mmcot._connect
        checked = []

        def connect(host, port, allow_private):
            checked.append(host)
            return real(host, port, allow_private=host == "127.0.0.1")

        monkeypatch.setattr(image_reading_mmcot, "_connect", connect)
        assert "localhost is an address of this machine" in message(f"{server.url}/moved", allow_private=False)
        assert checked == ["127.0.0.1", "localhost"] and "/image" not in server.asked[-1:]


@pytest.mark.parametrize(
    "url", ["file:///etc/hostname", "ftp://example.org/x.png", "s3://a/b", "http:///x", "http://"]
)
def test_other_schemes_are_refused(url):
    assert "only http, https and data URLs are read" in message(url)


def test_a_server_that_drips_or_never_ends(local, monkeypatch):
    """In total time, not for each read; and in bytes."""
    monkeypatch.setattr(image_reading_mmcot, "MAX_SECONDS", 0.5)
    monkeypatch.setattr(image_reading_mmcot, "MAX_BYTES", 2**20)
    with Server(body=drip(), headers=drip(headers=False), endless=lambda handler: endless(handler)) as server:

        def endless(handler):
            answer()(handler)
            with contextlib.suppress(OSError):
                while True:
                    handler.wfile.write(bytes(2**16))

        for page, said in (("body", "0.5 seconds"), ("headers", "0.5 seconds"), ("endless", "more than 1 MiB")):
            start, threads = time.monotonic(), threading.active_count()
            assert said in message(f"{server.url}/{page}")
            assert time.monotonic() - start < 3
            for _ in range(50):  # the thread that read ends too
                if threading.active_count() <= threads + 1:  # the server's own
                    break
                time.sleep(0.02)
        names = [thread.name for thread in threading.enumerate()]
        assert not [name for name in names if "run" in name], names


# ---- files ----


def test_only_regular_files_are_read(tmp_path):
    """A device or a pipe never ends, or never begins."""
    os.mkfifo(tmp_path / "pipe")
    with socket.socket(socket.AF_UNIX) as server:
        os.chdir(tmp_path)  # a socket's path must be short
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


# ---- pixels ----


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

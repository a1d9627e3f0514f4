"""Reading the images that people hand over: from where, how much of it, and how it becomes RGB.

A reference may come from a stranger's data. So what is read is bounded: regular files, http(s) and data URLs, so many
bytes, so many seconds, and no address inside the reader's own network unless that is asked for.
"""

import base64
import http.client
import io
import ipaddress
import os
import queue
import socket
import ssl
import stat
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any
from urllib.parse import quote, unquote_to_bytes, urljoin, urlsplit, urlunsplit

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from .prompts_mmcot import ProblemError, is_absent, problem_name, shown

MAX_BYTES = 256 * 2**20  # of an encoded image
MAX_SECONDS = 60.0  # of a download, from the look-up of the name to the last byte
MAX_REDIRECTS = 5
ALLOW_PRIVATE_VARIABLE = "MMCOT_ALLOW_PRIVATE_URLS"


class ImageError(ProblemError):
    """An image that can't be read, or may not be. `reason` is the message without the image's name."""

    reason = ""


class MissingImageError(ImageError, FileNotFoundError):
    """There is no such image file."""


def load_images(problem: Mapping[str, Any]) -> list[Image.Image]:
    """All images of a problem, as RGB; an empty list if it has none.

    They are read from `images` (a list) or `image` (one, a list, or None). An image is whatever `load_image` reads.

    Raises:
        ProblemError: an image can't be read; the message names the problem's id and the image.
    """
    loaded = []
    for reference in image_references(problem):
        try:
            loaded.append(load_image(reference))
        except ImageError as error:
            raise ProblemError(f"{problem_name(problem)}: {error}; mend or remove it") from error
    return loaded


def image_references(problem: Mapping[str, Any]) -> list[Any]:
    """The problem's images as they are given, unread and without the empty ones (None, NaN, "")."""
    given = problem.get("images")
    if is_absent(given):
        given = problem.get("image")
    if isinstance(given, np.ndarray) and given.dtype.kind == "O":  # a column's list of images, as pandas holds it
        given = list(given)
    if not isinstance(given, list | tuple):
        given = [given]
    return [reference for reference in given if not _is_empty(reference)]


def load_image(reference: Any, *, allow_private: bool | None = None) -> Image.Image:
    """One image as RGB.

    EXIF rotation is applied; what is transparent is composed over white; of an animation the first frame is taken.
    Levels other than 0-255 are scaled: floats within 0-1 by 255, what lies within 0-65535 by 1/256, anything else from
    its lowest to its highest value.

    Args:
        reference: a PIL image; an array (height, width[, channels]) or (channels, height, width); a path, bytes, an
            http(s) or data URL; `datasets`' undecoded {"path": …, "bytes": …}.
        allow_private: see `read_image_bytes`.

    Raises:
        MissingImageError: there is no such file.
        ImageError: it can't be read, or has no pixels, or more than PIL's `Image.MAX_IMAGE_PIXELS`.
    """
    given = reference if isinstance(reference, Mapping) else {"path": reference}
    name, content = given.get("path"), given.get("bytes")
    reference = name if is_absent(content) else content
    with _named(content if is_absent(name) else name):
        if isinstance(reference, Image.Image):
            return _to_rgb(reference)
        if hasattr(reference, "__array__"):
            return _to_rgb(_from_array(np.asarray(reference)))
        return _to_rgb(Image.open(io.BytesIO(_read(reference, allow_private))))


def read_image_bytes(reference: Any, *, allow_private: bool | None = None) -> bytes:
    """The encoded image that a reference names. Everything in this package reads images with `read_image_bytes`.

    At most 256 MiB are read, and a URL for at most 60 seconds and over 5 redirects.

    Args:
        reference: a path (of a regular file; `~` is expanded), an http(s) or data URL, or bytes. No proxy is used.
        allow_private: whether a URL may lead, itself or by a redirect, to loopback, private and link-local addresses.
            None: the environment variable MMCOT_ALLOW_PRIVATE_URLS says so, where it is 1.

    Raises:
        MissingImageError: there is no such file.
        ImageError: it can't be read, or may not be.
    """
    with _named(reference):
        return _read(reference, allow_private)


@contextmanager
def _named(reference: Any) -> Iterator[None]:
    """Whatever goes wrong inside becomes one line that names the image, never its content."""
    try:
        yield
    except Exception as error:  # decoders raise whatever they meet
        kind = MissingImageError if isinstance(error, FileNotFoundError) else ImageError
        reason = shown(getattr(error, "strerror", None) or str(error) or type(error).__name__)
        if isinstance(error, UnidentifiedImageError):
            reason = "no image of a known format"
        told = kind(f"cannot read image {_describe(reference)}: {reason}")
        told.reason = reason
        raise told from error


def _describe(reference: Any) -> str:
    if isinstance(reference, bytes | bytearray | memoryview):
        return f"({len(reference)} bytes)"
    if isinstance(reference, str | os.PathLike):
        return repr(shown(os.fspath(reference)))
    return f"({type(reference).__name__})"


def _is_empty(reference: Any) -> bool:
    """No image: absent, an empty text, or `datasets`' struct of an absent image."""
    if isinstance(reference, Mapping):
        return is_absent(reference.get("bytes")) and _is_empty(reference.get("path"))
    return is_absent(reference) or (isinstance(reference, str) and not reference)


def _read(reference: Any, allow_private: bool | None) -> bytes:
    if isinstance(reference, bytes | bytearray | memoryview):
        content = bytes(reference)
    elif isinstance(reference, str) and reference[:5].lower() == "data:":
        header, _, data = reference.partition(",")
        content = base64.b64decode(data) if header.endswith(";base64") else unquote_to_bytes(data)
    elif isinstance(reference, str) and "://" in reference:
        if allow_private is None:
            allow_private = os.environ.get(ALLOW_PRIVATE_VARIABLE) == "1"
        content = _download(reference, allow_private)
    elif isinstance(reference, str | os.PathLike):
        path = os.path.expanduser(reference)
        if not stat.S_ISREG(os.stat(path).st_mode):  # reading a device or a pipe may never end
            raise ValueError("it is not a regular file")
        with open(path, "rb") as file:
            content = file.read(MAX_BYTES + 1)
    else:
        raise ValueError("an image is a PIL image, array, path, bytes, URL or dict")
    if len(content) > MAX_BYTES:
        raise ValueError(f"it has more than {MAX_BYTES >> 20} MiB")
    return content


# ---- pixels ----


def _to_rgb(image: Image.Image) -> Image.Image:
    width, height = image.size
    if not width or not height:
        raise ValueError(f"it has no pixels ({width} × {height})")
    if Image.MAX_IMAGE_PIXELS and width * height > Image.MAX_IMAGE_PIXELS:  # asked before anything is decoded
        raise ValueError(f"{width} × {height} pixels are more than PIL's Image.MAX_IMAGE_PIXELS")
    image.load()  # a truncated file is found here and not later
    image = ImageOps.exif_transpose(image)
    if image.mode[0] in "IF":  # more than 8 bits of grey, which `convert` would clip
        image = Image.fromarray(to_levels(np.asarray(image)))
    if image.mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")


def _from_array(values: np.ndarray) -> Image.Image:
    shape = values.shape
    if values.ndim == 3 and shape[-1] > 4 and shape[0] <= 4:  # channels first, as torch has them
        values = np.moveaxis(values, 0, -1)
    if values.ndim == 3 and values.shape[-1] == 1:
        values = values[..., 0]
    if values.ndim not in (2, 3) or not values.size or (values.ndim == 3 and values.shape[-1] not in (2, 3, 4)):
        raise ValueError(f"an array of an image has the shape (height, width[, channels]), not {shape}")
    return Image.fromarray(np.ascontiguousarray(to_levels(values)))


def to_levels(values: np.ndarray) -> np.ndarray:
    """Numbers as 8-bit levels, scaled as `load_image` says."""
    if values.dtype == np.uint8:
        return values
    if values.dtype.kind not in "buif":
        raise ValueError(f"an array of an image holds numbers, not {values.dtype}")
    if not np.isfinite(values).all():
        raise ValueError("it holds values that are not finite")
    numbers = values.astype(np.float64)
    low, high = numbers.min(), numbers.max()
    if low >= 0 and high <= 1 and values.dtype.kind in "bf":
        numbers *= 255
    elif low < 0 or high > 65535:
        numbers = (numbers - low) * (255 / (high - low or 1))
    elif high > 255:
        numbers = np.floor(numbers / 256)
    return np.rint(numbers).astype(np.uint8)


# ---- downloads ----


def _download(url: str, allow_private: bool) -> bytes:
    opened: list[socket.socket] = []
    try:
        return _within(MAX_SECONDS, lambda: _follow(url, allow_private, opened))
    except TimeoutError:
        raise ValueError(f"it took more than {MAX_SECONDS:g} seconds") from None
    finally:
        for connection in opened:  # which also ends a thread that still reads
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
            connection.close()


def _within(seconds: float, work: Callable[[], bytes]) -> bytes:
    """The result of `work`, or a TimeoutError. A socket's own timeout is one of each read, and so never ends a server
    that drips."""
    done: queue.SimpleQueue = queue.SimpleQueue()

    def run():
        try:
            done.put((work(), None))
        except BaseException as error:
            done.put((None, error))

    threading.Thread(target=run, daemon=True).start()
    try:
        content, error = done.get(timeout=seconds)
    except queue.Empty:
        raise TimeoutError from None
    if error is not None:
        raise error
    return content


def _follow(url: str, allow_private: bool, opened: list[socket.socket]) -> bytes:
    for _ in range(MAX_REDIRECTS + 1):
        parts = urlsplit(url)
        secure = parts.scheme == "https"
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"only http, https and data URLs are read, not {shown(parts.scheme)}")
        port = parts.port or (443 if secure else 80)
        opened.append(_connect(parts.hostname, port, allow_private))
        if secure:
            opened[-1] = ssl.create_default_context().wrap_socket(opened[-1], server_hostname=parts.hostname)
        connection = (http.client.HTTPSConnection if secure else http.client.HTTPConnection)(parts.hostname, port)
        connection.sock = opened[-1]
        target = quote(urlunsplit(("", "", parts.path or "/", parts.query, "")), safe="%/?:@!$&'()*+,;=~")
        connection.request("GET", target, headers={"User-Agent": "mmcot"})
        response = connection.getresponse()
        location = response.headers.get("Location")
        if response.status == 200:
            return response.read(MAX_BYTES + 1)
        if not location or response.status not in (301, 302, 303, 307, 308):
            raise ValueError(f"the server answers {response.status} {response.reason}")
        connection.close()
        url = urljoin(url, location)
    raise ValueError(f"more than {MAX_REDIRECTS} redirects")


def _connect(host: str, port: int, allow_private: bool) -> socket.socket:
    """A connection to an address that was looked at: a second look-up of the name could give another one."""
    error: Exception = OSError("the name has no address")
    for family, kind, protocol, _, address in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM):
        ip = ipaddress.ip_address(str(address[0]).split("%")[0])
        ip = getattr(ip, "ipv4_mapped", None) or ip
        if not allow_private and (not ip.is_global or ip.is_multicast):
            raise ValueError(
                f"{host} is an address of this machine or its network; set {ALLOW_PRIVATE_VARIABLE}=1 to allow it"
            )
        connection = socket.socket(family, kind, protocol)
        connection.settimeout(MAX_SECONDS)
        try:
            connection.connect(address)
            return connection
        except OSError as failure:
            connection.close()
            error = failure
    raise error

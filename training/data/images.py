"""The images that a record names: found, and refused where the record of a stranger must not reach.

A record may name files below its source's folder. Web addresses, `~` and files outside that folder (symbolic links
resolved) need leave: a data set from elsewhere could otherwise read a person's files, or call servers from inside
their network. Images stay encoded: a path, or bytes.
"""

import base64
import binascii
import os
import re
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from mmcot.training.common import UserError
from mmcot.training.data.records import MissingImageError, is_absent, shown

IMAGE_RULES = ("all", "original", "none")

_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:(//)?")
_DATA_URL = re.compile(r"data:image/[\w.+-]+;base64,")
_MAX_PATH = 4096


class Leave(NamedTuple):
    """What the images of a source's records may be."""

    roots: tuple[str, ...]  # folders, resolved
    urls: bool = False
    outside: bool = False

    @classmethod
    def below(cls, folder: Path, urls: bool = False, outside: bool = False) -> "Leave":
        """Files below the source's folder; in the Hub's cache, whose files are links, those of the same repository."""
        roots = [os.path.realpath(folder)]
        for parent in (folder, *folder.parents):
            if parent.parent.name == "snapshots" and (parent.parent.parent / "blobs").is_dir():
                roots.append(os.path.realpath(parent.parent.parent / "blobs"))
        return cls(tuple(roots), urls, outside)

    def allows(self, path: Path) -> bool:
        """Whether a file lies, links resolved, below one of the folders."""
        if self.outside:
            return True
        link = os.path.islink(path)
        real = os.path.realpath(path) if link else os.path.join(_real_folder(str(path.parent)), path.name)
        return any(real.startswith(root + os.sep) for root in self.roots)


@lru_cache(maxsize=4096)
def _real_folder(folder: str) -> str:
    return os.path.realpath(folder)


def chosen(images: list, image_rule: str) -> list:
    """Those of a question's images that a rule takes."""
    return images[: {"all": None, "original": 1, "none": 0}[image_rule]]


def image_references(value: Any, folder: Path, leave: Leave) -> list[dict[str, Any]]:
    """A record's images as {"path", "bytes"}, one of which is None (`reading.py` then says where the bytes stand).

    Args:
        value: a path, an address, bytes, {"path", "bytes"}, a list of these, or None.
        folder: what relative paths are seen from.

    Raises:
        MissingFileError: there is no such file.
        UserError: something else, or a file that the record may not name.
    """
    return [image_reference(image, folder, leave) for image in given_images(value)]


def given_images(value: Any) -> list[Any]:
    """The images of a record's field, one or a list, without the empty ones."""
    return [image for image in (value if isinstance(value, list) else [value]) if not _is_empty(image)]


def _is_empty(image: Any) -> bool:
    if isinstance(image, dict):
        return image.get("bytes") is None and is_absent(image.get("path"))
    return is_absent(image) or (isinstance(image, str) and image == "")


def image_reference(image: Any, folder: Path, leave: Leave) -> dict[str, Any]:
    path, data = (image.get("path"), image.get("bytes")) if isinstance(image, dict) else (image, None)
    data = path if isinstance(path, bytes) else data
    if isinstance(data, bytes):
        if not data:
            name = f" {shown(path)}" if isinstance(path, str) else ""
            raise UserError(f"its image{name} holds no bytes: mend or remove it")
        return {"path": None, "bytes": data}
    if not isinstance(path, str) or not path:
        raise UserError(f"an image must be a path, an address or bytes, but 'image' is {shown(image)}")
    if _DATA_URL.match(path):
        try:
            return {"path": None, "bytes": base64.b64decode(path.partition(",")[2], validate=True)}
        except binascii.Error:
            raise UserError(f"an image's base64 data can't be decoded: {shown(path)}") from None
    if path.lower().startswith(("http://", "https://")):
        if not leave.urls:
            raise UserError(
                f"its image is an address, {shown(path)}: download it into the source's folder, "
                "or allow it with allow_urls=true"
            )
        return {"path": None, "bytes": _download(path)}
    if _URL.match(path) and not (folder / path).is_file():
        raise UserError(f"its image {shown(path)} has an address of a kind that is never read; http and https may be")
    return {"path": str(_image_file(path, folder, leave)), "bytes": None}


def _image_file(name: str, folder: Path, leave: Leave) -> Path:
    if len(name) > _MAX_PATH or "\0" in name or not _encodes(name):
        raise UserError(f"its image can't be a path ({len(name)} characters): {shown(name)}")
    path = folder / name
    if name.startswith("~") and not _is_file(path):
        if not leave.outside:
            raise UserError(_outside(name, folder))
        path = Path(name).expanduser()
    if not leave.allows(path):  # before looking whether it's there: that too is no one's business
        raise UserError(_outside(name, folder))
    if not _is_file(path) and Path(name).parts[:1] == (folder.name,):  # seen from the folder above: as M3CoT's are
        path = folder.joinpath(*Path(name).parts[1:])
    if not _is_file(path):
        raise MissingImageError(path, f"its image {_shortened(path)} is missing")
    return path


def _outside(name: str, folder: Path) -> str:
    return (
        f"its image {shown(name)} lies outside of the source's folder {folder}: copy it there, "
        "or allow it with allow_outside=true"
    )


def _encodes(name: str) -> bool:
    try:
        os.fsencode(name)
    except UnicodeEncodeError:
        return False
    return True


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # a name longer than the file system's
        return False


def _shortened(path: Path) -> str:
    text = str(path)
    return text if len(text) <= 200 else f"{text[:100]} … {text[-80:]}"


def _download(url: str) -> bytes:
    from mmcot.processing import image_reading_mmcot

    try:
        return image_reading_mmcot.read_image_bytes(url)  # bounded in bytes and time; no private addresses
    except Exception as error:
        reason = (getattr(error, "reason", "") or str(error).strip() or type(error).__name__).partition("\n")[0]
        raise UserError(f"its image {shown(url)} can't be read: {reason:.120}") from None

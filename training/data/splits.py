"""Names of splits, and splits for a source that has none."""

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from typing import Any

from mmcot.training.common import UserError
from mmcot.training.data.records import check_text, is_absent, shown

MADE = ("train", "val", "test")  # 80, 10 and 10 %
MIN_CONTENTS = 3

_OTHER_NAMES = {"validation": "val", "valid": "val", "dev": "val", "training": "train", "testing": "test"}


def split_name(value: Any) -> str | None:
    """A split as we call it: validation, valid and dev are val. None where there is none.

    Raises:
        UserError: it is no text.
    """
    if is_absent(value) or value == "":
        return None
    if not isinstance(value, str):
        raise UserError(f"'split' must be a text, as 'train', but is {shown(value)}")
    name = check_text("split", value).strip()
    known = _OTHER_NAMES.get(name.lower(), name.lower())
    return known if known in MADE else name


def split_members(split: str) -> tuple[str, ...]:
    """The splits that a name stands for."""
    return ("train", "val") if split == "trainval" else (split,)


def content_key(raw: dict[str, Any], owner: str = "") -> bytes:
    """Equal for records with the same question, choices, context and images, whatever their answers, ids and places.

    Images count by their bytes, or by the path as the record gives it: nothing is read.

    Args:
        owner: tells images of one name apart, where each problem has a folder of its own.
    """
    images = raw["images"] if isinstance(raw["images"], list) else [raw["images"]]
    parts = [raw["question"], sorted(raw["choices"]), raw["context"], [_image_key(image, owner) for image in images]]
    return hashlib.sha256(json.dumps(parts, default=repr).encode()).digest()[:16]


def _image_key(image: Any, owner: str) -> str | None:
    if isinstance(image, dict):
        image = image.get("path") if image.get("bytes") is None else image["bytes"]
    if isinstance(image, bytes):
        return hashlib.sha256(image).hexdigest()
    return None if is_absent(image) or image == "" else f"{owner}{image}"


def made_splits(keys: Sequence[bytes]) -> list[str]:
    """train, val or test for each record: 80, 10 and 10 % by the hash of its content (`content_key`).

    Equal contents are in one split, and neither order nor other records decide: records may be added later. Only
    where so few records leave a split empty, shares are counted off in the order of the hashes.

    Raises:
        UserError: fewer than three different contents.
    """
    contents = sorted(set(keys))
    if len(contents) < MIN_CONTENTS:
        raise UserError(f"too few different problems ({len(contents)}) to make train, val and test of them")
    shares = {key: int.from_bytes(key[:8], "big") / 2**64 for key in contents}
    named = {key: "train" if share < 0.8 else "val" if share < 0.9 else "test" for key, share in shares.items()}
    if len(set(named.values())) < len(MADE):
        each = max(1, round(len(contents) / 10))
        order = ["train"] * (len(contents) - 2 * each) + ["val"] * each + ["test"] * each
        named = dict(zip(contents, order, strict=True))
    return [named[key] for key in keys]


def told(made: Sequence[str]) -> str:
    sizes = Counter(made)
    return f"made train/val/test of 80/10/10 % by content ({', '.join(f'{sizes[name]:,}' for name in MADE)} problems)"

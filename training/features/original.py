"""The original project's released image features (detr.npy, clip.npy, resnet.npy, vit.pth) in our cache.

The files hold one array (rows, patches, width), name_map.json says which row belongs to which question. The pictures
themselves aren't there, so the cache's keys are question ids, "id:123". Files are read in pieces: vit.pth has 6.7 GB.
ResNet's vector stands there once (rows, width), as released, or repeated 512 times, as the original's code uses it:
47 GB, 511 parts in 512 of which are repetition.
"""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from mmcot.training.common import MissingFileError, UserError
from mmcot.training.features.cache import FeatureCache
from mmcot.training.features.image_keys import content_key
from mmcot.training.features.layout import what_it_is
from mmcot.training.features.presets import VISION_PRESETS
from mmcot.training.features.repair import put_damage_aside, tell_what_is_lost
from mmcot.training.features.shards import FeatureWriter, shard_paths, write_index

CHUNK_BYTES = 16 * 2**20
REPEATED = {"resnet": 512}  # the original repeats the one ResNet vector so many times
_PRESET_SHAPES = {
    name: {
        (patches, preset.image_feature_size)
        for patches in (REPEATED.get(name, preset.num_patches), preset.num_patches)
    }
    for name, preset in VISION_PRESETS.items()
}


def import_original(
    features_file: str | Path,
    name_map: str | Path,
    out: str | Path,
    *,
    backbone: str | None = None,
    checkpoint: str | Path | None = None,
    dtype: str = "float16",
) -> FeatureCache:
    """Copy released features into a cache keyed by question id; running it again takes up where it was cut off.

    Args:
        features_file: .npy (memory-mapped) or .pth/.pt (memory-mapped, weights only), (rows, patches, width).
        name_map: JSON object from question id to row.
        out: the cache's folder.
        backbone: preset whose shape the file must have; found by the shape if None.
        checkpoint: folder of a model (ours or the original's); the features' width must be the one it was trained on,
            then any patch count will do.
        dtype: to store in; float32 keeps every bit.

    Raises:
        MissingFileError: a file is missing.
        UserError: a file can't be read in pieces, or has a shape that doesn't fit.
    """
    features_file, name_map = Path(features_file), Path(name_map)
    for path in (features_file, name_map):
        if not path.is_file():
            raise MissingFileError(f"{path}: no such file")
    opener = _opener(features_file)
    shape = tuple(opener().shape)
    width = None if checkpoint is None else checkpoint_feature_size(checkpoint)
    backbone = _check_shape(features_file, shape, backbone, checkpoint, width)
    rows = _read_name_map(name_map, shape[0])

    # first and last row stand for the file's content, which is too large to be hashed
    ends = [_row(opener(), row).float().numpy().tobytes() for row in (0, shape[0] - 1)]
    fingerprint = content_key(str(shape).encode() + b"".join(ends))
    info = {"backbone": backbone, "keys": "problem id", "fingerprint": fingerprint}
    repeated = REPEATED.get(backbone, 0) == shape[1]
    row_bytes = int(np.prod(shape[1:])) * 4
    chunk = max(1, CHUNK_BYTES // row_bytes)
    buffer = torch.empty(
        chunk, *shape[1:]
    )  # one for all: large blocks that come and go would leave the heap in pieces
    with FeatureWriter(out, info, getattr(torch, dtype)) as writer:
        lost = put_damage_aside(writer.path)
        done = FeatureCache.open(out) if shard_paths(out) else ()
        left = sorted((row, key) for key, row in rows.items() if key not in done)
        for start in tqdm(range(0, len(left), chunk), "features", unit="chunk"):
            part = left[start : start + chunk]
            # opened again each time: pages of a mapping that stays would count as resident memory until the end
            array = opener()
            features = buffer[: len(part)]
            for target, (row, _) in zip(features, part, strict=True):
                target.copy_(_row(array, row))
            if repeated:
                same = (features == features[:, :1]).all(-1).all(-1)
                if not same.all():
                    row = part[int((~same).nonzero()[0, 0])][0]
                    raise UserError(
                        f"{features_file}: row {row} isn't one vector repeated {shape[1]} times, so it is no ResNet "
                        "feature of the original's"
                    )
                features = features[:, :1]
            writer.add([key for _, key in part], features)
    write_index(out)
    cache = FeatureCache.open(out)
    tell_what_is_lost(lost, cache)
    return cache


def checkpoint_feature_size(folder: str | Path) -> int:
    """Width of the image features that a checkpoint was trained on, ours or the original's.

    Raises:
        FileNotFoundError: no config.json in `folder`.
        ValueError: it takes no image features.
    """
    folder = Path(folder)
    if not (folder / "config.json").is_file():
        raise MissingFileError(f"{folder}: holds no config.json, so it is no checkpoint")
    try:
        config = json.loads((folder / "config.json").read_bytes())
        config.get("image_feature_size")
    except (ValueError, AttributeError):
        reason = what_it_is(folder / "config.json", "not a JSON object")
        raise UserError(f"{folder / 'config.json'}: {reason}; save or download the checkpoint again") from None
    for candidate in (config, config.get("answer_config") or {}, config.get("rationale_config") or {}):
        if candidate.get("image_feature_size"):
            return candidate["image_feature_size"]
    # the original's config.json doesn't say; its projection's weight does
    shapes = {}
    for file in sorted(folder.glob("*.safetensors")):
        from safetensors import safe_open

        with safe_open(file, "pt") as tensors:
            shapes |= {name: tensors.get_slice(name).get_shape() for name in tensors.keys()}  # noqa: SIM118
    for file in sorted(folder.glob("pytorch_model*.bin")):
        weights = torch.load(file, map_location="meta", weights_only=True)
        shapes |= {name: list(weight.shape) for name, weight in weights.items()}
    for name, shape in shapes.items():
        if name.endswith("image_dense.weight"):
            return shape[1]
    raise UserError(f"{folder}: this checkpoint takes no image features (no image_feature_size, no image_dense)")


def _opener(path: Path) -> Callable[[], np.ndarray | torch.Tensor]:
    """A function that maps the file's array (rows, patches, width) into memory, anew at each call."""
    if path.suffix == ".npy":
        try:
            array = np.load(path, mmap_mode="r", allow_pickle=False)
        except (ValueError, EOFError, OSError) as error:
            reason = what_it_is(path, str(error).partition("\n")[0])
            raise UserError(f"{path}: not a .npy file of numbers: {reason:.200}") from None
        if array.dtype.kind != "f":
            raise UserError(f"{path}: holds {array.dtype}, not floating-point numbers")
        return lambda: _with_patches(np.load(path, mmap_mode="r", allow_pickle=False))
    if path.suffix not in (".pth", ".pt"):
        raise UserError(f"{path}: expected a .npy, .pth or .pt file")

    def load():
        return torch.load(path, map_location="cpu", mmap=True, weights_only=True)

    try:
        tensor = load()
    except Exception as error:  # torch raises RuntimeError, UnpicklingError, … for what is one thing to the user
        reason = what_it_is(path, str(error).strip().partition("\n")[0])
        raise UserError(f"{path}: can't be mapped into memory as plain tensors: {reason:.200}") from None
    if not isinstance(tensor, torch.Tensor) or not tensor.is_floating_point():
        raise UserError(f"{path}: holds a {type(tensor).__name__}, not one tensor of floating-point numbers")
    return lambda: _with_patches(load())


def _with_patches(array):
    """A view of (rows, width), one vector a picture, as (rows, 1, width); others as they are."""
    return array[:, None] if array.ndim == 2 else array


def _row(array: np.ndarray | torch.Tensor, row: int) -> torch.Tensor:
    """One row, (patches, width), of the mapped file."""
    return torch.from_numpy(np.array(array[row])) if isinstance(array, np.ndarray) else array[row]


def _check_shape(path: Path, shape: tuple, backbone: str | None, checkpoint, width: int | None) -> str:
    """The backbone's name, or a ValueError that says what doesn't fit."""
    if len(shape) != 3 or not shape[0]:
        raise UserError(f"{path}: has shape {shape}; released features are (rows, patches, width)")
    if backbone is not None and backbone not in _PRESET_SHAPES:
        raise UserError(f"{path}: --backbone {backbone!r} must be one of {', '.join(_PRESET_SHAPES)} here")
    known = {expected: name for name, shapes in _PRESET_SHAPES.items() for expected in shapes}
    if width is not None:
        if shape[2] != width:
            raise UserError(
                f"{path}: its features are {shape[1:]}, {shape[2]} wide, but {checkpoint} was trained on features of "
                f"width {width}: they come from another backbone"
            )
        return backbone or known.get(shape[1:], path.stem)
    found = f"{path}: its features are {shape[1:]} (patches, width)"
    if backbone is not None and shape[1:] not in _PRESET_SHAPES[backbone]:
        expected = " or ".join(map(str, sorted(_PRESET_SHAPES[backbone])))
        raise UserError(f"{found}, but those of {backbone} are {expected}")
    if shape[1:] not in known:
        expected = ", ".join(
            f"{name} {expected}" for expected, name in sorted(known.items(), key=lambda item: item[1])
        )
        hint = ""
        if shape[1:] == (577, 768):
            hint = "; a vit.npy of this shape circulates, made by another ViT than the checkpoints were trained with"
        raise UserError(f"{found}; the released checkpoints take {expected}{hint}")
    return known[shape[1:]]


def _read_name_map(path: Path, num_rows: int) -> dict[str, int]:
    """Cache key of each question -> row of the features."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        rows = {f"id:{name}": int(row) for name, row in content.items()}
    except (ValueError, TypeError, AttributeError) as error:
        raise UserError(f"{path}: expected a JSON object from question id to row number ({error})") from None
    for key, row in rows.items():
        if not 0 <= row < num_rows:
            raise UserError(f"{path}: question {key[3:]} has row {row}, but the features have {num_rows} rows")
    return rows

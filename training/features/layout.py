"""Files of an image-feature cache: what each holds, how it is written whole, and how damage is noticed.

    cache.json                               what the features are: backbone, weights, preprocessing, width, dtype …
    shard-00000-00000-1a2b3c4d.safetensors   by process, number and run; for each picture its row of `keys`,
                                             `checksums` and `num_patches`, then `features` of all, patch after patch
    index.safetensors                        all keys, sorted, with shard and first patch

A shard is written beside its final name and renamed, so every shard that one sees was whole once, and whatever was
finished counts when work is taken up again. Its metadata says what cache.json says, and carries a checksum of its
rows; `checksums` are the CRC-32 of each picture's features. The index is only a short cut: where it is missing,
damaged or older than the shards, their rows are read.
"""

import hashlib
import json
import os
import uuid
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from transformers.utils import logging

from mmcot.training.common import MissingFileError, UserError

FORMAT = 1
INFO, INDEX = "cache.json", "index.safetensors"
DTYPES = {"float16": ("F16", 2), "bfloat16": ("BF16", 2), "float32": ("F32", 4)}  # code in safetensors, bytes
AGAIN = "run the same `mmcot features` command again: it makes anew what is damaged"
_CODES = {torch.uint8: "U8", torch.int32: "I32", torch.int64: "I64"}
_CODES |= {getattr(torch, name): code for name, (code, _) in DTYPES.items()}
_INDEX_COLUMNS = ("keys", "shard", "start", "num_patches")

logger = logging.get_logger("mmcot")


class DamagedError(UserError):
    """A file of the cache doesn't hold what it should; `mmcot features` on the same pictures mends it."""


# ---- what the features are ---------------------------------------------------------------------------------------


def read_info(path: Path) -> dict:
    """What cache.json in folder `path` says.

    Raises:
        MissingFileError: there is none.
        DamagedError: it can't be read or isn't complete.
        UserError: a later version wrote it.
    """
    file = path / INFO
    try:
        info = json.loads(file.read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        if shard_paths(path):
            raise DamagedError(f"{file}: is missing beside the shards; {AGAIN}") from None
        raise MissingFileError(f"{path}: no feature cache (no {INFO}); make one with `mmcot features`") from None
    except OSError as error:
        raise UserError(f"{file}: can't be read ({error.strerror}); mend its permissions") from None
    except ValueError:
        raise DamagedError(f"{file}: {what_it_is(file, 'not JSON')}; {AGAIN}") from None
    if isinstance(info, dict) and isinstance(info.get("format"), int) and info["format"] > FORMAT:
        raise UserError(f"{path}: a feature cache of format {info['format']}; this version of mmcot reads {FORMAT}")
    expected = {"format": int, "width": int, "dtype": str, "keys": str}
    whole = isinstance(info, dict) and all(isinstance(info.get(name), kind) for name, kind in expected.items())
    if not whole or info["dtype"] not in DTYPES or info["width"] < 1:
        raise DamagedError(f"{file}: doesn't say what the features are ({', '.join(expected)}); {AGAIN}")
    return info


def write_info(path: Path, info: dict) -> None:
    write_beside(path / INFO, [(json.dumps(info, indent=2) + "\n").encode()])


def info_of_shards(path: Path) -> dict | None:
    """What the shards themselves say that they hold, for a cache.json that is lost; None where there are no shards.

    Raises:
        UserError: the shards are of an earlier version, which didn't write it into them.
    """
    shards = shard_paths(path)
    for shard in shards:
        try:
            return json.loads(_metadata(shard)["info"])
        except (SafetensorError, OSError, KeyError, ValueError):
            continue
    if shards:
        raise UserError(
            f"{path / INFO}: damaged or missing, and the shards beside it don't say which backbone made them; "
            "delete the folder and run `mmcot features` again"
        )
    return None


# ---- shards ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Shard:
    """A shard whose size and header are right."""

    path: Path
    size: int  # bytes
    rows: str  # checksum of keys, checksums and num_patches; "" in shards of earlier versions
    features_at: int  # bytes before its features


def shard_paths(path: str | Path) -> list[Path]:
    """Finished shards, in order."""
    return sorted(Path(path).glob("shard-*.safetensors"))


def read_shard(path: Path, info: dict) -> Shard:
    """A shard of a cache of which cache.json says `info`. Reads no more than the header.

    Raises:
        DamagedError: it is cut off, something else, or holds other features.
    """
    try:
        with safe_open(path, "np") as tensors:  # which refuses a file that is shorter or longer than its header says
            metadata = tensors.metadata() or {}
            slices = {name: tensors.get_slice(name) for name in ("keys", "num_patches", "features")}
            count, found = slices["keys"].get_shape()[0], slices["features"]
            shape, dtype = found.get_shape(), found.get_dtype()
        size = path.stat().st_size
        with path.open("rb") as file:  # safe_open doesn't say where in the file a tensor lies
            header = int.from_bytes(file.read(8), "little")
            begin = 8 + header + json.loads(file.read(header))["features"]["data_offsets"][0]
    except SafetensorError as error:
        raise DamagedError(f"{path}: {what_it_is(path, f'cut off or damaged ({error})')}") from None
    except OSError as error:
        raise UserError(f"{path}: can't be read ({error.strerror or error}); mend that") from None
    if slices["num_patches"].get_shape() != [count] or len(shape) != 2:
        raise DamagedError(f"{path}: its rows don't fit its features")
    if (shape[1], dtype) != (info["width"], DTYPES[info["dtype"]][0]):
        raise DamagedError(f"{path}: holds features of width {shape[1]} in {dtype}, not those that {INFO} names")
    own = json.loads(metadata.get("info", "{}"))
    for name in own:
        if own[name] != info.get(name):
            says = f"but {INFO} says {info.get(name)!r:.60}"
            raise DamagedError(f"{path}: holds features with {name} {own[name]!r:.60}, {says}")
    return Shard(path, size, metadata.get("rows", ""), begin)


def read_rows(shard: Path) -> dict[str, np.ndarray]:
    """A shard's rows: `keys` as byte strings, `num_patches`, and `checksums` unless an earlier version wrote it.

    Raises:
        DamagedError: they aren't those that were written.
    """
    with safe_open(shard, "np") as tensors:
        checksum, patches = (tensors.metadata() or {}).get("rows"), tensors.get_slice("features").get_shape()[0]
        rows = {name: tensors.get_tensor(name) for name in tensors.keys() if name != "features"}  # noqa: SIM118
    columns = [rows[name] for name in ("keys", "checksums", "num_patches") if name in rows]
    if checksum is not None and checksum != _checksum(*columns):
        raise DamagedError(f"{shard}: its keys were changed or exchanged")
    if (rows["num_patches"] < 0).any() or rows["num_patches"].sum() != patches:
        raise DamagedError(f"{shard}: its rows don't fit its features")
    return {**rows, "keys": _key_strings(rows["keys"])}


def damaged_content(shard: Path) -> list[str]:
    """Keys of a shard's pictures whose features aren't those that were written, or aren't finite. Reads all of it."""
    rows, damaged, end = read_rows(shard), [], 0
    with safe_open(shard, "pt") as tensors:
        features = tensors.get_slice("features")
        for number, (key, count) in enumerate(zip(rows["keys"], rows["num_patches"].tolist(), strict=True)):
            feature = features[end : end + count]
            end += count
            sound = torch.isfinite(feature).all() if "checksums" not in rows else None
            if sound is None:
                sound = zlib.crc32(feature.contiguous().view(torch.uint8).numpy()) == rows["checksums"][number]
            if not sound:
                damaged.append(key.decode())
    return damaged


def write_shard(path: Path, info: dict, keys: list[str], features: list[torch.Tensor]) -> None:
    """A shard of pictures' features, each (patches, width)."""
    rows = {
        "keys": _key_tensor(np.array([key.encode() for key in keys], dtype=np.bytes_)),
        "checksums": torch.tensor([zlib.crc32(feature.view(torch.uint8).numpy()) for feature in features]),
        "num_patches": torch.tensor([len(feature) for feature in features], dtype=torch.int32),
    }
    checksum = _checksum(*(column.numpy() for column in rows.values()))
    tensors = {name: [column] for name, column in rows.items()} | {"features": features}
    _write_tensors(path, tensors, {"info": json.dumps(info), "rows": checksum})


# ---- the index ---------------------------------------------------------------------------------------------------


def write_index(path: str | Path) -> None:
    """Join the rows of all shards into index.safetensors.

    Raises:
        DamagedError: a shard is damaged.
    """
    path = Path(path)
    paths = shard_paths(path)
    if paths:
        info = read_info(path)
        shards = [read_shard(shard, info) for shard in paths]
        index = join_rows(shards)
        tensors = {name: [torch.from_numpy(index[name])] for name in _INDEX_COLUMNS[1:]}
        tensors["keys"] = [_key_tensor(index["keys"])]
        checksum = _checksum(*(tensors[name][0].numpy() for name in _INDEX_COLUMNS))
        names = json.dumps([shard.path.name for shard in shards])
        _write_tensors(path / INDEX, tensors, {"shards": _identity(shards), "checksum": checksum, "names": names})


def join_rows(shards: list[Shard]) -> dict[str, np.ndarray]:
    """The index: `keys`, sorted, with `shard`, `start` (a patch) and `num_patches`; of equal keys the first counts."""
    columns = {name: [] for name in _INDEX_COLUMNS}
    for number, shard in enumerate(shards):
        rows = read_rows(shard.path)
        lengths = rows["num_patches"]
        columns["keys"].append(rows["keys"])
        columns["shard"].append(np.full(len(lengths), number, dtype=np.int32))
        columns["start"].append(np.cumsum(lengths, dtype=np.int64) - lengths)
        columns["num_patches"].append(lengths)
    joined = {name: np.concatenate(parts) for name, parts in columns.items()}
    _, first = np.unique(joined["keys"], return_index=True)
    return {name: column[first] for name, column in joined.items()}


def read_index(path: Path, shards: list[Shard]) -> dict[str, np.ndarray] | None:
    """The saved index, or None where there is none, whole, of just these shards."""
    index, metadata = _load_index(path)
    return index if index is not None and metadata.get("shards") == _identity(shards) else None


def keys_by_shard(path: Path) -> dict[str, list[str]]:
    """What the saved index knows of the shards' keys, by file name; empty where it is lost."""
    index, metadata = _load_index(path)
    if index is None:
        return {}
    names = json.loads(metadata["names"])
    known: dict[str, list[str]] = {name: [] for name in names}
    for key, shard in zip(index["keys"], index["shard"], strict=True):
        known[names[shard]].append(key.decode())
    return known


def _load_index(path: Path) -> tuple[dict[str, np.ndarray] | None, dict]:
    file = path / INDEX
    if not file.is_file():
        return None, {}
    try:
        with safe_open(file, "np") as tensors:
            metadata = tensors.metadata() or {}
            if "checksum" not in metadata:  # of an earlier version
                return None, {}
            index = {name: tensors.get_tensor(name) for name in _INDEX_COLUMNS}
        if metadata["checksum"] == _checksum(*index.values()):
            return {**index, "keys": _key_strings(index["keys"])}, metadata
        reason = "its rows were changed"
    except (SafetensorError, OSError) as error:
        reason = what_it_is(file, str(error))
    logger.warning(f"{file}: damaged ({reason}), so the shards' own rows are read; `mmcot features` writes it anew")
    return None, {}


def _identity(shards: list[Shard]) -> str:
    text = "\n".join(f"{shard.path.name} {shard.size} {shard.rows}" for shard in shards)
    return hashlib.sha256(text.encode()).hexdigest()


# ---- bytes -------------------------------------------------------------------------------------------------------


def what_it_is(path: Path, otherwise: str) -> str:
    """What lies under a name that should hold something else: the usual mishaps, or the text `otherwise`."""
    with path.open("rb") as file:
        start = file.read(256)
    if not start.strip(b"\0"):
        return "empty"
    if start.startswith(b"version https://git-lfs"):
        return "a Git LFS pointer, not the file itself (`git lfs pull` gets it)"
    if start.lstrip().lower().startswith((b"<!doctype", b"<html", b"<?xml")):
        return "a web page, not the file itself (download it again)"
    return otherwise


def write_beside(path: Path, parts: list) -> None:
    """Write bytes, or arrays of them, under another name, then rename: under its own name a file is always whole."""
    beside = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        with beside.open("wb") as file:
            for part in parts:
                if isinstance(part, bytes):
                    file.write(part)
                else:
                    file.writelines(part)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
    except OSError as error:
        beside.unlink(missing_ok=True)
        raise UserError(
            f"{path}: can't be written ({error.strerror or error}); mend that and run the same command again: what is "
            "finished is kept"
        ) from error


def _write_tensors(path: Path, tensors: dict[str, list[torch.Tensor]], metadata: dict) -> None:
    """A safetensors file of tensors that come in pieces along their first axis.

    Not safetensors' own `save_file`, which would take all pieces joined: memory for a second copy of a whole shard.
    """
    header, end = {"__metadata__": metadata}, 0
    for name, pieces in tensors.items():
        begin, end = end, end + sum(piece.nbytes for piece in pieces)
        shape = [sum(map(len, pieces)), *pieces[0].shape[1:]]
        header[name] = {"dtype": _CODES[pieces[0].dtype], "shape": shape, "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)  # the format aligns the data
    pieces = (piece.view(torch.uint8).numpy() for pieces in tensors.values() for piece in pieces)
    write_beside(path, [len(text).to_bytes(8, "little"), text, pieces])


def _metadata(shard: Path) -> dict:
    with safe_open(shard, "np") as tensors:
        return tensors.metadata() or {}


def _checksum(*columns: np.ndarray) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for column in columns:
        digest.update(np.ascontiguousarray(column))
    return digest.hexdigest()


def _key_tensor(keys: np.ndarray) -> torch.Tensor:
    """Byte strings as (strings, bytes), padded with zeros to a multiple of 8 bytes, which aligns what follows."""
    width = -(-keys.dtype.itemsize // 8) * 8
    return torch.from_numpy(keys.astype(f"S{width}").view(np.uint8).reshape(len(keys), width))


def _key_strings(keys: np.ndarray) -> np.ndarray:
    """The reverse: (strings, bytes) -> byte strings."""
    return np.ascontiguousarray(keys).view(f"S{keys.shape[1]}")[:, 0]

"""The image-feature cache: what a frozen backbone makes of each picture, computed once and read from disk ever after.

A cache is a folder for one backbone, laid out as `feature_shards.py` says and written by its `FeatureWriter`. It is
memory-mapped, and the pages of features are given back once copied: cost per sample and memory are the same for 10³
and 10⁶ pictures.
"""

import base64
import hashlib
import mmap
import os
import urllib.request
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from mmcot.training.features.shards import join_keys, read_header, read_index, read_info, shard_paths


def image_key(reference) -> str:
    """Content hash of a picture, 32 hexadecimal digits: its key in a `FeatureCache`.

    Paths, URLs, bytes and {"path", "bytes"} are hashed by the encoded file, wherever it lies and whatever its name. A
    PIL image or an array is hashed by its RGB pixels, since its file is gone; that key is not the file's.

    Raises:
        FileNotFoundError: no such file, or the URL can't be read.
        ValueError: not an image reference.
    """
    return read_picture(reference)[0]


def read_picture(reference) -> tuple[str, bytes | Image.Image]:
    """A picture's key and content (encoded, or RGB pixels where it came as such), for `load_image` to take."""
    if isinstance(reference, dict):
        reference = reference["path"] if reference.get("bytes") is None else reference["bytes"]
    if isinstance(reference, Image.Image) or hasattr(reference, "__array__"):
        from mmcot.processing.image_processing_mmcot import (
            load_image,  # which imports much that reading a cache doesn't need
        )

        image = load_image(reference)
        return content_key(b"RGB %d %d " % image.size + image.tobytes()), image
    data = _encoded(reference)
    return content_key(data), data


def content_key(data: bytes) -> str:
    return hashlib.blake2b(data, digest_size=16).hexdigest()


def _encoded(reference) -> bytes:
    if isinstance(reference, bytes | bytearray | memoryview):
        return bytes(reference)
    if isinstance(reference, str) and reference.startswith(("http://", "https://")):
        try:
            with urllib.request.urlopen(reference, timeout=30) as response:
                return response.read()
        except OSError as error:
            raise FileNotFoundError(f"{reference}: can't be read ({error})") from None
    if isinstance(reference, str) and reference.startswith("data:image/"):
        return base64.b64decode(reference.partition(",")[2])
    if isinstance(reference, str | os.PathLike):
        return Path(reference).expanduser().read_bytes()
    raise ValueError(f"not an image reference: {reference!r:.80}")


class FeatureCache:
    """A cache folder, opened for reading; nothing is loaded. Get one with `FeatureCache.open`.

    Attributes:
        path: the folder.
        info: what cache.json says: backbone, width, dtype, keys ("image content" or "problem id").
        image_feature_size: width of the features.
        dtype: `torch.dtype` they are stored in.

    Pickling it, for a worker process, passes the path alone.
    """

    def __init__(self, path: Path, info: dict, shards: list[Path], index: dict[str, np.ndarray]):
        self.path, self.info = path, info
        self.image_feature_size: int = info["width"]
        self.dtype: torch.dtype = getattr(torch, info["dtype"])
        self._shards, self._index = shards, index
        self._maps: dict[int, tuple[mmap.mmap, int]] = {}  # shard -> its file, offset of its features

    @classmethod
    def open(cls, path: str | Path) -> "FeatureCache":
        """Open the cache in folder `path`.

        Raises:
            FileNotFoundError: there is no cache, or it holds nothing yet.
        """
        path = Path(path).absolute()
        if not (path / "cache.json").is_file():
            raise FileNotFoundError(f"{path}: no feature cache (no cache.json); make one with `mmcot features`")
        shards = shard_paths(path)
        if not shards:
            raise FileNotFoundError(f"{path}: the feature cache is still empty; make it with `mmcot features`")
        index = read_index(path, shards)
        return cls(path, read_info(path), shards, join_keys(shards) if index is None else index)

    def __reduce__(self):
        return FeatureCache.open, (self.path,)

    def __len__(self) -> int:
        return len(self._index["keys"])

    def __contains__(self, key: str) -> bool:
        return self._find([key])[0] >= 0

    @property
    def keys(self) -> list[str]:
        """All keys, sorted."""
        return [key.decode() for key in self._index["keys"]]

    def get(self, key: str) -> torch.Tensor:
        """Features of one picture, (patches, width)."""
        return self.collate([[key]])["image_features"][0]

    def collate(self, keys: list[list[str]], dtype: torch.dtype | None = None) -> dict[str, torch.Tensor]:
        """A batch: for each row the patches of its pictures one after the other, padded at the end with zeros.

        Args:
            keys: per row the keys of its pictures; an empty list is a row without picture.
            dtype: of the features given out; the stored one by default.

        Returns:
            `image_features` (batch, patches, width) and `image_attention_mask` (batch, patches), boolean. A row
            without a picture is all False; if all are, patches is 1.

        Raises:
            ValueError: a key isn't in the cache.
        """
        flat = [key for row in keys for key in row]
        found = self._find(flat)
        for key, place in zip(flat, found, strict=True):
            if place < 0:
                raise ValueError(f"{self.path}: has no features under key {key!r}; add them with `mmcot features`")
        places = (self._index[name][found].tolist() for name in ("shard", "start", "num_patches"))
        picture = iter(zip(*places, strict=True))
        pictures = [[next(picture) for _ in row] for row in keys]
        totals = [sum(count for _, _, count in row) for row in pictures]
        patches = max([1, *totals])
        features = torch.empty(len(keys), patches, self.image_feature_size, dtype=self.dtype)
        raw = features.view(torch.uint8).numpy()  # (batch, patches, bytes of a patch)
        reads = []
        for target, row, total in zip(raw, pictures, totals, strict=True):
            end = 0
            for shard, first, count in row:
                reads.append((shard, first, target[end : end + count]))
                end += count
            target[total:] = 0
        self._read(reads)
        mask = torch.arange(patches)[None] < torch.tensor(totals, dtype=torch.int64)[:, None]  # (batch, patches)
        return {"image_features": features if dtype is None else features.to(dtype), "image_attention_mask": mask}

    def _find(self, keys: list[str]) -> np.ndarray:
        """Row in the index per key, -1 where there is none."""
        known = self._index["keys"]
        wanted = np.array([key.encode() for key in keys], dtype=np.bytes_)
        if not keys or not len(known):
            return np.full(len(keys), -1)
        if wanted.dtype.itemsize <= known.dtype.itemsize:
            wanted = wanted.astype(known.dtype)  # equal types, or searchsorted would copy all known keys
            rows = np.minimum(np.searchsorted(known, wanted), len(known) - 1)
            return np.where(known[rows] == wanted, rows, -1)
        short = [key if len(key.encode()) <= known.dtype.itemsize else "" for key in keys]
        return self._find(short)

    def _read(self, reads: list[tuple[int, int, np.ndarray]]) -> None:
        """Copy patches out of the shards; per read: shard, first patch, and where to, (patches, bytes of a patch)."""
        places = []
        for shard, first, target in reads:
            mapped, offset = self._map(shard)
            offset += first * target.shape[1]
            places.append((mapped, offset))
            if hasattr(mmap, "MADV_WILLNEED"):  # one request for the lot, where page faults would fetch bit by bit
                page = offset - offset % mmap.PAGESIZE
                mapped.madvise(mmap.MADV_WILLNEED, page, offset + target.size - page)
        for (mapped, offset), (_, _, target) in zip(places, reads, strict=True):
            target[:] = np.frombuffer(mapped, np.uint8, target.size, offset).reshape(target.shape)
        if hasattr(mmap, "MADV_DONTNEED"):  # else resident memory would grow to the size of all that was ever read
            for shard in {shard for shard, _, _ in reads}:
                self._map(shard)[0].madvise(mmap.MADV_DONTNEED)  # all of it: the kernel maps more than was asked for

    def _map(self, shard: int) -> tuple[mmap.mmap, int]:
        """A shard's file and where its features begin."""
        if shard not in self._maps:
            with self._shards[shard].open("rb") as file:
                header, offset = read_header(file)
                mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            self._maps[shard] = mapped, offset + header["features"]["data_offsets"][0]
        return self._maps[shard]


def problem_keys(problem: dict, cache: FeatureCache) -> list[str]:
    """Keys of a problem's pictures in `cache`, in order; none for a problem without pictures.

    Raises:
        ValueError: the features of one of its pictures are not in the cache.
    """
    from mmcot.processing.image_processing_mmcot import image_references

    images = image_references(problem)
    if cache.info["keys"] == "problem id":
        keys = [f"id:{problem['id']}"]
        missing = keys[0] not in cache
        if missing and not images:
            return []
    else:
        keys = [image_key(image) for image in images]
        missing = not all(key in cache for key in keys)
    if missing:
        raise ValueError(
            f"{cache.path}: lacks the features of a picture of problem {problem.get('id')}; run `mmcot features` on "
            "these problems, with the same image rule"
        )
    return keys

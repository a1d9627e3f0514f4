"""The image-feature cache: what a frozen backbone makes of each picture, computed once and read from disk ever after.

A cache is a folder for one backbone, laid out as `layout.py` says and written by `shards.py`'s `FeatureWriter`.
Features stay on disk until a batch asks for them: cost per sample is the same for 10³ and 10⁶ pictures, and memory
grows by the index alone, 48 bytes a picture.
"""

import os
from pathlib import Path

import numpy as np
import torch

from mmcot.training.common import MissingFileError, UserError
from mmcot.training.features.image_keys import image_key
from mmcot.training.features.layout import (
    AGAIN,
    DamagedError,
    Shard,
    join_rows,
    read_index,
    read_info,
    read_shard,
    shard_paths,
)

OPEN_FILES = 256  # at most, of a cache; processes are rarely allowed more than 1,024
SUBJECTS = ("natural science", "social science", "language science")  # ScienceQA's


class FeatureCache:
    """A cache folder, opened for reading; of its features nothing is loaded. Get one with `FeatureCache.open`.

    Attributes:
        path: the folder.
        info: what cache.json says: backbone, width, dtype, keys ("image content" or "problem id"); where they were
            extracted by this version also vision_feature, weights (their hash) and preprocessing.
        image_feature_size: width of the features.
        dtype: `torch.dtype` they are stored in.

    Pickling it, for a worker process, passes the path alone.
    """

    def __init__(self, path: Path, info: dict, shards: list[Shard], index: dict[str, np.ndarray]):
        self.path, self.info = path, info
        self.image_feature_size: int = info["width"]
        self.dtype: torch.dtype = getattr(torch, info["dtype"])
        self._shards, self._index = shards, index
        self._files: dict[int, object] = {}  # shard -> its open file

    @classmethod
    def open(cls, path: str | Path) -> "FeatureCache":
        """Open the cache in folder `path`.

        Raises:
            FileNotFoundError: there is no cache, or it holds nothing yet.
            ValueError: one of its files is damaged; the same `mmcot features` mends it.
        """
        path = Path(path).absolute()
        info = read_info(path)
        files = shard_paths(path)
        if not files:
            raise MissingFileError(f"{path}: the feature cache is still empty; make it with `mmcot features`")
        shards, damage = [], []
        for file in files:
            try:
                shards.append(read_shard(file, info))
            except DamagedError as error:
                damage.append(str(error))
        index = None if damage else read_index(path, shards)
        if index is None and not damage:
            try:
                index = join_rows(shards)
            except DamagedError as error:
                damage.append(str(error))
        if damage:
            more = f" (and {len(damage) - 1} more of its {len(files)} shards)" if len(damage) > 1 else ""
            raise DamagedError(f"{damage[0]}{more}; {AGAIN}")
        return cls(path, info, shards, index)

    def __reduce__(self):
        return FeatureCache.open, (self.path,)

    def __len__(self) -> int:
        return len(self._index["keys"])

    def __contains__(self, key: str) -> bool:
        return self._find([key])[0] >= 0

    def describe(self) -> str:
        """What the features are, in one line."""
        info = self.info
        stored = f"features of {len(self):,} pictures, width {info['width']}, {info['dtype']}"
        if info["keys"] == "problem id":
            return f"{stored}, imported as {info['backbone']}'s: known by name and width only"
        if "weights" not in info:
            return f"{stored}, {info['backbone']}'s by an earlier version: known by name and width only"
        return f"{stored}, {info['backbone']}'s {info['vision_feature']}, weights {info['weights'][:8]}"

    def matches(self, vision, image_processor=None, vision_feature: str | None = None) -> bool:
        """Whether the features are those of a backbone, as far as the cache knows; see `check_features_match`."""
        from mmcot.training.features.match import differences

        return not differences(self, vision, image_processor, vision_feature)

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
                raise UserError(f"{self.path}: has no features under key {key!r}; add them with `mmcot features`")
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
        """Copy patches out of the shards; per read: shard, first patch, and where to, (patches, bytes of a patch).

        Straight into the batch, at places in the files. Slices of `safe_open` are mapped memory, all of which counts
        as resident once read, and took 1.5 times as long from the page cache and 40 times as long from disk.
        """
        places = [(shard, self._shards[shard].features_at + first * target.shape[1]) for shard, first, target in reads]
        if hasattr(os, "posix_fadvise") and len(reads) > 1:  # the disk reads all of them at once
            for (shard, place), (_, _, target) in zip(places, reads, strict=True):
                os.posix_fadvise(self._file(shard).fileno(), place, target.nbytes, os.POSIX_FADV_WILLNEED)
        for (shard, place), (_, _, target) in zip(places, reads, strict=True):
            if target.size and not _read_at(self._file(shard), place, memoryview(target).cast("B")):
                raise DamagedError(f"{self._shards[shard].path}: was cut off while it is in use; {AGAIN}")

    def _file(self, shard: int):
        file = self._files.get(shard)
        if file is None:
            if len(self._files) >= OPEN_FILES:
                self._files.pop(next(iter(self._files))).close()  # the one that was opened first
            file = self._files[shard] = self._shards[shard].path.open("rb", buffering=0)
        return file

    def __del__(self):
        for file in getattr(self, "_files", {}).values():
            file.close()


def _read_at(file, place: int, target: memoryview) -> bool:
    """Fills `target` with the file's bytes from `place` on; False where the file is too short."""
    while target:
        if hasattr(os, "preadv"):  # leaves the file's own position alone, which forked processes share
            count = os.preadv(file.fileno(), [target], place)
        else:  # Windows doesn't fork
            file.seek(place)
            count = file.readinto(target)
        if not count:
            return False
        target, place = target[count:], place + count
    return True


def problem_keys(problem: dict, cache: FeatureCache) -> list[str]:
    """Keys of a problem's pictures in `cache`, in order; none for a problem without pictures.

    Imported features go by ScienceQA's question ids. A problem whose id isn't one, or whose subject isn't one of
    ScienceQA's, never gets them.

    Raises:
        ValueError: the features of one of its pictures are not in the cache, or belong to another source's problem.
    """
    from mmcot.processing import image_references

    images = image_references(problem)
    if cache.info["keys"] == "problem id":
        # without its files (image rule "none") a record still says that it has a picture
        pictured = bool(images) or bool(problem.get("has_image"))
        keys = [f"id:{problem.get('id')}"] if pictured or f"id:{problem.get('id')}" in cache else []
        if keys and not is_original(problem):
            raise UserError(
                f"{cache.path}: holds features of ScienceQA's pictures under its question ids, but problem "
                f"{problem.get('id')!r:.80} isn't ScienceQA's; extract features of these problems' own pictures with "
                "`mmcot features`"
            )
    else:
        keys = [image_key(image) for image in images]
    if not all(key in cache for key in keys):
        raise UserError(
            f"{cache.path}: lacks the features of a picture of problem {problem.get('id')}; run `mmcot features` on "
            "these problems, with the same image rule"
        )
    return keys


def is_original(problem: dict) -> bool:
    """Whether a problem can be one of ScienceQA's, as the original's files have it: by its id, and its subject if any.

    The released features come without questions or pictures, so that nothing else can be compared.
    """
    id_ = str(problem.get("id"))
    plain = id_.isascii() and id_.isdigit() and str(int(id_)) == id_
    return plain and ("subject" not in problem or problem["subject"] in SUBJECTS)

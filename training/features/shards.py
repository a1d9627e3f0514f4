"""The writer of an image-feature cache: pictures' features become shards, one after the other."""

import time
import uuid
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import torch

from mmcot.training.common import MissingFileError, UserError
from mmcot.training.features.layout import (
    FORMAT,
    INFO,
    DamagedError,
    info_of_shards,
    read_info,
    shard_paths,
    write_index,
    write_info,
    write_shard,
)
from mmcot.training.features.locking import lock_folder, unlock_folder

__all__ = ["FLUSH_SECONDS", "SHARD_BYTES", "FeatureWriter", "shard_paths", "write_index"]

SHARD_BYTES = 128 * 2**20
FLUSH_SECONDS = 300  # a slow run loses no more than this when it is killed


class FeatureWriter:
    """Appends features to a cache, shard by shard; `write_index` afterwards, once for all processes.

    Use it as a context manager: what is left is written at the end, also when an error or Ctrl-C ends the work. Until
    then no other process can write to the cache under the same `process_index`.

    Args:
        path: the cache's folder, made if needed.
        info: what the features are; `{"backbone": …, "keys": "image content" | "problem id"}` and more of one's own.
        dtype: to store them in.
        process_index: of this process where several fill one cache.
        shard_bytes: size of a shard; about that much memory is used, twice while one is being written.

    Raises:
        UserError: another process writes to the folder, it holds other features, or it can't be written to.
    """

    def __init__(
        self,
        path: str | Path,
        info: dict,
        dtype: torch.dtype = torch.float16,
        process_index: int = 0,
        shard_bytes: int = SHARD_BYTES,
    ):
        self.path = Path(path).absolute()
        self.dtype, self.process_index, self.shard_bytes = dtype, process_index, shard_bytes
        self._info = {"format": FORMAT, **info, "dtype": str(dtype).removeprefix("torch.")}
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"{path}: can't be made a folder ({error.strerror or error}); take another one") from None
        self._lock = lock_folder(self.path, "`mmcot features`", process_index)
        try:
            self._check_info()
        except BaseException:
            unlock_folder(self._lock)
            raise
        prefix = f"shard-{process_index:05d}-"
        numbers = [int(path.name.removeprefix(prefix)[:5]) for path in self.path.glob(f"{prefix}*.safetensors")]
        self._next = max(numbers, default=-1) + 1
        # part of the names, so that a shard is never replaced, whoever else writes where locks don't work
        self._run = uuid.uuid4().hex[:8]
        for left_over in self.path.glob(f".{prefix}*"):  # of a run that was killed while writing
            left_over.unlink(missing_ok=True)
        self._keys: list[str] = []
        self._features: list[torch.Tensor] = []
        self._bytes, self._since = 0, time.monotonic()
        self._thread = ThreadPoolExecutor(1, "feature-writer")
        self._writing: Future | None = None

    def _check_info(self) -> None:
        """Refuses other features; what the shards say replaces a cache.json that is lost."""
        present = None
        try:
            present = read_info(self.path)
        except (MissingFileError, DamagedError):
            present = info_of_shards(self.path)
            if present is not None:
                write_info(self.path, present)
            else:
                (self.path / INFO).unlink(missing_ok=True)
        if present is None:
            return
        if "fingerprint" in present and "weights" in self._info:
            raise UserError(
                f"{self.path}: features made by an earlier version of mmcot, which didn't record all that decides "
                "them: use another folder"
            )
        for name, value in self._info.items():
            old = present.get(name)
            if isinstance(old, dict) and isinstance(value, dict):  # say only what differs
                both = old.keys() | value.keys()
                changed = sorted(key for key in both if old.get(key) != value.get(key))
                old, value = ({key: side.get(key) for key in changed} for side in (old, value))
            if old != value:
                raise UserError(
                    f"{self.path}: holds features with {name} {old!r:.200}, not {value!r:.200}; use another folder"
                )

    def add(self, keys: list[str], features: torch.Tensor | list[torch.Tensor]) -> None:
        """Append pictures.

        Args:
            keys: one per picture.
            features: (pictures, patches, width), or a list of (patches, width) with patch counts of their own.

        Raises:
            UserError: a feature isn't finite in the dtype to store it in, or a shard can't be written.
        """
        # copies, since the caller may use the memory again, and a view of a slice would keep all of it alive
        if isinstance(features, torch.Tensor):
            features = features.to("cpu", self.dtype, copy=True).contiguous()
        else:
            features = [feature.to("cpu", self.dtype, copy=True).contiguous() for feature in features]
        check_finite(features, keys)
        for key, feature in zip(keys, features, strict=True):
            self._keys.append(key)
            self._features.append(feature)
            self._bytes += feature.nbytes
            if self._bytes >= self.shard_bytes:
                self._flush()
        if self._keys and time.monotonic() - self._since > FLUSH_SECONDS:
            self._flush()

    def _flush(self) -> None:
        """Hand what was gathered to the writing thread, after the shard before."""
        self._wait()
        if self._keys:
            name = f"shard-{self.process_index:05d}-{self._next:05d}-{self._run}.safetensors"
            self._writing = self._thread.submit(self._write_shard, self.path / name, self._keys, self._features)
            self._next += 1
        self._keys, self._features, self._bytes, self._since = [], [], 0, time.monotonic()

    def _wait(self) -> None:
        if self._writing is not None:
            writing, self._writing = self._writing, None
            writing.result()

    def _write_shard(self, path: Path, keys: list[str], features: list[torch.Tensor]) -> None:
        if not (self.path / INFO).exists():
            write_info(self.path, {**self._info, "width": features[0].shape[1]})
        info = read_info(self.path)
        for feature in features:
            if feature.shape[1] != info["width"]:
                raise UserError(
                    f"{self.path}: holds features of width {info['width']}, not {feature.shape[1]}; use another folder"
                )
        write_shard(path, info, keys, features)

    def close(self) -> None:
        """Write what is left, and let others write."""
        try:
            self._flush()
            self._wait()
        finally:
            self._thread.shutdown()
            unlock_folder(self._lock)

    def __enter__(self) -> "FeatureWriter":
        return self

    def __exit__(self, *error) -> None:
        self.close()


def check_finite(features: Iterable[torch.Tensor], names: list[str]) -> None:
    """Refuses NaN and infinity in pictures' features, (patches, width) each.

    Raises:
        UserError: names the first such picture.
    """
    for name, feature in zip(names, features, strict=True):
        if not torch.isfinite(feature).all():
            raise UserError(
                f"the features of {name} aren't finite in {feature.dtype}, whose largest number is "
                f"{torch.finfo(feature.dtype).max:.4g}: store them as bfloat16 or float32, or look for infinities in "
                "what the backbone gives"
            )

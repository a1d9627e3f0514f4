"""The image-feature cache: what a frozen backbone makes of each picture, computed once and read from disk ever after.

A cache is a folder for one backbone:

    cache.json                       backbone, width, dtype, and what the keys are
    shard-00000-00000.safetensors    by process and number: `features` (all patches, width), `num_patches`, `keys`
    index.safetensors                all keys, sorted, with shard and place

A shard is written beside its final name and renamed, so every shard that one sees is whole, and whatever was finished
counts when work is taken up again. Processes write shards of their own; the index joins them. It is only a short cut:
where it is missing or doesn't fit the shards it is made anew from the keys in them. Everything is memory-mapped, and
the pages of features are given back once copied: cost per sample and memory are the same for 10³ and 10⁶ pictures.
"""

import base64
import hashlib
import json
import mmap
import os
import time
import urllib.request
import uuid
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file

from mmcot.processing.images_mmcot import image_references, load_image

FORMAT = 1
SHARD_BYTES = 256 * 2**20
FLUSH_SECONDS = 300  # a slow run loses no more than this when it is killed
_DTYPES = {"F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32}
_NUMPY_DTYPES = {"U8": np.uint8, "I32": np.int32, "I64": np.int64}


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
        index = _read_index(path, shards)
        return cls(path, read_info(path), shards, _join_keys(shards) if index is None else index)

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
        for target, row, total in zip(raw, pictures, totals, strict=True):
            end = 0
            for shard_number, first, count in row:
                self._copy(shard_number, first, target[end : end + count])
                end += count
            target[total:] = 0
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

    def _copy(self, shard: int, first: int, target: np.ndarray) -> None:
        """Copy patches from `first` on into `target` (patches, bytes of a patch)."""
        if shard not in self._maps:
            with self._shards[shard].open("rb") as file:
                header, offset = _read_header(file)
                mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            self._maps[shard] = mapped, offset + header["features"]["data_offsets"][0]
        mapped, offset = self._maps[shard]
        offset += first * target.shape[1]
        target[:] = np.frombuffer(mapped, np.uint8, target.size, offset).reshape(target.shape)
        if hasattr(mmap, "MADV_DONTNEED"):  # else resident memory would grow to the size of all that was ever read
            page = offset - offset % mmap.PAGESIZE
            mapped.madvise(mmap.MADV_DONTNEED, page, offset + target.size - page)


def problem_keys(problem: dict, cache: FeatureCache) -> list[str]:
    """Keys of a problem's pictures in `cache`, in order; none for a problem without pictures.

    Raises:
        ValueError: the features of one of its pictures are not in the cache.
    """
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


class FeatureWriter:
    """Appends features to a cache, shard by shard; `write_index` afterwards, once for all processes.

    Use it as a context manager: what is left is written at the end, also when an error or Ctrl-C ends the work.

    Args:
        path: the cache's folder, made if needed.
        info: what the features are; `{"backbone": …, "keys": "image content" | "problem id"}` and more of one's own.
        dtype: to store them in.
        process_index: part of the shards' names, so that processes never write the same file.
        shard_bytes: size of a shard; about that much memory is used, twice while one is being written.

    Raises:
        ValueError: the folder holds other features, or a feature isn't finite in `dtype`.
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
        self.path.mkdir(parents=True, exist_ok=True)
        self._check_info()
        prefix = f"shard-{process_index:05d}-"
        numbers = [int(path.stem.removeprefix(prefix)) for path in self.path.glob(f"{prefix}*.safetensors")]
        self._next = max(numbers, default=-1) + 1
        for left_over in self.path.glob(f".{prefix}*"):  # of a run that was killed while writing
            left_over.unlink()
        self._keys: list[str] = []
        self._features: list[torch.Tensor] = []
        self._bytes, self._since = 0, time.monotonic()
        self._thread = ThreadPoolExecutor(1, "feature-writer")
        self._writing: Future | None = None

    def _check_info(self) -> None:
        if (self.path / "cache.json").is_file():
            present = read_info(self.path)
            for name, value in self._info.items():
                if present.get(name) != value:
                    raise ValueError(
                        f"{self.path}: holds features with {name} {present.get(name)!r}, not {value!r}: "
                        "take another folder"
                    )

    def add(self, keys: list[str], features: torch.Tensor | list[torch.Tensor]) -> None:
        """Append pictures.

        Args:
            keys: one per picture.
            features: (pictures, patches, width), or a list of (patches, width) with patch counts of their own.
        """
        if isinstance(features, torch.Tensor):
            features = features.to("cpu", self.dtype, copy=True)  # at once, and ours from here on
        for key, feature in zip(keys, features, strict=True):
            self._keys.append(key)
            self._features.append(feature.to("cpu", self.dtype))
            self._bytes += self._features[-1].nbytes
            if self._bytes >= self.shard_bytes:
                self._flush()
        if self._keys and time.monotonic() - self._since > FLUSH_SECONDS:
            self._flush()

    def _flush(self) -> None:
        """Hand what was gathered to the writing thread, after the shard before."""
        self._wait()
        if self._keys:
            path = self.path / f"shard-{self.process_index:05d}-{self._next:05d}.safetensors"
            self._writing = self._thread.submit(self._write_shard, path, self._keys, self._features)
            self._next += 1
        self._keys, self._features, self._bytes, self._since = [], [], 0, time.monotonic()

    def _wait(self) -> None:
        if self._writing is not None:
            writing, self._writing = self._writing, None
            writing.result()

    def _write_shard(self, path: Path, keys: list[str], features: list[torch.Tensor]) -> None:
        joined = torch.cat(features)  # (all patches, width)
        if not torch.isfinite(joined).all():
            largest = torch.finfo(self.dtype).max
            raise ValueError(
                f"features aren't finite in {self.dtype}, whose largest number is {largest:.4g}: store them as "
                "bfloat16 or float32, or look for infinities in what the backbone gives"
            )
        if not (self.path / "cache.json").exists():
            _write_beside(
                self.path / "cache.json", json.dumps({**self._info, "width": joined.shape[1]}, indent=2) + "\n"
            )
        width = read_info(self.path)["width"]
        if joined.shape[1] != width:
            raise ValueError(
                f"{self.path}: holds features of width {width}, not {joined.shape[1]}; take another folder"
            )
        tensors = {
            "features": joined,
            "num_patches": torch.tensor([len(feature) for feature in features], dtype=torch.int32),
            "keys": _bytes_tensor(np.array([key.encode() for key in keys], dtype=np.bytes_)),
        }
        _write_beside(path, tensors)

    def close(self) -> None:
        """Write what is left."""
        try:
            self._flush()
            self._wait()
        finally:
            self._thread.shutdown()

    def __enter__(self) -> "FeatureWriter":
        return self

    def __exit__(self, *error) -> None:
        self.close()


# -- files ------------------------------------------------------------------------------------------------------------


def read_info(path: Path) -> dict:
    """cache.json, checked for a format that we know."""
    info = json.loads((path / "cache.json").read_text(encoding="utf-8"))
    if info.get("format") != FORMAT:
        raise ValueError(f"{path}: a feature cache of format {info.get('format')!r}; this version reads {FORMAT}")
    return info


def shard_paths(path: Path) -> list[Path]:
    """Finished shards, in order."""
    return sorted(path.glob("shard-*.safetensors"))


def write_index(path: str | Path) -> None:
    """Join the keys of all shards into index.safetensors; of keys that occur twice the first counts."""
    path = Path(path)
    shards = shard_paths(path)
    if shards:
        index = _join_keys(shards)
        tensors = {name: torch.from_numpy(index[name]) for name in ("shard", "start", "num_patches")}
        tensors["keys"] = _bytes_tensor(index["keys"])
        _write_beside(path / "index.safetensors", tensors, {"shards": _fingerprint(shards)})


def _join_keys(shards: list[Path]) -> dict[str, np.ndarray]:
    columns = {"keys": [], "shard": [], "start": [], "num_patches": []}
    for number, shard in enumerate(shards):
        arrays, _ = _map_arrays(shard, ("keys", "num_patches"))
        lengths = np.array(arrays["num_patches"])
        columns["keys"].append(np.array(arrays["keys"]))
        columns["shard"].append(np.full(len(lengths), number, dtype=np.int32))
        columns["start"].append(np.cumsum(lengths, dtype=np.int64) - lengths)
        columns["num_patches"].append(lengths)
    joined = {name: np.concatenate(parts) for name, parts in columns.items()}
    _, first = np.unique(joined["keys"], return_index=True)
    return {name: column[first] for name, column in joined.items()}


def _read_index(path: Path, shards: list[Path]) -> dict[str, np.ndarray] | None:
    """The saved index, memory-mapped, or None when there is none for just these shards."""
    if not (path / "index.safetensors").is_file():
        return None
    arrays, metadata = _map_arrays(path / "index.safetensors", ("keys", "shard", "start", "num_patches"))
    return arrays if metadata.get("shards") == _fingerprint(shards) else None


def _fingerprint(shards: list[Path]) -> str:
    return content_key("\n".join(f"{shard.name} {shard.stat().st_size}" for shard in shards).encode())


def _read_header(file) -> tuple[dict, int]:
    """A safetensors file's header and where its data begins."""
    size = int.from_bytes(file.read(8), "little")
    return json.loads(file.read(size)), 8 + size


def _map_arrays(path: Path, names: tuple[str, ...]) -> tuple[dict[str, np.ndarray], dict]:
    """Tensors of a safetensors file as memory-mapped arrays (keys as byte strings), and its metadata."""
    with path.open("rb") as file:
        header, offset = _read_header(file)
    data = np.memmap(path, np.uint8, "r")
    arrays = {}
    for name in names:
        entry = header[name]
        begin, end = (offset + place for place in entry["data_offsets"])
        array = data[begin:end].view(_NUMPY_DTYPES[entry["dtype"]]).reshape(entry["shape"])
        arrays[name] = array.view(f"S{entry['shape'][1]}")[:, 0] if name == "keys" else array
    return arrays, header.get("__metadata__", {})


def _bytes_tensor(keys: np.ndarray) -> torch.Tensor:
    """Byte strings as (strings, longest) bytes, padded with zeros."""
    return torch.from_numpy(np.ascontiguousarray(keys).view(np.uint8).reshape(len(keys), -1).copy())


def _write_beside(path: Path, content: str | dict[str, torch.Tensor], metadata: dict | None = None) -> None:
    """Write a file under another name, then rename it: under its own name it is always whole."""
    beside = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    if isinstance(content, str):
        beside.write_text(content, encoding="utf-8")
    else:
        save_file(content, beside, metadata)
    with beside.open("rb") as file:
        os.fsync(file.fileno())
    beside.replace(path)

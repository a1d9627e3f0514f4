"""Files of an image-feature cache, and the writer that fills them.

    cache.json                       backbone, width, dtype, and what the keys are
    shard-00000-00000.safetensors    by process and number: `num_patches` and `keys` of each picture, `features` of all
    index.safetensors                all keys, sorted, with shard and place

A shard is written beside its final name and renamed, so every shard that one sees is whole, and whatever was finished
counts when work is taken up again. Processes write shards of their own; the index joins them. It is only a short cut:
where it is missing or doesn't fit the shards it is made anew from the keys in them.
"""

import hashlib
import json
import os
import time
import uuid
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch

FORMAT = 1
SHARD_BYTES = 128 * 2**20
FLUSH_SECONDS = 300  # a slow run loses no more than this when it is killed
_DTYPE_CODES = {
    torch.uint8: "U8",
    torch.int32: "I32",
    torch.int64: "I64",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float32: "F32",
}
_NUMPY_DTYPES = {"U8": np.uint8, "I32": np.int32, "I64": np.int64}


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
        ValueError: the folder holds other features.
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
        present = read_info(self.path) if (self.path / "cache.json").is_file() else self._info
        for name, value in self._info.items():
            if present.get(name) != value:
                raise ValueError(
                    f"{self.path}: holds features with {name} {present.get(name)!r}, not {value!r}; use another folder"
                )

    def add(self, keys: list[str], features: torch.Tensor | list[torch.Tensor]) -> None:
        """Append pictures.

        Args:
            keys: one per picture.
            features: (pictures, patches, width), or a list of (patches, width) with patch counts of their own.

        Raises:
            ValueError: a feature isn't finite in the dtype to store it in.
        """
        # copies, since the caller may use the memory again, and a view of a slice would keep all of it alive
        if isinstance(features, torch.Tensor):
            features = features.to("cpu", self.dtype, copy=True).contiguous()
        else:
            features = [feature.to("cpu", self.dtype, copy=True).contiguous() for feature in features]
        for key, feature in zip(keys, features, strict=True):
            if not torch.isfinite(feature).all():
                raise ValueError(
                    f"the features of {key} aren't finite in {self.dtype}, whose largest number is "
                    f"{torch.finfo(self.dtype).max:.4g}: store them as bfloat16 or float32, or look for infinities in "
                    "what the backbone gives"
                )
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
            path = self.path / f"shard-{self.process_index:05d}-{self._next:05d}.safetensors"
            self._writing = self._thread.submit(self._write_shard, path, self._keys, self._features)
            self._next += 1
        self._keys, self._features, self._bytes, self._since = [], [], 0, time.monotonic()

    def _wait(self) -> None:
        if self._writing is not None:
            writing, self._writing = self._writing, None
            writing.result()

    def _write_shard(self, path: Path, keys: list[str], features: list[torch.Tensor]) -> None:
        if not (self.path / "cache.json").exists():
            info = json.dumps({**self._info, "width": features[0].shape[1]}, indent=2) + "\n"
            _write_beside(self.path / "cache.json", [info.encode()])
        width = read_info(self.path)["width"]
        for feature in features:
            if feature.shape[1] != width:
                raise ValueError(
                    f"{self.path}: holds features of width {width}, not {feature.shape[1]}; use another folder"
                )
        lengths = torch.tensor([len(feature) for feature in features], dtype=torch.int32)
        keys = _key_tensor(np.array([key.encode() for key in keys], dtype=np.bytes_))
        _write_tensors(path, {"num_patches": [lengths], "features": features, "keys": [keys]})

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


def read_info(path: Path) -> dict:
    """cache.json, checked for a format that we know."""
    info = json.loads((path / "cache.json").read_text(encoding="utf-8"))
    if info.get("format") != FORMAT:
        raise ValueError(f"{path}: a feature cache of format {info.get('format')!r}; this version reads {FORMAT}")
    return info


def shard_paths(path: str | Path) -> list[Path]:
    """Finished shards, in order."""
    return sorted(Path(path).glob("shard-*.safetensors"))


def write_index(path: str | Path) -> None:
    """Join the keys of all shards into index.safetensors."""
    shards = shard_paths(path)
    if shards:
        index = join_keys(shards)
        tensors = {name: [torch.from_numpy(index[name])] for name in ("start", "shard", "num_patches")}
        tensors["keys"] = [_key_tensor(index["keys"])]
        _write_tensors(Path(path) / "index.safetensors", tensors, {"shards": _names_and_sizes(shards)})


def join_keys(shards: list[Path]) -> dict[str, np.ndarray]:
    """The index: `keys`, sorted, with `shard`, `start` (a patch) and `num_patches`; of equal keys the first counts."""
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


def read_index(path: Path, shards: list[Path]) -> dict[str, np.ndarray] | None:
    """The saved index, memory-mapped, or None when there is none for just these shards."""
    if not (path / "index.safetensors").is_file():
        return None
    arrays, metadata = _map_arrays(path / "index.safetensors", ("keys", "shard", "start", "num_patches"))
    return arrays if metadata.get("shards") == _names_and_sizes(shards) else None


def _names_and_sizes(shards: list[Path]) -> str:
    return hashlib.sha256("\n".join(f"{shard.name} {shard.stat().st_size}" for shard in shards).encode()).hexdigest()


def read_header(file) -> tuple[dict, int]:
    """A safetensors file's header and where its data begins."""
    size = int.from_bytes(file.read(8), "little")
    return json.loads(file.read(size)), 8 + size


def _map_arrays(path: Path, names: tuple[str, ...]) -> tuple[dict[str, np.ndarray], dict]:
    """Tensors of a safetensors file as memory-mapped arrays (keys as byte strings), and its metadata."""
    with path.open("rb") as file:
        header, offset = read_header(file)
    data = np.memmap(path, np.uint8, "r")
    arrays = {}
    for name in names:
        entry = header[name]
        begin, end = (offset + place for place in entry["data_offsets"])
        array = data[begin:end].view(_NUMPY_DTYPES[entry["dtype"]]).reshape(entry["shape"])
        arrays[name] = array.view(f"S{entry['shape'][1]}")[:, 0] if name == "keys" else array
    return arrays, header.get("__metadata__", {})


def _key_tensor(keys: np.ndarray) -> torch.Tensor:
    """Byte strings as (strings, longest) bytes, padded with zeros."""
    return torch.from_numpy(np.array(keys).view(np.uint8).reshape(len(keys), -1))


def _write_tensors(path: Path, tensors: dict[str, list[torch.Tensor]], metadata: dict | None = None) -> None:
    """A safetensors file of tensors that come in pieces along their first axis, which are never joined in memory."""
    header, end = {"__metadata__": metadata or {}}, 0
    for name, pieces in tensors.items():
        begin, end = end, end + sum(piece.nbytes for piece in pieces)
        shape = [sum(map(len, pieces)), *pieces[0].shape[1:]]
        header[name] = {"dtype": _DTYPE_CODES[pieces[0].dtype], "shape": shape, "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)  # the format aligns the data
    pieces = (piece.view(torch.uint8).numpy() for pieces in tensors.values() for piece in pieces)
    _write_beside(path, [len(text).to_bytes(8, "little"), text, pieces])


def _write_beside(path: Path, parts: list) -> None:
    """Write bytes, or arrays of them, under another name, then rename: under its own name a file is always whole."""
    beside = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    with beside.open("wb") as file:
        for part in parts:
            if isinstance(part, bytes):
                file.write(part)
            else:
                file.writelines(part)
        file.flush()
        os.fsync(file.fileno())
    beside.replace(path)

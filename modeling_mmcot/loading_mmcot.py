"""What `from_pretrained` checks: whole files before it loads them, all weights and no NaN afterwards."""

import contextlib
import json
import pickle
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from transformers.utils import cached_file

from .errors_mmcot import ModelError, ModelFileError

HUB_ARGUMENTS = ("cache_dir", "force_download", "local_files_only", "proxies", "revision", "subfolder", "token")
# in the order in which transformers looks for them
WEIGHT_FILES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)


def hub_arguments(kwargs: dict) -> dict:
    """Those of `from_pretrained`'s arguments that say where the files are."""
    return {name: kwargs[name] for name in HUB_ARGUMENTS if kwargs.get(name) is not None}


@contextlib.contextmanager
def loading_errors(source) -> Iterator[None]:
    """What transformers says about the files of `source`, in one line that names it."""
    try:
        yield
    except ModelError:
        raise
    except (OSError, ValueError) as error:
        kind = ModelFileError if isinstance(error, OSError) else ModelError
        raise kind(f"{source}: {' '.join(str(error).split())[:400]}") from error


def read_weights(source, **hub) -> dict[str, Tensor]:
    """A checkpoint's weights by name, mapped into memory and not read yet; pickles run no code.

    Args:
        source: folder or Hub id. Without a file that `from_pretrained` takes by default, there are none.

    Raises:
        ModelFileError: a file is missing or damaged, or isn't what its name says.
    """
    weights: dict[str, Tensor] = {}
    for path in _weight_files(source, hub):
        try:
            if path.endswith(".safetensors"):
                with safe_open(path, framework="pt") as file:
                    weights.update({name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118
            else:
                weights.update(_load_pickle(path))
        except (SafetensorError, RuntimeError, OSError, EOFError, TypeError, pickle.UnpicklingError) as error:
            raise ModelFileError(f"{path} {_what_is_wrong(path)}") from error
    return weights


def _weight_files(source, hub: dict) -> list[str]:
    for name in WEIGHT_FILES:
        path = cached_file(source, name, _raise_exceptions_for_missing_entries=False, **hub)
        if path is not None and name.endswith(".index.json"):
            try:
                shards = set(json.loads(Path(path).read_text(encoding="utf-8"))["weight_map"].values())
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                raise ModelFileError(f"{path} {_what_is_wrong(path)}") from error
            return [cached_file(source, shard, **hub) for shard in sorted(shards)]
        if path is not None:
            return [path]
    return []


def _load_pickle(path: str) -> dict[str, Tensor]:
    try:
        weights = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except RuntimeError:  # PyTorch's format before 1.6 can't be mapped
        weights = torch.load(path, map_location="cpu", weights_only=True)
    if not isinstance(weights, dict) or not all(isinstance(value, Tensor) for value in weights.values()):
        raise TypeError("not a dictionary of weights")
    return weights


def _what_is_wrong(path: str) -> str:
    with open(path, "rb") as file:
        start = file.read(64).lstrip().lower()
    if start.startswith(b"version https://git-lfs"):
        return (
            "is a Git LFS pointer, not the file itself: run `git lfs pull` where it was cloned, or download it again"
        )
    if start.startswith(b"<"):
        return "is a web page, not the file itself: download it again"
    if path.endswith(".bin"):
        return "is damaged, holds more than weights, or is not a dictionary of weights: take safetensors instead"
    return "is damaged or incomplete: download it again"


def check_loaded(source, model, info: dict, saved_config: dict, ignore_mismatched_sizes: bool = False) -> None:
    """Whether every weight of a model came from its checkpoint, and every weight of the checkpoint found a place.

    A backbone or fusion that `saved_config` doesn't have may start fresh, one that the model doesn't have may be left
    out: the caller has asked for it.

    Raises:
        ModelError: weights are missing, too many, of other shapes, or not finite; they are named.
    """
    not_in_file, not_in_model = _absent_parts(saved_config), _absent_parts(model.config.to_dict())
    mismatched = (
        [] if ignore_mismatched_sizes else [f"{name} {tuple(shape)}" for name, shape, _ in info["mismatched_keys"]]
    )
    found = {
        "lacks": [name for name in info["missing_keys"] if not _belongs(name, not_in_file)],
        "holds, without a place for them,": [
            name for name in info["unexpected_keys"] if not _belongs(name, not_in_model)
        ],
        "holds, in other shapes than config.json asks for,": mismatched,
        "holds weights that are NaN or infinite:": _not_finite(model),
    }
    for what, names in found.items():
        if names:
            more = f" and {len(names) - 5} more" if len(names) > 5 else ""
            raise ModelError(f"{source} {what} {', '.join(sorted(names)[:5])}{more}")


def _absent_parts(config: dict) -> tuple[str, ...]:
    if config.get("vision_config") is not None:
        return ()
    has_fusion = config.get("image_feature_size") is not None or config.get("model_type") == "mmcot_two_stage"
    return ("vision",) if has_fusion else ("vision", "fusion")


def _belongs(name: str, parts: tuple[str, ...]) -> bool:
    return any(f".{part}." in f".{name}" for part in parts)


def _not_finite(model) -> list[str]:
    names = []
    for name, tensor in model.state_dict().items():
        # offloaded and quantised ones are no plain numbers; a sum reads once and writes nothing
        plain = type(tensor) is Tensor and tensor.is_floating_point() and tensor.itemsize > 1 and not tensor.is_meta
        if plain and not tensor.sum(dtype=torch.float32).isfinite() and not tensor.isfinite().all():
            names.append(name)
    return names


__all__ = ["HUB_ARGUMENTS", "check_loaded", "hub_arguments", "loading_errors", "read_weights"]

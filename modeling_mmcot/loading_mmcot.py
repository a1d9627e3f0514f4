"""What `from_pretrained` checks: whole files before it loads them, all weights and no NaN afterwards."""

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError, safe_open
from torch import Tensor
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME, cached_file, logging

from .errors_mmcot import ModelError, ModelFileError

HUB_ARGUMENTS = ("cache_dir", "force_download", "local_files_only", "proxies", "revision", "subfolder", "token")


@contextlib.contextmanager
def loading_errors(source) -> Iterator[None]:
    """What transformers says about the files of `source`, in one line that names it."""
    verbosity = logging.get_verbosity()
    logging.set_verbosity(max(verbosity, logging.ERROR))  # not its table of missing weights: `check_loaded` names them
    try:
        yield
    except (OSError, ValueError, StrictDataclassError) as error:
        if isinstance(error, ModelError) and str(source) in str(error):
            raise
        kind = ModelFileError if isinstance(error, OSError) else ModelError
        raise kind(f"{source}: {' '.join(str(error).split())[:400]}") from error
    finally:
        logging.set_verbosity(verbosity)


def read_weights(source, **hub) -> dict[str, Tensor]:
    """A checkpoint's weights by name, mapped into memory and not read yet; none of another format than safetensors.

    Raises:
        ModelFileError: a file is missing or damaged, or isn't what its name says.
    """
    weights: dict[str, Tensor] = {}
    for path in weight_files(source, (SAFE_WEIGHTS_NAME, SAFE_WEIGHTS_INDEX_NAME), hub):
        try:
            with safe_open(path, framework="pt") as file:
                weights.update({name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118
        except (SafetensorError, OSError) as error:
            raise ModelFileError(f"{path} {what_is_wrong(path)}: download it again") from error
    return weights


def weight_files(source, names: tuple[str, ...], hub: dict) -> list[str]:
    """Paths of the first of these files that is there, or of the shards that it lists."""
    for name in names:
        path = cached_file(source, name, _raise_exceptions_for_missing_entries=False, **hub)
        if path is None:
            continue
        if not name.endswith(".index.json"):
            return [path]
        try:
            shards = set(json.loads(Path(path).read_text(encoding="utf-8"))["weight_map"].values())
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ModelFileError(f"{path} {what_is_wrong(path)}: download it again") from error
        return [cached_file(source, shard, **hub) for shard in sorted(shards)]
    return []


def what_is_wrong(path: str) -> str:
    """Why a file can't be read, by its first bytes."""
    with open(path, "rb") as file:
        start = file.read(64).lstrip()
    if start.startswith(b"version https://git-lfs"):
        return "is a Git LFS pointer, not the file itself (`git lfs pull` fetches it)"
    return "is a web page, not the file itself" if start.startswith(b"<") else "is damaged or incomplete"


def check_loaded(source, model, info: dict, saved_config: dict, ignore_mismatched_sizes: bool = False) -> None:
    """Checks that model and checkpoint have the same weights and that all of them are finite.

    If only one of `saved_config` and the model's configuration has a backbone or a fusion, the caller has asked for
    that: its weights may start fresh, or be left out.

    Raises:
        ModelError: weights are missing, too many, of other shapes, or not finite; they are named. Or all of them
            belong to another backbone or fusion than the caller asks for.
    """
    fresh, left_out = _absent_parts(saved_config), _absent_parts(model.config.to_dict())
    shapes = [] if ignore_mismatched_sizes else info["mismatched_keys"]
    faults = {
        "lacks": [name for name in info["missing_keys"] if fresh.isdisjoint(name.split("."))],
        "holds weights that the model does not know:": [
            name for name in info["unexpected_keys"] if left_out.isdisjoint(name.split("."))
        ],
        "holds weights of other shapes than config.json says:": [f"{name} {tuple(size)}" for name, size, _ in shapes],
        "holds weights that are NaN or infinite:": _not_finite(model),
    }
    differing = [name.split() for names in list(faults.values())[:3] for name in names]
    saved, asked = (_reading(config) for config in (saved_config, model.config.to_dict()))
    if differing and saved != asked and all({"vision", "fusion"} & set(name[0].split(".")) for name in differing):
        raise ModelError(
            f"{source} was trained to look at pictures through {saved}, and is asked to through {asked}: give the "
            "backbone that it was trained with (vision=… of its recipe), or start from a T5 that has none, such as "
            "google/flan-t5-base"
        )
    for fault, names in faults.items():
        if names:
            more = f" and {len(names) - 5} more" if len(names) > 5 else ""
            raise ModelError(f"{source} {fault} {', '.join(sorted(names)[:5])}{more}; take another copy or checkpoint")


def _reading(config: dict) -> str:
    """A configuration's backbone and fusion, in words."""
    vision = config.get("vision_config") or {}
    kind = vision.get("architecture") or vision.get("model_type") or "cached features"
    words = [f"{vision['_name_or_path']} ({kind})" if vision.get("_name_or_path") else kind]
    width = vision.get("hidden_size") or config.get("image_feature_size")
    words += [f"width {width}"] if width else []
    heads, gate = config.get("fusion_num_heads", 1), config.get("fusion_gate", "sigmoid")
    return ", ".join(words + [f"{heads} fusion heads"] * (heads != 1) + [f"a {gate} gate"] * (gate != "sigmoid"))


def _absent_parts(config: dict) -> set[str]:
    if config.get("vision_config") is not None:
        return set()
    fused = config.get("image_feature_size") is not None or config.get("model_type") == "mmcot_two_stage"
    return {"vision"} if fused else {"vision", "fusion"}


def _not_finite(model) -> list[str]:
    names = []
    for name, tensor in model.state_dict().items():
        # offloaded and quantised ones are no plain numbers; a sum reads once and writes nothing
        plain = type(tensor) is Tensor and tensor.is_floating_point() and tensor.itemsize > 1 and not tensor.is_meta
        if plain and not tensor.sum(dtype=torch.float32).isfinite() and not tensor.isfinite().all():
            names.append(name)
    return names


__all__ = ["HUB_ARGUMENTS", "check_loaded", "loading_errors", "read_weights", "weight_files", "what_is_wrong"]

"""Checkpoints that other code wrote: plain T5's, and the original Multimodal-CoT project's (amazon-science/mm-cot).

The original keeps its fusion at the top level (`image_dense.*`, the paper's first version) or in the encoder
(`encoder.image_dense.*`, later), and not its image width, which only the weights tell.
"""

import contextlib
import copy
import dataclasses
import json
import pickle
import re
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file
from transformers import GenerationConfig, PreTrainedConfig
from transformers.utils import cached_file

from .errors_mmcot import ModelError
from .vision_mmcot import build_vision

ORIGINAL_FUSION = {"image_dense": "image_proj", "gate_dense": "gate_proj", "mha_layer.out_proj": "out_proj"}
HUB_ARGUMENTS = ("cache_dir", "force_download", "local_files_only", "proxies", "revision", "subfolder", "token")
# in the order in which transformers looks for them
WEIGHT_FILES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
_FUSION_KEY = re.compile(r"^(?:encoder\.)?(image_dense|mha_layer|gate_dense)\.(.+)$")


def is_original_key(key: str) -> bool:
    """Whether the original project names a part of its fusion so, in either layout."""
    return _FUSION_KEY.match(key) is not None


def convert_original_state_dict(state_dict: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """An original checkpoint's weights under this package's names; the tensors are not copied.

    Raises:
        ModelError: a part of the fusion is missing, twice there, or unknown.
    """
    converted = {}
    for key, tensor in state_dict.items():
        match = _FUSION_KEY.match(key)
        if match is None:
            new = {key: tensor}
        elif match[1] == "mha_layer" and match[2] in ("in_proj_weight", "in_proj_bias"):
            kind = match[2].removeprefix("in_proj_")
            names = [f"encoder.fusion.{name}_proj.{kind}" for name in "qkv"]
            new = dict(zip(names, tensor.chunk(3), strict=True))
        else:
            module, _, kind = f"{match[1]}.{match[2]}".rpartition(".")
            if module not in ORIGINAL_FUSION or kind not in ("weight", "bias"):
                raise ModelError(f"unknown weight of the original's fusion: {key}")
            new = {f"encoder.fusion.{ORIGINAL_FUSION[module]}.{kind}": tensor}
        for name, value in new.items():
            if name in converted:
                raise ModelError(f"the checkpoint holds the fusion in both of the original's layouts ({key})")
            converted[name] = value
    names = ("image_proj", "q_proj", "k_proj", "v_proj", "out_proj", "gate_proj")
    expected = {f"encoder.fusion.{name}.{kind}" for name in names for kind in ("weight", "bias")}
    missing = sorted(expected - converted.keys())
    if missing:
        raise ModelError(f"the original's fusion is incomplete; without a source are {', '.join(missing)}")
    return converted


def load_t5_checkpoint(cls, load, name_or_path, *model_args, config=None, **kwargs):
    """`from_pretrained` for what may be a T5 or an original checkpoint; this package's own `load` as they are.

    Args:
        cls: the model class.
        load: `PreTrainedModel.from_pretrained`, bound to it.
        name_or_path, model_args, config, kwargs: as `from_pretrained` takes them.

    Raises:
        ModelError: not a T5; a fusion that is incomplete, of another width, or announced and not there; weights
            missing or without a place; a pickle that holds more than weights.
    """
    hub = {key: kwargs[key] for key in HUB_ARGUMENTS if kwargs.get(key) is not None}
    try:
        raw, _ = PreTrainedConfig.get_config_dict(name_or_path, **hub)
    except OSError:  # an adapter's folder, a GGUF file, nothing at all: transformers knows or says it better
        raw = {"model_type": cls.config_class.model_type}
    give_info = kwargs.pop("output_loading_info", False)
    if raw.get("model_type") == cls.config_class.model_type:
        model, info = load(name_or_path, *model_args, config=config, output_loading_info=True, **kwargs)
        if not any(is_original_key(key) for key in info["unexpected_keys"]):
            return (model, info) if give_info else model
        # our configuration beside the original's weights
    elif raw.get("model_type") not in (None, "t5"):
        raise ModelError(f"{name_or_path} is a {raw['model_type']} model; {cls.__name__} starts from T5 checkpoints")

    files = _weight_files(name_or_path, hub)
    config = _t5_config(cls, raw, config, kwargs)
    keys = _checkpoint_keys(files)
    original = any(is_original_key(key) for key in keys)
    if files and not original and any("Multimodal" in name for name in raw.get("architectures") or ()):
        raise ModelError(
            f"{name_or_path} says it is a {raw['architectures'][0]}, but holds no fusion of image and text"
        )
    kwargs["weights_only"] = True
    if original:
        state_dict = convert_original_state_dict(_read_state_dict(files))
        _fit_fusion(config, state_dict, name_or_path)
        for key in (*HUB_ARGUMENTS, "use_safetensors", "variant"):
            kwargs.pop(key, None)
        model, info = load(None, *model_args, config=config, state_dict=state_dict, output_loading_info=True, **kwargs)
        model.config.name_or_path = str(name_or_path)
        with contextlib.suppress(OSError):  # its folders rarely have one; the model's own comes from config.json
            model.generation_config = GenerationConfig.from_pretrained(name_or_path, **hub)
    else:
        model, info = load(name_or_path, *model_args, config=config, output_loading_info=True, **kwargs)
    _check_complete(
        name_or_path, info, may_be_fresh="encoder.vision." if original else ("encoder.fusion.", "encoder.vision.")
    )
    if any(key.startswith("encoder.vision.") for key in info["missing_keys"]):
        # Made again: backbones draw some of their weights where they are built, and loading builds without memory.
        model.encoder.vision = build_vision(config.vision_config).to(device=model.device, dtype=model.dtype)
        model.eval()
    if model.config.tie_word_embeddings and model.lm_head.weight is not model.shared.weight:
        # transformers kept them apart because they differ; say so, or the next tie_weights() merges them.
        for part in (model, model.encoder, model.decoder):
            part.config.tie_word_embeddings = False
    return (model, info) if give_info else model


def _weight_files(name_or_path, hub: dict) -> list[str]:
    """Paths of the checkpoint's weight files, those that transformers itself would take."""
    for name in WEIGHT_FILES:
        path = cached_file(name_or_path, name, _raise_exceptions_for_missing_entries=False, **hub)
        if path is None:
            continue
        if not name.endswith(".index.json"):
            return [path]
        shards = sorted(set(json.loads(Path(path).read_text())["weight_map"].values()))
        return [cached_file(name_or_path, shard, **hub) for shard in shards]
    return []


def _load_pickle(path: str) -> dict[str, torch.Tensor]:
    try:
        try:
            weights = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        except RuntimeError:  # PyTorch's format before 1.6 can't be mapped
            weights = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ModelError(f"{path} holds more than weights and is not loaded") from error
    if not isinstance(weights, dict) or not all(isinstance(value, torch.Tensor) for value in weights.values()):
        raise ModelError(f"{path} is not a dictionary of weights")
    return weights


def _checkpoint_keys(files: list[str]) -> set[str]:
    keys = set()
    for path in files:
        if path.endswith(".safetensors"):
            with safe_open(path, framework="pt") as handle:
                keys.update(handle.keys())
        else:
            keys.update(_load_pickle(path))
    return keys


def _read_state_dict(files: list[str]) -> dict[str, torch.Tensor]:
    state_dict = {}
    for path in files:
        state_dict.update(load_file(path) if path.endswith(".safetensors") else _load_pickle(path))
    return state_dict


def _t5_config(cls, raw: dict, config, kwargs: dict):
    """The configuration: the one given, or T5's with this package's fields from `kwargs` (which they leave)."""
    if isinstance(config, PreTrainedConfig):
        return copy.deepcopy(config)
    if config is not None:
        return cls.config_class.from_pretrained(config)
    names = {field.name for field in dataclasses.fields(cls.config_class)} - {"dtype"}
    fields = {name: kwargs.pop(name) for name in list(kwargs) if name in names}
    about_the_file = ("model_type", "architectures", "transformers_version", "auto_map")
    return cls.config_class(**{key: value for key, value in raw.items() if key not in about_the_file} | fields)


def _fit_fusion(config, state_dict: dict, name_or_path) -> None:
    """Set the image width that only an original checkpoint's weights tell."""
    size = state_dict["encoder.fusion.image_proj.weight"].shape[1]
    if config.image_feature_size not in (None, size):
        raise ModelError(
            f"{name_or_path} takes image features of width {size}, not image_feature_size={config.image_feature_size}"
        )
    if config.fusion_num_heads != 1 or config.fusion_gate != "sigmoid":
        raise ModelError("the original's fusion has one head and a sigmoid gate")
    config.image_feature_size = size


def _check_complete(name_or_path, info: dict, may_be_fresh) -> None:
    missing = sorted(key for key in info["missing_keys"] if not key.startswith(may_be_fresh))
    unexpected = sorted(info["unexpected_keys"])
    for what, keys in (("lacks", missing), ("holds, without a place for them,", unexpected)):
        if keys:
            more = f" and {len(keys) - 5} more" if len(keys) > 5 else ""
            raise ModelError(f"{name_or_path} {what} {', '.join(keys[:5])}{more}")


__all__ = ["convert_original_state_dict", "is_original_key", "load_t5_checkpoint"]

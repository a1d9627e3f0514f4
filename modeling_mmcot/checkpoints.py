"""Checkpoints that other code wrote: plain T5's, and the original Multimodal-CoT project's (amazon-science/mm-cot).

The original keeps its fusion at the top level (`image_dense.*`, the paper's first version) or in the encoder
(`encoder.image_dense.*`, later), and not its image width, which only the weights tell.

They are starting points of a training: this file stays with the installed package and goes into no Hub repository.
"""

import contextlib
import copy
import dataclasses
import pickle
import re

import torch
from torch import Tensor
from transformers import GenerationConfig, PreTrainedConfig
from transformers.utils import WEIGHTS_INDEX_NAME, WEIGHTS_NAME

from .errors_mmcot import ModelError, ModelFileError
from .loading_mmcot import HUB_ARGUMENTS, weight_files, what_is_wrong

T5_TYPES = (None, "t5", "mt5")  # mT5 is the same network with another vocabulary
ORIGINAL_FUSION = {"image_dense": "image_proj", "gate_dense": "gate_proj", "mha_layer.out_proj": "out_proj"}
_FUSION_KEY = re.compile(r"^(?:encoder\.)?(image_dense|mha_layer|gate_dense)\.(.+)$")


def is_original_key(key: str) -> bool:
    """Whether the original project names a part of its fusion so, in either layout."""
    return _FUSION_KEY.match(key) is not None


def convert_original_state_dict(state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
    """An original checkpoint's weights under this package's names; the tensors are not copied.

    Raises:
        ModelError: a part of the fusion is missing, twice there, or unknown.
    """
    converted: dict[str, Tensor] = {}
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
        twice = new.keys() & converted.keys()
        if twice:
            raise ModelError(f"the checkpoint holds the fusion in both of the original's layouts ({key})")
        converted |= new
    layers = ("image_proj", "q_proj", "k_proj", "v_proj", "out_proj", "gate_proj")
    missing = {f"encoder.fusion.{name}.{kind}" for name in layers for kind in ("weight", "bias")} - converted.keys()
    if missing:
        raise ModelError(f"the original's fusion is incomplete; without a source are {', '.join(sorted(missing))}")
    return converted


def read_pickled_weights(source, **hub) -> dict[str, Tensor]:
    """The weights in `pytorch_model.bin` or its shards, by name; code in a pickle isn't run.

    Raises:
        ModelFileError: a file is damaged or holds anything but weights.
    """
    weights: dict[str, Tensor] = {}
    for path in weight_files(source, (WEIGHTS_NAME, WEIGHTS_INDEX_NAME), hub):
        try:
            try:
                loaded = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
            except RuntimeError:  # PyTorch's format before 1.6 can't be mapped
                loaded = torch.load(path, map_location="cpu", weights_only=True)
        except pickle.UnpicklingError as error:
            raise ModelFileError(
                f"{path} {what_is_wrong(path)}, or holds more than weights: get safetensors"
            ) from error
        except (RuntimeError, OSError, EOFError) as error:
            raise ModelFileError(f"{path} {what_is_wrong(path)}: download it again, best as safetensors") from error
        if not isinstance(loaded, dict) or not all(isinstance(value, Tensor) for value in loaded.values()):
            raise ModelFileError(f"{path} is not a dictionary of weights")
        weights.update(loaded)
    return weights


def adapt_checkpoint(config_class, source, saved_config: dict, weights: dict[str, Tensor], config, kwargs: dict):
    """The configuration with which a checkpoint loads that may be a T5's or the original's.

    Args:
        config_class: of the model that is to be made.
        source: the checkpoint's name, for messages.
        saved_config, weights: what its config.json and safetensors files hold.
        config: the one that the caller gave, or None.
        kwargs: the caller's further arguments. Fields of the configuration are taken out of them; the original's
            converted weights take the place of those that say which files to read.

    Raises:
        ModelError: not a T5; a fusion that is incomplete, of another width, or announced and not there.
    """
    hub = {name: kwargs[name] for name in HUB_ARGUMENTS if kwargs.get(name) is not None}
    weights = weights or read_pickled_weights(source, **hub)
    model_type = saved_config.get("model_type")
    original = any(is_original_key(key) for key in weights)
    if model_type == config_class.model_type and not original:
        return config
    if model_type == "mmcot_two_stage":
        raise ModelError(f"{source} holds two stages: give one of them, as rationale/ of the run that made it")
    if model_type not in (*T5_TYPES, config_class.model_type):
        raise ModelError(f"{source} is a {model_type} model: choose a T5 checkpoint, or one of this package")
    if weights and not original and any("Multimodal" in name for name in saved_config.get("architectures") or ()):
        raise ModelError(
            f"{source} says it is a {saved_config['architectures'][0]}, but holds no fusion of image and text"
        )
    if config is None:
        names = {field.name for field in dataclasses.fields(config_class)} - {"dtype"}
        of_the_file = ("model_type", "architectures", "transformers_version", "auto_map", "tokenizer_class")
        fields = {key: value for key, value in saved_config.items() if key not in of_the_file}
        if model_type == "mt5":
            fields["scale_decoder_outputs"] = False  # mT5 never does, and doesn't say so
        config = config_class(**fields | {name: kwargs.pop(name) for name in list(kwargs) if name in names})
    elif isinstance(config, PreTrainedConfig):
        config = copy.deepcopy(config)
    else:
        config = config_class.from_pretrained(config)
    if original:
        state_dict = convert_original_state_dict(weights)
        _fit_fusion(config, state_dict, source)
        for name in (*HUB_ARGUMENTS, "use_safetensors", "variant"):
            kwargs.pop(name, None)
        kwargs["state_dict"] = state_dict
        with contextlib.suppress(OSError):  # such folders rarely have one
            kwargs.setdefault("generation_config", GenerationConfig.from_pretrained(source, **hub))
    return config


def _fit_fusion(config, state_dict: dict[str, Tensor], source) -> None:
    """Sets the image width that only an original checkpoint's weights tell."""
    size = state_dict["encoder.fusion.image_proj.weight"].shape[1]
    if config.image_feature_size not in (None, size):
        raise ModelError(
            f"{source} takes image features of width {size}, not image_feature_size={config.image_feature_size}"
        )
    if config.fusion_num_heads != 1 or config.fusion_gate != "sigmoid":
        raise ModelError("the original's fusion has one head and a sigmoid gate")
    config.image_feature_size = size


__all__ = ["adapt_checkpoint", "convert_original_state_dict", "is_original_key"]

"""Frozen backbones: loaded from a preset, a folder or the Hub, with their image processor, and known again."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import MODEL_MAPPING, AutoConfig, AutoImageProcessor, AutoModel, PreTrainedModel

from mmcot.backbones_mmcot import MMCoTBackbones
from mmcot.processing import MMCoTImageProcessor, image_processor_for
from mmcot.training.common import MissingFileError, UserError
from mmcot.training.features.joined import join_vision, joined_fingerprint
from mmcot.training.features.presets import VISION_PRESETS
from mmcot.vision_mmcot import check_vision


@dataclass
class Backbone:
    """A backbone, ready to run.

    Attributes:
        vision: the image model.
        image_processor: what makes its pixel values.
        info: what decides the features, as cache.json says it: `backbone` (a name for people), `vision_feature`,
            `weights` (a hash) and `preprocessing` (the image processor's settings).
    """

    vision: PreTrainedModel
    image_processor: Any
    info: dict[str, Any]


def load_backbone(backbone, image_processor=None, vision_feature: str | None = None) -> Backbone:
    """A backbone from whatever names it.

    Args:
        backbone: "detr", "vit", "clip" or "resnet", the paper's, from the Hub; another image model in a folder or on
            the Hub (of a CLIP- or SigLIP-like one its vision tower is taken); a model; or a list of such names, which
            become one backbone that reads the pixels of the first one's image processor.
        image_processor: needed with a model, else in place of the backbone's own; of the paper's backbones the
            original's.
        vision_feature: `last_hidden_state` or `pooler_output`; the preset's, or the former. Each of several keeps its
            own.

    Raises:
        MissingFileError: there is no such model, or it can't be fetched.
        UserError: it is no image model, its weights are incomplete, or it comes with code of its own; several can't
            share pixels.
    """
    if isinstance(backbone, list | tuple):
        return _load_several(list(backbone), image_processor, vision_feature)
    feature = vision_feature or "last_hidden_state"
    if isinstance(backbone, str) and backbone in VISION_PRESETS:
        name, preset = backbone, VISION_PRESETS[backbone]
        feature = vision_feature or preset.vision_feature
        vision = _load_model(preset.identifier, feature)
        image_processor = image_processor or image_processor_for(name)
    elif isinstance(backbone, str | Path):
        place = str(backbone)
        name = Path(place).resolve().name if Path(place).is_dir() else place
        vision = _load_model(place, feature)
        image_processor = image_processor or load_image_processor(place)
    elif isinstance(backbone, PreTrainedModel):
        name, vision = type(backbone).__name__, backbone
        if image_processor is None:
            raise UserError("a backbone that is given as a model needs its image_processor")
    else:
        raise UserError(f"a backbone is a name, a folder or a model, not {backbone!r:.80}")
    info = {
        "backbone": name,
        "vision_feature": feature,
        "weights": weights_fingerprint(vision, feature),
        "preprocessing": preprocessing_of(image_processor),
    }
    return Backbone(vision, image_processor, info)


def _load_several(names: list, image_processor, vision_feature: str | None) -> Backbone:
    if len(names) < 2:
        raise UserError(f"a list of backbones names two or more, not {names}")
    if vision_feature is not None:
        raise UserError(f"vision_feature {vision_feature}: each of several backbones keeps its own; leave it out")
    parts = [load_backbone(name) for name in names]
    processors = [part.image_processor for part in parts]
    if image_processor is not None:
        processors[0] = image_processor
    known, features = ([part.info[name] for part in parts] for name in ("backbone", "vision_feature"))
    vision = join_vision([part.vision for part in parts], known, processors, features)
    info = {
        "backbone": " + ".join(known),
        "vision_feature": "last_hidden_state",
        "weights": weights_fingerprint(vision),
        "preprocessing": preprocessing_of(processors[0]),
    }
    return Backbone(vision, processors[0], info)


def load_image_processor(place: str):
    """The image processor that lies beside a backbone; never runs code from there.

    Raises:
        MissingFileError: there is none.
    """
    kind = AutoImageProcessor
    file = Path(place) / "preprocessor_config.json"
    if file.is_file() and '"MMCoTImageProcessor"' in file.read_text(encoding="utf-8"):
        kind = MMCoTImageProcessor  # ours needs no code from there
    try:
        return kind.from_pretrained(place, trust_remote_code=False)
    except Exception as error:
        raise MissingFileError(
            f"{place}: its image processor can't be loaded ({_first_line(error)}); save one beside the model"
        ) from error


def weights_fingerprint(vision: PreTrainedModel, vision_feature: str = "last_hidden_state") -> str:
    """A hash of the weights that decide the features: without a pooler that isn't asked, which may be random."""
    if isinstance(vision, MMCoTBackbones):
        pairs = zip(vision.backbones, vision.config.vision_features, strict=True)
        return joined_fingerprint(vision, [weights_fingerprint(*pair) for pair in pairs])
    digest = hashlib.blake2b(digest_size=16)
    for name, value in sorted(vision.state_dict().items()):
        if vision_feature == "pooler_output" or not _is_pooler(name):
            digest.update(name.encode())
            digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def preprocessing_of(image_processor) -> dict[str, Any]:
    """An image processor's settings, as JSON; None and what says nothing about pixels left out."""
    settings = json.loads(json.dumps(image_processor.to_dict(), default=str))
    settings = {key: _without_none(value) for key, value in sorted(settings.items()) if value is not None}
    for key in ("auto_map", "processor_class", "_processor_class"):
        settings.pop(key, None)
    kind = settings.get("image_processor_type", type(image_processor).__name__)
    # the same processor on another backend, which transformers chooses by what is installed
    settings["image_processor_type"] = kind.removesuffix("Fast").removesuffix("Pil")
    return settings


def _load_model(place: str, feature: str) -> PreTrainedModel:
    known = f"a preset ({', '.join(VISION_PRESETS)})"
    if (Path(place).exists() or place.startswith((".", "/", "~"))) and not (Path(place) / "config.json").is_file():
        raise MissingFileError(f"{place}: neither {known} nor a model's folder, which has a config.json")
    if not Path(place).exists() and place.count("/") != 1:
        raise MissingFileError(f"{place}: neither {known} nor a model's folder, nor a Hub id as owner/name")
    try:
        config = AutoConfig.from_pretrained(place, trust_remote_code=False)
        tower = getattr(config, "vision_config", None)  # CLIP, SigLIP and their like: text and vision in one
        kind = AutoModel if tower is None else MODEL_MAPPING[type(tower)]
        vision, loading = kind.from_pretrained(place, trust_remote_code=False, output_loading_info=True)
    except OSError as error:  # no network, or no such file
        raise MissingFileError(f"{place}: can't get the backbone's weights: {_first_line(error)}") from error
    except Exception as error:  # of other kinds, for a config.json or weights that are damaged or of no known network
        raise UserError(f"{place}: can't be loaded as a backbone: {_first_line(error)}") from error
    lacking = [name for name in loading["missing_keys"] if feature == "pooler_output" or not _is_pooler(name)]
    lacking += [str(name[0] if isinstance(name, tuple) else name) for name in loading["mismatched_keys"]]
    if lacking:
        raise UserError(
            f"{place}: holds no weights for {len(lacking)} of the {type(vision).__name__}'s tensors, the first: "
            f"{sorted(lacking)[0]}; save the image model (the vision tower) by itself"
        )
    try:
        return check_vision(vision)
    except ValueError as error:
        raise UserError(f"{place}: {error}") from error


def _is_pooler(name: str) -> bool:
    return "pooler" in name.split(".")


def _without_none(value):
    if isinstance(value, dict):
        return {key: _without_none(item) for key, item in value.items() if item is not None}
    return value


def _first_line(error: Exception) -> str:
    """transformers' messages have several lines, of which the first says what is wrong."""
    return (str(error).strip() or type(error).__name__).partition("\n")[0][:300]

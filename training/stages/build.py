"""Processor and networks of a recipe: from a checkpoint, or fresh."""

from collections.abc import Iterable
from pathlib import Path

from transformers.utils import logging

from mmcot.training.common import MissingFileError, UserError
from mmcot.training.stages.recipe import Recipe

logger = logging.get_logger("mmcot")


def build_processor(recipe: Recipe, texts: Iterable[str] = ()):
    """The `MMCoTProcessor` of a recipe.

    Args:
        texts: what `tokenizer: train` learns its vocabulary from.
    """
    from mmcot.processing import MMCoTProcessor

    return MMCoTProcessor(
        image_processor=image_processor_of(recipe.vision, recipe.image_size),
        tokenizer=_tokenizer(recipe, texts),
        rationale_format=recipe.rationale_format,
        answer_format=recipe.answer_format,
        use_caption=recipe.use_caption,
        max_source_length=recipe.max_source_length,
        source_truncation=recipe.source_truncation,
    )


def _tokenizer(recipe: Recipe, texts: Iterable[str]):
    from transformers import AutoTokenizer

    source = recipe.tokenizer or (recipe.model if isinstance(recipe.model, str) else None)
    if source is None:
        raise UserError("tokenizer: a fresh model needs one (a folder, a tokenizer.json, a Hub id, or train)")
    if source == "train":
        from mmcot.training.stages.tokenizer import train_tokenizer

        return train_tokenizer(texts)
    if source.endswith(".json"):
        return tokenizer_from_file(source)
    try:
        return AutoTokenizer.from_pretrained(source, trust_remote_code=False)
    except (OSError, ValueError, ImportError, KeyError) as error:
        raise MissingFileError(f"tokenizer: {source}: can't be loaded: {first_line(error)}") from error


def tokenizer_from_file(path: str | Path):
    """A T5 tokenizer from its `tokenizer.json` alone, with the special tokens of T5's vocabulary."""
    from transformers import PreTrainedTokenizerFast

    if not Path(path).is_file():
        raise MissingFileError(f"tokenizer: there is no file {path}")
    return PreTrainedTokenizerFast(
        tokenizer_file=str(path), pad_token="<pad>", eos_token="</s>", unk_token="<unk>", model_max_length=10**9
    )


def image_processor_of(vision: str | dict | list | None, image_size: int | None = None):
    """The image processor of a recipe's `vision`: a preset's, a checkpoint's, or one that squeezes to `image_size`; of
    several backbones the first one's."""
    if vision is None:
        return None
    if isinstance(vision, list):
        vision = vision[0]
    from mmcot.processing import image_processor_for
    from mmcot.training.features.presets import VISION_PRESETS

    if isinstance(vision, dict):
        return image_processor_for(image_size or vision.get("image_size", 224))
    if vision in VISION_PRESETS:
        return image_processor_for(vision)
    from mmcot.training.features.backbone import load_image_processor

    return load_image_processor(vision)


def build_stage_model(recipe: Recipe, stage: str, vocab_size: int, feature_size: int | None = None):
    """The network that a stage starts from.

    Args:
        vocab_size: of the tokenizer; a checkpoint with fewer embeddings gets more.
        feature_size: width of cached image features, if those are read.

    Returns:
        `MMCoTForConditionalGeneration`, with the backbone inside unless features are cached or there is no vision.
    """
    from mmcot import MMCoTConfig, MMCoTForConditionalGeneration
    from mmcot.vision_mmcot import build_vision

    rounded = -(-vocab_size // 64) * 64  # a multiple of 64 keeps the output layer's products aligned
    settings = {
        "stage": stage,
        "prompt_format": recipe.rationale_format if stage == "rationale" else recipe.answer_format,
        "use_caption": recipe.use_caption,
        "loss_on_padding": recipe.loss_on_padding,
        "max_source_length": recipe.max_source_length,
        "source_truncation": recipe.source_truncation,
        "freeze_vision": recipe.freeze_vision,
        "image_feature_size": feature_size,
    }
    fusion = {"fusion_num_heads": recipe.fusion_num_heads, "fusion_gate": recipe.fusion_gate}
    settings |= {name: value for name, value in fusion.items() if value is not None}
    vision_config, vision, settings["vision_feature"] = (None, None, "last_hidden_state")
    if feature_size is None:
        vision_config, vision, settings["vision_feature"] = vision_of(recipe)
    if vision_config is not None:
        settings["vision_config"] = vision_config
    if isinstance(recipe.model, str):
        model = MMCoTForConditionalGeneration.from_pretrained(recipe.model, **settings)
        if vocab_size > model.config.vocab_size:
            logger.warning(
                f"the tokenizer has {vocab_size:,} tokens, {recipe.model} {model.config.vocab_size:,} embeddings: new "
                "ones are added for the others"
            )
            model.resize_token_embeddings(rounded)
    else:
        model = MMCoTForConditionalGeneration(MMCoTConfig(vocab_size=rounded, **recipe.model, **settings))
    if vision is not None:
        model.encoder.vision = vision
    elif vision_config is not None and isinstance(recipe.model, str) and model.encoder.vision is None:
        model.encoder.vision = build_vision(vision_config)
    return model


def vision_of(recipe: Recipe):
    """Configuration, pretrained backbone (None if fresh) and feature of a recipe's vision; Nones without."""
    if recipe.vision is None:
        return None, None, "last_hidden_state"
    if recipe.fresh_vision:
        from transformers import AutoConfig

        from mmcot.configuration_mmcot import MMCoTBackbonesConfig

        configs = [AutoConfig.for_model(**{"model_type": "vit"} | values) for values in recipe.backbones]
        config = configs[0]
        if len(configs) > 1:
            sides = [getattr(config, "image_size", None) for config in configs]
            config = MMCoTBackbonesConfig(backbones=configs, image_sizes=[_height_and_width(side) for side in sides])
        return config, None, recipe.vision_feature or "last_hidden_state"
    config, vision, feature = load_vision(recipe.vision)
    return config, vision, recipe.vision_feature or feature


def _height_and_width(side: int | list[int] | None) -> list[int] | None:
    return [side, side] if isinstance(side, int) else side and list(side)


def load_vision(vision: str | list[str]):
    """Configuration, pretrained backbone and feature of a preset or checkpoint, or of several."""
    from mmcot.training.features.backbone import load_backbone

    backbone = load_backbone(vision)
    return backbone.vision.config, backbone.vision, backbone.info["vision_feature"]


def first_line(error: Exception) -> str:
    """transformers' messages have several lines, of which the first says what is wrong."""
    return (str(error).strip() or type(error).__name__).partition("\n")[0][:300]

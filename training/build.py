"""Processor and networks of a recipe: from a checkpoint, or fresh."""

from collections.abc import Iterable
from pathlib import Path

from mmcot.training.recipe import Recipe


def build_processor(recipe: Recipe, texts: Iterable[str] = ()):
    """The `MMCoTProcessor` of a recipe.

    Args:
        texts: what `tokenizer: train` learns its vocabulary from.
    """
    from mmcot.processing import MMCoTProcessor

    return MMCoTProcessor(
        image_processor=_image_processor(recipe),
        tokenizer=_tokenizer(recipe, texts),
        rationale_format=recipe.rationale_format,
        answer_format=recipe.answer_format,
        use_caption=recipe.use_caption,
        max_source_length=recipe.max_source_length,
        source_truncation=recipe.source_truncation,
    )


def _tokenizer(recipe: Recipe, texts: Iterable[str]):
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    source = recipe.tokenizer or (recipe.model if isinstance(recipe.model, str) else None)
    if source is None:
        raise ValueError("tokenizer: a fresh model needs one (a folder, a tokenizer.json, a Hub id, or train)")
    if source == "train":
        from mmcot.training.tokenizer import train_tokenizer

        return train_tokenizer(texts)
    if source.endswith(".json"):
        if not Path(source).is_file():
            raise FileNotFoundError(f"tokenizer: there is no file {source}")
        return PreTrainedTokenizerFast(
            tokenizer_file=source, pad_token="<pad>", eos_token="</s>", unk_token="<unk>", model_max_length=10**9
        )
    return AutoTokenizer.from_pretrained(source)


def _image_processor(recipe: Recipe):
    if recipe.vision is None:
        return None
    from mmcot.processing import image_processor_for
    from mmcot.vision_mmcot import VISION_PRESETS

    if isinstance(recipe.vision, str) and recipe.vision not in VISION_PRESETS:
        from transformers import AutoImageProcessor

        return AutoImageProcessor.from_pretrained(recipe.vision)
    name = recipe.vision if isinstance(recipe.vision, str) else None
    size = None if name else recipe.image_size or recipe.vision.get("image_size", 224)
    return image_processor_for(name or size)


def build_stage_model(recipe: Recipe, stage: str, vocab_size: int, feature_size: int | None = None):
    """The network that a stage starts from.

    Args:
        vocab_size: of the tokenizer; used for fresh networks.
        feature_size: width of cached image features, if those are read.

    Returns:
        `MMCoTForConditionalGeneration`, with the backbone inside unless features are cached or there is no vision.
    """
    from mmcot import MMCoTConfig, MMCoTForConditionalGeneration
    from mmcot.vision_mmcot import build_vision

    settings = {
        "stage": stage,
        "prompt_format": recipe.rationale_format if stage == "rationale" else recipe.answer_format,
        "use_caption": recipe.use_caption,
        "loss_on_padding": recipe.loss_on_padding,
        "max_source_length": recipe.max_source_length,
        "freeze_vision": recipe.freeze_vision,
        "image_feature_size": feature_size,
    }
    vision_config, vision, settings["vision_feature"] = (None, None, "last_hidden_state")
    if feature_size is None:
        vision_config, vision, settings["vision_feature"] = vision_of(recipe)
    if vision_config is not None:
        settings["vision_config"] = vision_config.to_dict()
    if isinstance(recipe.model, str):
        model = MMCoTForConditionalGeneration.from_pretrained(recipe.model, **settings)
    else:
        # a multiple of 64 keeps the output layer's products aligned
        rounded = -(-vocab_size // 64) * 64
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
    from transformers import AutoConfig, AutoModel

    from mmcot.vision_mmcot import VISION_PRESETS

    if isinstance(recipe.vision, dict):
        values = dict(recipe.vision)
        model_type = values.pop("model_type", "vit")
        return AutoConfig.for_model(model_type, **values), None, recipe.vision_feature or "last_hidden_state"
    preset = VISION_PRESETS.get(recipe.vision)
    vision = AutoModel.from_pretrained(preset.identifier if preset else recipe.vision)
    feature = recipe.vision_feature or (preset.vision_feature if preset else "last_hidden_state")
    return vision.config, vision, feature

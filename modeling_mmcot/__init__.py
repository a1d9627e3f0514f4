"""Multimodal Chain-of-Thought (Zhang et al., arXiv 2302.00923).

Names are imported on first use, so that `import mmcot` costs nothing and needs no torch. The first use also makes the
classes known to transformers' auto classes: with this package imported, `AutoModel.from_pretrained` needs no remote
code.
"""

import functools
import importlib

__version__ = "0.1.0"

_HOME = {
    "MMCoTConfig": "configuration_mmcot",
    "MMCoTTwoStageConfig": "configuration_mmcot",
    "MMCoTForConditionalGeneration": "modeling_mmcot",
    "MMCoTModel": "modeling_mmcot_two_stage",
    "MMCoTPipeline": "pipeline_mmcot",
    "MMCoTProcessor": "processing.processing_mmcot",
}

__all__ = ["MMCoTConfig", "MMCoTForConditionalGeneration", "MMCoTModel", "MMCoTPipeline", "MMCoTProcessor"]
__all__ += ["MMCoTTwoStageConfig", "__version__"]


def _load(name: str):
    return getattr(importlib.import_module(f".{_HOME[name]}", __name__), name)


@functools.cache
def register_auto_classes() -> None:
    """Makes AutoConfig, AutoModel… and AutoProcessor know this package's classes; done on first use of any of them."""
    importlib.import_module(".errors_mmcot", __name__)  # first: it refuses a transformers that is too old
    from transformers import AutoConfig, AutoModel, AutoModelForImageTextToText, AutoModelForSeq2SeqLM, AutoProcessor

    importlib.import_module(".processing", __name__).register_image_processor()
    stage, two_stage = _load("MMCoTConfig"), _load("MMCoTTwoStageConfig")
    for config in (stage, two_stage):
        AutoConfig.register(config.model_type, config, exist_ok=True)
        AutoProcessor.register(config, _load("MMCoTProcessor"), exist_ok=True)
    AutoModel.register(two_stage, _load("MMCoTModel"), exist_ok=True)
    for auto in (AutoModel, AutoModelForSeq2SeqLM, AutoModelForImageTextToText):
        auto.register(stage, _load("MMCoTForConditionalGeneration"), exist_ok=True)


def __getattr__(name: str):
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    register_auto_classes()
    return _load(name)


def __dir__() -> list[str]:
    return sorted(__all__)

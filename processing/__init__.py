"""Processor, prompts and answer parsing: all text and image work of the package.

Prompts are plain Python; the processor and the image functions, which need torch and transformers, are imported on
first use.
"""

import functools
import importlib

from .prompts_mmcot import PROMPT_FORMATS, ProblemError, build_prompt, option_letter, parse_answer

_LAZY = {
    "MMCoTImageProcessor": "image_processing_mmcot",
    "MMCoTProcessor": "processing_mmcot",
    "image_processor_for": "image_presets",
    "image_references": "image_reading_mmcot",
    "load_image": "image_reading_mmcot",
    "load_images": "image_reading_mmcot",
    "read_image_bytes": "image_reading_mmcot",
}

__all__ = [*_LAZY, "PROMPT_FORMATS", "ProblemError", "build_prompt", "option_letter", "parse_answer"]  # noqa: PLE0604


def __getattr__(name: str):
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    register_image_processor()
    if name == "MMCoTProcessor":  # its tokenizer's loading looks at the model's configuration
        importlib.import_module(__package__.rpartition(".")[0]).register_auto_classes()
    return getattr(importlib.import_module(f".{_LAZY[name]}", __name__), name)


@functools.cache
def register_image_processor() -> None:
    """Let AutoImageProcessor load saved folders with our own class, without trusting the code files in them.

    Not done by the module itself, whose copies on the Hub would then replace one another.
    """
    from transformers import AutoImageProcessor

    from .image_processing_mmcot import MMCoTImageProcessor

    classes: dict[str, type] = {"torchvision": MMCoTImageProcessor, "pil": MMCoTImageProcessor}
    AutoImageProcessor.register(MMCoTImageProcessor.__name__, image_processor_classes=classes)


def __dir__() -> list[str]:
    return sorted(__all__)

"""Processor, prompts and answer parsing: all text and image work of the package.

Prompts are plain Python; the processor and the image functions, which need torch and transformers, are imported on
first use.
"""

import importlib

from .prompts_mmcot import PROMPT_FORMATS, build_prompt, option_letter, parse_answer

_LAZY = {
    "MMCoTProcessor": "processing_mmcot",
    "image_processor_for": "images_mmcot",
    "load_images": "images_mmcot",
}

__all__ = [*_LAZY, "PROMPT_FORMATS", "build_prompt", "option_letter", "parse_answer"]  # noqa: PLE0604


def __getattr__(name: str):
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_LAZY[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted(__all__)

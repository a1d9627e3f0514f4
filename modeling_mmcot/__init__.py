"""Multimodal Chain-of-Thought (Zhang et al., arXiv 2302.00923).

Names are imported on first use, so that `import mmcot` costs nothing and needs no torch.
"""

import importlib

__version__ = "0.1.0"

_HOME = {
    "MMCoTConfig": "configuration_mmcot",
    "MMCoTTwoStageConfig": "configuration_mmcot",
    "MMCoTForConditionalGeneration": "modeling_mmcot",
    "MMCoTModel": "modeling_mmcot_two_stage",
    "MMCoTPipeline": "pipeline_mmcot",
    "MMCoTProcessor": "processing",
}

__all__ = [*_HOME, "__version__"]


def __getattr__(name: str):
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_HOME[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted(__all__)

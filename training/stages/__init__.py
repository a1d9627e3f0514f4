"""From a recipe to one trained stage: build, samples, batches, trainer, predictions."""

import importlib

_HOME = {"train_stage": "fit", "training_arguments": "arguments", "predict_stage": "predict"}

__all__ = ["predict_stage", "train_stage", "training_arguments"]


def __getattr__(name: str):
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_HOME[name]}", __name__), name)

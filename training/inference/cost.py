"""What answering costs, as the header of a predictions file says it: one count for every command that predicts."""

import time
from collections.abc import Mapping
from typing import Any


def count_parameters(model, before: Mapping[str, Any] | None = None) -> int | None:
    """Parameters of the networks that answered, each counted once.

    Args:
        model: a two-stage or one-stage model, or one stage of a run.
        before: header of the stage that this one reads from. Its parameters are added, but for a backbone, which the
            two share; not if it is the same network. None if it doesn't say its own.
    """
    own = sum(weight.numel() for weight in model.parameters())
    if before is None:
        return own
    from mmcot.training.inference.fingerprint import model_fingerprint

    others = before.get("parameters")
    if others is None or before.get("fingerprint") == model_fingerprint(model):
        return others
    vision = model.encoder.vision
    return others + own - (0 if vision is None else sum(weight.numel() for weight in vision.parameters()))


def seconds_a_question(began: float, count: int, processes: int = 1, before: Mapping[str, Any] | None = None):
    """Seconds since `began` (`time.monotonic`) for each of the `count` questions that every process answered, with
    those of the stage `before`; None where either isn't known: nothing was left to answer."""
    others = 0.0 if before is None else before.get("seconds_per_question")
    return None if not count or others is None else round((time.monotonic() - began) / (count * processes) + others, 4)

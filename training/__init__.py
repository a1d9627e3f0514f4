"""Training, evaluation and publishing of Multimodal-CoT models.

Public functions can be imported from here; each is loaded on first use, so that `import mmcot.training` costs nothing.
"""

import importlib

_HOME = {
    "FeatureCache": "features.cache",
    "TwoStageTrainer": "two_stage_trainer",
    "build_few_shot_prompt": "reasoning.few_shot_prompt",
    "check_data": "data.check.problems",
    "check_images": "data.image_check",
    "check_repository": "hub.push",
    "compare_runs": "evaluation.runs",
    "content_fingerprint": "data.fingerprint",
    "convert": "hub.convert",
    "describe_source": "data.description",
    "distill": "reasoning.distill",
    "evaluate_predictions": "evaluation.scoring",
    "extract_features": "features.extract",
    "generate_problems": "data.embedded.generate",
    "image_key": "features.cache",
    "load_pipeline": "inference.predict",
    "load_problems": "data.problems",
    "load_recipe": "stages.recipe",
    "predict": "inference.predict",
    "probe": "inference.probe",
    "push": "hub.push",
    "reason": "reasoning.reason",
    "run_recipe": "train",
    "stream_problems": "data.stream",
    "tokenizer_from_file": "stages.build",
    "write_report": "report.build",
}

__all__ = [*_HOME]  # noqa: PLE0604


def __getattr__(name: str):
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_HOME[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted(__all__)

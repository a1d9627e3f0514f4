"""Local `evaluate` modules over the plain functions of `mmcot.training.evaluation`.

evaluate.load(metric_path("scienceqa_accuracy"))
evaluate.load(metric_path("rationale_scores"))
"""

from pathlib import Path

METRICS = ("scienceqa_accuracy", "rationale_scores")


def metric_path(name: str) -> str:
    """The folder to give to `evaluate.load`; needs no network."""
    if name not in METRICS:
        raise ValueError(f"there is no metric {name!r}; there are {', '.join(METRICS)}")
    return str(Path(__file__).parent / name)

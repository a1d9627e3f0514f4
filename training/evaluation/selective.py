"""Abstention: what a model gets right among the questions that it is sure enough about.

Questions are answered in the order of their confidence, the probability of the chosen option among the problem's own
(El-Yaniv and Wiener, JMLR 11, 2010; the area under the risk–coverage curve as in Geifman and El-Yaniv, 2017).
"""

from collections.abc import Mapping
from itertools import groupby
from typing import Any

from mmcot.training.common import UserError
from mmcot.training.evaluation.accuracy import wilson_interval
from mmcot.training.evaluation.answers import judged_answer, scores_of

COVERAGES = (0.25, 0.5, 0.75, 0.9, 1.0)


def confidence_of(prediction: Any, answer: int | None) -> float | None:
    """Probability that a prediction gives its answer; 0 for none, None where it has no scores."""
    if answer is None:
        return 0.0
    scores = scores_of(prediction)
    return None if scores is None else float(scores.get(chr(65 + answer), 0.0))


def risk_coverage(
    problems: Mapping[str, Mapping], predictions: Mapping[str, Any], *, abstain_below: float | None = None
) -> dict[str, Any]:
    """The risk–coverage curve of a run; and what is left where it abstains below a confidence.

    Args:
        problems, predictions: as `evaluate_predictions` takes them; predictions with `scores`.
        abstain_below: answers with a smaller probability are not given. Choose it on validation data.

    Returns:
        `{"n", "aurc": area under the curve of error against coverage in %, "curve": [{"coverage" %, "accuracy" %,
        "confidence": of the least sure answer}], one a distinct confidence, "at": its first points with at least 25,
        50, 75, 90 and 100 % of the questions[, "abstained": {"below", "answered", "coverage", "accuracy", "ci95"}]}`.
        Accuracy is of the questions that are answered. Equally confident answers are given together.

    Raises:
        UserError: a prediction has no scores, or the confidence is no probability.
    """
    if abstain_below is not None and not 0 <= abstain_below <= 1:
        raise UserError(f"a confidence lies between 0 and 1, not at {abstain_below}")
    judged = []
    for id_, problem in problems.items():
        answer = judged_answer(id_, problem, predictions[id_])
        confidence = confidence_of(predictions[id_], answer)
        if confidence is None:
            raise UserError(
                f"prediction {id_} has no scores: abstention needs the options' probabilities (mode score)"
            )
        judged.append((confidence, answer == problem["answer"]))
    judged.sort(key=lambda item: -item[0])
    n, answered, right, area, curve = len(judged), 0, 0, 0.0, []
    for confidence, group in groupby(judged, key=lambda item: item[0]):
        outcomes = [correct for _, correct in group]
        answered, right = answered + len(outcomes), right + sum(outcomes)
        area += len(outcomes) * (1 - right / answered)
        curve.append({"coverage": 100 * answered / n, "accuracy": 100 * right / answered, "confidence": confidence})
    at = [next(point for point in curve if point["coverage"] >= 100 * share - 1e-9) for share in COVERAGES]
    found: dict[str, Any] = {"n": n, "aurc": 100 * area / n, "curve": curve, "at": at}
    if abstain_below is not None:
        given = [correct for confidence, correct in judged if confidence >= abstain_below]
        left: dict[str, Any] = {"below": abstain_below, "answered": len(given), "coverage": 100 * len(given) / n}
        left["accuracy"] = 100 * sum(given) / len(given) if given else None
        left["ci95"] = [100 * bound for bound in wilson_interval(sum(given), len(given))] if given else None
        found["abstained"] = left
    return found


def format_risk_coverage(found: Mapping[str, Any]) -> str:
    """The result of `risk_coverage` as text."""
    lines = [f"answers by confidence (n = {found['n']}), area under error against coverage: {found['aurc']:.2f} %"]
    for point in found["at"]:
        coverage, accuracy, confidence = (point[name] for name in ("coverage", "accuracy", "confidence"))
        lines.append(f"  the surest {coverage:5.1f} %: {accuracy:6.2f} % right (confidence {confidence:.3f} or more)")
    if left := found.get("abstained"):
        said = f"abstaining below {left['below']}: {left['answered']} answered ({left['coverage']:.1f} %)"
        if left["answered"]:
            low, high = left["ci95"]
            said += f", {left['accuracy']:.2f} % of them right [{low:.2f}, {high:.2f}]"
        lines.append(said)
    return "\n".join(lines)

"""Abstention: the risk–coverage curve."""

import json

import pytest

from mmcot.training.common import UserError
from mmcot.training.evaluation.reading import read_predictions
from mmcot.training.evaluation.selective import format_risk_coverage, risk_coverage

PROBLEMS = {str(i): {"id": str(i), "choices": ["a", "b"], "answer": 0} for i in range(4)}


def predictions(*probabilities):
    """The option a has these probabilities."""
    return {
        str(i): {"answer": 0 if p >= 0.5 else 1, "scores": {"A": p, "B": 1 - p}} for i, p in enumerate(probabilities)
    }


def test_the_curve_by_hand():
    # in the order of confidence: right (0.9), wrong (0.8), right (0.7), wrong (0.6)
    found = risk_coverage(PROBLEMS, predictions(0.9, 0.2, 0.7, 0.4))
    assert [(point["coverage"], round(point["accuracy"], 2)) for point in found["curve"]] == [
        (25, 100), (50, 50), (75, 66.67), (100, 50)
    ]  # fmt: skip
    assert found["aurc"] == pytest.approx(100 * (0 + 1 / 2 + 1 / 3 + 1 / 2) / 4)
    assert found["at"][0]["accuracy"] == 100 and found["at"][-1]["accuracy"] == 50


def test_equal_confidences_are_answered_together():
    found = risk_coverage(PROBLEMS, predictions(0.9, 0.1, 0.9, 0.9))
    assert found["curve"] == [{"coverage": 100, "accuracy": 75, "confidence": 0.9}]
    assert found["aurc"] == pytest.approx(25)


def test_abstaining():
    found = risk_coverage(PROBLEMS, predictions(0.9, 0.2, 0.7, 0.4), abstain_below=0.75)
    assert found["abstained"]["answered"] == 2 and found["abstained"]["accuracy"] == 50
    assert "2 answered (50.0 %), 50.00 % of them right" in format_risk_coverage(found)
    at = risk_coverage(PROBLEMS, predictions(0.9, 0.2, 0.7, 0.4), abstain_below=0.7)
    assert at["abstained"]["answered"] == 3  # an answer as sure as that is given
    nothing = risk_coverage(PROBLEMS, predictions(0.9, 0.2, 0.7, 0.4), abstain_below=0.95)
    assert nothing["abstained"]["accuracy"] is None and "0 answered" in format_risk_coverage(nothing)


def test_an_unparsable_answer_is_the_least_sure_and_missing_scores_are_named():
    answers = predictions(0.9, 0.9, 0.9, 0.9)
    answers["1"] = {"answer": None, "scores": None}
    assert risk_coverage(PROBLEMS, answers)["curve"][-1]["confidence"] == 0
    answers["2"] = {"answer": 0}
    with pytest.raises(UserError, match="prediction 2 has no scores"):
        risk_coverage(PROBLEMS, answers)
    with pytest.raises(UserError, match="between 0 and 1"):
        risk_coverage(PROBLEMS, answers, abstain_below=50)


def test_scores_are_looked_up_by_letter():
    answers = {id_: {"answer": 1, "scores": {"B": 0.7, "A": 0.3}} for id_ in PROBLEMS}
    assert risk_coverage(PROBLEMS, answers)["curve"][0]["confidence"] == 0.7
    listed = {id_: {"answer": 1, "scores": [0.3, 0.7]} for id_ in PROBLEMS}
    assert risk_coverage(PROBLEMS, listed)["curve"][0]["confidence"] == 0.7


@pytest.mark.parametrize("scores", [5, "AB", [0.5, None], {"A": float("nan")}, {"A": 3}, [True, False]])
def test_scores_that_are_no_probabilities_are_named(tmp_path, scores):
    file = tmp_path / "p.jsonl"
    file.write_text(json.dumps({"id": "q1", "answer": 0, "scores": scores}))
    with pytest.raises(UserError, match="p.jsonl: prediction q1: 'scores' must be probabilities"):
        read_predictions(file)

"""What lies behind an accuracy: each question counts once, in the group that it belongs to."""

import pytest

from mmcot.training.evaluation.analysis import accuracy_by, calibration, letter_confusion, rationales_and_answers


def problem(**changes) -> dict:
    return {
        "question": "Which?",
        "choices": ["this", "that", "those"],
        "answer": 0,
        "solution": "So it is.",
        **changes,
    }


def test_a_certain_answer_is_in_the_last_bin():
    """Which ends at 100 %, and so holds it."""
    answers = {"1": {"answer": 0, "scores": [1.0, 0, 0]}, "2": {"answer": 1, "scores": [0.05, 0.95, 0]}}
    found = calibration({"1": problem(), "2": problem()}, answers)
    assert [(one["low"], one["high"], one["n"], one["accuracy"]) for one in found["bins"]] == [(90, 100, 2, 50)]
    assert found["ece"] == pytest.approx(97.5 - 50)
    # over all options: an answer's own score would give (0 + 0.95²) / 2
    assert found["brier"] == pytest.approx((0 + 0.95**2 + 0.95**2) / 2)


def test_grades_come_in_the_order_of_school():
    problems = {str(grade): problem(grade=f"grade{grade}") for grade in (10, 2, 11, 1)}
    found = accuracy_by(problems, dict.fromkeys(problems, 0), "grade")
    assert list(found) == ["grade 1", "grade 2", "grade 10", "grade 11"]


def test_every_question_counts_among_the_right_letters():
    """Those that were not answered too: else a letter seems rarer than it is."""
    problems = {"1": problem(), "2": problem(answer=1), "3": problem(answer=1)}
    found = letter_confusion(problems, {"1": 1, "2": None, "3": 1})
    assert found["right"] == {"A": 1, "B": 2, "C": 0} and found["given"] == {"A": 0, "B": 2, "C": 0}
    assert found["none"] == [0, 1, 0] and found["counts"] == [[0, 1, 0], [0, 1, 0], [0, 0, 0]]


def test_a_rationale_that_is_the_reference_is_in_the_last_bin():
    problems = {str(i): problem() for i in range(3)}
    texts = ("So it is.", "So it was, then.", "Other words.")
    answers = {str(i): {"answer": 0, "rationale": text} for i, text in enumerate(texts)}
    found = rationales_and_answers(problems, answers)
    assert sum(one["n"] for one in found["bins"]) == found["n"] == 3
    assert (found["bins"][-1]["low"], found["bins"][-1]["high"], found["bins"][-1]["n"]) == (90, 100, 1)
    assert found["exact"] == pytest.approx(100 / 3)

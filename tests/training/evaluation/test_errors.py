"""Wrong answers: the draw, labels on disk, agreement, corrections, and the indicator of hallucination."""

import json

import pytest

from mmcot.training.common import UserError
from mmcot.training.evaluation.errors import (
    LABELS,
    LabelsFile,
    agreement,
    cohens_kappa,
    corrected,
    draw_errors,
    label_shares,
    read_labels,
)
from mmcot.training.evaluation.hallucination import (
    contradictions,
    hallucination_rates,
    is_hallucinated,
    validate_indicator,
)

PROBLEMS = {str(i): {"id": str(i), "choices": ["a", "b", "c"], "answer": i % 3} for i in range(30)}
WRONG = {str(i): (i % 3 + (i % 2)) % 3 for i in range(30)}  # every odd one is wrong


def test_a_draw_is_the_seeds_alone():
    first = draw_errors(PROBLEMS, WRONG, 5, seed=1)
    assert len(first) == len(set(first)) == 5 and all(int(id_) % 2 for id_ in first)
    backwards = dict(reversed(PROBLEMS.items()))
    assert draw_errors(backwards, WRONG, 5, seed=1) == first
    assert draw_errors(PROBLEMS, WRONG, 9, seed=1)[:5] == first
    assert draw_errors(PROBLEMS, WRONG, 5, seed=2) != first
    assert sorted(draw_errors(PROBLEMS, WRONG, 50), key=int) == [str(i) for i in range(1, 30, 2)]
    assert set(draw_errors(PROBLEMS, {**WRONG, "0": None}, 99)) - set(draw_errors(PROBLEMS, WRONG, 99)) == {"0"}
    with pytest.raises(UserError, match="no answer is wrong"):
        draw_errors(PROBLEMS, {i: problem["answer"] for i, problem in PROBLEMS.items()})


def test_labels_are_on_disk_at_once_and_gone_on_with(tmp_path):
    path, header = tmp_path / "labels.jsonl", {"predictions": "x", "seed": 0, "labeller": "Ada"}
    LabelsFile(path, header).add("1", "logic")
    with path.open("a") as file:
        file.write('{"id": "3", "lab')  # the process died here
    again = LabelsFile(path, header)
    assert again.labels == {"1": "logic"}
    again.add("3", "hallucination")
    again.add("1", "other")  # the last one counts
    assert read_labels(path) == (header, {"1": "other", "3": "hallucination"})
    for changed, message in (
        ({"seed": 1}, "another sample.*seed"),
        ({"labeller": "Ben"}, "by labeller 'Ada', not 'Ben'"),
    ):
        with pytest.raises(UserError, match=message):
            LabelsFile(path, {**header, **changed})
    path.write_text('{"id": "1", "label": "nonsense"}\n')
    with pytest.raises(UserError, match="labels.jsonl, line 1: expected"):
        read_labels(path)


def test_kappa_of_a_textbook_table():
    """Cohen's kappa of 20 yes/yes, 5 yes/no, 10 no/yes, 15 no/no is 0.4."""
    first = ["yes"] * 25 + ["no"] * 25
    second = ["yes"] * 20 + ["no"] * 5 + ["yes"] * 10 + ["no"] * 15
    assert cohens_kappa(first, second) == pytest.approx(0.4)
    assert cohens_kappa(first, first) == 1 and cohens_kappa(["a"] * 3, ["a"] * 3) is None
    metrics = pytest.importorskip("sklearn.metrics", reason="scikit-learn comes with the [similarity] extra")
    names = list(LABELS)
    one, two = ([names[(i * step) % 5] for i in range(40)] for step in (1, 3))
    assert cohens_kappa(one, two) == pytest.approx(metrics.cohen_kappa_score(one, two))


def test_agreement_is_over_what_both_labelled():
    found = agreement({"1": "logic", "3": "other", "5": "logic"}, {"1": "logic", "3": "logic", "7": "logic"})
    assert (found["n"], found["agree"], found["only_one"], found["differ"]) == (2, 50, 2, ["3"])
    assert found["table"] == {"logic": {"logic": 1}, "other": {"logic": 1}} and found["kappa"] == pytest.approx(0)
    with pytest.raises(UserError, match="no question in common"):
        agreement({"1": "logic"}, {"2": "logic"})


def test_what_another_run_corrected():
    other = {**WRONG, "1": 1, "3": 0}
    labels = {"1": "hallucination", "5": "hallucination", "3": "logic"}
    found = corrected(["1", "3", "5", "7"], PROBLEMS, other, labels)
    assert {group: (row["n"], row["corrected"]) for group, row in found.items()} == {
        "all": (4, 50),
        "hallucination": (2, 50),
        "logic": (1, 100),
    }
    shares = label_shares(labels)["shares"]
    assert shares["hallucination"]["share"] == pytest.approx(200 / 3) and shares["common sense"]["count"] == 0
    with pytest.raises(UserError, match="no prediction of 7"):
        corrected(["7"], PROBLEMS, {"1": 0})


GOLD = "Magnets have two poles. In the picture, the top layer is red. It has 4 stripes. "
GOLD += "Heat flows from the egg to the pan."


@pytest.mark.parametrize(
    "statement, difference",
    [
        ("In the picture, the top layer is blue.", "red → blue"),
        ("In the picture, the bottom layer is red.", "top → bottom"),
        ("It has 5 stripes.", "4 → 5"),
        ("It has no stripes.", "4 → no"),
        ("The top layer is not red.", "- → not"),
        ("Heat flows from the pan to the egg.", "egg → pan, pan → egg"),
        ("Solution: Heat flows from the egg to the pan.\\nIt has 3 stripes.", "4 → 3"),
        ("Heat flows from the egg to the pan.nIt has 3 stripes.", "4 → 3"),  # as T5 writes a new line
    ],
)
def test_contradictions_are_found(statement, difference):
    (found,) = contradictions(statement, GOLD)
    assert found["difference"] == difference


@pytest.mark.parametrize(
    "statement",
    [
        GOLD,
        "Solution: " + GOLD.lower(),
        "The picture shows that the top layer is red.",
        "In the picture, the very top layer is red.",  # says more
        "The layer is red.",  # says less
        "Magnet has two pole.",  # endings
        "Whales are mammals that breathe air.",  # about something else
        "In the picture, the bottom bird is blue.",  # likewise: several parts differ
        "",
    ],
)
def test_what_contradicts_nothing(statement):
    assert contradictions(statement, GOLD) == []


def test_precision_and_recall_where_the_truth_is_known():
    from mmcot.training.data.embedded.misread import rationale_cases

    found = validate_indicator(rationale_cases(170, seed=3))
    assert found["n"] == 170 + found["hallucinated"] and found["hallucinated"] == 110  # 11 of 17 skills have pictures
    assert found["recall"] > 95 and 80 < found["precision"] < 100  # synonyms are its weakness
    kinds = found["kinds"]
    assert kinds["as it is"]["found"] == kinds["another order"]["found"] == 0 < kinds["synonyms"]["found"]
    few = validate_indicator([{"rationale": "It is red.", "gold": "It is blue.", "hallucinated": False}])
    assert (few["precision"], few["recall"], few["f1"]) == (0, None, 0)


def test_other_pictures_solutions_never_hold_the_own_one():
    from mmcot.training.data.embedded.generate import generate_problems
    from mmcot.training.data.embedded.misread import other_solutions, truth_of_rationale

    for index, problem in enumerate(generate_problems(34, seed=2, split="test")):
        others = other_solutions(index, seed=2, split="test")
        assert bool(others) == bool(problem["images"]) and problem["solution"] not in others
        own = f"Solution: {problem['lecture']} {problem['solution']}."
        assert (
            truth_of_rationale(own, problem, others)
            is truth_of_rationale(problem["solution"], problem, others)
            is False
        )
        assert all(truth_of_rationale(f"Solution: {text}", problem, others) is True for text in others)
        assert truth_of_rationale("So, so.", problem, others) is None


def test_rates_by_right_and_wrong_answers():
    problems = {i: {**PROBLEMS[i], "solution": "It is red.", "lecture": ""} for i in ("0", "1", "2")}
    predictions = {"0": {"answer": 0, "rationale": "It is red."}, "1": {"answer": 0, "rationale": "It is blue."}}
    predictions["2"] = {"answer": 2, "generated": {"rationale": "Solution: It is blue."}, "rationale": "x"}
    rates = hallucination_rates(problems, predictions)
    assert {group: (row["n"], row["hallucinated"]) for group, row in rates.items()} == {
        "all": (3, pytest.approx(200 / 3)),
        "right": (2, 50),
        "wrong": (1, 100),
    }
    assert is_hallucinated("It is blue.", "It is red.") and json.dumps(rates)


def test_a_file_of_something_else_is_left_alone(tmp_path):
    for content in (b'{"accuracy": 1}', b"\xff\xfe", b"a,b\n1,2"):
        file = tmp_path / "labels.jsonl"
        file.write_bytes(content)
        with pytest.raises(UserError, match="labels.jsonl: is no file of labels"):
            LabelsFile(file, {"predictions": "x", "seed": 0})
        assert file.read_bytes() == content
